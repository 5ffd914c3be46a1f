"""One query for all callers who ask the same, on one event loop.

What is remembered belongs to a state of the rows, so a caller in that state may join a query that runs.
What is read now does not: that query may have read before the caller's commit. So these callers wait together
for the next one.
"""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from concurrent.futures import Executor
from contextvars import Context
from typing import Any, Generic, TypeVar

from ..reading.batching import give, outcome

T = TypeVar("T")

Read = Callable[[], T]


class SharedQueries(Generic[T]):
    """Runs queries on database threads. Its callers are on the loop of the application."""

    def __init__(self, executor: Executor) -> None:
        """Run queries on these threads."""
        self._executor = executor
        # Callers whom the query that runs will answer, and those who wait for the next one: by what they ask.
        self._joined: dict[Hashable, list[asyncio.Future[T]]] = {}
        self._next: dict[Hashable, tuple[Read[T], list[asyncio.Future[T]]]] = {}
        self._running: set[Hashable] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._context = Context()  # a query for several callers belongs to none of their transactions

    async def joined(self, key: Hashable, read: Read[T], keep: Callable[[T], None]) -> T:
        """Return what a query finds that runs, or begins now; ``keep`` gets it on the loop, before anyone."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        if (joined := self._joined.get(key)) is not None:
            joined.append(future)
        else:
            self._joined[key] = [future]
            self._start(self._run(key, read, keep))
        return await future

    async def next(self, key: Hashable, read: Read[T]) -> T:
        """Return what a query finds that begins after this call."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        if key in self._next:
            self._next[key][1].append(future)
        else:
            self._next[key] = read, [future]
            if key not in self._running:
                self._running.add(key)
                self._start(self._run_in_turn(key))
        return await future

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        # A task of its own, since a caller that is cancelled must not cancel it for the others.
        task = asyncio.get_running_loop().create_task(coroutine, context=self._context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, key: Hashable, read: Read[T], keep: Callable[[T], None]) -> None:
        found = await outcome(None, self._executor, read)
        if not isinstance(found, Exception):
            keep(found)
        give(self._joined.pop(key), found)

    async def _run_in_turn(self, key: Hashable) -> None:
        while (turn := self._next.pop(key, None)) is not None:
            read, futures = turn
            if not all(future.done() for future in futures):  # else all callers have gone
                give(futures, await outcome(None, self._executor, read))
        self._running.discard(key)
