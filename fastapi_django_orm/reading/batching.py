"""Live reads that wait at the same moment become one query.

Most of what one ORM read costs is building the query and the way to a thread and back, and a batch pays that
once. Nobody waits for company: a read that finds the database idle goes at once, and what
arrives while others are on their way goes together when one of them is back. A read never joins a query
that has left, since that one may have read before the caller's commit.
"""

import asyncio
import copy
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from concurrent.futures import Executor
from contextvars import Context
from functools import partial
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

BATCHES_AT_ONCE = 2  # one that the database works on, one that this process works on
MOST_KEYS_OF_BATCH = 500  # SQLite takes no more than 999 parameters in old versions


class Absent(LookupError):
    """There is nothing under this key. Not ``KeyError``, which the project's own code could raise."""


Outcomes = Mapping[K, V | Exception]


class Batcher(Generic[K, V]):
    """Collects the keys that are asked for, on one event loop, and reads them together."""

    def __init__(
        self,
        read: Callable[[Sequence[K]], Outcomes[K, V]],
        executor: Executor,
        loop: asyncio.AbstractEventLoop,
        read_on_loop: Callable[[Sequence[K]], Awaitable[Outcomes[K, V] | Exception | None]] | None,
    ) -> None:
        """Collect keys.

        Args:
            read: reads keys on a database thread; returns for each a value, or the error of a key that cannot
                be read. A key that it leaves out is not there.
            executor: the database threads.
            loop: the one whose callers will ask.
            read_on_loop: does the same without a thread; returns None if a thread is needed, or one error
                for all. None if a thread is always needed.
        """
        self.loop = loop
        self._read = read
        self._read_on_loop = read_on_loop
        self._executor = executor
        self._waiting: dict[K, list[asyncio.Future[V]]] = {}
        self._reading: set[asyncio.Task[None]] = set()
        self._scheduled = False
        # A batch belongs to no transaction and to no request.
        self._context = Context()

    async def get(self, key: K) -> V:
        """Return what a query that starts after this call finds.

        Raises:
            Absent: it finds nothing.
            Exception: what the query has raised.
        """
        future: asyncio.Future[V] = self.loop.create_future()
        self._waiting.setdefault(key, []).append(future)
        if len(self._reading) < BATCHES_AT_ONCE and not self._scheduled:
            # Not now: callers that the loop wakes in this iteration join the batch.
            self._scheduled = True
            self.loop.call_soon(self._start, context=self._context)
        try:
            return await future
        finally:
            del future  # its error's traceback has this frame, and they would reference each other

    def _start(self) -> None:
        self._scheduled = False
        while len(self._reading) < BATCHES_AT_ONCE and (batch := self._next()):
            task = self.loop.create_task(self._read_batch(batch), context=self._context)
            self._reading.add(task)
            task.add_done_callback(self._ended, context=self._context)

    def _next(self) -> "dict[K, list[asyncio.Future[V]]]":
        """Take keys, as many as one query takes, without those that nobody waits for any more."""
        batch: dict[K, list[asyncio.Future[V]]] = {}
        while self._waiting and len(batch) < MOST_KEYS_OF_BATCH:
            key = next(iter(self._waiting))
            futures = self._waiting.pop(key)
            if not all(future.done() for future in futures):
                batch[key] = futures
        return batch

    async def _read_batch(self, batch: "dict[K, list[asyncio.Future[V]]]") -> None:
        keys = list(batch)
        on_loop = self._read_on_loop and partial(self._read_on_loop, keys)
        found = await outcome(on_loop, self._executor, partial(self._read, keys))
        for key, futures in batch.items():
            if isinstance(found, Exception):
                give(futures, found)
            else:
                give(futures, found[key] if key in found else Absent(key))

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._reading.discard(task)
        self._start()


async def outcome(
    on_loop: Callable[[], Awaitable[V | Exception | None]] | None,
    executor: Executor,
    on_thread: Callable[[], V],
) -> V | Exception:
    """Read on the event loop if that can be done, else on a thread.

    An error is returned and not raised: its traceback ends here, so no frame of the caller's references what
    references the error.
    """
    try:
        if on_loop is not None:
            try:
                found = await on_loop()
            except Exception:  # it comes again on a thread, where it can be reported
                found = None
            if found is not None:
                return found
        return await asyncio.wrap_future(executor.submit(on_thread))
    except asyncio.CancelledError:
        return RuntimeError("The application has shut down; its database threads have ended.")
    except Exception as error:
        return error


def give(futures: "Sequence[asyncio.Future[V]]", found: V | Exception) -> None:
    """Give a result, or each a copy of an error, to all who still wait."""
    for future in futures:
        if future.done():
            continue
        if isinstance(found, Exception):
            future.set_exception(_copy(found))
        else:
            future.set_result(found)


def _copy(error: Exception) -> Exception:
    """Copy an error for one caller: a traceback grows wherever the error is raised again."""
    try:
        mine = copy.copy(error)  # which calls the class again, whatever that makes of the arguments
        if type(mine) is not type(error) or mine.args != error.args:
            return error
        mine.__cause__ = error.__cause__ or error
        return mine.with_traceback(error.__traceback__)
    except Exception:
        return error
