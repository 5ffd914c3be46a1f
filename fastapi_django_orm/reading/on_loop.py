"""A few rows of a repository, read without a thread: where PostgreSQL makes their JSON, and no work is left.

Of the project's own code the event loop runs only its database routers for that. So the query has to be
Django's own, and thus always the same: its SQL is made once, and keys are put in. Where a repository has a
``queryset()`` of its own, or a key of a kind that Django does not know, rows are read on threads.
"""

from collections.abc import Callable, Collection, Hashable
from functools import partial
from typing import Any

from django.db import DEFAULT_DB_ALIAS
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.fields import Field
from django.db.models.lookups import In
from django.db.models.manager import BaseManager

from ..database.loop_queries import Answer, LoopQueries
from ..snapshots.pages import Chunk
from .equality import is_loose
from .key_columns import AnyQuerySet
from .own_ways import ON_LOOP, not_djangos, note
from .readers import Reader
from .sql_json import DatabaseJSON, NotExpressible, not_in_sql

LoopOutcome = Chunk | Exception | None
Done = Callable[[LoopOutcome], None]

# Rows at a time, and bytes of them; more would keep the loop from others, which takes 5 ms for a megabyte.
MOST_KEYS_OF_QUERY = 500
MOST_OF_LIST = 100
MOST_BYTES = 512 * 1024

_ONE_KEY = "IN (%s)"
_REMEMBERED = 200  # parts of the list


def why_not_constant(manager: "BaseManager[Any]") -> str | None:
    """Why a manager's ``all()`` may be another query each time; None if it is Django's own."""
    kind: Any = type(manager)
    for name in ("get_queryset", "all", "db"):
        if getattr(kind, name) is not getattr(BaseManager, name):
            return f"the manager {kind.__qualname__} overrides {name}"
    if own := vars(manager).keys() & {"get_queryset", "all"}:
        return f"a manager has its own {min(own)}"
    return not_djangos(manager.all().using(DEFAULT_DB_ALIAS))


class LoopReads:
    """Reads a few rows of one repository in the event loop, if that can be done.

    Attributes:
        why_not: why a repository's rows are never read so; None if they may be.
    """

    def __init__(
        self,
        queries: Callable[[], LoopQueries],
        manager: "BaseManager[Any]",
        ordered: Callable[[], AnyQuerySet],
        reader: Reader,
        *,
        why_not: str | None,
    ) -> None:
        """Read nothing yet.

        Args:
            queries: gives the application's ``LoopQueries``.
            manager: the model's, whose ``all()`` is what there is to read.
            ordered: gives the same in the order of the list.
            reader: how to read it.
            why_not: why the two are not Django's own queries, and always the same.
        """
        self.why_not = why_not
        self._queries = queries
        self._manager = manager
        self._ordered = ordered
        self._reader = reader
        self._known: dict[str, _KnownSQL] = {}
        note(reader.reasons, ON_LOOP, why_not)

    @property
    def alias(self) -> str | None:
        """The database that the running code would read; None if these rows are never read so.

        A router may choose it by who asks, so it is for the one who asks to take this.
        """
        if self.why_not is not None:
            return None
        try:
            return self._manager.db
        except Exception:  # of a router; a thread raises it again, where it can be told to the caller
            return None

    def rows(self, alias: str, keys: Collection[Hashable], done: Done) -> bool:
        """Read the rows with these keys, in no order.

        Args:
            alias: the database.
            keys: as the model's field prepares them.
            done: called in the loop with the rows; with the error if the connection has broken, or the server
                fails for a reason other than the query; or with None if a thread is needed.

        Returns:
            Whether ``done`` will be called. If not, read on a thread.
        """
        if len(keys) > MOST_KEYS_OF_QUERY:
            return False
        return self._ask(alias, self._manager.all, len(keys), partial(_sql_of_rows, keys), done)

    def window(self, alias: str, offset: int, limit: int, done: Done) -> bool:
        """Read some rows of the list, in its order; otherwise the same as ``rows()``.

        Args:
            alias: the database.
            offset: how many rows to leave out.
            limit: how many to read at most.
            done: as for ``rows()``.
        """
        if limit > MOST_OF_LIST:
            return False
        return self._ask(alias, self._ordered, limit, partial(_sql_of_window, offset, limit), done)

    def _ask(
        self,
        alias: str,
        query: Callable[[], AnyQuerySet],
        rows: int,
        sql: "Callable[[_KnownSQL, AnyQuerySet, BaseDatabaseWrapper], bytes | None]",
        done: Done,
    ) -> bool:
        in_sql = self._reader.in_sql.get(alias)
        if self.why_not is not None or in_sql is None or rows * in_sql.row_size > MOST_BYTES:
            return False
        known = self._known.get(alias)
        if known is None or known.in_sql is not in_sql:  # the columns were looked at again
            known = self._known[alias] = _KnownSQL(in_sql)

        def compose(connection: BaseDatabaseWrapper) -> bytes | None:
            queryset = query()
            reason = not_in_sql(queryset, connection) or in_sql.why_not(connection)
            note(self._reader.reasons, ON_LOOP, reason)
            return None if reason is not None else sql(known, queryset, connection)

        return self._queries().ask(alias, compose, lambda answer: done(_found(answer, in_sql)))


