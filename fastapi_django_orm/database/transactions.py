"""Transactions in asynchronous code: ``async with atomic()``.

A transaction belongs to one connection, and Django finds its connection by thread, while a coroutine's calls
run on many. So a transaction here keeps a connection and a thread for its length, and a context variable
carries it: whatever runs inside (Django's async API, ``sync_to_async``, ``run()``, a ``def`` handler under
it, tasks that are awaited inside) finds both, one call at a time.

Blocks form a chain: the variable holds the innermost one of its task. While a task is inside a nested block
(a savepoint), calls of its siblings wait, or they would be rolled back with a savepoint that is not theirs.
A call that the transaction waits for may call asynchronous code itself; that is a block too, a turn, whose
calls cannot wait for the transaction's thread, because the thread waits for them.
"""

import asyncio
import queue
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import CancelledError, Future
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar, copy_context
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar
from weakref import WeakSet

import anyio
import structlog
from asgiref.current_thread_executor import CurrentThreadExecutor
from asgiref.sync import AsyncToSync
from django.db import DEFAULT_DB_ALIAS, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.transaction import TransactionManagementError

from .. import running
from .calls import left_open, run_as_call
from .pool import Pool
from .threads import DatabaseThreads, Job, Worker

T = TypeVar("T")

logger = structlog.get_logger("fastapi_django_orm")

_block: ContextVar["Block | None"] = ContextVar("fastapi_django_orm_block", default=None)
_outermost: WeakSet["Block"] = WeakSet()


class Transaction:
    """Connections and a thread of their own for as long as the outermost block is open."""

    def __init__(self, threads: DatabaseThreads, pools: Callable[[str], Pool]) -> None:
        """Take nothing yet.

        Args:
            threads: where to take the thread.
            pools: where to take connections, by alias.
        """
        self.connections: dict[str, BaseDatabaseWrapper] = {}
        self.threads = threads
        self.lock = threading.RLock()
        self.ended = False
        self.pools = pools
        self._worker: Worker | None = None

    def put(self, job: Job) -> None:
        """Let the transaction's thread run the job, or any when the transaction has ended."""
        with self.lock:
            if self.ended:
                self.threads.put(job)
                return
            if self._worker is None:
                self._worker = self.threads.take_worker()
            self._worker.jobs.put(job)

    @property
    def is_open(self) -> bool:
        """Whether a transaction is open on one of the connections."""
        return any(connection.in_atomic_block for connection in self.connections.values())

    def end(self) -> None:
        """Give everything back, on a thread that may close connections."""
        with self.lock:
            self.ended = True
            held, self.connections = self.connections, {}
            worker, self._worker = self._worker, None
        _release(self.pools, held)
        if worker is None:
            return
        # What is left is of tasks that outlive the block, and may wait for connections; the next transaction
        # on this thread must not wait for that.
        with suppress(queue.Empty):
            while (job := worker.jobs.get_nowait()) is not None:
                _put_or_cancel(self.threads, job)
            worker.jobs.put(None)
        self.threads.give_back_worker(worker)

    def __del__(self) -> None:
        # Only one that a call has left open and nobody has closed comes here with connections.
        if self.connections:
            logger.error("transaction_abandoned", databases=sorted(self.connections))
            with suppress(RuntimeError):  # the application has shut down, and its connections with it
                self.threads.put(Job(partial(_release, self.pools, self.connections)))


def _put_or_cancel(threads: DatabaseThreads, job: Job) -> None:
    try:
        threads.put(job)
    except RuntimeError:  # the application has shut down
        job.future.cancel()


def _release(pools: Callable[[str], Pool], held: dict[str, BaseDatabaseWrapper]) -> None:
    for alias, connection in held.items():
        if connection.in_atomic_block or connection.connection is None or not connection.autocommit:
            pools(alias).discard(connection)
        else:
            pools(alias).give_back(connection)


