"""A few rows of a repository, read without a thread: where PostgreSQL makes their JSON, and no work is left.

Of the project's own code the event loop runs only its database routers for that. So the query has to be
Django's own, and thus always the same: its SQL is made once, and keys are put in. Where a repository has a
``queryset()`` of its own, or a key of a kind that Django does not know, rows are read on threads.
"""

import asyncio
from collections.abc import Callable, Collection, Hashable
from functools import partial
from typing import Any

from django.db import DEFAULT_DB_ALIAS
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.lookups import In
from django.db.models.manager import BaseManager

from ..database.loop_queries import Answer, LoopQueries
from .codec import Chunk
from .keys import AnyQuerySet, is_loose
from .own_ways import ON_LOOP, not_djangos, note
from .postgresql_json import DatabaseJSON, NotExpressible, not_in_sql
from .readers import Reader

# Rows at a time, and bytes of them; more would keep the loop from others, which takes 5 ms for a megabyte.
MOST_KEYS_OF_QUERY = 500
MOST_OF_LIST = 100
MOST_BYTES = 512 * 1024

_ONE_KEY = "IN (%s)"
_REMEMBERED = 200  # parts of the list

# Rows; the error if the connection has broken, or the server fails for a reason other than the query; None if
# a thread is needed.
LoopOutcome = Chunk | Exception | None


def why_not_constant(manager: "BaseManager[Any]") -> str | None:
    """Return why a manager's ``all()`` may be another query each time; None if it is Django's own."""
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
        """Read what ``manager.all()`` returns, and ``ordered`` in the order of the list.

        ``why_not`` says why the two are not Django's own queries, and always the same.
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

        A router may choose it by who asks, so the one who asks must take this.
        """
        if self.why_not is not None:
            return None
        try:
            return self._manager.db
        except Exception:  # of a router; a thread raises it again, where the caller gets it
            return None

    async def rows(self, alias: str, keys: Collection[Hashable]) -> LoopOutcome:
        """Read the rows with these keys, in the form that queries use, in no order."""
        if len(keys) > MOST_KEYS_OF_QUERY:
            return None
        return await self._read(alias, self._manager.all, len(keys), partial(_KnownSQL.of_rows, keys=keys))

    async def window(self, alias: str, offset: int, limit: int) -> LoopOutcome:
        """Read some rows of the list, in its order."""
        if limit > MOST_OF_LIST:
            return None
        return await self._read(
            alias, self._ordered, limit, partial(_KnownSQL.of_window, offset=offset, limit=limit)
        )

    async def _read(
        self,
        alias: str,
        query: Callable[[], AnyQuerySet],
        rows: int,
        sql: "Callable[[_KnownSQL, AnyQuerySet, BaseDatabaseWrapper], bytes | None]",
    ) -> LoopOutcome:
        in_sql = self._reader.in_sql.get(alias)
        if self.why_not is not None or in_sql is None or rows * in_sql.row_size > MOST_BYTES:
            return None
        known = self._known.get(alias)
        if known is None or known.in_sql is not in_sql:  # the columns were described again
            known = self._known[alias] = _KnownSQL(in_sql)

        def compose(connection: BaseDatabaseWrapper) -> bytes | None:
            queryset = query()
            reason = not_in_sql(queryset, connection) or in_sql.why_not(connection)
            note(self._reader.reasons, ON_LOOP, reason)
            return None if reason is not None else sql(known, queryset, connection)

        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def done(answer: Answer) -> None:
            if not answered.done():
                answered.set_result(answer)

        if not self._queries().ask(alias, compose, done):
            return None
        answer = await answered
        if answer is None or isinstance(answer, Exception):
            return answer
        if not answer:
            return Chunk([], [], [], in_sql.codec)
        try:
            return Chunk(*in_sql.taken(answer), [None] * len(answer), in_sql.codec)
        except NotExpressible:
            return None


class _KnownSQL:
    """The SQL that was made of the queries for one database, as long as its columns are what they were."""

    def __init__(self, in_sql: DatabaseJSON) -> None:
        self.in_sql = in_sql
        self._by_keys: list[tuple[bytes, bytes] | None] = []  # what stands around the keys, once it was made
        self._windows: dict[tuple[int, int], bytes] = {}

    def of_rows(
        self, queryset: AnyQuerySet, connection: BaseDatabaseWrapper, *, keys: Collection[Hashable]
    ) -> bytes | None:
        """Return the SQL that reads the rows with these keys; None if keys cannot simply be put in."""
        from psycopg.adapt import Transformer

        if not self._by_keys:
            self._by_keys = [self._around_keys(queryset.using(connection.alias), next(iter(keys)))]
        (around,) = self._by_keys
        if around is None:
            return None
        field: Any = queryset.model._meta.pk
        prepare, stored = field.get_prep_value, field.get_db_prep_value
        literal = Transformer(connection.connection).as_literal
        values = [literal(stored(prepare(key), connection, prepared=True)) for key in keys]
        return b"%bIN (%b)%b" % (around[0], b", ".join(values), around[1])

    def _around_keys(self, queryset: AnyQuerySet, key: Any) -> tuple[bytes, bytes] | None:
        field: Any = queryset.model._meta.pk
        if not _is_plain_key(field) or is_loose(field, queryset.db):
            return None
        sql, params = self.in_sql.compiled(queryset.filter(pk__in=[key]).order_by())
        before, found, after = sql.partition(_ONE_KEY)
        if len(params) != 1 or not found or _ONE_KEY in after:
            return None
        # Without parameters a percent sign is no longer written twice.
        return (before % ()).encode(), (after % ()).encode()

    def of_window(
        self, ordered: AnyQuerySet, connection: BaseDatabaseWrapper, *, offset: int, limit: int
    ) -> bytes:
        from psycopg import ClientCursor

        sql = self._windows.get((offset, limit))
        if sql is None:
            # Parameters are left to the client, as Django does.
            cursor = ClientCursor(connection.connection)
            window = ordered.using(connection.alias)[offset : offset + limit]
            sql = cursor.mogrify(*self.in_sql.compiled(window)).encode()
            if len(self._windows) >= _REMEMBERED:
                self._windows.clear()
            self._windows[offset, limit] = sql
        return sql


def _is_plain_key(field: Any) -> bool:
    """Whether a field is looked up by its values as Django does it, and by nothing else."""
    kinds: list[Any] = [type(field), field.get_lookup("exact")]
    djangos = all(kind is not None and kind.__module__.startswith("django.db.models.") for kind in kinds)
    return djangos and field.get_lookup("in") is In
