"""The application's lists, and what every answer of each must be, whatever was written meanwhile.

A row must be one that was committed: not torn (its seal fits) and not of a transaction that was rolled back
(no mark). A list must have each key once, its rows in order, all rows that no commit deletes, and none that
its filter leaves out. The sum over accounts is only asked of the list whose rows are declared to depend on
each other: after a refresh of keys, rows of one transaction may be there a moment before the others are.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tests.soak.checks import Check, Row, ascending, balanced, committed, only_open, pinned, sealed, unique
from tests.soak.plan import ACCOUNTS, BEACON, PINNED_ITEMS, PINNED_SHELVES


@dataclass(frozen=True, slots=True)
class List:
    """One.

    Attributes:
        path: where it is.
        rows: what holds for any of its rows.
        whole: what holds for all of them together.
        weight: how often it is asked for, among the others.
        parts: whether a part of it and single rows can be asked for.
    """

    path: str
    rows: tuple[Check, ...] = ()
    whole: tuple[Check, ...] = ()
    weight: float = 1.0
    parts: bool = False

    @property
    def name(self) -> str:
        """The key in the JSON, which is the repository's name."""
        return "open_items" if self.path == "/open/" else self.path.strip("/")

    def faults(self, rows: list[Row], *, whole: bool) -> Iterator[str]:
        """What is wrong with these."""
        for check in (*self.rows, *(self.whole if whole else ())):
            yield from check(rows)


def beacon_of(rows: list[Row]) -> int | None:
    """The number to which the beacon had counted, if it is among the rows."""
    for row in rows:
        if row["id"] == BEACON and (found := re.fullmatch("beacon (.*)", row.get("title", ""))):
            return int(found[1])
    return None


_ITEM = (sealed("stock_item"), committed)
_ITEMS = (unique, pinned(PINNED_ITEMS))
_SHELF_OF_ITEM = sealed("stock_shelf", id="shelf_id", name="shelf__name", seal="shelf__seal")
_ACCOUNT = (sealed("stock_account"),)
_ACCOUNTS = (unique, pinned(ACCOUNTS), ascending("id"))

LISTS = (
    List("/items/", _ITEM, (*_ITEMS, ascending("number", "id")), 2.0, parts=True),
    List("/open/", (*_ITEM, only_open), (unique, ascending("number", "id", down=True)), parts=True),
    List("/titles/", _ITEM, _ITEMS),
    List("/placed/", (_SHELF_OF_ITEM, committed), (*_ITEMS, ascending("id"))),
    List("/shelves/", (sealed("stock_shelf"),), (unique, pinned(PINNED_SHELVES))),
    List("/accounts/", _ACCOUNT, _ACCOUNTS, 2.0, parts=True),
    List("/books/", _ACCOUNT, (*_ACCOUNTS, balanced), 2.0),
)
