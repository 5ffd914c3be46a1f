"""Where FastAPI's and Starlette's calls begin and end: in ``anyio.to_thread.run_sync``.

All ``def`` handlers, dependencies, background tasks and streaming generators go through that function, which
both libraries look up when they call it. Instrumenting it while a lifespan is open, as tracers do, is what
tells where such a call ends. (A lease kept in the context copy of AnyIO's thread outlives a call that raises:
the traceback holds the copy.)
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from typing import Any, TypeVar

import anyio.from_thread
import anyio.to_thread
from anyio import CancelScope, CapacityLimiter

from ..events import logger
from . import calls
from .blocks import Block, enter_block, entered_block
from .calls import Call
from .pool import Pool
from .transaction import new_transaction
from .turns import ThreadTurn, asking_block

T = TypeVar("T")

_lock = threading.Lock()
RunSync = Callable[..., Awaitable[Any]]


@contextmanager
def calls_instrumented(pools: Callable[[str], Pool]) -> Iterator[None]:
    """Give each call that AnyIO runs its connections, for the length of the block.

    Args:
        pools: the connections, by alias.
    """
    original: RunSync = anyio.to_thread.run_sync

    async def run_sync(
        func: Callable[..., Any],
        *args: Any,
        limiter: CapacityLimiter | None = None,
        **options: Any,
    ) -> Any:
        block = asking_block()
        if block is not None:
            # A limiter of its own: with all threads of the common one waiting for connections, the
            # transaction that holds one would wait for a thread.
            options["limiter"] = limiter or CapacityLimiter(1)
            return await _take_turn(original, block, Call(pools), func, *args, **options)
        call = _OnThread(pools)
        work = original(call.run, func, *args, limiter=limiter, **options)
        manager = _entered_by(func)
        try:
            return await (work if manager is None else _enter_whole(work, call, manager))
        except BaseException:
            call.abandon()
            raise
        finally:
            if call.left_open is not None:
                enter_block(call.left_open)

    from_thread: Any = anyio.from_thread
    before = from_thread.run, from_thread.run_sync
    anyio.to_thread.run_sync = run_sync  # type: ignore[assignment]
    from_thread.run, from_thread.run_sync = _giving_back(before[0]), _giving_back(before[1])
    try:
        yield
    finally:
        anyio.to_thread.run_sync = original  # type: ignore[assignment]
        from_thread.run, from_thread.run_sync = before


def _giving_back(wait: Callable[..., Any]) -> Callable[..., Any]:
    """Give a call's connections back while it waits for the event loop, where others may want them."""

    @wraps(wait)
    def waiting(*args: Any, **options: Any) -> Any:
        if (call := calls.current()) is not None:
            call.give_back()
        return wait(*args, **options)

    return waiting


def _entered_by(func: Any) -> Any:
    """The context manager, if the function is the ``__enter__`` of one, as FastAPI calls a dependency's."""
    method = getattr(func, "func", func)  # Starlette wraps it in a partial
    return method.__self__ if getattr(method, "__name__", None) == "__enter__" else None


async def _enter_whole(work: Awaitable[Any], call: "_OnThread", manager: Any) -> Any:
    """Enter a context manager on a thread, and leave it again if the task is cancelled meanwhile.

    FastAPI does not leave what it has not seen entered. The generator would end where it is collected, and
    its transaction with it: on no connection, or on somebody else's.
    """
    entering = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(entering)
    except asyncio.CancelledError as cancelled:
        with CancelScope(shield=True):
            while not entering.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([entering])
            if not entering.cancelled() and entering.exception() is None:
                leaving = asyncio.ensure_future(_leave(manager, call.left_open, cancelled))
                while not leaving.done():
                    with suppress(asyncio.CancelledError):
                        await asyncio.wait([leaving])
                call.left_open = None
        raise


async def _leave(manager: Any, block: Block | None, cancelled: BaseException) -> None:
    enter_block(block)
    with suppress(BaseException):  # the cancellation that it is told of comes back, or what its end raises
        await anyio.to_thread.run_sync(
            manager.__exit__, type(cancelled), cancelled, None, limiter=CapacityLimiter(1)
        )


class _OnThread(Call):
    """A call whose open transaction is joined by what follows in the task.

    So a ``def`` dependency with ``with transaction.atomic(): yield`` works: it enters in one call and leaves
    in another, on another thread, and all between is inside. This is seen to on the thread, at the end of the
    call: the task may have been cancelled while it ran.
    """

    __slots__ = ("_abandoned", "left_open")

    def __init__(self, pools: Callable[[str], Pool]) -> None:
        super().__init__(pools)
        self.left_open: Block | None = None
        self._abandoned = False

    def run(self, function: Callable[..., T], *args: Any) -> T:
        try:
            return super().run(function, *args)
        finally:
            if self.held:
                self._leave_open()

    def _leave_open(self) -> None:
        block = Block(new_transaction(), None)
        block.adopted = True
        _hand_over(self, block)
        with _lock:
            if not self._abandoned:
                self.left_open = block
                return
        logger.error("transaction_abandoned", databases=sorted(block.transaction.connections))
        block.end()

    def abandon(self) -> None:
        """Note that nobody will join what the call still leaves open."""
        with _lock:
            self._abandoned = True


async def _take_turn(
    original: RunSync, block: Block, call: Call, func: Any, *args: Any, **options: Any
) -> Any:
    turn = ThreadTurn(block)
    await turn.granted()

    def run() -> Any:
        turn.begin()
        try:
            return call.run(func, *args)
        finally:
            # Here and not in the task, which may be cancelled while this still runs.
            _hand_over(call, block)
            turn.break_nested()
            block.after_call()
            turn.end()

    before = entered_block()
    enter_block(turn)
    try:
        return await original(run, **options)
    finally:
        enter_block(before)
        turn.end_unless_begun()


def _hand_over(call: Call, block: Block) -> None:
    block.transaction.connections.update(call.held)
    call.held.clear()
