"""Where a changed row belongs, told without having the database sort all of them again.

Only for orders by columns, and by values that Python sorts exactly as the database does: numbers, dates,
times, and what else is named below. A text's place depends on the database's collation, and an annotation's
value may be shown otherwise than it is sorted. For these the list is loaded anew.
"""

from collections.abc import Hashable, Mapping, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from math import isnan
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from django.core.exceptions import FieldError
from django.db import connections
from django.db.models import QuerySet
from django.db.models.expressions import Col

_COMPARABLE: Mapping[str, frozenset[type]] = {
    "postgresql": frozenset({int, bool, date, datetime, time, float, Decimal, UUID}),
    # MariaDB sorts UUIDs by their parts, and shows of a FLOAT fewer digits than it sorts by.
    "mysql": frozenset({int, bool, date, datetime, time, Decimal}),
    # SQLite has everything else as texts and numbers, which others may write in more than one form.
    "sqlite": frozenset({int, float}),
}


class NotComparable(Exception):
    """A value of which Python cannot tell where the database sorts it."""


class Down:
    """A value that sorts the other way round."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __lt__(self, other: "Down") -> bool:
        return bool(other.value < self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Down) and bool(self.value == other.value)

    __hash__ = None  # type: ignore[assignment]  # for sorting alone


class Order:
    """A query's order: columns, each up or down, of which the last is the primary key."""

    def __init__(
        self, columns: Sequence[tuple[str | None, bool]], vendor: str, zone: str | None = None
    ) -> None:
        """Sort by these columns.

        Args:
            columns: the names, None for the key, and whether it goes down.
            vendor: the database's, by which nulls come first or last.
            zone: the one in which times are read, if the database sorts them in another; empty if it is not
                known, None if there is no such zone.
        """
        self._columns = columns
        self._types = _COMPARABLE.get(vendor, frozenset())
        # PostgreSQL has NaN above all numbers, and null above that; the others have null below, and no NaN.
        self._null = 2 if vendor == "postgresql" else -1
        self._zone = zone

    @classmethod
    def of(cls, queryset: "QuerySet[Any, Any]", names: Sequence[str]) -> "Order | str":
        """The query's order, or why Python cannot tell it.

        Args:
            queryset: the query.
            names: what its rows have.
        """
        query: Any = queryset.query
        pk: Any = queryset.model._meta.pk
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
            if not (_is_plain_key(queryset) if is_key else _is_sorted_as_it_reads(name, queryset)):
                return f"the order goes by {name}, which is not a plain column"
            columns.append((None if is_key else name, down))
        if columns[-1][0] is not None:
            return "the order does not end in the key"
        connection: Any = connections[queryset.db]
        return cls(columns, connection.vendor, _zone_of(connection))

    @property
    def is_by_key(self) -> bool:
        """Whether the key alone decides."""
        return len(self._columns) == 1

    def place(self, key: Hashable, row: Mapping[str, Any] | None) -> tuple[Any, ...]:
        """What to compare rows by.

        Args:
            key: the row's key.
            row: the row; it may be missing where ``is_by_key``.

        Raises:
            NotComparable: this row's place cannot be told.
        """
        ranks = (self._ranked(key if name is None or row is None else row[name]) for name, _ in self._columns)
        return tuple(
            Down(rank) if down else rank for rank, (_, down) in zip(ranks, self._columns, strict=True)
        )

    def _ranked(self, value: Any) -> tuple[int, Any]:
        if value is None:
            return self._null, 0
        if type(value) not in self._types:
            raise NotComparable
        if self._zone is not None and isinstance(value, datetime) and _may_come_twice(value, self._zone):
            raise NotComparable
        return (1, 0) if isinstance(value, float | Decimal) and isnan(value) else (0, value)


def _zone_of(connection: Any) -> str | None:
    """The zone in which times are read, if the database keeps and sorts them in UTC and that is another.

    The others keep what is read: without USE_TZ times without a zone, and else times in the database's zone.
    """
    name = connection.timezone_name
    return None if connection.vendor != "postgresql" or name == "UTC" else name or ""


def _may_come_twice(moment: datetime, zone: str) -> bool:
    """Whether a zone's clocks show this twice, being put back in between. Python compares what they show."""
    if not zone:
        return True
    local = moment.replace(tzinfo=ZoneInfo(zone))
    return local.replace(fold=0).utcoffset() != local.replace(fold=1).utcoffset()


def _is_plain_key(queryset: "QuerySet[Any, Any]") -> bool:
    """Whether the database sorts by the very keys that Django gives."""
    connection = connections[queryset.db]
    field: Any = queryset.model._meta.pk
    while field.is_relation and not field.get_db_converters(connection):
        field = field.target_field
    return not field.get_db_converters(connection)


def _is_sorted_as_it_reads(name: str, queryset: "QuerySet[Any, Any]") -> bool:
    """Whether the database sorts by the very values that Django gives for this name: those of a column."""
    try:
        column: Any = queryset.query.chain().resolve_ref(name)
    except FieldError:  # of extra(); of several types
        return False
    if type(column) is not Col:
        return False
    if column.target.is_relation and name.rpartition("__")[2] != column.target.attname:
        return False  # a relation sorts by its model's own order
    # What a field makes of a value (of JSON, too) says nothing of the order of what is stored.
    return not column.get_db_converters(connections[queryset.db])
