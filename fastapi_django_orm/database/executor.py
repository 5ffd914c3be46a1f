"""The executor that asgiref is given, and ``run()``: how asynchronous code runs synchronous ORM code.

asgiref has one thread for all ``sync_to_async`` calls of a process, and with a ``ThreadSensitiveContext``
one for each context. Given this executor, an application's context spreads its calls over the database
threads instead, so that Django's own async API is concurrent without a line in the handler. asgiref asks for
an executor that runs one call at a time; that rule keeps connections that belong to a thread, and the
transactions on them, together. Here a call finds both by other means.
"""

import inspect
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import Any, ParamSpec, TypeVar

from asgiref.sync import SyncToAsync, ThreadSensitiveContext, sync_to_async
from django.db.models import QuerySet
from django.db.models.manager import BaseManager
from django.db.models.query import RawQuerySet

from ..errors import LazyValue
from . import current
from .loop_queries import LoopQueries
from .pool import Pool
from .reentrancy import submit_call
from .threads import DatabaseThreads

P = ParamSpec("P")
T = TypeVar("T")


class DatabaseExecutor(Executor):
    """Runs each function as a call, on a database thread or on that of the transaction around it.

    Attributes:
        on_loop: the queries that need no thread.
        context: has asgiref use these threads, once the plugin has entered it.
        own: runs the plugin's own reads, on threads that run no other code.
    """

    def __init__(
        self,
        threads: DatabaseThreads,
        pools: Callable[[str], Pool],
        own: "DatabaseExecutor | None" = None,
    ) -> None:
        self.own = own or self
        self.threads = threads
        self.pools = pools
        self.on_loop = LoopQueries(pools)
        self.context = ThreadSensitiveContext(executor=self)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run the function on a database thread, in a copy of the caller's context."""
        function = partial(copy_context().run, partial(fn, *args, **kwargs))
        return submit_call(self.pools, function, self.threads.put).future

    async def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """What ``run()`` does, in the application of these threads."""
        if _selected.get(None) is self.context:
            return await _run(function, *args, **kwargs)
        # In a task that no request or lifespan has started, asgiref would take its own thread for it.
        token = _selected.set(self.context)
        try:
            return await _run(function, *args, **kwargs)
        finally:
            with suppress(ValueError):  # it was collected, and ends in the context of other code
                _selected.reset(token)


async def run(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Have a database thread call a synchronous function that uses the ORM: ``await run(load, 5)``.

    The same as ``sync_to_async(function)(…)``, and so in the caller's context: language, time zone and every
    other ``Local`` of asgiref. It works in any task while a lifespan is open, and it takes care of the
    result. Inside ``atomic()`` the function is part of the transaction.

    Args:
        function: what to run.
        *args: its arguments.
        **kwargs: its keyword arguments.

    Raises:
        LazyValue: the function returned a QuerySet or a manager.
        DatabaseBusy: no thread or connection became available within ``DJANGO_ORM_THREAD_TIMEOUT``.
        NotStarted: no lifespan of ``DjangoORM`` runs.
    """
    return await current.find("run()").run(function, *args, **kwargs)


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


# Made once: sync_to_async() looks its function over, which takes longer than what run() adds to a call.
_run = sync_to_async(_plain_result)
_selected = SyncToAsync.thread_sensitive_context
