"""Where FastAPI's and Starlette's calls begin and end: in ``anyio.to_thread.run_sync``.

All ``def`` handlers, dependencies, background tasks and streaming generators go through that function, which
both libraries look up when they call it. Instrumenting it while a lifespan is open, as tracers do, is what
tells where such a call ends. (A lease kept in the context copy of AnyIO's thread outlives a call that raises:
the traceback holds the copy.)
"""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio.to_thread
from anyio import CapacityLimiter

from .calls import Call
from .pool import Pool
from .transactions import Block, Turn, current_block, enter_block, has_turn, new_transaction

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
        block, call = current_block(), Call(pools)
        if block is None or has_turn.get():
            try:
                return await original(call.run, func, *args, limiter=limiter, **options)
            finally:
                if call.held:
                    _adopt(call, block)
        # A limiter of its own: with all threads of the common one waiting for connections, the
        # transaction that holds one would wait for a thread.
        return await _take_turn(
            original, block, call, func, *args, limiter=limiter or CapacityLimiter(1), **options
        )

    anyio.to_thread.run_sync = run_sync  # type: ignore[assignment]
    try:
        yield
    finally:
        anyio.to_thread.run_sync = original  # type: ignore[assignment]


def _adopt(call: Call, block: Block | None) -> None:
    """Let what follows in the task join the transaction that a call has left open.

    So a ``def`` dependency with ``with transaction.atomic(): yield`` works: it enters in one call and leaves
    in another, on another thread, and all between is inside.
    """
    if block is None:
        block = Block(new_transaction(), None)
        block.adopted = True
        enter_block(block)
    block.transaction.connections.update(call.held)
    call.held.clear()


async def _take_turn(
    original: RunSync, block: Block, call: Call, func: Any, *args: Any, **options: Any
) -> Any:
    turn = Turn(block)
    await turn.granted()
    began = False

    def run() -> Any:
        nonlocal began
        began = True
        try:
            return call.run(func, *args)
        finally:
            turn.end()  # here and not in the task, which may be cancelled while this still runs

    token = has_turn.set(True)
    try:
        return await original(run, **options)
    finally:
        has_turn.reset(token)
        if not began:
            turn.end()
        if call.held:
            block.transaction.connections.update(call.held)
            call.held.clear()
        if block.adopted and not block.transaction.is_open:
            enter_block(None)
            await block.end()
