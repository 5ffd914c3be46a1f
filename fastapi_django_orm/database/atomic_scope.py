"""One ``async with atomic()``: a scope that begins and ends a transaction or a savepoint.

A transaction belongs to one connection, and Django finds its connection by thread, while a coroutine's calls
run on many. So a transaction here keeps a connection and a thread for its length, and a context variable
carries it: whatever runs inside (Django's async API, ``sync_to_async``, ``run()``, a ``def`` handler under
it, tasks that are awaited inside) finds both, one call at a time. Who comes when is said in ``scopes``.

The block itself is asynchronous code, on an event loop, which must not wait for a database. Its steps (BEGIN,
SAVEPOINT, COMMIT, …) are jobs of the transaction's thread; a step that has begun is waited for to its end,
however often the task is cancelled, and so no transaction is left open by a cancellation.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from typing import Any, Self

import anyio
from django.db.transaction import Atomic, TransactionManagementError

from ..clock import monotonic
from .calls import Carried, run_as_call
from .scopes import Scope, State, enter_scope, entered_scope, rolled_back_before, scope_to_ask
from .threads import Job
from .transaction import Transaction, new_transaction


class AtomicScope(Scope):
    """A transaction, or a savepoint in one, that asynchronous code is in.

    It is RUNNING while it begins and while it ends, and LENDING between. Its task owns it: ``let_in()``,
    ``begin()`` and ``leave()`` are called once, in this order, on the event loop. The connection belongs to
    the transaction's thread, where ``_enter()``, ``_leave()`` and what calls do between run.

    Attributes:
        commits: the alias of the database whose transaction ends with this block; empty for a savepoint.
        committed: coroutine functions that its task awaits after the commit. Django's ``on_commit`` callbacks
            append them, on the transaction's thread, before the step of the commit has ended.
        undo: functions that the transaction's thread calls after a rollback of this block. A block that
            succeeds leaves them to the block around. Calls append them; one has the transaction at a time.
    """

    is_block = True

    def __init__(self, transaction: Transaction, parent: Scope | None) -> None:
        self.committed: list[Callable[[], Awaitable[object]]] = []
        self.undo: list[Callable[[], None]] = []
        self.commits = ""
        self._django: Atomic | None = None  # what is to be left, once it was entered
        self._alias = ""
        self._watched: Any = None  # see _watch_rollbacks()
        super().__init__(transaction, parent)

    @classmethod
    def here(cls) -> Self:
        """A block inside the one that the running code is in, or a transaction of its own.

        Raises:
            NotStarted: no lifespan of ``DjangoORM`` runs.
            TransactionManagementError: the block around was rolled back.
        """
        parent = scope_to_ask()
        return cls(new_transaction() if parent is None else parent.transaction, parent)

    # On the event loop

    async def let_in(self) -> None:
        """Wait until the block may begin.

        Raises:
            DatabaseBusy: it could not within ``DJANGO_ORM_THREAD_TIMEOUT``.
        """
        granted: Future[None] = Future()
        self.ask(partial(granted.set_result, None))
        try:
            if not granted.done():
                await asyncio.wait([asyncio.wrap_future(granted)], timeout=self.transaction.threads.timeout)
        except BaseException:
            self.end()
            raise
        self.check(granted)

    async def begin(self, django: Atomic, alias: str) -> None:
        """Begin Django's own block on a database, and let the code inside use it.

        Raises:
            DatabaseBusy: no connection became available in time.
        """
        acquired = self.connection(alias) is None
        try:
            if acquired:
                acquiring = self.transaction.pools(alias).acquire_async()
                self.keeper().connections[alias] = await acquiring
        except BaseException:
            self.lend()  # to leave() and break_off(), which are next
            raise
        await self._step(partial(self._enter, django, alias, acquired))

    async def leave(self, *how: Any) -> None:
        """End as Django's ``__exit__`` does, when no call uses the transaction any more.

        Raises:
            TransactionManagementError: it was rolled back, though there was no error.
            DatabaseBusy: a call has not ended within ``DJANGO_ORM_THREAD_TIMEOUT``. The transaction is rolled
                back when it does.
        """
        granted: Future[None] = Future()
        # One step under the lock: what breaks the block off from outside comes before it, or not at all.
        with self.transaction.lock:
            if not self.broken:
                self.ending = True
                self.take_back(partial(granted.set_result, None))
        if self.broken:
            if how[0] is None:
                raise rolled_back_before()
            return
        cancelled = await to_its_end(granted, self.transaction.threads.timeout)
        if granted.done() or not self._give_up(granted):
            await self._step(partial(self._leave, *how), cancelled)
            return
        error = self.transaction.busy()
        if how[0] is None:
            raise cancelled or error

    def _give_up(self, granted: "Future[None]") -> bool:
        """Stop waiting for the calls inside; roll back when they have ended. False if they just have."""
        with self.transaction.lock:
            if granted.done():
                return False
            self.broken = True
            self._begin = self._roll_back
            return True

    async def _step(
        self, function: Callable[[], None], cancelled: asyncio.CancelledError | None = None
    ) -> None:
        """Run a step on the transaction's thread; cancellation is deferred until it has finished."""
        before = entered_scope()
        carried = Carried(self._call(function))
        # The step is inside of the block; the task is, too, but only once the step has succeeded.
        carried.context.run(enter_scope, self)
        job = Job(carried)
        self.transaction.put(job)
        # Not in the block below: a coroutine that is collected here ends in the context of other code.
        cancelled = await to_its_end(job.future) or cancelled
        try:
            job.future.result()
        finally:
            carried.bring_back()
            enter_scope(before)
        if cancelled is not None:
            raise cancelled

    def _call(self, function: Callable[[], None]) -> Callable[[], None]:
        return partial(run_as_call, self.transaction.pools, function, scope=self)

    # On the transaction's thread

    def _enter(self, django: Atomic, alias: str, acquired: bool) -> None:
        connection: Any = self.connection(alias)
        try:
            if acquired:
                self.transaction.pools(alias).check(connection)
            self._watched = _watch_rollbacks(connection)
            if self.parent is not None:
                self.parent.register_hooks()  # before the savepoint
            begins = not connection.in_atomic_block
            django.__enter__()
            self._django, self._alias = django, alias
            self.commits = alias if begins else ""
        finally:
            self.lend()

    def _leave(self, *how: Any) -> None:
        django, self._django = self._django, None
        try:
            if django is not None:
                self.register_hooks()
                connection: Any = self.connection(self._alias)
                # If a COMMIT fails, the server may have carried it out all the same: nothing is undone then.
                is_undone = (
                    how[0] is not None or connection.needs_rollback or connection.closed_in_transaction
                )
                with _loud(connection, how[0]):
                    django.__exit__(*how)
                    self._settle(is_undone)
        finally:
            self._release()

    def _settle(self, is_undone: bool) -> None:
        undo, self.undo = self.undo, []
        if is_undone:
            for function in undo:
                function()
        elif (around := block_around(self.parent, self._alias)) is not None:
            around.undo += undo

    def _release(self) -> None:
        if self._watched is not None:
            del self._watched.set_rollback, self._watched.rollback_asked
        with self.transaction.lock:
            if self._child is not None:  # an on_commit callback has left a call behind
                self.state = State.LENDING
                self.take_back(self.release_on_thread)
                return
        self.release()

    # Rolled back from outside

    def break_off(self) -> None:
        """Roll this block back before its end; what its task does in it later fails."""
        with self.transaction.lock:
            if self.state is not State.ENDED and not self.ending:
                self.ending = self.broken = True
                self.take_back(self._roll_back)

    def _roll_back(self) -> None:
        # On whatever thread the last call has ended.
        error, context = rolled_back_before(), copy_context()
        context.run(enter_scope, self)
        leave = self._call(partial(self._leave, type(error), error, None))
        self.transaction.put(Job(partial(context.run, leave)))


