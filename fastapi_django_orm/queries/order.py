"""The order of a list by values, so that a page can begin after a row: keyset pagination.

``OFFSET`` counts rows, so a row that is inserted or deleted meanwhile makes the next page repeat or skip one.
A condition on the order's values names a place in the list, whether its row is still there or not. The
primary key ends each order, so no two rows have the same place. NULLs come first or last, as the database
puts them.
"""

from collections.abc import Container, Iterator, Sequence
from functools import lru_cache
from typing import Any

from django.db import connections
from django.db.models import CharField, CompositePrimaryKey, F, Field, Func, IntegerField, Model, Q
from django.db.models.constants import LOOKUP_SEP
from django.db.models.expressions import OrderBy
from django.db.models.lookups import Exact, GreaterThan, GreaterThanOrEqual, IsNull, LessThan, LessThanOrEqual

from ..errors import InvalidRepository
from ..reading.keys import AnyQuerySet
from .lookups import resolve_lookup


class _AsStored(Func):
    """A value as the driver has it, whatever a field makes of it: the form that the database compares."""

    template = "%(expressions)s"
    arity = 1
    output_field = Field()


class _Selected(_AsStored):
    """The same in a result."""

    def as_sqlite(self, compiler: Any, connection: Any, **context: Any) -> Any:
        # With the plus it is not a column any more, of which Python's driver would convert the values.
        return self.as_sql(compiler, connection, template="+%(expressions)s", **context)


class _Term:
    """One expression of an order."""

    def __init__(
        self, expression: Any, descending: bool, *, nulls_are_first: bool, is_nullable: bool
    ) -> None:
        self.selected = _Selected(expression)
        self.text = f"{expression!r} {descending} {nulls_are_first}"
        self._is_nullable = is_nullable
        self._stored = _AsStored(expression)
        self._nulls_are_first = nulls_are_first
        self._beyond: Any = LessThan if descending else GreaterThan
        self._not_before: Any = LessThanOrEqual if descending else GreaterThanOrEqual

    def equals(self, value: Any) -> Q:
        """Return the condition of the rows with this value."""
        return Q(IsNull(self._stored, True) if value is None else Exact(self._stored, value))

    def beyond(self, value: Any) -> Q | None:
        """Return the condition of the rows whose value comes later; None if none does."""
        if value is None:
            return Q(IsNull(self._stored, False)) if self._nulls_are_first else None
        later = Q(self._beyond(self._stored, value))
        if self._is_nullable and not self._nulls_are_first:
            later |= Q(IsNull(self._stored, True))
        return later

    def not_before(self, value: Any) -> Q | None:
        """Return the condition of the rows that do not come earlier, if an index can find them by it."""
        if value is None or (self._is_nullable and not self._nulls_are_first):
            return None
        return Q(self._not_before(self._stored, value))


class Order:
    """The order of a query, by terms of which the last ones are the primary key.

    Attributes:
        selected: what to read of a row beside its key.
        text: the same for orders whose values mean the same place.
    """

    def __init__(self, terms: Sequence[_Term], *, ends_in_key: bool) -> None:
        """Order by these terms; ``ends_in_key`` if the last is the key in the form that rows have."""
        self._terms = terms
        self._ends_in_key = ends_in_key
        self.selected = [term.selected for term in (terms[:-1] if ends_in_key else terms)]
        self.text = ", ".join(term.text for term in terms)

    @staticmethod
    def of(queryset: AnyQuerySet, label: str) -> "Order":
        """Return the order of a query that ends in the key; messages call its repository by the label.

        Raises:
            InvalidRepository: it is not an order by values.
        """
        query: Any = queryset.query
        if query.extra_order_by or not query.standard_ordering or "?" in query.order_by:
            raise InvalidRepository(
                f"{label}: its rows come at random, in reverse() or in the order of extra(), so no page of "
                'them has a next one. Order them by fields: ordering = ("-pk",).'
            )
        first: bool = connections[queryset.db].features.order_by_nulls_first
        model: Any = queryset.model
        return _order(model, tuple(query.order_by), first, frozenset(query.annotations))

    def values(self, key: Any, *selected: Any) -> list[Any]:
        """Return a row's values of the terms, of what was read of it."""
        return [*selected, key] if self._ends_in_key else [*selected]

    def after(self, values: Sequence[Any]) -> Q:
        """Return the condition of the rows that come after the one with these values."""
        found = _after(self._terms, values)
        bound = self._terms[0].not_before(values[0]) if len(values) > 1 else None
        return found if bound is None else bound & found


