"""A few rows of a repository, read without a thread: where PostgreSQL makes their JSON, and no work is left.

The event loop may do that if making the query asks no database, which shows when a thread makes it first.
Where it is always the same query, its SQL is made once, and only keys are put in.
"""

from collections.abc import Callable, Collection, Hashable
from functools import partial
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import QuerySet
from django.db.models.lookups import In
from django.db.models.manager import BaseManager

from ..database import calls
from ..database.blocks import current_block
from ..database.loop_queries import Answer, LoopQueries
from ..snapshots.pages import Chunk
from .readers import AnyQuerySet, Reader
from .sql_json import DatabaseJSON, NotExpressible, taken

Found = Chunk | Exception | None
Done = Callable[[Found], None]

MOST = 500  # rows; more of them would keep the loop from others
_ONE_KEY = "IN (%s)"
_REMEMBERED = 200  # windows


class WatchedQuery:
    """Gives what there is to read, and notices whether that asks a database.

    Attributes:
        is_constant: whether it is the same query each time.
        is_pure: whether it was made before, and without asking.
    """

    def __init__(self, queryset: Callable[[], AnyQuerySet], *, is_constant: bool) -> None:
        """Watch this function.

        Args:
            queryset: gives what there is to read.
            is_constant: whether it is the same query each time.
        """
        self.is_constant = is_constant
        self.is_pure = False
        self._asks = False
        self._queryset = queryset

    def __call__(self) -> AnyQuerySet:
        """What there is to read."""
        call = calls.current()
        if self.is_pure or self._asks or call is None or current_block() is not None:
            return self._queryset()
        watched = calls.WatchedCall(call)
        queryset = watched.look(self._queryset)
        self._asks = watched.asked
        self.is_pure = not watched.asked
        return queryset


def is_constant(manager: "BaseManager[Any]") -> bool:
    """Whether a manager's ``all()`` is Django's own, so that its query is the same each time."""
    kind: Any = type(manager)
    own_ways = kind.get_queryset is not BaseManager.get_queryset or kind.all is not BaseManager.all
    return not own_ways and type(manager.all()) is QuerySet


class LoopReads:
    """Reads a few rows of one repository in the event loop, if that can be done."""

    def __init__(
        self,
        queries: Callable[[], LoopQueries],
        queryset: WatchedQuery,
        ordered: WatchedQuery,
        reader: Reader,
    ) -> None:
        """Get ready.

        Args:
            queries: gives the application's.
            queryset: gives what there is to read.
            ordered: gives the same in the order of the list.
            reader: how to read it.
        """
        self._queries = queries
        self._queryset = queryset
        self._ordered = ordered
        self._reader = reader
        self._by_keys: dict[str, _ByKeys | None] = {}
        self._windows: dict[tuple[str, int, int], bytes] = {}

    @property
    def is_possible(self) -> bool:
        """Whether rows could be read so at all."""
        return self._reader.in_sql is not None and (self._queryset.is_pure or self._ordered.is_pure)

    def rows(self, keys: Collection[Hashable], done: Done) -> bool:
        """Read the rows with these keys, in no order.

        Args:
            keys: as the model's field prepares them.
            done: called in the loop with the rows; with the error if the connection has broken; or with None
                if they have to be read on a thread.

        Returns:
            Whether ``done`` will be called. If not, read on a thread.
        """

        def compose(queryset: AnyQuerySet, in_sql: DatabaseJSON, connection: BaseDatabaseWrapper) -> bytes:
            if not self._queryset.is_constant:
                return _written_out(in_sql, queryset.filter(pk__in=keys).order_by(), connection)
            alias = connection.alias
            if alias not in self._by_keys:
                self._by_keys[alias] = _ByKeys.of(queryset.filter(pk__in=[*keys][:1]).order_by(), in_sql)
            known = self._by_keys[alias]
            if known is None:
                return _written_out(in_sql, queryset.filter(pk__in=keys).order_by(), connection)
            return known.sql(keys, connection)

        return len(keys) <= MOST and self._ask(self._queryset, compose, done)

    def window(self, offset: int, limit: int, done: Done) -> bool:
        """Read some rows of the list, in its order; otherwise the same as ``rows()``.

        Args:
            offset: how many rows to leave out.
            limit: how many to read at most.
            done: as for ``rows()``.
        """

        def compose(ordered: AnyQuerySet, in_sql: DatabaseJSON, connection: BaseDatabaseWrapper) -> bytes:
            window = (connection.alias, offset, limit)
            if (sql := self._windows.get(window)) is None:
                sql = _written_out(in_sql, ordered[offset : offset + limit], connection)
                if self._ordered.is_constant:
                    if len(self._windows) >= _REMEMBERED:
                        self._windows.clear()
                    self._windows[window] = sql
            return sql

        return limit <= MOST and self._ask(self._ordered, compose, done)

    def _ask(
        self,
        query: WatchedQuery,
        compose: Callable[[AnyQuerySet, DatabaseJSON, BaseDatabaseWrapper], bytes],
        done: Done,
    ) -> bool:
        in_sql = self._reader.in_sql
        if in_sql is None or not self.is_possible:
            return False
        try:
            queryset = query()
        except Exception:  # it comes again on a thread, where it can be told to who asks
            return False
        return self._queries().ask(
            queryset.db, partial(compose, queryset, in_sql), lambda answer: done(_found(answer))
        )


def _found(answer: Answer) -> Found:
    if answer is None or isinstance(answer, Exception):
        return answer
    if not answer:
        return Chunk([], [], [])
    try:
        return Chunk(*taken(answer), [None] * len(answer))
    except NotExpressible:
        return None


class _ByKeys:
    """The SQL that reads rows by their keys, made once."""

    def __init__(self, field: Any, before: bytes, after: bytes) -> None:
        self._field = field
        self._before = before
        self._after = after

    @classmethod
    def of(cls, one: AnyQuerySet, in_sql: DatabaseJSON) -> "_ByKeys | None":
        """Make it of the query for one key; None if others cannot be put in the place of that."""
        if not in_sql.fits(one) or not isinstance(one.query.where.children[-1], In):
            return None
        sql, params = in_sql.compiled(one)
        before, found, after = sql.partition(_ONE_KEY)
        if len(params) != 1 or not found or _ONE_KEY in after:
            return None
        # Without parameters a percent sign is no longer written twice.
        return cls(one.model._meta.pk, (before % ()).encode(), (after % ()).encode())

    def sql(self, keys: Collection[Hashable], connection: BaseDatabaseWrapper) -> bytes:
        """It, with these keys."""
        from psycopg.adapt import Transformer

        prepare, stored = self._field.get_prep_value, self._field.get_db_prep_value
        literal = Transformer(connection.connection).as_literal
        values = [literal(stored(prepare(key), connection, prepared=True)) for key in keys]
        return b"%bIN (%b)%b" % (self._before, b", ".join(values), self._after)


def _written_out(in_sql: DatabaseJSON, queryset: AnyQuerySet, connection: BaseDatabaseWrapper) -> bytes:
    """The SQL of this query with its parameters, which Django as well leaves to the client.

    Raises:
        NotExpressible: it needs more than that.
    """
    from psycopg import ClientCursor

    if not in_sql.fits(queryset):
        raise NotExpressible
    return ClientCursor(connection.connection).mogrify(*in_sql.compiled(queryset)).encode()