class Block:
    """One ``atomic()`` of a transaction, and what waits while a nested one is open."""

    def __init__(self, of: Transaction, parent: "Block | None") -> None:
        """Belong to a transaction.

        Args:
            of: the transaction.
            parent: the block around it, if any.
        """
        self.transaction = of
        self.parent = parent
        self.adopted = False
        self.broken = False
        self.nested: Block | None = None  # as the transaction's thread sees it
        self._leave: Callable[..., Any] | None = None
        self._ended = False
        self._nested = False  # as the event loop sees it
        self._waiting: deque[Job | Future[None]] = deque()
        self.turns: dict[CurrentThreadExecutor, Turn] = {}
        if parent is None:
            _outermost.add(self)

    @property
    def ended(self) -> bool:
        """Whether code that was started inside is outside by now."""
        return self._ended

    def put(self, job: Job) -> None:
        """Run the job on the transaction's thread, whatever is open."""
        if self.parent is None:
            self.transaction.put(job)
        else:
            self.parent.put(job)

    def submit(self, job: Job) -> None:
        """Run the job on the transaction's thread, when no nested block is open."""
        with self.transaction.lock:
            if self._nested:
                self._waiting.append(job)
            else:
                self.put(job)

    async def do(self, function: Callable[[], T]) -> T:
        """Run a step of the block itself, to its end, however often it is cancelled."""
        context = copy_context()
        context.run(enter_block, self)
        job = Job(partial(context.run, run_as_call, self.transaction.pools, function))
        self.put(job)
        return await to_its_end(job.future)  # type: ignore[no-any-return]

    async def take_connection(self, alias: str) -> None:
        """Have a connection to this database, from now to the end of the transaction.

        Raises:
            DatabaseBusy: none came free in time.
        """
        if alias in self.transaction.connections:
            return
        pool = self.transaction.pools(alias)
        requested = pool.request()
        if not requested.done():
            waiting = asyncio.wrap_future(requested)
            try:
                # Not wait_for(): it would cancel, and a connection given at that moment would be lost.
                await asyncio.wait([waiting], timeout=pool.timeout)
            except BaseException:
                pool.withdraw(requested)
                raise
            if requested.cancel():
                raise pool.busy()
        connection = self.transaction.connections[alias] = requested.result()
        await self.do(lambda: pool.check(connection))

    async def begin_nested(self) -> None:
        """Wait until no other nested block is open, and be the one that is."""
        turn: Future[None] = Future()
        with self.transaction.lock:
            if self._nested:
                self._waiting.append(turn)
            else:
                self._nested = True
                turn.set_result(None)
        if turn.done():
            return
        try:
            await asyncio.wrap_future(turn)
        except BaseException:
            if not turn.cancel():
                self.end_nested()
            raise

    def end_nested(self) -> None:
        """Let those go on who wait for the nested block's end."""
        with self.transaction.lock:
            self._nested = False
            while self._waiting and not self._nested:
                item = self._waiting.popleft()
                if isinstance(item, Job):
                    self.put(item)
                elif item.set_running_or_notify_cancel():
                    self._nested = True
                    item.set_result(None)

    def enter(self, enter: Callable[[], Any], leave: Callable[..., Any]) -> bool:
        """Begin, on the transaction's thread. False if the block around has ended."""
        if self.parent is not None:
            if self.parent.ended:
                return False
            self.parent.nested = self
        enter()
        self._leave = leave
        return True

    def leave(self, *how: Any) -> None:
        """End, on the transaction's thread, as ``__exit__`` does; the outermost block ends all.

        Raises:
            TransactionManagementError: it was rolled back before.
        """
        if not self.broken:
            self._close(*how)
        elif how[0] is None:
            raise _rolled_back_before()

    def _close(self, *how: Any) -> None:
        leave, self._leave = self._leave, None
        try:
            self.break_nested()
            if leave is not None:
                leave(*how)
        finally:
            self.end()

    def end(self) -> None:
        """What follows is outside."""
        with self.transaction.lock:
            self._ended = True
            if self.parent is not None and self.parent.nested is self:
                self.parent.nested = None
        if self.parent is None:
            self.transaction.end()
        self.end_nested()  # of tasks that outlive the block

    def break_nested(self) -> None:
        """Roll back what a task still has open inside, and let it go on no more."""
        if self.nested is not None:
            self.nested.break_off()

    def break_off(self) -> None:
        """Roll back before the end, on the transaction's thread."""
        if self._ended:
            return
        self.broken = True
        error = _rolled_back_before()
        self._close(type(error), error, None)


def _rolled_back_before() -> TransactionManagementError:
    return TransactionManagementError(
        "This atomic() was rolled back before its end, because the block around it, or the application, has "
        "ended. Await the tasks that are made inside of a block before it ends: asyncio.TaskGroup does, "
        "gather() does not when one raises."
    )


