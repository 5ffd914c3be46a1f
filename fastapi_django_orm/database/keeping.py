"""Connections and a thread that stay together for longer than a call.

Django gives a thread one connection, and an ASGI request one thread (``ThreadSensitiveContext``). Here a
connection is lent to a call, which is enough for most code. Two kinds need more:

- *A context of its own*, as Django's ``get_asgi_application()`` enters for each request: all its calls have
  one thread and one connection to each database from their first use until it ends. Both are new and end with
  it, so that nothing of one request can reach another: what middleware leaves in a ``threading.local``, a
  tenant's schema, session variables, locks.
- *A request that has left something on a connection* (see ``state``), as ``async with pghistory.context()``
  does: the connection and the thread serve the request's later calls, one at a time, until the connection is
  clean, or the request has ended, and the connection is closed.

Both are scopes (see ``scopes``) that lend what they have from first to last: calls take their turn in them,
``atomic()`` nests in them.
"""

import threading
from collections.abc import Callable
from typing import Protocol

from django.db.backends.base.base import BaseDatabaseWrapper

from ..errors import DatabaseBusy
from ..shared import renewed_at_fork
from .pool import Connections, Pool
from .scopes import Scope, State
from .state import left_behind
from .threads import MOST_KEPT, DatabaseThreads, Worker
from .transaction import Transaction, release

_lock = renewed_at_fork(threading.Lock())  # guards what requests have kept; taken after a transaction's


class _Kept(Transaction):
    """The thread and the lock of a request, which end with it."""

    def __init__(
        self, threads: DatabaseThreads, pools: Callable[[str], Connections], worker: Worker | None = None
    ) -> None:
        super().__init__(threads, pools)
        self._worker = worker

    def begin_on(self, worker: Worker) -> None:
        """Have this thread run everything."""
        self._worker = worker

    def take_worker(self) -> Worker:
        return self.threads.new_kept()

    def give_back_worker(self, worker: Worker) -> None:
        self.threads.end_kept(worker)

    def busy(self) -> DatabaseBusy:
        waited = self.threads.timeout
        if self._worker is None:
            return DatabaseBusy(
                f"No thread for a request of a mounted application became available within {waited:g} s: all "
                f"{MOST_KEPT} are in use, each until its response is sent."
            )
        return DatabaseBusy(
            f"A call has waited for {waited:g} s for another of its request, which shares a thread and a "
            "connection with it. Look for `call_does_not_end` in the log."
        )


class KeptScope(Scope):
    """The root of a tree without a transaction of its own, which lends until it is told to end."""

    def break_off(self) -> None:
        """Give everything up when the calls that use it have ended. Open blocks are rolled back."""
        with self.transaction.lock:
            if self.state is not State.ENDED:
                self.take_back(self.release_on_thread)


class ContextScope(KeptScope):
    """What serves the calls of one ``ThreadSensitiveContext``. It is WAITING until it has its thread."""

    keeps_all = True

    def __init__(self, threads: DatabaseThreads, pools: Callable[[str], Pool]) -> None:
        """Take nothing yet.

        Args:
            threads: the application's.
            pools: its connections, by alias; new ones are made of them.
        """
        self._kept = _Kept(threads, lambda alias: pools(alias).fresh)
        self._asked = False
        super().__init__(self._kept, None)

    def _let_in(self) -> None:
        if self.state is State.WAITING:
            if not self._asked:
                self._asked = True
                self._kept.threads.request_kept(self._begin_on)
            return
        super()._let_in()

    def _begin_on(self, worker: Worker) -> None:
        with self.transaction.lock:
            self._kept.begin_on(worker)
            self.lend()

    def break_off(self) -> None:
        """Give everything up, if the context has used anything."""
        with self.transaction.lock:
            if self._asked:
                super().break_off()
            else:
                self.end()


class RequestScope(KeptScope):
    """What serves a request's calls after one of them has left something on a connection.

    Attributes:
        is_over: whether it takes no more connections.
    """

    def __init__(self, threads: DatabaseThreads, pools: Callable[[str], Connections]) -> None:
        """Begin, on the thread whose call has ended: it runs what follows, if it serves everybody."""
        super().__init__(_Kept(threads, pools, threads.keep_running()), None)
        self.is_over = False
        self.state = State.LENDING

    def child_ends(self) -> None:
        """End, if everything is clean by now."""
        kept = tuple(self.connections.values())
        if not any(connection.in_atomic_block or left_behind(connection) for connection in kept):
            self.release()

    def release(self) -> None:
        """Give the connections back, and end."""
        with _lock:  # or a call that ends now would leave here what nothing closes
            self.is_over = True
            kept, self.connections = self.connections, {}
        release(self.transaction.pools, kept)
        self.end()


class _Executor(Protocol):
    """What an application runs calls with; ``executor.DatabaseExecutor`` is one."""

    threads: DatabaseThreads
    pools: Callable[[str], Pool]


class RequestConnections:
    """What the calls of one request have left on connections.

    Attributes:
        scope: serves the request's calls while there is something.
    """

    __slots__ = ("_adopted", "_ended", "_executor", "scope")

    def __init__(self, executor: _Executor) -> None:
        """Keep nothing yet.

        Args:
            executor: the application's.
        """
        self.scope: RequestScope | None = None
        self._adopted: list[Scope] = []
        self._executor = executor
        self._ended = False

    def keep(self, connection: BaseDatabaseWrapper) -> bool:
        """Keep a connection for the calls that follow in the request, on the thread whose call has ended.

        Returns:
            False if the request has ended, or has another connection to the same database already.
        """
        with _lock:
            if self._ended:
                return False
            if self.scope is None or self.scope.is_over:
                self.scope = RequestScope(self._executor.threads, self._executor.pools)
            return self.scope.connections.setdefault(connection.alias, connection) is connection

    def adopt(self, scope: Scope) -> bool:
        """End a transaction with the request, if nothing has ended it before.

        Args:
            scope: what a call has left open, as a ``def`` dependency or a streaming handler does.

        Returns:
            False if the request has ended.
        """
        with _lock:
            if not self._ended:
                self._adopted.append(scope)
            return not self._ended

    def end(self) -> None:
        """Close what has been left, when the request has ended. In the event loop."""
        with _lock:  # or a call that ends now could keep something that nothing closes
            self._ended = True
        adopted, self._adopted = self._adopted, []
        for scope in adopted:  # of a stream whose client has gone
            scope.break_off()
        if self.scope is not None:
            self.scope.break_off()
