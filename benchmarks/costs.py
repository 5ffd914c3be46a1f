"""What a list takes in memory, by how it is declared: `python -m benchmarks.costs [ROWS]`.

Figures are ratios to the bytes of the list's JSON: 2.0 is twice as much memory as the JSON text alone.
"""

from __future__ import annotations

import sys

from benchmarks.children.costs import CASES
from benchmarks.children.start import outcome
from benchmarks.databases import seeded
from benchmarks.peer import Way
from tests.support.servers.postgresql import PostgreSQL

ROWS = 200_000
NAMES = {
    "plain": "as it is",
    "index": "one index",
    "kept": "`max_decoded_rows` for all rows",
    "schema": "a `schema`",
}
NAMES["schema_index"] = "a `schema` and one index"
COLUMNS = ("kept", "read", "refreshed", "peak", "peak_of_refresh")


def main(rows: int) -> None:
    """Measure each case in a process of its own, and print a table."""
    columns = "loaded | every row read | every row changed | peak of a load | peak of a refresh"
    print(f"| {rows:,} rows | {columns} |")
    print("|---|---|---|---|---|---|")
    with PostgreSQL() as server:
        for case in CASES:
            url = seeded(server, rows)
            found = outcome("benchmarks.children.costs", Way("costs", case, ""), url, None, rows)
            ratios = " | ".join(f"{found[column] / found['json']:.1f}" for column in COLUMNS)
            print(f"| {NAMES[case]} | {ratios} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else ROWS)
