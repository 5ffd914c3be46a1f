"""A table with some of its rows read again: changed in place, moved, put in or taken out.

The cost follows the number of those rows and not the table's: the pages that they are on are made anew, and
all others are shared with the table before.

A row's new place is told without having the database sort all rows again. That is possible only for orders by
columns, and by values that Python sorts exactly as the database does: numbers, dates and times. A text's
place depends on the database's collation, and an annotation's value may be shown in another form than it is
sorted by. Where Python cannot say where a row stands, everything is loaded.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Hashable, Mapping, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from math import isnan
from typing import Any
from uuid import UUID

from django.core.exceptions import FieldError
from django.db import connections
from django.db.models import QuerySet
from django.db.models.expressions import Col

from ..reading.codec import Chunk, EncodedRow
from .key_index import REMOVED, Removed
from .pages import HEAD, Page, begins_page, cut
from .snapshot import RowCache
from .table import Table

Place = tuple[Any, ...]

_COMPARABLE: Mapping[str, frozenset[type]] = {
    "postgresql": frozenset({int, bool, date, datetime, time, float, Decimal, UUID}),
    # MariaDB sorts UUIDs by their parts, and shows fewer digits of a FLOAT than it sorts by.
    "mysql": frozenset({int, bool, date, datetime, time, Decimal}),
    # SQLite has everything else as texts and numbers, which others may write in more than one form.
    "sqlite": frozenset({int, float}),
}


class NotComparable(Exception):
    """A value of which Python cannot tell where the database sorts it."""


class _Descending:
    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __lt__(self, other: "_Descending") -> bool:
        return bool(other.value < self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Descending) and bool(self.value == other.value)

    __hash__ = None  # type: ignore[assignment]  # for sorting alone


class Order:
    """A query's order: columns, each up or down, of which the last is the primary key.

    Attributes:
        is_by_key: whether the key alone decides.
    """

    def __init__(self, columns: Sequence[tuple[str | None, bool]], connection: Any) -> None:
        """Sort by these columns: their names, None for the key, and whether they go down."""
        self.is_by_key = len(columns) == 1
        self._columns = columns
        self._types = _COMPARABLE.get(connection.vendor, frozenset())
        # PostgreSQL has null above all values, the others below.
        self._null = 1 if connection.vendor == "postgresql" else -1
        if connection.vendor == "postgresql" and connection.timezone_name != "UTC":
            self._types -= {datetime}  # it sorts them in UTC, and clocks that are put back show an hour twice

    @classmethod
    def of(cls, queryset: "QuerySet[Any, Any]", names: Sequence[str]) -> "Order | str":
        """Return the order of a query with these columns, or why Python cannot tell it."""
        query: Any = queryset.query
        pk: Any = queryset.model._meta.pk
        connection: Any = connections[queryset.db]
        items = list(query.order_by)
        if not items or query.extra_order_by or query.extra or not query.standard_ordering:
            return "the order is not one by fields"
        columns: list[tuple[str | None, bool]] = []
        for item in items:
            if not isinstance(item, str):
                return f"the order goes by {item}"
            name, down = item.lstrip("-"), item.startswith("-")
            is_key = name in ("pk", pk.attname) or (name == pk.name and not pk.is_relation)
            if not is_key and name not in names:
                return f"the order goes by {name}, which is not among the fields"
            if not (_is_plain_key(pk, connection) if is_key else _is_column(name, queryset)):
                return f"the order goes by {name}, which is not a plain column"
            columns.append((None if is_key else name, down))
        if columns[-1][0] is not None:
            return "the order does not end in the key"
        return cls(columns, connection)

    def place(self, key: Hashable, row: Mapping[str, Any] | None) -> tuple[Any, ...]:
        """Return what to compare a row by; the row may be missing where ``is_by_key``.

        Raises:
            NotComparable: this row's place cannot be told.
        """
        place: list[Any] = []
        for name, down in self._columns:
            rank = self._rank(key if name is None or row is None else row[name])
            place.append(_Descending(rank) if down else rank)
        return tuple(place)

    def _rank(self, value: Any) -> tuple[int, Any]:
        if value is None:
            return self._null, 0
        if type(value) not in self._types:
            raise NotComparable
        if isinstance(value, float | Decimal) and isnan(value):  # which PostgreSQL sorts and Python does not
            raise NotComparable
        return 0, value


def _is_plain_key(field: Any, connection: Any) -> bool:
    """Whether the database sorts by the same keys that Django gives."""
    while field.is_relation and not field.get_db_converters(connection):
        field = field.target_field
    return not field.get_db_converters(connection)


def _is_column(name: str, queryset: "QuerySet[Any, Any]") -> bool:
    """Whether the database sorts by the same values that Django gives for this name: those of a column."""
    try:
        column: Any = queryset.query.chain().resolve_ref(name)
    except FieldError:  # of extra(); of several types
        return False
    if type(column) is not Col:
        return False
    if column.target.is_relation and name.rpartition("__")[2] != column.target.attname:
        return False  # a relation sorts by its model's own order
    # What a field makes of a value (of JSON, too) says nothing about the order of what is stored.
    return not column.get_db_converters(connections[queryset.db])


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
