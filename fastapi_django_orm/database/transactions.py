"""Transactions in asynchronous code: ``async with atomic()``.

A transaction belongs to one connection, and Django finds its connection by thread, while a coroutine's calls
run on many. So a transaction here keeps a connection and a thread for its length, and a context variable
carries it: whatever runs inside (Django's async API, ``sync_to_async``, ``run()``, a ``def`` handler under
it, tasks that are awaited inside) finds both, one call at a time.

Blocks form a chain: the variable holds the innermost one of its task. While a task is inside a nested block
(a savepoint), calls of its siblings wait, or they would be rolled back with a savepoint that is not theirs.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from contextvars import ContextVar, copy_context
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

import anyio
import structlog
from django.db import DEFAULT_DB_ALIAS, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from .. import running
from .calls import run_as_call
from .pool import Pool
from .threads import DatabaseThreads, Job, Worker

T = TypeVar("T")

logger = structlog.get_logger("fastapi_django_orm")

_block: ContextVar["Block | None"] = ContextVar("fastapi_django_orm_block", default=None)
# Whether this code already has its transaction's turn, so that waiting for it would be for ever.
has_turn: ContextVar[bool] = ContextVar("fastapi_django_orm_has_turn", default=False)


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
        self.lock = threading.Lock()
        self._pools = pools
        self._worker: Worker | None = None

    async def take_connection(self, alias: str) -> None:
        """Have a connection to this database, from now to the end.

        Raises:
            DatabaseBusy: none came free in time.
        """
        if alias in self.connections:
            return
        pool = self._pools(alias)
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
        connection = self.connections[alias] = requested.result()
        await self.do(lambda: pool.check(connection))

    async def do(self, function: Callable[[], T]) -> T:
        """Run a step of the transaction itself on its thread, to its end, however often it is cancelled."""
        job = Job(partial(copy_context().run, run_as_call, self._pools, function))
        self.put(job)
        return await to_its_end(job.future)  # type: ignore[no-any-return]

    def put(self, job: Job) -> None:
        """Let the transaction's thread run the job, or another if that waits for the running code."""
        if has_turn.get():
            self.threads.put(job)
            return
        if self._worker is None:
            self._worker = self.threads.take_worker()
        self._worker.jobs.put(job)

    @property
    def is_open(self) -> bool:
        """Whether a transaction is open on one of the connections."""
        return any(connection.in_atomic_block for connection in self.connections.values())

    def release(self) -> None:
        """Give the connections back, on a thread that may close them."""
        held, self.connections = self.connections, {}
        _release(self._pools, held)

    async def end(self) -> None:
        """Give everything back."""
        if self.connections:
            await self.do(self.release)
        if self._worker is not None:
            worker, self._worker = self._worker, None
            self.threads.give_back_worker(worker)

    def __del__(self) -> None:
        # Only one that a call has left open and nobody has closed comes here with connections.
        if self.connections:
            logger.error("transaction_abandoned", databases=sorted(self.connections))
            with suppress(RuntimeError):  # the application has shut down, and its connections with it
                self.threads.put(Job(partial(_release, self._pools, self.connections)))


def _release(pools: Callable[[str], Pool], held: dict[str, BaseDatabaseWrapper]) -> None:
    for alias, connection in held.items():
        if connection.in_atomic_block or connection.connection is None or not connection.autocommit:
            pools(alias).discard(connection)
        else:
            pools(alias).give_back(connection)


class Turn:
    """The right to use a transaction's connections from a thread that is not its own."""

    def __init__(self, block: "Block") -> None:
        """Ask for it.

        Args:
            block: the innermost block of the asking task.
        """
        self._granted: Future[None] = Future()
        self._ended = threading.Event()
        block.submit(Job(self._wait))

    def _wait(self) -> None:
        # On the transaction's thread, which so does nothing else meanwhile.
        if self._granted.set_running_or_notify_cancel():
            self._granted.set_result(None)
            self._ended.wait()

    async def granted(self) -> None:
        """Wait for it."""
        try:
            await asyncio.wrap_future(self._granted)
        except BaseException:
            self._granted.cancel()
            self.end()
            raise

    def end(self) -> None:
        """Let the transaction go on."""
        self._ended.set()


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
        self.ended = False
        self.adopted = False
        self._nested = False
        self._waiting: deque[Job | Future[None]] = deque()

    def submit(self, job: Job) -> None:
        """Run the job on the transaction's thread, when no nested block is open."""
        with self.transaction.lock:
            if self._nested:
                self._waiting.append(job)
            else:
                self.transaction.put(job)

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
                    self.transaction.put(item)
                elif item.set_running_or_notify_cancel():
                    self._nested = True
                    item.set_result(None)

    async def end(self) -> None:
        """Close the block; the outermost one ends the transaction."""
        self.ended = True
        if self.parent is None:
            await self.transaction.end()
        else:
            self.parent.end_nested()


def current_block() -> Block | None:
    """The innermost open block of this code, or None outside of any."""
    block = _block.get()
    while block is not None and block.ended:  # a task that has outlived the block it was made in
        block = block.parent
    return block


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
        self._outer = outer = current_block()
        if outer is None:
            inner = Block(new_transaction(), None)
        else:
            await outer.begin_nested()
            inner = Block(outer.transaction, outer)
        self._inner = inner
        enter_block(inner)
        try:
            await inner.transaction.take_connection(self._alias)
            await inner.transaction.do(self._django.__enter__)
        except BaseException:
            await self._leave()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._inner is not None
        try:
            await self._inner.transaction.do(lambda: self._django.__exit__(kind, error, traceback))
        finally:
            await self._leave()

    async def _leave(self) -> None:
        assert self._inner is not None
        try:
            await self._inner.end()
        finally:
            enter_block(self._outer)


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
