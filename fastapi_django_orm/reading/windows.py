"""Parts of published live lists: which are read when, so that nobody who asks for much keeps others waiting.

Anybody may ask for them, for large ones too, in any number, and hang up. So each is read by a call of its own
and handed out at once; large ones a few at a time, beside the small ones; and none that nobody waits for any
more. While too much of what was read is still on its way to clients, none is begun.

All of this runs in the event loop, but for the reading itself.
"""

import asyncio
from collections.abc import Callable, Hashable
from concurrent.futures import Executor, Future
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias
from weakref import finalize

from ..errors import DatabaseBusy
from ..rows.encoding import tag_of
from .batching import give

Window: TypeAlias = tuple[int, int | None]  # how many rows to leave out, and how many to give at most

# A window up to these is small. A database passes over rows much faster than it gives them.
SMALL_LIMIT = 100
SMALL_OFFSET = 10_000

SMALL_AT_ONCE = 4
LARGE_AT_ONCE = 2

# Bytes on their way to clients from which on no large window is begun, and at twice as many no small one.
# Short answers are not counted: the server has them as soon as they are read.
MOST_BYTES = 64 * 2**20
SHORT = 2**16

LOOK_INTERVAL = 1.0  # seconds between two looks at who has waited too long


def is_large(window: Window) -> bool:
    """Whether reading this may take long, or much memory."""
    offset, limit = window
    return limit is None or limit > SMALL_LIMIT or offset > SMALL_OFFSET


class Listed:
    """A part of a list as it is sent, read once for all who had asked for it by then.

    Attributes:
        body: the bytes.
        tag: tells them from others.
    """

    __slots__ = ("__weakref__", "body", "tag")

    def __init__(self, body: bytes) -> None:
        """Make the tag as well, on the thread that has read."""
        self.body = body
        self.tag = tag_of(body)


Found: TypeAlias = Listed | Exception | None
IsWanted: TypeAlias = Callable[[], bool]


@dataclass(slots=True, eq=False)
class WindowRead:
    """How to read a window.

    Attributes:
        on_thread: reads it on a database thread; stops if what it is given says that nobody waits any more.
        on_loop: begins to read it without a thread and returns whether it could; calls back with what was
            found, with the error, or with None if a thread is needed.
    """

    on_thread: Callable[[IsWanted], Listed]
    on_loop: Callable[[Callable[[Found], None]], bool]


@dataclass(slots=True, eq=False)
class _Asked:
    """A window that somebody waits for."""

    read: WindowRead
    since: float
    futures: list[asyncio.Future[Listed]] = field(default_factory=list)

    def is_wanted(self) -> bool:
        """Whether anybody waits who has not gone; on any thread."""
        return not all(future.done() for future in self.futures)


@dataclass(slots=True)
class _Lane:
    """Windows of one size: those that wait, and how many are being read."""

    at_once: int
    most_bytes: int
    waiting: dict[Hashable, _Asked] = field(default_factory=dict)
    running: int = 0


