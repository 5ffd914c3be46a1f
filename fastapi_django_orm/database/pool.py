"""The connections to one database: few, kept open, checked before use, lent to one call at a time.

A connection is lent to a *call*, not to a thread or a request: a request that kept one while it waits for
something else would starve the others, and FastAPI's worker threads are many more than the connections that
a server can spare. psycopg's own pool is not used, because it knows one driver of Django's three.
"""

import threading
import time
from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakSet

from django.db import Error, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from ..errors import DatabaseBusy
from ..events import logger
from .cursors import loops_of, watch_cursors
from .liveness import died_idle, ended_by_server, is_ready
from .requests import Keeper, current_request
from .sqlite_file import OpenedFiles
from .state import Watched, left_behind
from .statements import time_statements

HOW_TO_KEEP = (
    "outside of requests a connection is lent to one call: let one function do it all, under run(), or write "
    "`async with atomic():` or asgiref's `async with ThreadSensitiveContext():` around the calls"
)


class Connections(Protocol):
    """Where a call or a transaction takes connections to one database from, and gives them back."""

    @property
    def timeout(self) -> float:
        """Seconds that a borrower waits at most."""

    def request(self) -> "Future[BaseDatabaseWrapper]":
        """Ask for a connection; see ``Pool``, and so for the others."""

    def withdraw(self, future: "Future[BaseDatabaseWrapper]") -> None: ...  # noqa: D102
    def borrow(self) -> BaseDatabaseWrapper: ...  # noqa: D102
    def busy(self) -> DatabaseBusy: ...  # noqa: D102
    def check(self, connection: BaseDatabaseWrapper) -> None: ...  # noqa: D102
    def give_back(self, connection: BaseDatabaseWrapper) -> bool: ...  # noqa: D102
    def discard(self, connection: BaseDatabaseWrapper) -> None: ...  # noqa: D102


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """A borrower that may have to wait.

    Attributes:
        future: of the connection.
        request: what it is borrowed in.
        fresh: whether it is to be a new one.
    """

    future: "Future[BaseDatabaseWrapper]"
    request: Keeper | None
    fresh: bool


