"""``ThreadSensitiveContext``, which Django's ASGI handler enters for each request, within the bound.

asgiref lets only the outermost of nested contexts count, and the application's is around all of its requests;
so Django's promise to a request, one thread and so one connection, would not hold for a Django that is
mounted under FastAPI. While a lifespan is open, each outermost context of other code is a scope of its own
(see ``keeping``).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from asgiref.sync import SyncToAsync, ThreadSensitiveContext

from .. import running
from ..errors import NotStarted
from .executor import DatabaseExecutor
from .keeping import ContextScope
from .scopes import current_scope, enter_scope, waiting_thread

_selected = SyncToAsync.thread_sensitive_context
_executors = SyncToAsync.context_to_thread_executor


@contextmanager
def contexts_instrumented() -> Iterator[None]:
    """Serve contexts of other code by threads of ours, for the length of the block."""
    kind: Any = ThreadSensitiveContext
    enter, leave = kind.__aenter__, kind.__aexit__

    async def enter_ours(self: Any) -> Any:
        if self._executor is None and waiting_thread() is None and current_scope() is None:
            _serve(self)
        return await enter(self)

    async def leave_ours(self: Any, *how: Any) -> None:
        scope: ContextScope | None = vars(self).pop(_KEY, None)
        if scope is not None:
            enter_scope(None)
            # Not awaited: a call that was given up may run for long, and has the thread until it ends.
            scope.break_off()
        await leave(self, *how)

    kind.__aenter__, kind.__aexit__ = enter_ours, leave_ours
    try:
        yield
    finally:
        kind.__aenter__, kind.__aexit__ = enter, leave


_KEY = "fastapi_django_orm_scope"


def _serve(context: Any) -> None:
    executor = _executor()
    if executor is None:
        return
    if _selected.get(None) is None:
        # Code beside the application, such as a Django that a router of the project's own calls.
        context.token = _selected.set(executor.context)
    scope = ContextScope(executor.threads, executor.pools)
    setattr(context, _KEY, scope)
    enter_scope(scope)


def _executor() -> DatabaseExecutor | None:
    selected = _selected.get(None)
    if selected is not None:
        executor = _executors.get(selected)
        return executor if isinstance(executor, DatabaseExecutor) else None
    try:
        found: DatabaseExecutor = running.find("ThreadSensitiveContext").executor
    except NotStarted:
        return None
    return found
