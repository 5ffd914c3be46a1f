"""A few rows of a repository, read without a thread: where PostgreSQL makes their JSON, and no work is left.

Of the project's own code the event loop runs only its database routers for that. So the query has to be
Django's own, and thus always the same: its SQL is made once, and keys are put in. Where a repository has a
``queryset()`` of its own, or a key of a kind that Django does not know, rows are read on threads.
"""

from collections.abc import Callable, Collection, Hashable
from functools import partial
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import QuerySet
from django.db.models.fields import Field
from django.db.models.lookups import In
from django.db.models.manager import BaseManager

from ..database.loop_queries import Answer, LoopQueries
from ..snapshots.pages import Chunk
from .equality import is_loose
from .key_columns import AnyQuerySet
from .readers import Reader
from .sql_json import DatabaseJSON, NotExpressible

LoopOutcome = Chunk | Exception | None
Done = Callable[[LoopOutcome], None]

# Rows at a time, and bytes of them; more would keep the loop from others, which takes 5 ms for a megabyte.
MOST_KEYS_OF_QUERY = 500
MOST_OF_LIST = 100
MOST_BYTES = 512 * 1024

_ONE_KEY = "IN (%s)"
_REMEMBERED = 200  # parts of the list


def is_plain_manager(manager: "BaseManager[Any]") -> bool:
    """Whether a manager's ``all()`` is Django's own, and its query always the same."""
    kind: Any = type(manager)
    own_ways = kind.get_queryset is not BaseManager.get_queryset or kind.all is not BaseManager.all
    return not own_ways and type(manager.all()) is QuerySet


class LoopReads:
    """Reads a few rows of one repository in the event loop, if that can be done."""

    def __init__(
        self,
        queries: Callable[[], LoopQueries],
        queryset: Callable[[], AnyQuerySet],
        ordered: Callable[[], AnyQuerySet],
        reader: Reader,
        *,
        is_constant: bool,
    ) -> None:
        """Read nothing yet.

        Args:
            queries: gives the application's ``LoopQueries``.
            queryset: gives what there is to read.
            ordered: gives the same in the order of the list.
            reader: how to read it.
            is_constant: whether both are Django's own queries, and always the same.
        """
        self._queries = queries
        self._queryset = queryset
        self._ordered = ordered
        self._reader = reader
        self._is_constant = is_constant
        self._by_keys: dict[str, _ByKeys | None] = {}
        self._windows: dict[tuple[str, int, int], bytes] = {}

    @property
    def is_possible(self) -> bool:
        """Whether rows can be read so at all, as far as that is known."""
        return self._is_constant and bool(self._reader.in_sql)

    def rows(self, keys: Collection[Hashable], done: Done) -> bool:
        """Read the rows with these keys, in no order.

        Args:
            keys: as the model's field prepares them.
            done: called in the loop with the rows; with the error if the connection has broken, or the server
                fails for a reason other than the query; or with None if a thread is needed.

        Returns:
            Whether ``done`` will be called. If not, read on a thread.
        """
        if len(keys) > MOST_KEYS_OF_QUERY:
            return False
        return self._ask(self._queryset, len(keys), partial(self._sql_of_rows, keys), done)

    def window(self, offset: int, limit: int, done: Done) -> bool:
        """Read some rows of the list, in its order; otherwise the same as ``rows()``.

        Args:
            offset: how many rows to leave out.
            limit: how many to read at most.
            done: as for ``rows()``.
        """
        if limit > MOST_OF_LIST:
            return False
        return self._ask(self._ordered, limit, partial(self._sql_of_window, offset, limit), done)

    def _ask(
        self,
        query: Callable[[], AnyQuerySet],
        rows: int,
        sql: Callable[[AnyQuerySet, DatabaseJSON, BaseDatabaseWrapper], bytes | None],
        done: Done,
    ) -> bool:
        if not self.is_possible:
            return False
        try:
            queryset = query()
            alias = queryset.db
        except Exception:  # of a router; a thread raises it again, where it can be told to the caller
            return False
        in_sql = self._reader.in_sql.get(alias)
        if in_sql is None or rows * in_sql.row_size > MOST_BYTES:
            return False
        compose = partial(sql, queryset, in_sql)
        return self._queries().ask(alias, compose, lambda answer: done(_found(answer, in_sql)))

    def _sql_of_rows(
        self,
        keys: Collection[Hashable],
        queryset: AnyQuerySet,
        in_sql: DatabaseJSON,
        connection: BaseDatabaseWrapper,
    ) -> bytes | None:
        alias = connection.alias
        if alias not in self._by_keys:
            self._by_keys[alias] = _ByKeys.of(queryset.using(alias), in_sql, next(iter(keys)), alias)
        known = self._by_keys[alias]
        return None if known is None else known.sql(keys, connection)

    def _sql_of_window(
        self,
        offset: int,
        limit: int,
        ordered: AnyQuerySet,
        in_sql: DatabaseJSON,
        connection: BaseDatabaseWrapper,
    ) -> bytes | None:
        from psycopg import ClientCursor

        window = (connection.alias, offset, limit)
        sql = self._windows.get(window)
        # A router may choose another database whenever it is asked.
        if sql is None and in_sql.fits(here := ordered.using(connection.alias)):
            # Parameters are left to the client, as Django does.
            cursor = ClientCursor(connection.connection)
            sql = cursor.mogrify(*in_sql.compiled(here[offset : offset + limit])).encode()
            if len(self._windows) >= _REMEMBERED:
                self._windows.clear()
            self._windows[window] = sql
        return sql