class Pool:
    """Lends the connections of one alias; any thread may call.

    Attributes:
        fresh: the same connections, each as if it had just been made, and used once.
    """

    def __init__(self, alias: str, limit: int, timeout: float, *, timed: bool = False) -> None:
        """Open nothing yet.

        Args:
            alias: the key in ``DATABASES``.
            limit: the most connections at a time.
            timeout: seconds that a borrower waits at most.
            timed: whether to note since when connections wait for an answer.
        """
        self.alias = alias
        self._timed: WeakSet[BaseDatabaseWrapper] | None = WeakSet() if timed else None
        self.limit = limit
        self.timeout = timeout
        self.fresh = Fresh(self)
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

    def request(self, *, fresh: bool = False) -> Future[BaseDatabaseWrapper]:
        """Ask for a connection; ``check()`` it before use, and give it back.

        Give up with ``withdraw()``.

        Args:
            fresh: leave those that are open to others, if possible.
        """
        asked = _Asked(Future(), None if fresh else current_request.get(), fresh)
        with self._lock:
            connection = None
            if self._may_have(asked):
                connection = self._take_new() if fresh else self._take()
            if connection is None:
                self._waiting.append(asked)
            else:
                self._lent += 1
                self._lend(connection, asked)
        return asked.future

    def _may_have(self, asked: "_Asked") -> bool:
        """Whether this borrower may have a connection, if there is one.

        A request that has asked for a new one keeps it until its response is sent, however long its client
        takes for that. One connection is left to the others.
        """
        return not asked.fresh or len(self._fresh) < max(1, self.limit - 1)

    def _lend(self, connection: BaseDatabaseWrapper, asked: "_Asked") -> None:
        connection.request = asked.request  # type: ignore[attr-defined]
        if asked.fresh:
            self._fresh.add(connection)
        asked.future.set_result(connection)

    def _take(self) -> BaseDatabaseWrapper | None:
        """The warmest of the free ones that no loop reads from, else a new one, else one of a loop.

        ``check()`` then reads what the loop has left to read.
        """
        for position in range(len(self._free) - 1, -1, -1):
            if not loops_of(self._free[position]).unfinished:
                return self._free.pop(position)
        return self._take_new()

    def _take_new(self) -> BaseDatabaseWrapper | None:
        """A new one, else the coldest."""
        if self._lent + len(self._free) < self.limit:
            return self._create()
        return self._free.pop(0) if self._free else None

    def take_ready(self) -> BaseDatabaseWrapper | None:
        """A free connection that works as it is, on the event loop; None if there is none.

        Return it with ``put_back()`` or ``drop()``. It is not checked as by ``borrow()``, which may close
        connections and ask the server.
        """
        with self._lock:
            for position in range(len(self._free) - 1, -1, -1):
                if is_ready(self._free[position]):
                    self._lent += 1
                    return self._free.pop(position)
        return None

    def withdraw(self, future: Future[BaseDatabaseWrapper]) -> None:
        """Take a request back, whether it was answered or not."""
        if not future.cancel():
            self.put_back(future.result())

    def borrow(self) -> BaseDatabaseWrapper:
        """A connection that works, waiting for one if need be. On the thread that will use it.

        Raises:
            DatabaseBusy: all stayed in use for the timeout.
        """
        connection = self.wait_for(self.request())
        self.check(connection)
        return connection

    def wait_for(self, future: Future[BaseDatabaseWrapper]) -> BaseDatabaseWrapper:
        """The connection that was asked for, waiting on this thread.

        Raises:
            DatabaseBusy: all stayed in use for the timeout.
        """
        try:
            return future.result(self.timeout)
        except TimeoutError:
            if future.cancel():
                raise self.busy() from None
            return future.result()  # it came at the last moment

    def busy(self) -> DatabaseBusy:
        """The error of a borrower that has waited long enough."""
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
        if loops := loops_of(connection):
            loops.settle(read_ahead=True)
        if connection.connection is not None and died_idle(connection):
            self._close(connection)
            connection.connection = None
        with suppress(Error):  # a broken connection may fail to close, too
            connection.close_if_unusable_or_obsolete()

    def give_back(self, connection: BaseDatabaseWrapper) -> bool:
        """Take a connection back, and lend it to whoever has waited longest.

        One that is not clean stays with the request that has left it so, or is closed.

        Returns:
            Whether it was clean.
        """
        lender = lender_of(connection)
        if lender is not self:  # lent before all applications ended, and others have begun since
            return lender.give_back(connection)
        if loops := loops_of(connection):
            loops.settle(read_ahead=connection.vendor == "sqlite")
        if connection.connection is not None and (self._closed or _is_open(connection)):
            self._close(connection)
        if (left := left_behind(connection)) is not None:
            self._keep(connection, left)
            return False
        if _is_old(connection):
            self._close(connection)
        self._pass_on(connection)
        return True

    def _keep(self, connection: BaseDatabaseWrapper, left: str) -> None:
        """Leave a connection to the request that has left something on it, or close it."""
        request: Keeper | None = connection.request  # type: ignore[attr-defined]
        with self._lock:
            self._kept[connection] = left
        if request is None:
            logger.warning("session_state_lost", database=self.alias, left=left, hint=HOW_TO_KEEP)
        if self._closed or request is None or not request.keep(connection):
            self.discard(connection)

    def put_back(self, connection: BaseDatabaseWrapper) -> None:
        """Take its own connection back as it is: on the event loop, where Django lets nobody close it."""
        self._pass_on(connection)

    def drop(self, connection: BaseDatabaseWrapper) -> None:
        """Take its own connection back that has broken, on the event loop."""
        _end(connection)
        self._pass_on(connection)

    def _pass_on(self, connection: BaseDatabaseWrapper) -> None:
        with self._lock:
            self._forget(connection)
            while (asked := self._next()) is not None:
                if asked.future.set_running_or_notify_cancel():
                    self._lend(connection, asked)
                    return
            self._lent -= 1
            if not self._closed:
                # One that is not open goes below those that are, so that these are used.
                self._free.insert(len(self._free) if connection.connection is not None else 0, connection)
                return
        if connection.connection is not None:
            _end(connection)

    def _next(self) -> "_Asked | None":
        """The borrower that has waited longest of those that may have a connection."""
        for asked in self._waiting:
            if self._may_have(asked):
                self._waiting.remove(asked)
                return asked
        return None

    def _forget(self, connection: BaseDatabaseWrapper) -> None:
        self._fresh.discard(connection)
        self._kept.pop(connection, None)

    def discard(self, connection: BaseDatabaseWrapper) -> None:
        """Take back a connection in an unknown state: close it, and lend a new one in its place."""
        self.close_session(connection)
        lender = lender_of(connection)
        with lender._lock:
            lender._forget(connection)
        lender._pass_on(lender._create())

    def close_session(self, connection: BaseDatabaseWrapper) -> None:
        """Close a connection, and what the server has of it."""
        raw: Any = connection.connection
        with ended_by_server(connection):
            if getattr(raw, "_pool", None) is not None:
                # A driver's pool would lend it on: that of OPTIONS["pool"] unless it is closed, SQLAlchemy's
                # (django-db-connection-pool) unless it is invalidated, since close() gives it back there.
                with suppress(Exception):
                    getattr(raw, "invalidate", raw.close)()
            self._close(connection)
        if connection.vendor == "sqlite":
            with suppress(Error):
                BaseDatabaseWrapper.close(connection)  # SQLite's own leaves those to shared memory open

    def sweep(self) -> None:
        """Close the idle connections that are past their age, all but the one used last.

        A free connection becomes old here, or when a loop of another call ends, whose cursor is closed here.
        """
        with self._lock:
            idle = self._to_sweep()
            self._free = [connection for connection in self._free if connection not in idle]
            self._lent += len(idle)
        for connection in idle:
            loops_of(connection).settle(read_ahead=False)
            self.give_back(connection)

    @property
    def has_old(self) -> bool:
        """Whether there is something to sweep."""
        with self._lock:
            return bool(self._to_sweep())

    def _to_sweep(self) -> list[BaseDatabaseWrapper]:
        old = [c for c in self._free[: len(self._free) - self._spared] if _is_old(c)]
        left = [c for c in self._free if (loops := loops_of(c)) and not loops.unfinished]
        return [*old, *(c for c in left if c not in old)]

    def timed(self) -> list[BaseDatabaseWrapper]:
        """The connections of which it is noted since when they wait for an answer."""
        return [] if self._timed is None else list(self._timed)

    def close(self) -> None:
        """Close what is idle now, and what is lent when it comes back."""
        with self._lock:
            self._closed = True
            free, self._free = self._free, []
        for connection in free:
            with suppress(Error):
                BaseDatabaseWrapper.close(connection)  # SQLite's own leaves those to shared memory open
            loops_of(connection).break_off()
        if self._close_driver_pool is not None:
            self._close_driver_pool()

    def _create(self) -> BaseDatabaseWrapper:
        connection: BaseDatabaseWrapper = connections.create_connection(self.alias)
        connection.lender = self  # type: ignore[attr-defined]
        connection.opened_files = OpenedFiles(connection)  # type: ignore[attr-defined]
        connection.request = None  # type: ignore[attr-defined]
        connection.own_wrappers = []  # type: ignore[attr-defined]
        if self._timed is not None:
            time_statements(connection)
            self._timed.add(connection)
        watch_cursors(connection)
        self._watched.watch(connection)
        connection.inc_thread_sharing()  # lent from thread to thread, and never to two at a time
        return connection

    def _close(self, connection: Any) -> None:
        with suppress(Error):
            connection.close()
        loops_of(connection).break_off()


