"""Which columns are read so that each row comes with its key, and none of them twice.

Twice does no harm but where a filter asks for a window function: Django puts such a query into another one
and sorts that by the numbers of its columns, which are wrong then. Of a composite key it even leaves columns
out, so these are read, and sorted by, one by one.
"""

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

from django.db.models import CompositePrimaryKey, QuerySet

AnyQuerySet = QuerySet[Any, Any]


def with_key(
    queryset: AnyQuerySet, names: Sequence[str], key: str = "pk"
) -> tuple[AnyQuerySet, Callable[[tuple[Any, ...]], Any]]:
    """The query for tuples that begin with these columns, and what takes the key out of such a tuple.

    Args:
        queryset: the rows.
        names: the columns.
        key: the one whose values are the rows' keys.
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
