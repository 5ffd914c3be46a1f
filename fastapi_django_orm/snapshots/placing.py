"""Where a changed row belongs, told without having the database sort all of them again.

Only for orders that Python decides exactly as the database does: by numbers, dates, times, and what else is
named below. A text's place depends on the database's collation; for that the list is loaded anew.
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

_ANYWHERE = frozenset({int, bool, date, datetime, time, float})
_COMPARABLE: Mapping[str, frozenset[type]] = {
    "postgresql": _ANYWHERE | {Decimal, UUID},
    "mysql": _ANYWHERE | {Decimal},  # MariaDB sorts UUIDs by their parts
    "sqlite": _ANYWHERE | {UUID},  # decimals are floats there
}
# SQLite has these as texts and numbers, and sorts those: a time with a T in it after all others of that day.
_OF_ONE_FORM = frozenset({bool, date, datetime, time, UUID})


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
    """A query's order: columns, each up or down, of which the last is the primary key.

    Attributes:
        by_form: whether two values that are equal may have different places, for they are stored otherwise.
    """

    def __init__(
        self,
        columns: Sequence[tuple[str | None, bool]],
        vendor: str,
        zone: str | None = None,
        *,
        formed: bool,
        key_formed: bool,
    ) -> None:
        """Sort by these columns.

        Args:
            columns: the names, None for the key, and whether it goes down.
            vendor: the database's, by which nulls come first or last.
            zone: the one in which times are read, if the database sorts them in another; empty if it is not
                known, None if there is no such zone.
            formed: whether all values are known to be stored in the form in which Django stores them.
            key_formed: whether the keys are.
        """
        self._columns = columns
        comparable = _COMPARABLE.get(vendor, frozenset())
        self.by_form = vendor == "sqlite" and not formed
        of_any_form = comparable - _OF_ONE_FORM if vendor == "sqlite" else comparable
        self._types = comparable if formed else of_any_form
        self._key_types = comparable if key_formed else of_any_form
        # PostgreSQL has NaN above all numbers, and null above that; the others have null below, and no NaN.
        self._null = 2 if vendor == "postgresql" else -1
        self._zone = zone

    @classmethod
    def of(cls, queryset: "QuerySet[Any, Any]", names: Sequence[str], *, formed: bool) -> "Order | None":
        """The query's order, or None if it is not one of the rows' own columns that ends in the key.

        Args:
            queryset: the query.
            names: what its rows have.
            formed: whether what the rows have is known to be stored in the form in which Django stores it.
        """
        query, pk = queryset.query, queryset.model._meta.pk
        items = list(query.order_by)
        if not items or query.extra_order_by or not query.standard_ordering:
            return None
        columns: list[tuple[str | None, bool]] = []
        for item in items:
            if not isinstance(item, str):
                return None
            name, down = item.lstrip("-"), item.startswith("-")
            if name in ("pk", pk.attname) or (name == pk.name and not pk.is_relation):
                columns.append((None, down))
            elif name in names and _sorts_as_it_reads(name, queryset):
                columns.append((name, down))
            else:
                return None
        if columns[-1][0] is not None:
            return None
        connection: Any = connections[queryset.db]
        key_formed = formed and not {"pk", pk.attname, pk.name}.isdisjoint(names)
        zone = _zone_of(connection)
        return cls(columns, connection.vendor, zone, formed=formed, key_formed=key_formed)

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
        ranks = (
            self._ranked(key, self._key_types)
            if name is None or row is None
            else self._ranked(row[name], self._types)
            for name, _ in self._columns
        )
        return tuple(
            Down(rank) if down else rank for rank, (_, down) in zip(ranks, self._columns, strict=True)
        )

    def _ranked(self, value: Any, types: frozenset[type]) -> tuple[int, Any]:
        if value is None:
            return self._null, 0
        if type(value) not in types:
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


def _sorts_as_it_reads(name: str, queryset: "QuerySet[Any, Any]") -> bool:
    """Whether the database sorts by the values that Django gives for this name."""
    try:
        expression: Any = queryset.query.chain().resolve_ref(name)
        field = expression.output_field
    except FieldError:  # of extra(); of several types
        return False
    column = getattr(expression, "target", field)
    if column.is_relation and name.rpartition("__")[2] != column.attname:
        return False  # a relation sorts by its model's own order
    # What a field makes of a value (of JSON, too) says nothing of the order of what is stored.
    return not field.get_db_converters(connections[queryset.db])
