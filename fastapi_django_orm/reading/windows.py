"""Parts of published live lists: which are read when, so that nobody who asks for much keeps others waiting.

Anybody may ask for them, for large ones too, in any number, and hang up. So each is read by a call of its own
and handed out at once; large ones a few at a time, beside the small ones; and none that nobody waits for any
more. While too much of what was read is still on its way to clients, no read begins.

All of this runs in the event loop, except for the reading.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from concurrent.futures import Executor
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias
from weakref import finalize

from ..errors import DatabaseBusy
from .batching import give, outcome
from .encoding import tag_of

Window: TypeAlias = tuple[int, int | None]  # how many rows to leave out, and how many to give at most

# A window up to these is small. A database passes over rows much faster than it gives them.
SMALL_LIMIT = 100
SMALL_OFFSET = 10_000

SMALL_AT_ONCE = 4
LARGE_AT_ONCE = 2

# With so many bytes on their way to clients no large window is begun, and with twice as many no small one.
# Short answers are not counted: the server has them as soon as they are read.
MOST_BYTES = 64 * 2**20
SHORT = 2**16


def is_large(window: Window) -> bool:
    """Whether reading this may take long, or much memory."""
    offset, limit = window
    return limit is None or limit > SMALL_LIMIT or offset > SMALL_OFFSET


class Listed:
    """A part of a list as it is sent, with its entity tag; read once for all who had asked for it by then."""

    __slots__ = ("__weakref__", "body", "tag")

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.tag = tag_of(body)  # on the thread that has read


IsWanted: TypeAlias = Callable[[], bool]
OnThread: TypeAlias = Callable[[IsWanted], Listed]
OnLoop: TypeAlias = Callable[[], Awaitable[Listed | Exception | None]]


@dataclass(slots=True, eq=False)
class _Waiting:
    """A window that clients wait for, and how to read it."""

    on_thread: OnThread
    on_loop: OnLoop
    timer: asyncio.TimerHandle  # refuses it if its turn does not come in time
    futures: list[asyncio.Future[Listed]] = field(default_factory=list)

    def is_wanted(self) -> bool:
        """Whether anybody waits who has not gone; on any thread."""
        return not all(future.done() for future in self.futures)


@dataclass(slots=True)
class _Lane:
    """Windows of one size: those that wait, and how many are being read."""

    at_once: int
    most_bytes: int
    waiting: dict[Hashable, _Waiting] = field(default_factory=dict)
    running: int = 0


class Windows:
    """Reads the windows of one application, on its event loop."""

    def __init__(self, executor: Executor, loop: asyncio.AbstractEventLoop, patience: float) -> None:
        """Read windows on these database threads; one waits for its turn for ``patience`` seconds at most."""
        self.loop = loop
        self._executor = executor
        self._patience = patience
        self._small = _Lane(SMALL_AT_ONCE, 2 * MOST_BYTES)
        self._large = _Lane(LARGE_AT_ONCE, MOST_BYTES)
        self._bytes = 0
        self._reading: set[asyncio.Task[None]] = set()
        # A read belongs to no transaction and to no request.
        self._context = Context()

    async def get(self, of: Hashable, window: Window, on_thread: OnThread, on_loop: OnLoop) -> Listed:
        """Return what a query that starts after this call finds.

        Args:
            of: whose window it is.
            window: which rows.
            on_thread: reads it on a database thread; stops when its argument returns False.
            on_loop: reads it without a thread; returns None if a thread is needed.

        Raises:
            DatabaseBusy: its turn has not come in time.
            Exception: what the query has raised.
        """
        lane = self._large if is_large(window) else self._small
        key = of, window
        waiting = lane.waiting.get(key)
        if waiting is None:
            timer = self.loop.call_later(self._patience, self._too_late, lane, key, context=self._context)
            waiting = lane.waiting[key] = _Waiting(on_thread, on_loop, timer)
            # Not now: callers that the loop wakes in this iteration may want the same.
            self.loop.call_soon(self._start, lane, context=self._context)
        future: asyncio.Future[Listed] = self.loop.create_future()
        waiting.futures.append(future)
        return await future

    def _start(self, lane: _Lane) -> None:
        while lane.waiting and lane.running < lane.at_once and self._bytes < lane.most_bytes:
            waiting = lane.waiting.pop(next(iter(lane.waiting)))
            waiting.timer.cancel()
            if waiting.is_wanted():
                lane.running += 1
                task = self.loop.create_task(self._read(lane, waiting), context=self._context)
                self._reading.add(task)
                task.add_done_callback(self._reading.discard)

    async def _read(self, lane: _Lane, waiting: _Waiting) -> None:
        found = await outcome(waiting.on_loop, self._executor, partial(waiting.on_thread, waiting.is_wanted))
        lane.running -= 1
        if isinstance(found, Listed) and len(found.body) > SHORT:
            # Counted until the last answer that is made of it is sent or dropped.
            size = len(found.body)
            self._bytes += size
            finalize(found, self._dropped, size).atexit = False
        give(waiting.futures, found)
        self._start(lane)

    def _dropped(self, size: int) -> None:
        # On whatever thread the last reference ended, in the middle of whatever that was doing.
        with suppress(RuntimeError):  # the loop has ended
            self.loop.call_soon_threadsafe(self._uncount, size, context=self._context)

    def _uncount(self, size: int) -> None:
        self._bytes -= size
        for lane in (self._small, self._large):
            self._start(lane)

    def _too_late(self, lane: _Lane, key: Hashable) -> None:
        busy = DatabaseBusy(
            f"A part of a list was not read within {self._patience:g} s: others are being read, or sent to "
            "clients that read slowly. Ask for fewer rows, or later."
        )
        give(lane.waiting.pop(key).futures, busy)
