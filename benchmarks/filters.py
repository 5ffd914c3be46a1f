"""What filtered pages cost: `python -m benchmarks.filters [ROWS]`.

Answers a second of a remembered page, as a share of those of `topics.response()` from a handler with the same
parameters. The time of a first page, as a multiple of the bare query of its keys in `run()`: of a page that
the filter fills, whose bare query ends after 50 rows, while the total needs all (so also as a multiple of
this query and `count()`); and of a page that has all rows which the filter selects.
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
    print(f"| {rows:,} rows | remembered | first, full | with count() | first, all | MiB of 10,000 pages |")
    print("|---|---|---|---|---|---|")
    with PostgreSQL() as server, TemporaryDirectory() as directory:
        urls = {
            "PostgreSQL": seeded(server, rows),
            "SQLite": filled(f"sqlite:///{directory}/topics.sqlite3", rows),
        }
        for name, url in urls.items():
            way = Way("filters", "-", "", settings={"BENCHMARK_CONN_MAX_AGE": "600"})
            found = outcome("benchmarks.children.filters", way, url, None)
            ratios = (
                found["response"] / found["remembered"],
                found["first"] / found["bare"],
                found["first"] / found["counted"],
                found["first_of_few"] / found["bare_of_few"],
            )
            shown = " | ".join(f"{each:.2f}" for each in ratios)
            print(f"| {name} | {shown} | {found['memory'] / 2**20:.0f} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else ROWS)
