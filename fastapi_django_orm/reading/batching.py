"""Live reads that wait at the same moment become one query.

Most of what one ORM read costs is building the query and the way to a thread and back, and a batch pays that
once. Nobody waits for company: a read that finds the database idle goes at once, and what
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

BATCHES_AT_ONCE = 2  # one that the database works on, one that this process works on
MOST_KEYS_OF_BATCH = 500  # SQLite takes no more than 999 parameters in old versions


class Absent(LookupError):
    """There is nothing under this key. No error of the project's own, as ``KeyError`` could be."""


Waiting = dict[K, list[asyncio.Future[V]]]
Outcomes = Mapping[K, V | Exception]


class Batcher(Generic[K, V]):
    """Collects the keys that are asked for, on one event loop, and reads them together."""

    def __init__(
        self,
        read: Callable[[Sequence[K]], Outcomes[K, V]],
        executor: Executor,
        loop: asyncio.AbstractEventLoop,
        read_on_loop: Callable[[Sequence[K], Callable[[Outcomes[K, V] | Exception | None], None]], bool],
    ) -> None:
        """Collect no keys yet.

        Args:
            read: reads these keys on a database thread, and gives what it has found for each: a value, or the
                error of a key that cannot be read. A key that it does not give is not there.
            executor: the database threads.
            loop: the one whose callers will ask.
            read_on_loop: begins to read without a thread and returns whether it could; calls back with what
                was found, with one error for all, or with None if a thread is needed.
        """
        self.loop = loop
        self._read = read
        self._read_on_loop = read_on_loop
        self._executor = executor
        self._waiting: Waiting[K, V] = {}
        self._running = 0
        self._scheduled = False
        # A batch is nobody's own: no transaction, no request's id.
        self._nobody = Context()

    async def get(self, key: K) -> V:
        """What a query that starts after this call finds.

        Raises:
            Absent: it finds nothing.
            Exception: what the query has raised.
        """
        future: asyncio.Future[V] = self.loop.create_future()
        self._waiting.setdefault(key, []).append(future)
        if self._running < BATCHES_AT_ONCE and not self._scheduled:
            # Not now: whoever else the loop wakes in this turn comes along.
            self._scheduled = True
            self.loop.call_soon(self._start, context=self._nobody)
        try:
            return await future
        finally:
            del future  # its error's traceback has this frame, and they would hold each other

    def _start(self) -> None:
        self._scheduled = False
        while self._running < BATCHES_AT_ONCE and (batch := self._next()):
            self._running += 1
            if not self._begin_on_loop(batch):
                self._submit(batch)

    def _begin_on_loop(self, batch: Waiting[K, V]) -> bool:
        try:
            return self._read_on_loop(list(batch), partial(self._answered, batch))
        except Exception:  # it comes again on a thread, where it can be told to those who ask
            return False

    def _answered(self, batch: Waiting[K, V], found: Outcomes[K, V] | Exception | None) -> None:
        if found is None:
            self._submit(batch)
        else:
            self._settle(batch, found)

    def _submit(self, batch: Waiting[K, V]) -> None:
        try:
            reading = self._executor.submit(self._read, list(batch))
        except RuntimeError as error:  # the application has shut down
            self._settle(batch, error)
        else:
            reading.add_done_callback(partial(self._back, batch))

    def _next(self) -> Waiting[K, V]:
        """The keys that are asked for, as many as one query takes, without those that nobody waits for."""
        batch: Waiting[K, V] = {}
        while self._waiting and len(batch) < MOST_KEYS_OF_BATCH:
            key = next(iter(self._waiting))
            futures = self._waiting.pop(key)
            if not all(future.done() for future in futures):
                batch[key] = futures
        return batch

    def _back(self, batch: Waiting[K, V], done: "Future[Outcomes[K, V]]") -> None:
        # On the thread that has read.
        if done.cancelled():
            found: Outcomes[K, V] | BaseException = RuntimeError(
                "The application has shut down; its database threads have ended."
            )
        else:
            found = done.result() if (error := done.exception()) is None else error
        with suppress(RuntimeError):  # the loop has ended, and with it everybody who waited
            self.loop.call_soon_threadsafe(self._settle, batch, found, context=self._nobody)

    def _settle(self, batch: Waiting[K, V], found: Outcomes[K, V] | BaseException) -> None:
        self._running -= 1
        if isinstance(found, BaseException):
            for futures in batch.values():
                give(futures, found)
        else:
            for key, futures in batch.items():
                give(futures, found[key] if key in found else Absent(key))
        self._start()


def give(futures: "Sequence[asyncio.Future[V]]", outcome: V | BaseException) -> None:
    """Give all who still wait a result, or a copy each of an error."""
    for future in futures:
        if future.done():
            continue
        if isinstance(outcome, BaseException):
            future.set_exception(_own(outcome))
        else:
            future.set_result(outcome)


def _own(error: BaseException) -> BaseException:
    """A copy for one caller: a traceback grows wherever the error is raised again."""
    try:
        mine = copy.copy(error)  # which calls the class again, whatever that makes of the arguments
        if type(mine) is not type(error) or mine.args != error.args:
            return error
        mine.__cause__ = error.__cause__ or error
        return mine.with_traceback(error.__traceback__)
    except Exception:
        return error