class Windows:
    """Reads the windows of one application.

    Attributes:
        loop: the event loop whose callers may ask.
    """

    def __init__(self, executor: Executor, loop: asyncio.AbstractEventLoop, patience: float) -> None:
        """Read nothing yet.

        Args:
            executor: the database threads.
            loop: the application's.
            patience: seconds that a window waits at most until it is read.
        """
        self.loop = loop
        self._executor = executor
        self._patience = patience
        self._small = _Lane(SMALL_AT_ONCE, 2 * MOST_BYTES)
        self._large = _Lane(LARGE_AT_ONCE, MOST_BYTES)
        self._bytes = 0
        self._looks = False
        # A read is nobody's own: no transaction, no request's id.
        self._nobody = Context()

    async def get(self, of: Hashable, window: Window, read: WindowRead) -> Listed:
        """What a query that starts after this call finds.

        Args:
            of: whose window it is.
            window: which.
            read: how to read it.

        Raises:
            DatabaseBusy: its turn has not come in time.
            Exception: what the query has raised.
        """
        lane = self._large if is_large(window) else self._small
        asked = lane.waiting.get((of, window))
        if asked is None:
            asked = lane.waiting[of, window] = _Asked(read, self.loop.time())
            # Not now: others whom the loop wakes in this turn may want the same.
            self.loop.call_soon(self._start, lane, context=self._nobody)
            self._look_later()
        future: asyncio.Future[Listed] = self.loop.create_future()
        asked.futures.append(future)
        return await future

    def _start(self, lane: _Lane) -> None:
        while lane.waiting and lane.running < lane.at_once and self._bytes < lane.most_bytes:
            asked = lane.waiting.pop(next(iter(lane.waiting)))
            if asked.is_wanted():
                lane.running += 1
                if not self._begin_on_loop(lane, asked):
                    self._submit(lane, asked)

    def _begin_on_loop(self, lane: _Lane, asked: _Asked) -> bool:
        try:
            return asked.read.on_loop(partial(self._answered, lane, asked))
        except Exception:  # it comes again on a thread, where it can be told to those who ask
            return False

    def _answered(self, lane: _Lane, asked: _Asked, found: Found) -> None:
        if found is None:
            self._submit(lane, asked)
        else:
            self._settle(lane, asked, found)

    def _submit(self, lane: _Lane, asked: _Asked) -> None:
        try:
            reading = self._executor.submit(asked.read.on_thread, asked.is_wanted)
        except RuntimeError as error:  # the application has shut down
            self._settle(lane, asked, error)
        else:
            reading.add_done_callback(partial(self._back, lane, asked))

    def _back(self, lane: _Lane, asked: _Asked, done: "Future[Listed]") -> None:
        # On the thread that has read.
        if done.cancelled():
            found: Listed | BaseException = RuntimeError(
                "The application has shut down; its database threads have ended."
            )
        else:
            found = done.result() if (error := done.exception()) is None else error
        with suppress(RuntimeError):  # the loop has ended, and with it everybody who waited
            self.loop.call_soon_threadsafe(self._settle, lane, asked, found, context=self._nobody)

    def _settle(self, lane: _Lane, asked: _Asked, found: Listed | BaseException) -> None:
        lane.running -= 1
        if isinstance(found, Listed) and len(found.body) > SHORT:
            self._count(found)
        give(asked.futures, found)
        self._start(lane)

    # What is on its way

    def _count(self, listed: Listed) -> None:
        """Count bytes until the last answer that is made of them is sent or dropped."""
        size = len(listed.body)
        self._bytes += size
        finalize(listed, self._dropped, size).atexit = False

    def _dropped(self, size: int) -> None:
        # On whatever thread the last reference ended, in the middle of whatever that was doing.
        with suppress(RuntimeError):  # the loop has ended
            self.loop.call_soon_threadsafe(self._uncount, size, context=self._nobody)

    def _uncount(self, size: int) -> None:
        self._bytes -= size
        for lane in (self._small, self._large):
            self._start(lane)

    # Who has waited too long

    def _look_later(self) -> None:
        if not self._looks:
            self._looks = True
            self.loop.call_later(LOOK_INTERVAL, self._look, context=self._nobody)

    def _look(self) -> None:
        self._looks = False
        late = self.loop.time() - self._patience
        for lane in (self._small, self._large):
            while lane.waiting and (asked := next(iter(lane.waiting.values()))).since < late:
                del lane.waiting[next(iter(lane.waiting))]
                give(asked.futures, self._busy())
        if self._small.waiting or self._large.waiting:
            self._look_later()

    def _busy(self) -> DatabaseBusy:
        return DatabaseBusy(
            f"A part of a list was not read within {self._patience:g} s: others are being read, or sent to "
            "clients that read slowly. Ask for fewer rows, or later."
        )