class Fresh:
    """A pool's connections as Django promises them to a request: opened for it, and closed at its end."""

    def __init__(self, pool: Pool) -> None:
        """Take them from this pool, within its bound."""
        self._pool = pool
        self.withdraw, self.busy, self.discard = pool.withdraw, pool.busy, pool.discard

    @property
    def timeout(self) -> float:
        """Seconds that a borrower waits at most."""
        return self._pool.timeout

    def request(self) -> Future[BaseDatabaseWrapper]:
        """Ask for a connection; ``check()`` it before use, and give it back."""
        return self._pool.request(fresh=True)

    def borrow(self) -> BaseDatabaseWrapper:
        """A connection, waiting for one if need be. On the thread that will use it.

        Raises:
            DatabaseBusy: all stayed in use for the timeout.
        """
        connection = self._pool.wait_for(self.request())
        self.check(connection)
        return connection

    def check(self, connection: BaseDatabaseWrapper) -> None:
        """Close what others have used, so that its next use opens another."""
        self._pool.check(connection)
        if connection.connection is not None:
            self._pool.close_session(connection)

    def give_back(self, connection: BaseDatabaseWrapper) -> bool:
        """Close the connection, with whatever was left on it."""
        self._pool.discard(connection)
        return True


def lender_of(connection: BaseDatabaseWrapper) -> Pool:
    """The pool that has made a connection."""
    return connection.lender  # type: ignore[attr-defined,no-any-return]


def _end(connection: Any) -> None:
    """Close a connection with the driver's own means, which does not wait for the server."""
    raw, connection.connection = connection.connection, None
    with suppress(Exception):
        raw.close()
    loops_of(connection).break_off()


def _is_old(connection: BaseDatabaseWrapper) -> bool:
    return (
        connection.connection is not None
        and connection.close_at is not None
        and time.monotonic() >= connection.close_at
        and not loops_of(connection).unfinished
    )


def _is_open(connection: BaseDatabaseWrapper) -> bool:
    """Whether a call has left autocommit off, and so a transaction that nobody would end."""
    return bool(connection.autocommit != connection.settings_dict["AUTOCOMMIT"])
