"""A table with some of its rows read again: changed in place, moved, put in or taken out.

The cost follows the number of those rows and not the table's: the pages that they are on are made anew, and
all others are shared with the table before.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any

from ..reading.codec import Chunk, EncodedRow
from .key_index import REMOVED, Removed
from .ordering import Order
from .pages import HEAD, Page, begins_page, cut
from .snapshot import RowCache
from .table import Table

Place = tuple[Any, ...]


class _Edit:
    """What happens to one page, by the positions of its rows."""

    __slots__ = ("gone", "inserted", "replaced")

    def __init__(self) -> None:
        self.gone: set[int] = set()
        self.replaced: dict[int, EncodedRow] = {}
        self.inserted: dict[int, list[EncodedRow]] = defaultdict(list)  # before that row, in order

    def applied_to(self, page: Page) -> Chunk:
        before, after = page.chunk(), Chunk([], [], [])
        for index in range(len(before) + 1):
            for new in self.inserted.get(index, ()):
                after.append(new.key, new.json, new.row)
            if index == len(before) or index in self.gone:
                continue
            if (row := self.replaced.get(index)) is not None:
                after.append(row.key, row.json, row.row)
            else:
                after.append(before.keys[index], before.json[index], before.objects[index])
        return after


class Changing:
    """Makes a changed table of one that has unique keys."""

    def __init__(self, table: Table, cache: RowCache, order: Order) -> None:
        self._table = table
        self._cache = cache
        self._order = order
        self._edits: dict[int, _Edit] = defaultdict(_Edit)
        self._gone: set[Hashable] = set()

    def changed(self, asked: Collection[Hashable], read: Mapping[Hashable, EncodedRow]) -> Table:
        """Return the table as it is now; of the keys that were read again, ``read`` has the rows that exist.

        Raises:
            NotComparable: a row's new place cannot be told.
        """
        placed: list[tuple[Place, EncodedRow]] = []
        for key in asked:
            placed += self._change(key, read.get(key))
        # The rows that go are still there to compare with: the others are in order with them as without.
        numbers = range(len(self._table))
        for place, new in sorted(placed, key=lambda item: item[0]):
            number = bisect_left(numbers, place, key=self._place_at)
            at_end = number == len(numbers)
            position, index = self._table.at(number - at_end) if numbers else (0, -1)
            self._edits[position].inserted[index + at_end].append(new)
        return self._made() if self._edits else self._table

    def _change(self, key: Hashable, new: EncodedRow | None) -> list[tuple[Place, EncodedRow]]:
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
            self._place(new)  # it raises if the place cannot be told: two forms of one text may be stored
        return []

    def _place(self, new: EncodedRow) -> Place:
        if self._order.is_by_key:
            return self._order.place(new.key, None)
        return self._order.place(new.key, self._cache.decode(new.json) if new.row is None else new.row)

    def _place_of(self, page: Page, index: int) -> Place:
        row = None if self._order.is_by_key else self._cache.row(page, index)
        return self._order.place(page.keys[index], row)

    def _place_at(self, number: int) -> Place:
        position, index = self._table.at(number)
        return self._place_of(self._table.pages[position], index)

    def _made(self) -> Table:
        before, where = self._table, self._table.where
        assert where is not None, "rows without keys are loaded whole"
        if not before.pages:
            before = Table([Page(HEAD, Chunk([], [], []))], where)
        changes = self._changes(before.pages)
        moves: dict[Hashable, Hashable | Removed] = dict.fromkeys(self._gone, REMOVED)
        for _, new in changes:
            for page in new:
                moves |= {key: page.start for key in page.keys if where.get(key, REMOVED) != page.start}
        return before.replaced(changes, where.changed(moves))

    def _changes(self, pages: Sequence[Page]) -> list[tuple[int, list[Page]]]:
        """The edited pages, cut anew, from the last to the first."""
        edited = {position: edit.applied_to(pages[position]) for position, edit in self._edits.items()}
        changes: list[tuple[int, list[Page]]] = []
        todo = sorted(edited)
        while todo:
            position = todo.pop()
            chunk = edited[position]
            new: list[Page] = []
            if chunk.keys and position and not begins_page(chunk.keys[0]):
                # The row that began the page has gone, so the others belong to the page before.
                if not todo or todo[-1] != position - 1:
                    todo.append(position - 1)
                    edited[position - 1] = pages[position - 1].chunk()
                edited[position - 1].extend(chunk)
            else:
                new = list(cut([chunk]))
            changes.append((position, new))
        return changes
