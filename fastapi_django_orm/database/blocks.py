"""Transactions in asynchronous code: ``async with atomic()``.

A transaction belongs to one connection, and Django finds its connection by thread, while a coroutine's calls
run on many. So a transaction here keeps a connection and a thread for its length, and a context variable
carries it: whatever runs inside (Django's async API, ``sync_to_async``, ``run()``, a ``def`` handler under
it, tasks that are awaited inside) finds both, one call at a time.

Blocks form a chain: the variable holds the innermost one of its task. While a task is inside a nested block
(a savepoint), calls of its siblings wait, or they would be rolled back with a savepoint that is not theirs.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import ContextVar, copy_context
from functools import partial
from typing import Any, TypeVar
from weakref import WeakSet

import anyio
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.transaction import TransactionManagementError

from .calls import run_as_call
from .carrying import Carried
from .threads import Job
from .transaction import Threads, Transaction

T = TypeVar("T")

_block: ContextVar["Block | None"] = ContextVar("fastapi_django_orm_block", default=None)
_outermost: WeakSet["Block"] = WeakSet()


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
        self._nested_is_open = False  # as the event loop sees it
        self._waiting: deque[Job | Future[None]] = deque()
        self.turns: dict[Any, Block] = {}  # see turns.py
        if parent is None:
            _outermost.add(self)

    @property
    def ended(self) -> bool:
        """Whether the block is over, so that code which was started inside it is outside by now."""
        return self._ended

    def put(self, job: Job) -> None:
        """Run the job on the transaction's thread, even while a nested block is open."""
        if self.parent is None:
            self.transaction.put(job)
        else:
            self.parent.put(job)

    def submit(self, job: Job) -> None:
        """Run the job on the transaction's thread, when no nested block is open."""
        with self.transaction.lock:
            if self._nested_is_open:
                self._waiting.append(job)
            else:
                self.put(job)

    async def do(self, function: Callable[[], T]) -> T:
        """Run a step of the block itself, to its end, however often it is cancelled."""
        before = entered_block()
        carried = Carried(partial(run_as_call, self.transaction.pools, function))
        carried.context.run(enter_block, self)
        job = Job(carried)
        self.put(job)
        try:
            return await to_its_end(job.future)
        finally:
            carried.bring_back()
            enter_block(before)

    async def take_connection(self, alias: str) -> None:
        """Take a connection to this database for the rest of the transaction.

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
        await self.do(lambda: self._adopt(alias, requested.result()))

    def _adopt(self, alias: str, connection: BaseDatabaseWrapper) -> None:
        # On the transaction's thread, so that no call of it has its connection changed while it runs.
        self.transaction.connections[alias] = connection
        self.transaction.pools(alias).check(connection)

    async def begin_nested(self) -> None:
        """Wait until no other nested block is open, and mark one as open."""
        turn: Future[None] = Future()
        with self.transaction.lock:
            if self._nested_is_open:
                self._waiting.append(turn)
            else:
                self._nested_is_open = True
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
        """Let what waits for the end of the nested block go on."""
        with self.transaction.lock:
            self._nested_is_open = False
            while self._waiting and not self._nested_is_open:
                item = self._waiting.popleft()
                if isinstance(item, Job):
                    self.put(item)
                elif item.set_running_or_notify_cancel():
                    self._nested_is_open = True
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
            raise rolled_back_before()

    def _close(self, *how: Any) -> None:
        leave, self._leave = self._leave, None
        try:
            self.break_nested()
            if leave is not None:
                leave(*how)
        finally:
            self.end()

    def end(self) -> None:
        """Mark the block as ended; with the outermost one, end the transaction."""
        with self.transaction.lock:
            self._ended = True
            if self.parent is not None and self.parent.nested is self:
                self.parent.nested = None
        if self.parent is None:
            self.transaction.end()
        self.end_nested()  # of tasks that outlive the block

    def after_call(self) -> None:
        """End, if this is what a call has left open and the transaction is over."""
        if self.adopted and not self.transaction.is_open:
            self.end()
        elif self.parent is not None:
            self.parent.after_call()

    def break_nested(self) -> None:
        """Roll back the nested block that a task still has open; what the task does in it later fails."""
        if self.nested is not None:
            self.nested.break_off()

    def break_off(self) -> None:
        """Roll this block back before its end, on the transaction's thread."""
        if self._ended:
            return
        self.broken = True
        error = rolled_back_before()
        self._close(type(error), error, None)


def rolled_back_before() -> TransactionManagementError:
    """The error of code in a block that was rolled back under it."""
    return TransactionManagementError(
        "This atomic() was rolled back before its end, because the block around it, or the application, has "
        "ended. Await the tasks that are made inside of a block before it ends: asyncio.TaskGroup does, "
        "gather() does not when one raises."
    )


def break_off_all(threads: Threads) -> None:
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
    """Forget the transactions that the parent had open, in a forked child.

    Returns:
        The parent's connections, which must be kept alive.
    """
    held = [block.transaction.connections for block in _outermost]
    for block in _outermost:
        block.transaction.connections = {}
        inside: Block | None = block
        while inside is not None:
            inside._ended = True
            inside = inside.nested
    return held


def current_block() -> Block | None:
    """The innermost open block of this code, or None outside of any.

    Raises:
        TransactionManagementError: the code is inside a block that was rolled back under it.
    """
    block = _block.get()
    while block is not None and block.ended:  # a task that has outlived the block it was made in
        if block.broken:
            raise rolled_back_before()
        block = block.parent
    return block


def entered_block() -> Block | None:
    """The block that this context has entered last, be it over or not."""
    return _block.get()


def enter_block(block: Block | None) -> None:
    """Let the rest of this context run inside the block, or outside of any."""
    _block.set(block)


async def to_its_end(future: Future[T]) -> T:
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
