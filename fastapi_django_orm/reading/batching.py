"""Live reads that wait at the same moment become one query.

Of what one ORM read costs, most is the building of a query and the way to a thread and back, and a batch
pays that once. Nobody waits for company: a read that finds the database idle goes at once, and what
arrives while others are on their way goes together when one of them is back. A read never joins a query
that has left, since that one may have read before the caller's commit.
"""

import asyncio
import copy
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import suppress
from contextvars import Context
from functools import partial
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

AT_ONCE = 2  # batches: one that the database works on, one that this process works on
MOST = 500  # keys in a batch; SQLite takes no more than 999 parameters in old versions

Waiting = dict[K, list[asyncio.Future[V]]]


class Batcher(Generic[K, V]):
    """Collects the keys that are asked for, on one event loop, and reads them together."""

    def __init__(
        self,
        read: Callable[[Sequence[K]], Mapping[K, V | Exception]],
        executor: Executor,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """Get ready.

        Args:
            read: reads these keys on a database thread, and gives what it has found for each: a value, or the
                error of a key that cannot be read. A key that it does not give is not there.
            executor: the database threads.
            loop: the one whose callers will ask.
        """
        self.loop = loop
        self._read = read
        self._executor = executor
        self._waiting: Waiting[K, V] = {}
        self._running = 0
        self._scheduled = False
        # A batch is nobody's own: no transaction, no request's id.
        self._nobody = Context()

    async def get(self, key: K) -> V:
        """What a query that starts after this call finds.

        Raises:
            KeyError: nothing.
            Exception: what the query has raised.
        """
        future: asyncio.Future[V] = self.loop.create_future()
        self._waiting.setdefault(key, []).append(future)
        if self._running < AT_ONCE and not self._scheduled:
            # Not now: whoever else the loop wakes in this turn comes along.
            self._scheduled = True
            self.loop.call_soon(self._start, context=self._nobody)
        try:
            return await future
        finally:
            del future  # its error's traceback has this frame, and they would hold each other

    def _start(self) -> None:
        self._scheduled = False
        while self._running < AT_ONCE and (batch := self._next()):
            try:
                reading = self._executor.submit(self._read, list(batch))
            except RuntimeError as error:  # the application has shut down
                _fail(batch, error)
                return
            self._running += 1
            reading.add_done_callback(partial(self._back, batch))

    def _next(self) -> Waiting[K, V]:
        """The keys that are asked for, as many as one query takes, but for those that nobody waits for."""
        batch: Waiting[K, V] = {}
        while self._waiting and len(batch) < MOST:
            key = next(iter(self._waiting))
            futures = self._waiting.pop(key)
            if not all(future.done() for future in futures):
                batch[key] = futures
        return batch

    def _back(self, batch: Waiting[K, V], done: "Future[Mapping[K, V | Exception]]") -> None:
        # On the thread that has read.
        with suppress(RuntimeError):  # the loop has ended, and with it everybody who waited
            self.loop.call_soon_threadsafe(self._settle, batch, done, context=self._nobody)

    def _settle(self, batch: Waiting[K, V], done: "Future[Mapping[K, V | Exception]]") -> None:
        self._running -= 1
        if done.cancelled():
            _fail(batch, RuntimeError("The application has shut down; its database threads have ended."))
        elif (error := done.exception()) is not None:
            _fail(batch, error)
        else:
            found = done.result()
            for key, futures in batch.items():
                if key in found:
                    _give(futures, found[key])
                else:
                    _give(futures, KeyError(key))
        self._start()


def _give(futures: "Sequence[asyncio.Future[V]]", outcome: V | BaseException) -> None:
    for future in futures:
        if future.done():
            continue
        if isinstance(outcome, BaseException):
            future.set_exception(_own(outcome))
        else:
            future.set_result(outcome)


def _fail(batch: Waiting[K, V], error: BaseException) -> None:
    for futures in batch.values():
        _give(futures, error)


def _own(error: BaseException) -> BaseException:
    """A copy for one caller: a traceback grows wherever the error is raised again."""
    try:
        mine = copy.copy(error)
    except Exception:  # some cannot be copied
        return error
    mine.__cause__ = error.__cause__ or error
    return mine.with_traceback(error.__traceback__)