def block_around(scope: Scope | None, alias: str) -> AtomicScope | None:
    """Return the innermost block on a database that a scope is, or is in."""
    while scope is not None and not (isinstance(scope, AtomicScope) and scope._alias == alias):
        scope = scope.parent
    return scope


@contextmanager
def _loud(connection: Any, error: type[BaseException] | None) -> Iterator[None]:
    """Raise if Django rolls back in the block without an error, and without having been asked to.

    Raises:
        TransactionManagementError: it did.
    """
    lost = connection.needs_rollback or connection.closed_in_transaction
    cause = connection.rollback_exc
    yield
    if lost and not (connection.in_atomic_block and connection.needs_rollback):
        asked, connection.rollback_asked = connection.rollback_asked, False
        if error is None and not asked:
            raise TransactionManagementError(
                "This atomic() ended without an exception, and all that was written in it was rolled back, "
                "because something inside of it had failed: a call that was given up (asyncio.timeout(), a "
                "cancelled task), or one whose error was caught. on_commit callbacks did not run. Put a step "
                "that may fail into an `async with atomic():` of its own, a savepoint, and catch its error "
                "around that. To roll back on purpose, raise an exception or call "
                "transaction.set_rollback(True)."
            ) from cause


def _watch_rollbacks(connection: Any) -> Any:
    """Note on the connection where code asks for a rollback, which Django keeps as it keeps an error.

    Returns:
        The connection, to take that away from later; None if it is watched for a block around.
    """
    if "set_rollback" in vars(connection):
        return None

    def set_rollback(rollback: bool) -> None:
        type(connection).set_rollback(connection, rollback)
        connection.rollback_asked = rollback

    connection.set_rollback = set_rollback
    connection.rollback_asked = False
    connection.rollback_exc = None  # of an earlier transaction
    return connection


async def to_its_end(future: Future[Any], seconds: float | None = None) -> asyncio.CancelledError | None:
    """Wait until a future is done, through all cancellations.

    Args:
        future: what to wait for; its result stays in it.
        seconds: how long to wait at most.

    Returns:
        The cancellation to raise afterwards, if there was one.
    """
    if future.done():
        return None
    waiting, deadline = asyncio.wrap_future(future), monotonic() + (seconds or 0)
    cancelled: asyncio.CancelledError | None = None
    # AnyIO cancels again and again, unless it is told not to; asyncio cancels once.
    with anyio.CancelScope(shield=True):
        while not waiting.done() and (seconds is None or monotonic() < deadline):
            try:
                await asyncio.wait([waiting], timeout=None if seconds is None else deadline - monotonic())
            except asyncio.CancelledError as error:
                cancelled = error
    if waiting.done():
        waiting.exception()  # it counts as seen; the caller reads it in the other future
    return cancelled
