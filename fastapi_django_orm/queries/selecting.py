"""What a filter asks the database: the keys of a page's rows, the number of all, the place of the next page.

One query of Django's own QuerySet finds the keys, so a filter means what Django makes of it, on every
database. All of this runs on a database thread, in the context that decides what the repository's query is.
"""

from collections.abc import Callable, Container, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from django.core.exceptions import EmptyResultSet, ValidationError
from django.db import DataError, OperationalError, connections
from django.db.models import QuerySet

from ..database.startup_checks import table_explained
from ..errors import InvalidParameter, InvalidRepository, NotIndexed
from ..reading.batching import MOST_KEYS_OF_BATCH
from ..reading.codec import EncodedRow
from ..reading.keys import AnyQuerySet, prepared
from ..reading.live_queries import LiveQueries, why_final
from ..reading.own_ways import pinned
from ..reading.past_caches import past_caches
from ..reading.readers import Reader
from .conditions import condition_of
from .cursors import cursor_of, values_of
from .filter import Filter, check_filter, declaration_of
from .order import Order

# What MariaDB and MySQL say of a regular expression, as if they were broken.
# https://dev.mysql.com/doc/mysql-errors/8.4/en/server-error-reference.html
_ABOUT_PATTERNS = frozenset({1139, *range(3684, 3701)})


@dataclass(frozen=True, slots=True)
class Selection:
    """The queries of a filter.

    Attributes:
        where: the filter.
        rows: all rows that it selects.
        order: theirs.
        page: for each row of the page, and for one more, the key and the values of the order.
    """

    where: Filter
    rows: AnyQuerySet
    order: Order
    page: AnyQuerySet

    def compiled(self) -> tuple[Hashable, str] | None:
        """What the page is to the database, and its SQL; None if it cannot be said."""
        try:
            with _refusing_values():
                sql, params = self.page.query.chain().get_compiler(using=self.page.db).as_sql()
            found = self.page.db, sql, tuple((type(each), each) for each in params)
            hash(found)
        except (EmptyResultSet, TypeError):
            return None
        return found, sql


@dataclass(frozen=True, slots=True)
class Selected:
    """What the database has answered.

    Attributes:
        keys: of the page's rows, in order.
        read: the rows that memory did not have, by key.
        total: how many rows the filter selects on all pages.
        next: the cursor of the next page; None if this is the last.
    """

    keys: list[Hashable]
    read: Mapping[Hashable, EncodedRow]
    total: int
    next: str | None


class Selecting:
    """Asks for the pages of one repository."""

    def __init__(
        self,
        ordered: Callable[[], AnyQuerySet],
        queries: LiveQueries,
        reader: Reader,
        *,
        name: str,
        label: str,
    ) -> None:
        """Select among what ``ordered`` returns; ``queries`` reads rows by their keys."""
        self._ordered = ordered
        self._queries = queries
        self._keyed = reader.keyed
        self._name = name
        self._label = label
        self._model = queries.model

    def selection(self, where: Filter) -> Selection:
        """Make the queries.

        Raises:
            InvalidParameter: a value or the cursor cannot be used. In a handler: 422.
            InvalidRepository: the repository's query cannot be filtered.
            InvalidFilter: it is for another model.
        """
        check_filter(type(where), self._model, self._label)
        if not self._keyed:
            raise NotIndexed(f"{self._label}: its queryset().values() leaves the primary key out.")
        queryset = pinned(self._ordered())
        if (reason := why_final(queryset)) is not None:
            raise InvalidRepository(
                f"{self._label}: its queryset() {reason}, so Django cannot filter it. Declare a "
                "repository whose queryset() has filters alone."
            )
        with _refusing_values():
            rows = self._filtered(queryset, where)
        ordered = _in_total_order(rows, where.__dict__.get("ordering"))
        order = Order.of(ordered, self._label)
        if where.after is not None:
            with _refusing_values():
                ordered = ordered.filter(order.after(values_of(where.after, self._salt(order))))
        page = ordered.values_list("pk", *order.selected)
        return Selection(where, rows, order, page[where.offset : where.offset + where.limit + 1])

    def _filtered(self, queryset: AnyQuerySet, where: Filter) -> AnyQuerySet:
        condition = condition_of(where, connections[queryset.db].vendor)
        if not condition:
            return queryset
        if not declaration_of(where).is_many:
            return queryset.filter(condition)
        # A row that is joined to several is in the list once. Not by a manager, which may look at who asks.
        rows: AnyQuerySet = QuerySet(self._model, using=queryset.db)
        return queryset.filter(pk__in=rows.filter(condition).values("pk"))

    def read(self, selection: Selection, known: Container[Hashable]) -> Selected:
        """Ask for the page, and for those of its rows whose keys are not among the known ones.

        Raises:
            InvalidParameter: the database does not take a value. In a handler: 422.
            InvalidRow: a row cannot be served.
            DatabaseError: as Django raises it.
        """
        where, alias = selection.where, selection.page.db
        with table_explained(self._model, alias), past_caches(alias), _refusing_values():
            found = list(selection.page)
            is_last, found = len(found) <= where.limit, found[: where.limit]
            if is_last and where.after is None and (found or not where.offset):
                total = where.offset + len(found)
            else:
                total = selection.rows.count()
        keys = [key for key, *_ in found]
        cursor = None
        if not is_last:
            cursor = cursor_of(selection.order.values(*found[-1]), self._salt(selection.order), self._label)
        return Selected(keys, self._read_rows([key for key in keys if key not in known]), total, cursor)

    def _read_rows(self, keys: Sequence[Hashable]) -> dict[Hashable, EncodedRow]:
        field: Any = self._model._meta.pk
        wanted = {prepared(field, key): key for key in keys}
        found: dict[Hashable, EncodedRow] = {}
        for start in range(0, len(keys), MOST_KEYS_OF_BATCH):
            some = list(wanted)[start : start + MOST_KEYS_OF_BATCH]
            for value, row in self._queries.read_rows("pk", some).items():
                if isinstance(row, Exception):
                    raise row
                found[wanted[value]] = row
        return found

    def _salt(self, order: Order) -> str:
        return f"{self._name} {order.text}"


@contextmanager
def _refusing_values() -> Iterator[None]:
    """Raise InvalidParameter for what Django, the driver or the database raises for a value.

    Types cannot say all of it: a year has four digits, and a column may be too narrow for a number.
    """
    try:
        yield
    except InvalidParameter:
        raise
    except (DataError, ValidationError, ValueError, ArithmeticError) as error:
        raise InvalidParameter(None, "The database does not take one of these values.") from error
    except OperationalError as error:
        if error.args and error.args[0] in _ABOUT_PATTERNS:
            raise InvalidParameter(None, "One of these values is not a regular expression.") from error
        raise


def _in_total_order(queryset: AnyQuerySet, ordering: Sequence[str] | None) -> AnyQuerySet:
    """The query in the client's order or in its own, up to the key, after which no two rows are equal."""
    query, pk = queryset.query, queryset.model._meta.pk
    own = query.order_by or (queryset.model._meta.ordering if query.default_ordering else ())
    names: list[Any] = []
    for item in (*(ordering or own), "pk"):
        names.append(item)
        name = item.lstrip("-") if isinstance(item, str) else None
        if name in ("pk", pk.attname) or (name == pk.name and not pk.is_relation):
            break
    return queryset if names == list(query.order_by) else queryset.order_by(*names)