def break_off_all(threads: DatabaseThreads) -> None:
    """Roll back the transactions that are open when an application ends.

    Args:
        threads: the application's, before they are shut down.
    """
    for block in list(_outermost):
        if block.transaction.threads is threads and not block.ended:
            context = copy_context()
            context.run(enter_block, block)
            block.put(Job(partial(context.run, run_as_call, block.transaction.pools, block.break_off)))


def forget_all() -> list[dict[str, BaseDatabaseWrapper]]:
    """In a forked child: the open transactions are the parent's, and so are their connections. Those."""
    held = [block.transaction.connections for block in _outermost]
    for block in _outermost:
        block.transaction.connections = {}
        inside: Block | None = block
        while inside is not None:
            inside._ended = True
            inside = inside.nested
    return held


class Turn(Block):
    """What a call has asynchronous code do, while the transaction's thread waits for the call."""

    def __init__(self, parent: Block, send: Callable[[Job], bool]) -> None:
        """Be a block, for order, which ends with the call.

        Args:
            parent: the block that the call is in.
            send: has the waiting thread run a job; False if it waits no more.
        """
        super().__init__(parent.transaction, parent)
        self._send = send

    @property
    def ended(self) -> bool:
        """Whether the call has ended, or all around it."""
        return self._ended or (self.parent is not None and self.parent.ended)

    def put(self, job: Job) -> None:
        """Run the job on the thread that waits, or as if the turn had not been."""
        with self.transaction.lock:
            if self._ended or not self._send(job):
                super().put(job)


class ThreadTurn(Turn):
    """The right of a thread that is not the transaction's own to use its connections."""

    def __init__(self, parent: Block) -> None:
        """Ask for it.

        Args:
            parent: the innermost block of the asking task.
        """
        super().__init__(parent, self._to_waiting_thread)
        self._begun = False
        self._granted: Future[None] = Future()
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        parent.submit(Job(self._wait))

    def _to_waiting_thread(self, job: Job) -> bool:
        self._jobs.put(job)
        return True

    def _wait(self) -> None:
        # On the transaction's thread, which so does nothing else meanwhile.
        if self._granted.set_running_or_notify_cancel():
            self._granted.set_result(None)
            while (job := self._jobs.get()) is not None:
                job.run()

    async def granted(self) -> None:
        """Wait for it."""
        try:
            await asyncio.wrap_future(self._granted)
        except BaseException:
            self._granted.cancel()
            self.end()
            raise

    def begin(self) -> None:
        """Use it.

        Raises:
            CancelledError: it was given up.
        """
        with self.transaction.lock:
            if self._ended:
                raise CancelledError
            self._begun = True

    def end_unless_begun(self) -> None:
        """Give it up, if the thread has not come to use it."""
        with self.transaction.lock:
            if not self._begun:
                self.end()

    def end(self) -> None:
        """Let the transaction go on."""
        with self.transaction.lock:
            if self._ended:
                return
            self._ended = True
            self._jobs.put(None)
        self.end_nested()


def current_block() -> Block | None:
    """The innermost open block of this code, or None outside of any.

    Raises:
        TransactionManagementError: the code is inside a block that was rolled back under it.
    """
    block = _block.get()
    while block is not None and block.ended:  # a task that has outlived the block it was made in
        if block.broken:
            raise _rolled_back_before()
        block = block.parent
    return block


def asking_block() -> Block | None:
    """The block to ask for calls: the current one, or the turn of the call that waits in async_to_sync."""
    block = current_block()
    if block is None:
        return None
    waiting = getattr(AsyncToSync.executors, "current", None)
    if waiting is None:
        return block
    around: Block | None = block
    while around is not None:
        if waiting in around.turns:
            return block if around is not block else around.turns[waiting]
        around = around.parent
    return block.turns.setdefault(waiting, Turn(block, partial(_to_waiting_call, waiting)))


def _to_waiting_call(waiting: CurrentThreadExecutor, job: Job) -> bool:
    try:
        waiting.submit(job.run)
    except RuntimeError:  # it waits no more
        return False
    return True


def entered_block() -> Block | None:
    """What ``enter_block()`` was last told in this context."""
    return _block.get()


def enter_block(block: Block | None) -> None:
    """Let the rest of this context run inside the block, or outside of any."""
    _block.set(block)


