"""What rows and lists must be at any time, each a generator of what is wrong."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from tests.soak.plan import NEVER, TOTAL
from tests.soak.seals import SEALED, seal

Row = dict[str, Any]
Check = Callable[[list[Row]], Iterator[str]]


def sealed(table: str, **shown: str) -> Check:
    """Each row has the seal of its own columns, of which some may be shown under other names."""
    names = {name: shown.get(name, name) for name in (*SEALED[table], "seal")}

    def check(rows: list[Row]) -> Iterator[str]:
        for row in rows:
            columns = {name: row[field] for name, field in names.items()}
            if columns["seal"] != seal(table, columns):
                yield f"a torn row: {row}"

    return check


def committed(rows: list[Row]) -> Iterator[str]:
    """No row has the mark of what was rolled back."""
    for row in rows:
        if row["title"].startswith(NEVER):
            yield f"a row that was never committed: {row}"


def unique(rows: list[Row]) -> Iterator[str]:
    """Each key is there once."""
    for key, times in Counter(row["id"] for row in rows).items():
        if times > 1:
            yield f"{times} rows with the key {key}"


def pinned(most: int) -> Check:
    """The rows are there that no commit deletes."""

    def check(rows: list[Row]) -> Iterator[str]:
        if missing := set(range(1, most + 1)) - {row["id"] for row in rows}:
            yield f"rows are missing that were never deleted: {sorted(missing)}"

    return check


def ascending(*names: str, down: bool = False) -> Check:
    """They are in order."""

    def check(rows: list[Row]) -> Iterator[str]:
        places = [tuple(row[name] for name in names) for row in rows]
        if places != sorted(places, reverse=down):
            wrong = next(n for n in range(1, len(places)) if (places[n] < places[n - 1]) != down)
            yield f"rows are not in order: {rows[wrong - 1]} before {rows[wrong]}"

    return check


def only_open(rows: list[Row]) -> Iterator[str]:
    """None is there that the filter leaves out."""
    for row in rows:
        if row["is_open"] is not True:
            yield f"a row that the filter leaves out: {row}"


def balanced(rows: list[Row]) -> Iterator[str]:
    """Nothing was lost between two accounts."""
    total = sum(row["balance"] for row in rows)
    if total != TOTAL:
        yield f"balances add up to {total}, not {TOTAL}: half a transaction"
