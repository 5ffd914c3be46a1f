"""The database side of one application: its threads, and the process's connections.

Connections are the process's, because Django is one for each process: two applications in one share them,
and the bound with them. Threads are the application's.
"""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Any

from django.db import connections

from ..clock import cancel, monotonic
from ..events import logger
from ..shared import SharedContext, renewed_at_fork
from . import calls, current, scopes
from .executor import DatabaseExecutor
from .housekeeping import keep_house
from .pool import Pool
from .threads import DatabaseThreads, forget_threads

SHUTDOWN_TIMEOUT = 10.0  # seconds that queries have to end before their threads are left behind


class _Process:
    """The pools, which all applications of the process share."""

    def __init__(self) -> None:
        self.limit = 0
        self.timeout = 0.0
        self.timed = False
        self._shared = SharedContext(self._open)
        self._pools: dict[str, Pool] = {}
        self._lock = renewed_at_fork(threading.Lock())
        self._forgotten: list[Any] = []

    def pool(self, alias: str) -> Pool:
        """The pool of a database, made when it is first used.

        Raises:
            ConnectionDoesNotExist: there is no such database.
        """
        pool = self._pools.get(alias)
        if pool is None:
            if alias not in connections.settings:
                raise connections.exception_class(f"The connection {alias!r} doesn't exist.")
            with self._lock:
                made = Pool(alias, self.limit, self.timeout, timed=self.timed)
                pool = self._pools.setdefault(alias, made)
        return pool

    def pools(self) -> list[Pool]:
        return list(self._pools.values())

    @contextmanager
    def bounded(self, limit: int, timeout: float, *, timed: bool) -> Iterator[None]:
        """Let an application use the pools, with the largest bound of all; the last one closes them."""
        with self._shared.entered():
            self.limit, self.timeout, self.timed = max(self.limit, limit), timeout, self.timed or timed
            for pool in self.pools():
                pool.limit, pool.timeout = self.limit, self.timeout
            yield

    @contextmanager
    def _open(self) -> Iterator[None]:
        try:
            yield
        finally:
            self.limit, self.timed = 0, False
            with self._lock:
                pools, self._pools = self._pools, {}
            for pool in pools.values():
                pool.close()

    def forget(self) -> None:
        """Leave the parent's connections alone in a forked child, and begin with threads of its own.

        The connections are kept, because a driver that finalises one would say goodbye to the server on the
        socket that the parent still uses.
        """
        self._forgotten.append((self._pools, calls.forget_all(), scopes.forget_all()))
        self._pools = {}
        forget_threads()


_process = _Process()
pool = _process.pool
os.register_at_fork(after_in_child=_process.forget)


@asynccontextmanager
async def database_service(
    threads: int, thread_timeout: float, call_timeout: float
) -> AsyncIterator[DatabaseExecutor]:
    """Run ORM code of an application, for the length of the block.

    Args:
        threads: the most threads for everybody, and the most connections to each database.
        thread_timeout: seconds that a call waits for a thread or a connection at most.
        call_timeout: seconds that a call may wait for one answer of a database; 0: as long as it likes.
    """
    database_threads = DatabaseThreads(threads, thread_timeout)
    # What handlers leave in a threading.local must not reach what is loaded for everybody.
    own_threads = DatabaseThreads(threads, thread_timeout, name="database-own")
    shared = ExitStack()
    shared.enter_context(_process.bounded(threads, thread_timeout, timed=call_timeout > 0))
    housekeeper = asyncio.create_task(
        keep_house((database_threads, own_threads), _process.pools, thread_timeout, call_timeout),
        name="database housekeeping",
    )
    own = DatabaseExecutor(own_threads, _process.pool)
    executor = DatabaseExecutor(database_threads, _process.pool, own)
    try:
        with current.announced(executor):
            yield executor
    finally:
        executor.on_loop.close()
        await cancel(housekeeper)
        await _off_the_loop(lambda: _shut_down((database_threads, own_threads), shared))
        executor.on_loop.break_off()  # what waits behind these queries then finds no threads, either


def _shut_down(every: tuple[DatabaseThreads, ...], shared: ExitStack) -> None:
    deadline = monotonic() + SHUTDOWN_TIMEOUT
    for threads in every:
        scopes.break_off_all(threads, deadline)
    for threads in every:
        threads.shutdown(deadline)
    if hanging := [name for threads in every for name in threads.hanging]:
        logger.error("threads_left_behind", threads=hanging, waited=SHUTDOWN_TIMEOUT)
    shared.close()


async def _off_the_loop(function: Callable[[], None]) -> None:
    # Not on the loop, which a query that still runs may need to come to an end; and not in its default
    # executor, which would leave a thread behind.
    loop = asyncio.get_running_loop()
    ended = loop.create_future()

    def work() -> None:
        try:
            function()
        finally:
            loop.call_soon_threadsafe(ended.set_result, None)

    thread = threading.Thread(target=work, name="database-shutdown", daemon=True)
    thread.start()
    await ended
    thread.join()
