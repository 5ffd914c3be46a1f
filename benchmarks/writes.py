"""What writes cost: `python -m benchmarks.writes [ROWS]`.

Ratios of time: `create()` to `full_clean()` and `Model.objects.create()` in `run()`, which makes no row for a
client and leaves the list in memory as it was. The list has so many rows before.
"""

from __future__ import annotations

import sys
from tempfile import TemporaryDirectory

from benchmarks.announcing import DURABLE
from benchmarks.children.start import outcome
from benchmarks.databases import filled, seeded
from benchmarks.peer import Way
from tests.support.servers.postgresql import PostgreSQL

ROWS = 10_000


def main(rows: int) -> None:
    """Measure on both databases, each in a process of its own, and print a table."""
    print(f"| {rows:,} rows | Django alone | `create()` of a Repository | of a CachedRepository |")
    print("|---|---|---|---|")
    with PostgreSQL() as server, PostgreSQL(settings=DURABLE) as durable, TemporaryDirectory() as directory:
        urls = {
            "PostgreSQL": seeded(durable, rows),
            "PostgreSQL without fsync": seeded(server, rows),
            "SQLite": filled(f"sqlite:///{directory}/topics.sqlite3", rows),
        }
        for name, url in urls.items():
            way = Way("writes", "-", "", settings={"BENCHMARK_CONN_MAX_AGE": "600"})
            for kind, found in outcome("benchmarks.children.writes", way, url, None).items():
                alone = found["alone"]
                live, cached = found["live"] / alone, found["cached"] / alone
                print(f"| {name}, {kind} | {alone * 1e6:.0f} µs | {live:.2f} | {cached:.2f} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else ROWS)
