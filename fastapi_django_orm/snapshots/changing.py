"""A table with some of its rows read again: changed in place, moved, put in or taken out.

What it costs follows the number of those rows, and not the table's: the pages that they are on are made anew,
and all others are shared with the table before.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

from ..rows.codec import RowCodec
from .key_index import ABSENT, Absent
from .page_list import PageList
from .pages import Chunk, Page, begins_page, cut
from .placing import Order
from .row_cache import RowCache
from .table import Table

Place = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class NewRow:
    """A row that was read again.

    Attributes:
        key: its primary key, or what it was asked for by.
        json: its JSON.
        row: itself; None if the JSON says it all.
        codec: what reads that JSON.
    """

    key: Hashable
    json: bytes
    row: Any
    codec: RowCodec | None


def new_rows(chunk: Chunk) -> list[NewRow]:
    """A chunk's rows, one by one."""
    return list(map(NewRow, chunk.keys, chunk.json, chunk.objects, repeat(chunk.codec)))


@dataclass(slots=True)
class Edit:
    """What happens to one page.

    Attributes:
        gone: the positions of rows to take out.
        replaced: by position, rows to put in another's place.
        inserted: by position, rows to put in before it, in order.
    """

    gone: set[int] = field(default_factory=set)
    replaced: dict[int, NewRow] = field(default_factory=dict)
    inserted: dict[int, list[NewRow]] = field(default_factory=lambda: defaultdict(list))

    def apply(self, page: Page) -> Chunk:
        """The page's rows as they are now."""
        before, after = page.chunk(), Chunk([], [], [])
        for index in range(len(before) + 1):
            for new in self.inserted.get(index, ()):
                after.append(new.key, new.json, new.row)
            if index == len(before) or index in self.gone:
                continue
            if index in self.replaced:
                new = self.replaced[index]
                after.append(new.key, new.json, new.row)
            else:
                after.append(before.keys[index], before.json[index], before.objects[index])
        return after


class Changing:
    """Makes a changed table of one that has unique keys."""

    def __init__(self, table: Table, cache: RowCache, order: Order) -> None:
        """Change this table.

        Args:
            table: what there is.
            cache: reads its rows.
            order: in which they are.
        """
        self._table = table
        self._cache = cache
        self._order = order
        self._edits: dict[int, Edit] = defaultdict(Edit)
        self._gone: set[Hashable] = set()

    def changed(self, asked: Collection[Hashable], read: Mapping[Hashable, NewRow]) -> Table:
        """The table as it is now.

        Args:
            asked: the keys that were read again.
            read: those of their rows that exist.

        Raises:
            NotComparable: a row's new place cannot be told.
        """
        placed: list[tuple[Place, NewRow]] = []
        for key in asked:
            placed += self._change(key, read.get(key))
        self._insert(placed)
        return self._made() if self._edits else self._table

    def _change(self, key: Hashable, new: NewRow | None) -> list[tuple[Place, NewRow]]:
        try:
            position, index = self._table.locate(key)
        except KeyError:
            return [] if new is None else [(self._place(new), new)]
        page = self._table.pages[position]
        if new is None:
            self._edits[position].gone.add(index)
            self._gone.add(key)
        elif new.json != page.row_json(index) or new.row != (page.objects and page.objects[index]):
            if self._order.is_by_key or self._place(new) == self._place_of(page, index):
                self._edits[position].replaced[index] = new
            else:
                self._edits[position].gone.add(index)
                return [(self._place(new), new)]
        elif not self._order.is_by_key:
            self._place(new)  # to hear whether it can be told: what looks the same may be stored otherwise
        return []

    def _insert(self, placed: list[tuple[Place, NewRow]]) -> None:
        if not placed:
            return
        # The rows that go are still there to compare with: the others are in order with them as without.
        places = _Places(self)
        for place, new in sorted(placed, key=lambda item: item[0]):
            number = bisect_left(places, place)
            at_end = number == len(places)
            position, index = self._table.at(number - 1 if at_end else number) if len(places) else (0, -1)
            self._edits[position].inserted[index + at_end].append(new)

    def _place(self, new: NewRow) -> Place:
        if self._order.is_by_key:
            return self._order.place(new.key, None)
        return self._order.place(new.key, self._cache.decode(new.json) if new.row is None else new.row)

    def _place_of(self, page: Page, index: int) -> Place:
        row = None if self._order.is_by_key else self._cache.row(page, index)
        return self._order.place(page.keys[index], row)

    def place_at(self, number: int) -> Place:
        """The place of the row with this number."""
        position, index = self._table.at(number)
        return self._place_of(self._table.pages[position], index)

    def _made(self) -> Table:
        before, where = self._table, self._table.where
        assert where is not None, "rows without keys are loaded whole"
        listed = before.listed.copy() if len(before.listed) else PageList([Page.empty()])
        edited = {position: edit.apply(listed.pages[position]) for position, edit in self._edits.items()}
        made = _replace(listed, edited)
        moves: dict[Hashable, Hashable | Absent] = dict.fromkeys(self._gone, ABSENT)
        for page in made:
            moves |= {key: page.start for key in page.keys if key not in where or where[key] != page.start}
        table = Table(listed, where.changed(moves))
        table.has_unique_keys = True  # as those of the table before; each of these saves a look at all pages
        if before.has_positions_of(table, made):
            table.positions = before.positions
        return table


class _Places(Sequence[Place]):
    """The places of all rows, for a binary search."""

    def __init__(self, changing: Changing) -> None:
        self._changing = changing

    def __len__(self) -> int:
        return len(self._changing._table)

    def __getitem__(self, number: Any) -> Any:
        return self._changing.place_at(number)


def _replace(listed: PageList, edited: dict[int, Chunk]) -> list[Page]:
    """Put pages of the edited rows in the place of the old ones; returns the new pages."""
    made: list[Page] = []
    todo = sorted(edited)
    while todo:
        position = todo.pop()
        chunk = edited[position]
        new: list[Page] = []
        if chunk.keys and position and not begins_page(chunk.keys[0]):
            # The row that began the page has gone, so the others belong to the page before.
            if not todo or todo[-1] != position - 1:
                todo.append(position - 1)
                edited[position - 1] = listed.pages[position - 1].chunk()
            edited[position - 1].extend(chunk)
        else:
            new = list(cut([chunk]))
        listed.replace(position, new)
        made += new
    return made
