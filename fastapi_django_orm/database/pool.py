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
from typing import Any

from django.db import Error, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from ..errors import DatabaseBusy
from .cursors import loops_of, watch_cursors
from .liveness import died_idle, is_ready


class Pool:
    """Lends the connections of one alias; any thread may call."""

    def __init__(self, alias: str, limit: int, timeout: float) -> None:
        """Open nothing yet.

        Args:
            alias: the key in ``DATABASES``.
            limit: the most connections at a time.
            timeout: seconds that a borrower waits at most.
        """
        self.alias = alias
        self.limit = limit
        self.timeout = timeout
        self._lock = threading.Lock()
        first = self._create()
        self._close_driver_pool = getattr(first, "close_pool", None)  # OPTIONS["pool"]
        self._free = [first]  # a stack: the warmest is lent, the others grow old
        # The warmest connection is spared from the sweep, since its next use replaces it if it is too old;
        # none is spared under CONN_MAX_AGE=0.
        self._spared = 0 if first.settings_dict["CONN_MAX_AGE"] == 0 else 1
        self._lent = 0
        self._waiting: deque[Future[BaseDatabaseWrapper]] = deque()
        self._closed = False

    def request(self) -> Future[BaseDatabaseWrapper]:
        """Ask for a connection; ``check()`` it before use, and give it back.

        Give up with ``withdraw()``.
        """
        future: Future[BaseDatabaseWrapper] = Future()
        with self._lock:
            connection = self._take()
            if connection is None:
                self._waiting.append(future)
            else:
                self._lent += 1
                future.set_result(connection)
        return future

    def _take(self) -> BaseDatabaseWrapper | None:
        """The warmest of the free ones that no loop reads from, else a new one, else one of a loop.

        ``check()`` then reads what the loop has left to read.
        """
        for position in range(len(self._free) - 1, -1, -1):
            if not loops_of(self._free[position]).unfinished:
                return self._free.pop(position)
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
        future = self.request()
        try:
            connection = future.result(self.timeout)
        except TimeoutError:
            if future.cancel():
                raise self.busy() from None
            connection = future.result()  # it came at the last moment
        self.check(connection)
        return connection

    def busy(self) -> DatabaseBusy:
        """The error of a borrower that has waited long enough."""
        return DatabaseBusy(
            f"No connection to {self.alias!r} came free within {self.timeout:g} s: all {self.limit} are "
            "in use. Look for calls that keep theirs (the log names those), or raise DJANGO_ORM_THREADS."
        )

    def check(self, connection: BaseDatabaseWrapper) -> None:
        """Close a connection that is too old, broken or dead, so that its next use opens another.

        Django does this when a request begins. Unlike Django, it also notices a connection that the server
        has closed while it was idle.
        """
        if loops := loops_of(connection):
            loops.settle(read_ahead=True)
        if connection.connection is not None and died_idle(connection):
            self._close(connection)
            connection.connection = None
        with suppress(Error):  # a broken connection may fail to close, too
            connection.close_if_unusable_or_obsolete()

    def give_back(self, connection: BaseDatabaseWrapper) -> None:
        """Take a connection back, and lend it to whoever has waited longest."""
        lender = lender_of(connection)
        if lender is not self:  # lent before all applications ended, and others have begun since
            lender.give_back(connection)
            return
        if loops := loops_of(connection):
            loops.settle(read_ahead=connection.vendor == "sqlite")
        if connection.connection is not None and (
            self._closed or _is_old(connection) or _is_open(connection)
        ):
            self._close(connection)
        self._pass_on(connection)

    def put_back(self, connection: BaseDatabaseWrapper) -> None:
        """Take its own connection back as it is: on the event loop, where Django lets nobody close it."""
        self._pass_on(connection)

    def drop(self, connection: BaseDatabaseWrapper) -> None:
        """Take its own connection back that has broken, on the event loop."""
        _end(connection)
        self._pass_on(connection)

    def _pass_on(self, connection: BaseDatabaseWrapper) -> None:
        with self._lock:
            while self._waiting:
                future = self._waiting.popleft()
                if future.set_running_or_notify_cancel():
                    future.set_result(connection)
                    return
            self._lent -= 1
            if not self._closed:
                # One that is not open goes below those that are, so that these are used.
                self._free.insert(len(self._free) if connection.connection is not None else 0, connection)
                return
        if connection.connection is not None:
            _end(connection)

    def discard(self, connection: BaseDatabaseWrapper) -> None:
        """Take back a connection in an unknown state: close it, and lend a new one in its place."""
        self._close(connection)
        lender = lender_of(connection)
        lender._pass_on(lender._create())

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
        watch_cursors(connection)
        connection.inc_thread_sharing()  # lent from thread to thread, and never to two at a time
        return connection

    def _close(self, connection: Any) -> None:
        with suppress(Error):
            connection.close()
        loops_of(connection).break_off()


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