class Atomic:
    """What ``atomic()`` gives: an asynchronous ``django.db.transaction.atomic``."""

    def __init__(self, using: str | None, savepoint: bool, durable: bool) -> None:
        """Hold the arguments; see ``atomic()``."""
        self._alias = using or DEFAULT_DB_ALIAS
        self._django = transaction.atomic(using=using, savepoint=savepoint, durable=durable)
        self._outer: Block | None = None
        self._inner: Block | None = None

    async def __aenter__(self) -> Self:
        if self._inner is not None:
            raise RuntimeError("This block is open already. Write `async with atomic():` for each block.")
        while not await self._enter():
            pass  # the block around has ended at this moment: this one is outside of it
        return self

    async def _enter(self) -> bool:
        self._outer = _block.get()
        parent = asking_block()
        if parent is None:
            inner = Block(new_transaction(), None)
        else:
            await parent.begin_nested()
            inner = Block(parent.transaction, parent)
        self._inner = inner
        enter_block(inner)
        try:
            await inner.take_connection(self._alias)
            entered = await inner.do(lambda: inner.enter(self._django.__enter__, self._django.__exit__))
        except BaseException as error:
            await self._leave(type(error), error, error.__traceback__)
            raise
        if not entered:
            self._forget()
        return entered

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._leave(kind, error, traceback)

    async def _leave(self, *how: Any) -> None:
        inner = self._inner
        assert inner is not None
        try:
            if not inner.broken:
                await inner.do(lambda: inner.leave(*how))
            elif how[0] is None:
                raise _rolled_back_before()
        finally:
            self._forget()

    def _forget(self) -> None:
        inner, self._inner = self._inner, None
        enter_block(self._outer)
        if inner is not None and inner.parent is not None and not inner.broken:
            inner.parent.end_nested()


def atomic(using: str | None = None, savepoint: bool = True, durable: bool = False) -> Atomic:
    """Put asynchronous code into a transaction, ``async with atomic():``.

    All that runs inside, in tasks that are awaited inside too, sees it: Django's async API,
    ``sync_to_async``, ``run()``, ``def`` handlers and dependencies under it. Leaving the block commits and
    runs the ``on_commit`` callbacks; an exception, a cancellation or a shutdown rolls back. Nested blocks are
    savepoints. One call runs at a time, since all share a connection.

    Args:
        using: the database's alias; by default ``default``.
        savepoint: whether a nested block can be rolled back alone.
        durable: refuse to be nested, so that leaving the block is sure to commit.

    Raises:
        DatabaseBusy: no connection came free within ``DJANGO_ORM_THREAD_TIMEOUT``.
        RuntimeError: ``durable``, and inside another block.
        NotStarted: no lifespan of ``DjangoORM`` runs.

    Source: https://docs.djangoproject.com/en/stable/topics/db/transactions/#django.db.transaction.atomic
    """
    return Atomic(using, savepoint, durable)


@asynccontextmanager
async def nothing_left_open() -> AsyncIterator[None]:
    """Roll back what a call inside leaves open, where nobody could end it later.

    Raises:
        TransactionLeftOpen: there was something.
    """
    before = current_block()
    try:
        yield
    except BaseException:
        await _end_left_open(before)  # the error that is on its way says more
        raise
    if aliases := await _end_left_open(before):
        raise left_open(aliases)


async def _end_left_open(before: Block | None) -> list[str]:
    block = current_block()
    if block is None or block is before or not block.adopted:
        return []
    aliases = list(block.transaction.connections)
    enter_block(before)
    await block.do(block.end)
    return aliases


def new_transaction() -> Transaction:
    """A transaction of the application that this code runs under.

    Raises:
        NotStarted: it runs under none.
    """
    executor = running.find("atomic()").executor
    return Transaction(executor.threads, executor.pools)


async def to_its_end(future: Future[Any]) -> Any:
    """The future's result, waited for to the end; a cancellation is raised after it."""
    waiting = asyncio.wrap_future(future)
    cancelled: asyncio.CancelledError | None = None
    # AnyIO cancels again and again, unless it is told not to; asyncio cancels once.
    with anyio.CancelScope(shield=True):
        while not waiting.done():
            try:
                await asyncio.shield(waiting)
            except asyncio.CancelledError as error:
                cancelled = error
            except BaseException:
                break  # the job's own, raised below
    result = waiting.result()
    if cancelled is not None:
        raise cancelled
    return result
