"""What calls leave behind for those that follow, and what serves the calls of one context.

Django gives a thread one connection, and an ASGI request one thread (``ThreadSensitiveContext``). Here a
connection is lent to a call, which is enough for most code. Three kinds need more, and each is a scope (see
``scopes``) that lends what it has: calls take their turn in it, ``atomic()`` nests in it.

- *A context of its own*, as Django's ``get_asgi_application()`` enters for each request: all its calls have
  one thread and one connection to each database from their first use until it ends. Both are new and end with
  it, so that nothing of one request can reach another: what middleware leaves in a ``threading.local``, a
  tenant's schema, session variables, locks.
- *A request that has left something on a connection* (see ``state``), as ``async with pghistory.context()``
  does: the connection and the thread serve the request's later calls, one at a time, until the connection is
  clean, or the request has ended, and the connection is closed.
- *A call that has left a transaction open*, as a ``def`` dependency does: what follows in its task is inside.
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from django.db.backends.base.base import BaseDatabaseWrapper

from ..errors import DatabaseBusy
from ..events import logger
from ..shared import renewed_at_fork
from .atomic_scope import AtomicScope
from .calls import Call
from .current import CurrentExecutor
from .pool import Connections, Pool
from .scopes import Scope, State, rolled_back_before
from .state import is_open, left_behind
from .threads import MOST_KEPT, DatabaseThreads, Job, Worker
from .transaction import Transaction, new_transaction, release

# Guards what requests have kept. Taken after a transaction's lock; none is taken under it but those of
# DatabaseThreads.
_lock = renewed_at_fork(threading.Lock())


class _Kept(Transaction):
    """The thread and the lock of a context or a request."""

    ends_thread = True

    def __init__(
        self, threads: DatabaseThreads, pools: Callable[[str], Connections], worker: Worker | None = None
    ) -> None:
        super().__init__(threads, pools)
        self._worker = worker

    def begin_on(self, worker: Worker) -> None:
        self._worker = worker

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


class _KeptScope(Scope):
    """The root of a tree without a transaction, which lends until ``break_off()`` or ``release()``."""

    def break_off(self) -> None:
        """Give everything up when the calls that use it have ended. Open blocks are rolled back."""
        with self.transaction.lock:
            if self.state is not State.ENDED:
                self.take_back(self.release_on_thread)


class ContextScope(_KeptScope):
    """What serves the calls of one ``ThreadSensitiveContext``. It is WAITING until it has its thread."""

    keeps_all = True

    def __init__(self, threads: DatabaseThreads, pools: Callable[[str], Pool]) -> None:
        self._kept = _Kept(threads, lambda alias: pools(alias).fresh)
        super().__init__(self._kept, None)

    def _let_in(self) -> None:
        if self.state is not State.WAITING:
            super()._let_in()
        elif len(self._queue) == 1:  # the first call
            self._kept.threads.take_when_possible(self._begin_on)

    def _begin_on(self, worker: Worker) -> None:
        with self.transaction.lock:
            self._kept.begin_on(worker)
            self.lend()

    def break_off(self) -> None:
        """Give everything up, if the context has used anything."""
        with self.transaction.lock:
            if self.state is State.WAITING and not self._queue:
                self.end()
            else:
                super().break_off()


class RequestScope(_KeptScope):
    """What serves a request's calls after one of them has left something on a connection."""

    def __init__(self, request: "RequestConnections", executor: CurrentExecutor) -> None:
        """Begin, on the thread whose call has ended: it runs what follows, if it serves everybody."""
        super().__init__(_Kept(executor.threads, executor.pools, executor.threads.take_running()), None)
        self.state = State.LENDING
        self._request = request

    def child_ends(self) -> None:
        """End, if everything is clean by now."""
        kept = tuple(self.connections.values())
        if not any(connection.in_atomic_block or left_behind(connection) for connection in kept):
            self.release()

    def release(self) -> None:
        """Release the connections, and end."""
        with _lock:  # or a call that ends now would leave here what nothing closes
            if self._request.scope is self:
                self._request.scope = None
            kept, self.connections = self.connections, {}
        release(kept)
        self.end()


class AdoptedScope(AtomicScope):
    """A transaction that a call has left open, for the calls that follow it in its task.

    So a ``def`` dependency with ``with transaction.atomic(): yield`` works: it enters in one call and leaves
    in another, on another thread, and all between is inside. Nothing awaits its end: it is over when a call
    has ended the transaction.
    """

    def __init__(
        self, connections: dict[str, BaseDatabaseWrapper], close: Callable[[], None] | None = None
    ) -> None:
        """Begin, with connections that have a transaction open.

        Args:
            connections: what the call has left open.
            close: closes the streaming handler or dependency that has left it open, if one has. That must not
                be collected on the event loop, where its ``with`` statements could not roll back.
        """
        super().__init__(new_transaction(), None)
        self.connections = connections
        self.state = State.LENDING
        self._close = close

    def child_ends(self) -> None:
        """End, if the call that uses the connections now has ended the transaction."""
        if not any(map(is_open, self.connections.values())):
            self.release()

    async def roll_back(self) -> list[str]:
        """Roll back what no code could end later. Returns the aliases of the databases."""
        aliases = list(self.connections)
        error = rolled_back_before()
        await self.leave(type(error), error, None)
        return aliases

    def break_off(self) -> None:
        """Have the code that began it end it, or roll it back, once the calls that use it have ended."""
        with self.transaction.lock:
            if self.state is not State.ENDED and not self.ending:
                self.ending = self.broken = True
                self.take_back(lambda: self.transaction.put(Job(self._abandon)))

    def _abandon(self) -> None:
        held, self.connections = self.connections, {}
        end_abandoned(self.transaction.pools, held, self._close)
        self.end()

    def end(self) -> None:
        """Make room for the next one, and forget the handler."""
        super().end()
        self._close = None  # its context refers to the request, and that to this scope

    def __del__(self) -> None:  # outside of a request, which would have ended it
        if self.connections:
            with suppress(RuntimeError):  # the application has shut down, and its connections with it
                ending = partial(end_abandoned, self.transaction.pools, self.connections, self._close)
                self.transaction.threads.put_beside(Job(ending))


def end_abandoned(
    pools: Callable[[str], Connections],
    connections: dict[str, BaseDatabaseWrapper],
    close: Callable[[], None] | None,
) -> None:
    """End a transaction that the task which began it will not end any more, on a thread.

    A streaming handler or dependency is closed, as Python closes a generator that is not read to its end. Its
    own ``with`` statements roll back then. What is open after that is rolled back with an error in the log.

    Args:
        pools: where the connections go, by alias.
        connections: those that have the transaction open, by alias.
        close: closes the streaming handler or dependency that began it, if one did.
    """
    call = Call(pools)
    call.held = dict(connections)
    if close is not None:
        try:
            call.run(close)
        except Exception as error:
            logger.error("stream_not_closed", exc_info=error)
    if call.held:
        logger.error("transaction_abandoned", databases=sorted(call.held))
        release(call.held)


class RequestConnections:
    """What the calls of one request have left on connections.

    Attributes:
        scope: serves the request's calls while there is something.
    """

    __slots__ = ("_adopted", "_ended", "_executor", "scope")

    def __init__(self, executor: CurrentExecutor) -> None:
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
            if self.scope is None:
                self.scope = RequestScope(self, self._executor)
            return self.scope.connections.setdefault(connection.alias, connection) is connection

    def adopt(self, scope: Scope) -> bool:
        """End a transaction that a call has left open with the request, if nothing has ended it before.

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
        if (kept := self.scope) is not None:
            kept.break_off()
