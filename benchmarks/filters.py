"""What filtered pages cost: `python -m benchmarks.filters [ROWS]`.

Ratios to what is without a filter: answers a second of a remembered page to those of `topics.response()` from
a handler with the same parameters; the time of a first page to that of the bare query of its keys in `run()`.
"""

from __future__ import annotations

import sys
from tempfile import TemporaryDirectory

from benchmarks.children.start import outcome
from benchmarks.databases import filled, seeded
from benchmarks.peer import Way
from tests.support.servers.postgresql import PostgreSQL

ROWS = 10_000


def main(rows: int) -> None:
    """Measure on both databases, each in a process of its own, and print a table."""
    print(f"| {rows:,} rows | remembered page | first page | MiB of 10,000 pages |")
    print("|---|---|---|---|")
    with PostgreSQL() as server, TemporaryDirectory() as directory:
        urls = {
            "PostgreSQL": seeded(server, rows),
            "SQLite": filled(f"sqlite:///{directory}/topics.sqlite3", rows),
        }
        for name, url in urls.items():
            way = Way("filters", "-", "", settings={"BENCHMARK_CONN_MAX_AGE": "600"})
            found = outcome("benchmarks.children.filters", way, url, None)
            remembered = found["remembered"] / found["response"]
            first = found["first"] / found["bare"]
            print(f"| {name} | {remembered:.2f} | {first:.2f} | {found['memory'] / 2**20:.0f} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else ROWS)
