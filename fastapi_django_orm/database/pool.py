"""The connections to one database: few, kept open, checked before use, lent to one call at a time.

A connection is lent to a *call*, not to a thread or a request: a request that kept one while it waits for
something else would starve the others, and FastAPI's worker threads are many more than the connections that
a server can spare. psycopg's own pool is not used, because it is for one driver of Django's three.

==================== ==================================================================================
``acquire``          on a thread: waits, and returns a connection that works
``acquire_async``    on an event loop: waits; ``check()`` it on the thread that will use it
``acquire_ready``    on an event loop: one that works as it is, or None at once
``release``          on a thread: passes it to the caller that has waited longest, if nothing was left on it
``discard``          on a thread: in whatever state; another is made in its place
``put_back``         on the event loop: what ``acquire_ready`` has returned
==================== ==================================================================================

A connection is in one of three places: in ``_free``; with the caller that has acquired it, or that
``_pass_on()`` has passed it to; or with a request that has left something on it (``_kept``). ``_lent`` counts
the last two, and those with the free ones are never more than ``limit``.

Locking: ``_lock`` guards the fields of a pool. No other lock is taken under it, and nothing under it waits
for a database: connections are closed before or after.
"""

import asyncio
import threading
import time
from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeAlias
from weakref import WeakSet

from django.db import Error, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from ..errors import DatabaseBusy
from ..events import logger
from .cursors import end_cursors, is_read_from, settle_cursors, was_left, watch_cursors
from .liveness import died_idle, ended_by_server, is_ready, socket_of, time_statements
from .sqlite_file import OpenedFiles
from .state import Watched, is_in_transaction, left_behind

HOW_TO_KEEP = (
    "outside of requests a connection is lent to one call: let one function do it all, under run(), or write "
    "`async with atomic():` or asgiref's `async with ThreadSensitiveContext():` around the calls"
)
HOW_TO_COMMIT = (
    "`BEGIN` or `set_autocommit(False)` began it, and what had not been committed at the end was rolled "
    "back: write `async with atomic():`, or `with transaction.atomic():` in a function that is not async"
)


class Keeper(Protocol):
    """What keeps connections for the calls of one request; ``keeping.RequestConnections`` is one.

    Attributes:
        scope: what the request's calls ask, while something is kept.
    """

    scope: Any

    def keep(self, connection: BaseDatabaseWrapper) -> bool:
        """Keep a connection for the calls that follow in the request; False if the request has ended."""

    def adopt(self, scope: Any) -> bool:
        """End a transaction that a call has left open with the request; False if that has ended."""


current_request: ContextVar[Keeper | None] = ContextVar("fastapi_django_orm_request", default=None)


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """A caller that may have to wait.

    Attributes:
        future: of the connection.
        request: the request in which it is acquired.
        fresh: whether it is to be a new one.
    """

    future: Future[BaseDatabaseWrapper]
    request: Keeper | None
    fresh: bool


