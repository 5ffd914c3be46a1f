"""Keys: the columns that are read so that each row comes with its key, and the forms of a key."""

import re
from collections.abc import Callable, Collection, Hashable, Sequence
from itertools import starmap
from math import isfinite
from operator import itemgetter
from typing import Any, cast

from django.core.exceptions import ValidationError
from django.db import DataError, connections
from django.db.models import CompositePrimaryKey, Field, QuerySet

from ..errors import LazyValue

AnyQuerySet = QuerySet[Any, Any]

# Errors that one key may be to blame for when several are read together.
OF_ONE_KEY = (DataError, ValueError, TypeError, ArithmeticError, ValidationError, LazyValue)

# How types begin whose equal values have one form, or are equal in Python, too.
_PLAIN = re.compile(
    "big|blob|bool|bytea|date|decimal|double|float|inet|int|numeric|real|serial|small|time|tinyint|uuid"
)
_EXACT_TEXT = {"postgresql": ("varchar", "text"), "sqlite": ("varchar", "text", "char")}


def with_key(
    queryset: AnyQuerySet, names: Sequence[str], key: str = "pk"
) -> tuple[AnyQuerySet, Callable[[tuple[Any, ...]], Any]]:
    """Return the query for tuples that begin with these columns, and what takes the key out of such a tuple.

    No column is read twice. That would do harm where a filter uses a window function: Django puts such a
    query into another one and sorts that by the numbers of its columns, which are wrong then. It even leaves
    columns of a composite key out, so these are read, and sorted by, one by one.
    """
    parts = _parts(queryset, names, key)
    columns = (*names, *(part for part in parts if part not in names))
    return _sorted(queryset).values_list(*columns), itemgetter(*map(columns.index, parts))


def _parts(queryset: AnyQuerySet, names: Sequence[str], key: str) -> Sequence[str]:
    """The columns that make the key, by the names that they are read by already, if they are."""
    if key != "pk" or queryset.query.extra:  # which may give something else under a column's name
        return (key,)
    pk: Any = queryset.model._meta.pk
    if (parts := _composed_of(pk)) and "pk" not in names:
        return parts
    return (next((name for name in ("pk", pk.attname, pk.name) if name in names), "pk"),)


def _composed_of(pk: Any) -> list[str]:
    parts: Any = pk.fields if isinstance(pk, CompositePrimaryKey) else ()
    return [part.attname for part in parts]


def _sorted(queryset: AnyQuerySet) -> AnyQuerySet:
    parts = _composed_of(queryset.model._meta.pk)
    if not parts or not queryset.query.where.contains_over_clause:
        return queryset
    items: Any = queryset.query.order_by
    order: list[Any] = []
    for item in items:
        order += [item[:-2] + part for part in parts] if item in ("pk", "-pk") else [item]
    queryset = queryset.all()
    queryset.query.order_by = tuple(order)  # order_by() refuses a slice
    return queryset


def prepared(field: Any, value: Any) -> Hashable:
    """Return a value in the form in which queries use it: 5 for ``"5"``.

    Raises:
        OF_ONE_KEY: the field has no such values.
    """
    if isinstance(field, CompositePrimaryKey):
        return tuple(starmap(prepared, zip(cast("Any", field).fields, value, strict=True)))
    return cast("Hashable", field.get_prep_value(value))


def as_in_rows(field: Any, value: Any) -> Hashable:
    """Return a value in the form that rows have: an address in its short form, a code as its object.

    Raises:
        OF_ONE_KEY: the field has no such values.
    """
    if isinstance(field, CompositePrimaryKey):
        return tuple(starmap(as_in_rows, zip(cast("Any", field).fields, value, strict=True)))
    return cast("Hashable", field.to_python(prepared(field, value)))


def is_loose(field: "Field[Any, Any]", alias: str) -> bool:
    """Whether values that differ in Python may be equal to a database: by a collation, or as stored."""
    if isinstance(field, CompositePrimaryKey):
        parts: Any = field.fields
        return any(is_loose(part, alias) for part in parts)
    while field.is_relation:
        field = field.target_field  # type: ignore[attr-defined]
    connection = connections[alias]
    if field.get_db_converters(connection):
        return True
    kind = (field.db_type(connection) or "").lower()
    if _PLAIN.match(kind):
        return False
    # A text that Django has made is compared byte by byte, where the database does so by default. What the
    # project has made, or a type of its own, may have any collation, or pad with spaces as char(n) does.
    default = field.model._meta.managed and getattr(field, "db_collation", None) is None
    return not (default and kind.startswith(_EXACT_TEXT.get(connection.vendor, ())))


def storable(values: Collection[Hashable], alias: str) -> list[Hashable]:
    """Return those values that a query may ask for: drivers of MariaDB refuse infinite numbers, and NaN."""
    if connections[alias].vendor != "mysql":
        return list(values)
    return [value for value in values if not isinstance(value, float) or isfinite(value)]