def _after(terms: Sequence[_Term], values: Sequence[Any]) -> Q:
    beyond = terms[0].beyond(values[0])
    if len(terms) == 1:
        assert beyond is not None, "a key is never NULL"
        return beyond
    tied = terms[0].equals(values[0]) & _after(terms[1:], values[1:])
    return tied if beyond is None else beyond | tied


@lru_cache(maxsize=500)  # names come from declarations, so there are few orders
def _order(
    model: type[Model], items: Sequence[Any], nulls_are_smallest: bool, annotations: frozenset[str]
) -> Order:
    terms = list(_terms(model, items, nulls_are_smallest, annotations))
    return Order(terms, ends_in_key=_is_as_stored(model._meta.pk))


def _is_as_stored(field: Any) -> bool:
    """Whether every driver gives the values of a field as the field does."""
    while field.is_relation:
        field = field.target_field
    return type(field).__module__.startswith("django.") and isinstance(field, IntegerField | CharField)


def _terms(
    model: type[Model], items: Sequence[Any], nulls_are_smallest: bool, annotations: Container[str]
) -> Iterator[_Term]:
    """The terms of what ``order_by()`` takes."""
    for item in items:
        if not isinstance(item, str):
            yield _term(item if isinstance(item, OrderBy) else item.asc(), nulls_are_smallest)
            continue
        name, descending = item.lstrip("-"), item.startswith("-")
        if name in annotations:
            yield _term(OrderBy(F(name), descending=descending), nulls_are_smallest)
            continue
        if name == "pk" and isinstance(model._meta.pk, CompositePrimaryKey):
            for part in model._meta.pk_fields:
                yield _term(OrderBy(F(part.attname), descending=descending), nulls_are_smallest, False)
            continue
        resolved = resolve_lookup("ordering", model, name)
        if (inner := _order_of_related(name, resolved.final)) is None:
            order = OrderBy(F(name), descending=descending)
            yield _term(order, nulls_are_smallest, resolved.is_nullable)
            continue
        for each in inner:
            if isinstance(each, str) and descending:  # Django does not turn an expression round
                each = each[1:] if each.startswith("-") else f"-{each}"
            yield from _terms(model, [each], nulls_are_smallest, ())


def _order_of_related(name: str, field: Any) -> list[Any] | None:
    """The order of the model that a relation leads to, which Django takes; None if it takes the column."""
    related = getattr(field, "related_model", None)
    last = name.rpartition(LOOKUP_SEP)[2]
    if related is None or last in ("pk", getattr(field, "attname", None)) or not related._meta.ordering:
        return None
    found: list[Any] = []
    for item in related._meta.ordering:
        if isinstance(item, str):
            sign = "-" if item.startswith("-") else ""
            found.append(f"{sign}{name}{LOOKUP_SEP}{item.removeprefix('-')}")
        else:
            order = item if isinstance(item, OrderBy) else item.asc()
            found.append(order.prefix_references(f"{name}{LOOKUP_SEP}"))
    return found


def _term(order: Any, nulls_are_smallest: bool, is_nullable: bool = True) -> _Term:
    first = bool(order.nulls_first) or (not order.nulls_last and nulls_are_smallest != order.descending)
    return _Term(order.expression, order.descending, nulls_are_first=first, is_nullable=is_nullable)