class Pool:
    """Lends the connections of one alias; any thread may call.

    Attributes:
        limit: the most connections at a time.
        timeout: the most seconds that a caller waits.
        fresh: the same connections, each opened for one caller and closed when it is released.
    """

    def __init__(self, alias: str, limit: int, timeout: float, *, timed: bool = False) -> None:
        """Note since when connections wait for an answer, if ``timed``."""
        self.alias = alias
        self.limit = limit
        self.timeout = timeout
        self.fresh = Fresh(self)
        self._timed: WeakSet[BaseDatabaseWrapper] | None = WeakSet() if timed else None
        self._lock = threading.Lock()
        self._watched = Watched()
        first = self._create()
        self._close_driver_pool = getattr(first, "close_pool", None)  # OPTIONS["pool"]
        self._free = [first]  # a stack: the warmest is lent, the others grow old
        # The warmest connection is spared from the sweep, since its next use replaces it if it is too old;
        # none is spared under CONN_MAX_AGE=0.
        self._spared = 0 if first.settings_dict["CONN_MAX_AGE"] == 0 else 1
        self._lent = 0
        self._waiting: deque[_Asked] = deque()
        self._fresh: set[BaseDatabaseWrapper] = set()  # those that are lent as new ones
        self._kept: dict[BaseDatabaseWrapper, str] = {}  # those that requests keep, and why
        self._closed = False

    # Acquire

    def acquire(self, *, fresh: bool = False) -> BaseDatabaseWrapper:
        """A connection that works, waiting for one if need be. On the thread that will use it.

        Raises:
            DatabaseBusy: all stayed in use for the timeout.
        """
        future = self._ask(fresh)
        with suppress(TimeoutError):
            future.result(self.timeout)
        connection = self._granted(future)
        try:
            self.check(connection)
        except BaseException:  # or it would be lent for good
            self.put_back(connection, broken=True)
            raise
        return connection

    async def acquire_async(self, *, fresh: bool = False) -> BaseDatabaseWrapper:
        """A connection, waiting for one on the event loop; ``check()`` it on the thread that will use it.

        Raises:
            DatabaseBusy: all stayed in use for the timeout.
        """
        future = self._ask(fresh)
        if not future.done():
            try:
                # Not wait_for(): it would cancel, and a connection given at that moment would be lost.
                await asyncio.wait([asyncio.wrap_future(future)], timeout=self.timeout)
            except BaseException:
                if not future.cancel():
                    self.put_back(future.result())
                raise
        return self._granted(future)

    def acquire_ready(self) -> BaseDatabaseWrapper | None:
        """A free connection that works as it is, on the event loop; None if there is none.

        Return it with ``put_back()``. It is not checked as by ``acquire()``, which may close connections and
        ask the server.
        """
        with self._lock:
            for position in range(len(self._free) - 1, -1, -1):
                if is_ready(self._free[position]):
                    self._lent += 1
                    return self._free.pop(position)
        return None

    def _ask(self, fresh: bool) -> Future[BaseDatabaseWrapper]:
        asked = _Asked(Future(), None if fresh else current_request.get(), fresh)
        with self._lock:
            connection = self._take(fresh) if self._may_have(asked) else None
            if connection is None:
                self._waiting.append(asked)
            else:
                self._lent += 1
                self._lend(connection, asked)
        return asked.future

    def _granted(self, future: Future[BaseDatabaseWrapper]) -> BaseDatabaseWrapper:
        if future.cancel():
            raise self._busy()
        return future.result()  # it may have come at the last moment

    def _may_have(self, asked: _Asked) -> bool:
        """Whether this caller may have a connection, if there is one.

        A request that has asked for a new one keeps it until its response is sent, however long its client
        takes for that. One connection is left to the others.
        """
        return not asked.fresh or len(self._fresh) < max(1, self.limit - 1)

    def _take(self, fresh: bool) -> BaseDatabaseWrapper | None:
        """The warmest of the free ones, else a new one, else one that a loop reads from."""
        if not fresh:
            for position in reversed(range(len(self._free))):
                if not is_read_from(self._free[position]):
                    return self._free.pop(position)
        if self._lent + len(self._free) < self.limit:
            return self._create()
        return self._free.pop(0) if self._free else None  # the coldest: those that are warm stay open

    def _lend(self, connection: BaseDatabaseWrapper, asked: _Asked) -> None:
        connection.request = asked.request  # type: ignore[attr-defined]
        if asked.fresh:
            self._fresh.add(connection)
        asked.future.set_result(connection)

    def _busy(self) -> DatabaseBusy:
        with self._lock:
            fresh, kept = len(self._fresh), sorted(set(self._kept.values()))
        mounted = f", {fresh} by requests of mounted applications that are not answered in full" * bool(fresh)
        left = f", some by requests that have left something on them ({', '.join(kept)})" * bool(kept)
        return DatabaseBusy(
            f"No connection to {self.alias!r} became available within {self.timeout:g} s: all {self.limit} "
            f"are in use{mounted}{left}. Look for `call_does_not_end` in the log, or raise "
            "DJANGO_ORM_THREADS."
        )

    def check(self, connection: BaseDatabaseWrapper) -> None:
        """Close a connection that is too old, broken or dead, so that its next use opens another.

        Django does this when a request begins. Unlike Django, it also notices a connection that the server
        has closed while it was idle, and one to an SQLite file that another has replaced.
        """
        files: OpenedFiles = connection.opened_files  # type: ignore[attr-defined]
        if files.were_replaced():
            self._close(connection)  # a loop over its rows or not: what was written there would be lost
        settle_cursors(connection, read_ahead=True)
        is_tested = connection.connection is not None and socket_of(connection) is not None
        if is_tested and died_idle(connection):
            self._close(connection)
            connection.connection = None
        with suppress(Error):  # a broken connection may fail to close, too
            connection.close_if_unusable_or_obsolete()
        if is_tested:  # the socket has said what CONN_HEALTH_CHECKS would ask the server
            connection.health_check_done = True  # type: ignore[attr-defined]
        if connection in self._fresh and connection.connection is not None:
            self._close_session(connection)  # others have used it

    # Release

    def release(self, connection: BaseDatabaseWrapper) -> bool:
        """Take back a connection of this pool, and pass it to the caller that has waited longest.

        One that is not clean stays with the request that has left it so, or is closed.

        Returns:
            Whether it was clean.
        """
        if connection in self._fresh:
            self.discard(connection)
            return True
        settle_cursors(connection, read_ahead=connection.vendor == "sqlite")
        # Autocommit that a call has left off is a transaction that no code would end.
        turned = connection.autocommit != connection.settings_dict["AUTOCOMMIT"]
        if connection.connection is not None and (self._closed or turned):
            if (
                turned
            ):  # a driver cannot say whether a transaction is open: PyMySQL overlooks it after RETURNING
                self._warn_of_loss()
            self._close(connection)
        if (left := left_behind(connection)) is not None:
            self._keep(connection, left)
            return False
        if _is_old(connection):
            self._close(connection)
        self._pass_on(connection)
        return True

    def discard(self, connection: BaseDatabaseWrapper) -> None:
        """Take back a connection in an unknown state: close it, and lend a new one in its place."""
        self._close_session(connection)
        pool = pool_of(connection)
        with pool._lock:
            pool._forget(connection)
        pool._pass_on(pool._create())

    def put_back(self, connection: BaseDatabaseWrapper, *, broken: bool = False) -> None:
        """Take a connection back on the event loop, where nothing may wait for a server.

        Args:
            connection: one that nothing has been left on.
            broken: whether to close it.
        """
        if broken:
            _drop(connection)
        self._pass_on(connection)

    def _keep(self, connection: BaseDatabaseWrapper, left: str) -> None:
        """Leave a connection to the request that has left something on it, or close it."""
        request: Keeper | None = connection.request  # type: ignore[attr-defined]
        with self._lock:
            self._kept[connection] = left
        if request is None:
            logger.warning("session_state_lost", database=self.alias, left=left, hint=HOW_TO_KEEP)
        if self._closed or request is None or not request.keep(connection):
            if request is not None and is_in_transaction(connection.connection):
                self._warn_of_loss()
            self.discard(connection)

    def _warn_of_loss(self) -> None:
        # An error would come too late: the request may have been answered.
        logger.warning("transaction_lost", database=self.alias, hint=HOW_TO_COMMIT)

    def _pass_on(self, connection: BaseDatabaseWrapper) -> None:
        with self._lock:
            self._forget(connection)
            while (asked := self._next()) is not None:
                if asked.future.set_running_or_notify_cancel():  # else its caller has given up
                    self._lend(connection, asked)
                    return
            self._lent -= 1
            if not self._closed:
                # One that is not open goes below those that are, so that these are used.
                self._free.insert(len(self._free) if connection.connection is not None else 0, connection)
                return
        if connection.connection is not None:
            _drop(connection)

    def _next(self) -> _Asked | None:
        """The caller that has waited longest of those that may have a connection."""
        for asked in self._waiting:
            if self._may_have(asked):
                self._waiting.remove(asked)
                return asked
        return None

    def _forget(self, connection: BaseDatabaseWrapper) -> None:
        self._fresh.discard(connection)
        self._kept.pop(connection, None)

    # Housekeeping

    def sweep(self) -> None:
        """Close the idle connections that are past their age, all but the one used last, and cursors.

        A loop that was left has its cursor closed here, unless another call has done so.
        """
        with self._lock:
            old = self._old()
            self._free = [connection for connection in self._free if connection not in old]
            self._lent += len(old)  # by this thread, until it has closed them
        for connection in old:
            self.release(connection)

    @property
    def has_old(self) -> bool:
        """Whether there is something to sweep."""
        with self._lock:
            return bool(self._old())

    def _old(self) -> list[BaseDatabaseWrapper]:
        spared = len(self._free) - self._spared
        return [
            each
            for position, each in enumerate(self._free)
            if (position < spared and _is_old(each)) or was_left(each)
        ]

    def timed(self) -> list[BaseDatabaseWrapper]:
        """The connections of which it is noted since when they wait for an answer."""
        return [] if self._timed is None else list(self._timed)

    def close(self) -> None:
        """Close what is idle now, and what is lent when it comes back."""
        with self._lock:
            self._closed = True
            free, self._free = self._free, []
        for connection in free:
            _close_any(connection)
            end_cursors(connection)
        if self._close_driver_pool is not None:
            self._close_driver_pool()

    # One connection

    def _create(self) -> BaseDatabaseWrapper:
        connection: Any = connections.create_connection(self.alias)
        connection.lender = self
        connection.opened_files = OpenedFiles(connection)
        connection.request = None
        connection.own_wrappers = []
        if self._timed is not None:
            time_statements(connection)
            self._timed.add(connection)
        watch_cursors(connection)
        self._watched.watch(connection)
        connection.inc_thread_sharing()  # lent from thread to thread, and never to two at a time
        return connection  # type: ignore[no-any-return]

    def _close(self, connection: BaseDatabaseWrapper) -> None:
        with suppress(Error):
            connection.close()
        end_cursors(connection)

    def _close_session(self, connection: BaseDatabaseWrapper) -> None:
        """Close a connection, and what the server has of it."""
        raw: Any = connection.connection
        with ended_by_server(connection):
            if getattr(raw, "_pool", None) is not None:
                # A driver's pool would lend it on: that of OPTIONS["pool"] unless it is closed, SQLAlchemy's
                # (django-db-connection-pool) unless it is invalidated, since close() returns it there.
                with suppress(Exception):
                    getattr(raw, "invalidate", raw.close)()
            self._close(connection)
        if connection.vendor == "sqlite":
            _close_any(connection)


class Fresh:
    """A pool's connections as Django promises them to a request: opened for it, and closed at its end."""

    def __init__(self, pool: Pool) -> None:
        self.acquire = partial(pool.acquire, fresh=True)
        self.acquire_async = partial(pool.acquire_async, fresh=True)
        self.check = pool.check
        self.discard = pool.discard


Connections: TypeAlias = Pool | Fresh


def pool_of(connection: BaseDatabaseWrapper) -> Pool:
    """The pool that has made a connection, and that takes it back.

    Where all applications have ended and others have begun, it is not the one that lends now.
    """
    return connection.lender  # type: ignore[attr-defined,no-any-return]


def _close_any(connection: BaseDatabaseWrapper) -> None:
    with suppress(Error):
        BaseDatabaseWrapper.close(connection)  # SQLite's own leaves those to shared memory open


def _drop(connection: Any) -> None:
    """Close a connection with the driver's own means, which does not wait for the server."""
    raw, connection.connection = connection.connection, None
    with suppress(Exception):
        raw.close()


def _is_old(connection: BaseDatabaseWrapper) -> bool:
    return (
        connection.connection is not None
        and connection.close_at is not None
        and time.monotonic() >= connection.close_at
        and not is_read_from(connection)
    )
