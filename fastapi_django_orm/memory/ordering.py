"""Where a changed row belongs, without having the database sort all rows again.

Only for orders by columns, and by values that Python sorts exactly as the database does: numbers, dates and
times. A text's place depends on the database's collation, and an annotation's value may be shown in another
form than it is sorted by. Where Python cannot say where a row stands, everything is loaded.
"""

from collections.abc import Hashable, Mapping, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from math import isnan
from typing import Any
from uuid import UUID

from django.core.exceptions import FieldError
from django.db import connections
from django.db.models import QuerySet
from django.db.models.expressions import Col

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
