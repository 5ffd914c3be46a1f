"""The executor that asgiref is given, and ``run()``: how asynchronous code gets synchronous ORM code run.

asgiref has one thread for all ``sync_to_async`` calls of a process, and with a ``ThreadSensitiveContext``
one for each context. Given this executor, an application's context spreads its calls over the database
threads instead, so that Django's own async API is concurrent without a line in the handler. asgiref asks for
an executor that runs one call at a time; that rule keeps connections that belong to a thread, and the
transactions on them, together. Here a call finds both by other means.
"""

import asyncio
import inspect
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextvars import copy_context
from functools import partial
from typing import Any, ParamSpec, TypeVar

from asgiref.sync import sync_to_async
from django.db.models import QuerySet
from django.db.models.manager import BaseManager
from django.db.models.query import RawQuerySet

from .. import running
from ..errors import LazyValue
from .loop_queries import LoopQueries
from .pool import Pool
from .reentrancy import submit_call, waiting_thread
from .threads import DatabaseThreads, Job

P = ParamSpec("P")
T = TypeVar("T")


class DatabaseExecutor(Executor):
    """Runs each function as a call, on a database thread or on that of the transaction around it.

    Attributes:
        on_loop: the queries that need no thread.
    """

    def __init__(self, threads: DatabaseThreads, pools: Callable[[str], Pool]) -> None:
        """Use these threads and connections.

        Args:
            threads: they run the functions.
            pools: the connections, by alias.
        """
        self.threads = threads
        self.pools = pools
        self.on_loop = LoopQueries(pools)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run the function on a database thread."""
        return self._put(partial(fn, *args, **kwargs)).future

    def _put(self, function: Callable[[], Any]) -> Job:
        return submit_call(self.pools, function, self.threads.put)

    async def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """What ``run()`` does, in the application of these threads."""
        work = partial(_plain_result, function, *args, **kwargs)
        if waiting_thread() is not None:
            # Under async_to_sync the thread that waits there has to do it: it holds the connection.
            return await sync_to_async(work)()
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[T] = loop.create_future()
        job = self._put(partial(copy_context().run, work))

        def done(future: Future[T]) -> None:
            # One wake-up of the loop, where wrap_future() and its chain of callbacks take two.
            loop.call_soon_threadsafe(_settle, waiting, future)

        job.future.add_done_callback(done)
        try:
            return await waiting
        except asyncio.CancelledError:
            job.future.cancel()
            raise


async def run(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Have a database thread call a synchronous function that uses the ORM: ``await run(load, 5)``.

    The same as ``sync_to_async(function)(…)`` with less overhead, and it takes care of the
    result. Inside ``atomic()`` the function is part of the transaction.

    Args:
        function: what to run.
        *args: its arguments.
        **kwargs: its keyword arguments.

    Raises:
        LazyValue: the function returned a QuerySet or a manager.
        DatabaseBusy: no thread or connection came free within ``DJANGO_ORM_THREAD_TIMEOUT``.
        NotStarted: no lifespan of ``DjangoORM`` runs.
    """
    executor: DatabaseExecutor = running.find("run()").executor
    return await executor.run(function, *args, **kwargs)


def _settle(waiting: "asyncio.Future[Any]", future: Future[Any]) -> None:
    if waiting.done():
        return
    if future.cancelled():
        waiting.cancel()
    elif (error := future.exception()) is not None:
        waiting.set_exception(error)
    else:
        waiting.set_result(future.result())


def _plain_result(function: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
    result = function(*args, **kwargs)
    if inspect.iscoroutine(result):
        result.close()
        raise TypeError("run() is for synchronous functions: await this one by itself.")
    if isinstance(result, QuerySet | RawQuerySet | BaseManager):
        raise LazyValue(
            f"run() will not hand over a {type(result).__name__}: it would query when it is touched, and the "
            "event loop may not. Return list(queryset), or queryset.values() in a list, or one object."
        )
    return result