class _KnownSQL:
    """What was made of the queries for one database, as long as its columns are what they were.

    Attributes:
        in_sql: how it makes JSON.
        by_keys: the SQL that reads rows by their keys; None if there is none, and absent if it was not made.
        windows: the SQL of parts of the list.
    """

    def __init__(self, in_sql: DatabaseJSON) -> None:
        self.in_sql = in_sql
        self.by_keys: list[_ByKeys | None] = []
        self.windows: dict[tuple[int, int], bytes] = {}


def _sql_of_rows(
    keys: Collection[Hashable], known: _KnownSQL, queryset: AnyQuerySet, connection: BaseDatabaseWrapper
) -> bytes | None:
    if not known.by_keys:
        known.by_keys = [_ByKeys.of(queryset.using(connection.alias), known.in_sql, next(iter(keys)))]
    (by_keys,) = known.by_keys
    return None if by_keys is None else by_keys.sql(keys, connection)


def _sql_of_window(
    offset: int, limit: int, known: _KnownSQL, ordered: AnyQuerySet, connection: BaseDatabaseWrapper
) -> bytes | None:
    from psycopg import ClientCursor

    sql = known.windows.get((offset, limit))
    if sql is None:
        # Parameters are left to the client, as Django does.
        cursor = ClientCursor(connection.connection)
        window = ordered.using(connection.alias)[offset : offset + limit]
        sql = cursor.mogrify(*known.in_sql.compiled(window)).encode()
        if len(known.windows) >= _REMEMBERED:
            known.windows.clear()
        known.windows[offset, limit] = sql
    return sql


def _found(answer: Answer, in_sql: DatabaseJSON) -> LoopOutcome:
    if answer is None or isinstance(answer, Exception):
        return answer
    if not answer:
        return Chunk([], [], [])
    try:
        return Chunk(*in_sql.taken(answer), [None] * len(answer), in_sql.codec)
    except NotExpressible:
        return None


class _ByKeys:
    """The SQL that reads rows by their keys, made once."""

    def __init__(self, field: Any, before: bytes, after: bytes) -> None:
        self._field = field
        self._before = before
        self._after = after

    @classmethod
    def of(cls, queryset: AnyQuerySet, in_sql: DatabaseJSON, key: Any) -> "_ByKeys | None":
        """Make it of the query for one key; None if other keys cannot simply take its place."""
        field: Any = queryset.model._meta.pk
        if not _is_plain_key(field) or is_loose(field, queryset.db):
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