def _found(answer: Answer, in_sql: DatabaseJSON) -> LoopOutcome:
    if answer is None or isinstance(answer, Exception):
        return answer
    if not answer:
        return Chunk([], [], [])
    try:
        return Chunk(*in_sql.taken(answer), [None] * len(answer))
    except NotExpressible:
        return None


class _ByKeys:
    """The SQL that reads rows by their keys, made once."""

    def __init__(self, field: Any, before: bytes, after: bytes) -> None:
        self._field = field
        self._before = before
        self._after = after

    @classmethod
    def of(cls, queryset: AnyQuerySet, in_sql: DatabaseJSON, key: Any, alias: str) -> "_ByKeys | None":
        """Make it of the query for one key; None if other keys cannot simply take its place."""
        field: Any = queryset.model._meta.pk
        if not in_sql.fits(queryset) or not _is_plain_key(field) or is_loose(field, alias):
            return None
        one = queryset.filter(pk__in=[key]).order_by()
        sql, params = in_sql.compiled(one)
        before, found, after = sql.partition(_ONE_KEY)
        if len(params) != 1 or not found or _ONE_KEY in after:
            return None
        # Without parameters a percent sign is no longer written twice.
        return cls(field, (before % ()).encode(), (after % ()).encode())

    def sql(self, keys: Collection[Hashable], connection: BaseDatabaseWrapper) -> bytes:
        """The SQL that reads these keys."""
        from psycopg.adapt import Transformer

        prepare, stored = self._field.get_prep_value, self._field.get_db_prep_value
        literal = Transformer(connection.connection).as_literal
        values = [literal(stored(prepare(key), connection, prepared=True)) for key in keys]
        return b"%bIN (%b)%b" % (self._before, b", ".join(values), self._after)


def _is_plain_key(field: "Field[Any, Any]") -> bool:
    """Whether a field is looked up by its values as Django does it, and by nothing else."""
    kinds = type(field), field.get_lookup("exact")
    return all(_is_of_django(kind) for kind in kinds) and field.get_lookup("in") is In


def _is_of_django(kind: Any) -> bool:
    return kind is not None and kind.__module__.startswith("django.db.models.")
