"""Django applications that are mounted under FastAPI, by ASGI or by WSGI.

*ASGI.* Django's handler enters asgiref's ``ThreadSensitiveContext`` for each request, which promises it one
thread and so one connection. asgiref lets only the outermost of nested contexts count, and the application's
is around all of its requests. So each outermost context of other code is a scope of its own (see
``database.keeping``), within the bound.

*WSGI.* A bridge runs a whole request on one thread, in ``WSGIResponder.wsgi()``. The request has one
connection to each database, opened for it and closed at its end: what its middleware leaves on it (a tenant,
session variables) never reaches a handler or a load.

To Django, ``DatabaseBusy`` is an error like any other: 500. ``response_for_exception``, which it looks up in
``django.core.handlers.exception`` for each error, makes it a 503 with ``Retry-After``, as FastAPI answers.
"""

from collections.abc import Callable
from typing import Any

import django.core.handlers.exception
from asgiref.sync import SyncToAsync, ThreadSensitiveContext
from django.http import HttpRequest, HttpResponse

from ..database import current
from ..database.calls import Call
from ..database.executor import DatabaseExecutor
from ..database.keeping import ContextScope
from ..database.lifecycle import pool
from ..database.scopes import current_scope, enter_scope, waiting_thread
from ..errors import DatabaseBusy, NotStarted
from .replacing import Replacement

_SCOPE = "fastapi_django_orm_scope"  # of a context
_selected = SyncToAsync.thread_sensitive_context
_executors = SyncToAsync.context_to_thread_executor


def _enter_context(enter: Callable[..., Any]) -> Callable[..., Any]:
    async def enter_ours(context: Any) -> Any:
        if context._executor is None and waiting_thread() is None and current_scope() is None:
            _serve(context)
        return await enter(context)

    return enter_ours


def _leave_context(leave: Callable[..., Any]) -> Callable[..., Any]:
    async def leave_ours(context: Any, *how: Any) -> None:
        scope: ContextScope | None = vars(context).pop(_SCOPE, None)
        if scope is not None:
            enter_scope(None)
            # Not awaited: a call that was given up may run for long, and has the thread until it ends.
            scope.break_off()
        await leave(context, *how)

    return leave_ours


def _serve(context: Any) -> None:
    executor = _executor()
    if executor is None:
        return
    if _selected.get(None) is None:
        # Code beside the application, such as a Django that a router of the project's own calls.
        context.token = _selected.set(executor.context)
    scope = ContextScope(executor.threads, executor.pools)
    setattr(context, _SCOPE, scope)
    enter_scope(scope)


def _executor() -> DatabaseExecutor | None:
    found: object
    if (selected := _selected.get(None)) is not None:
        found = _executors.get(selected)
    else:
        try:
            found = current.find("ThreadSensitiveContext")
        except NotStarted:
            return None
    return found if isinstance(found, DatabaseExecutor) else None


def _run_wsgi(run: Callable[..., Any]) -> Callable[..., Any]:
    def wsgi(*args: Any, **options: Any) -> Any:
        return _WholeRequest(lambda alias: pool(alias).fresh).run(lambda: run(*args, **options))

    return wsgi


class _WholeRequest(Call):
    """A call that keeps its connections while it waits for the event loop, which sends what it has made."""

    __slots__ = ()

    def give_back(self) -> None:
        """Keep all: what follows counts on them."""

    def end(self) -> None:
        for connection in self.held.values():
            self.pools(connection.alias).discard(connection)  # with whatever transaction is open
        self.held.clear()


def _respond(respond: Callable[..., Any]) -> Callable[..., Any]:
    def response_for_exception(request: HttpRequest, exc: Exception) -> Any:
        if isinstance(exc, DatabaseBusy):
            return HttpResponse(exc.detail, status=exc.status_code, headers=exc.headers)
        return respond(request, exc)

    return response_for_exception


REPLACED = (
    Replacement(ThreadSensitiveContext, "__aenter__", _enter_context),
    Replacement(ThreadSensitiveContext, "__aexit__", _leave_context),
    # Starlette's is deprecated, a2wsgi is what it recommends, uvicorn's is a copy of an old one.
    Replacement("a2wsgi.wsgi:WSGIResponder", "wsgi", _run_wsgi),
    Replacement("starlette.middleware.wsgi:WSGIResponder", "wsgi", _run_wsgi),
    Replacement("uvicorn.middleware.wsgi:WSGIResponder", "wsgi", _run_wsgi),
    Replacement(django.core.handlers.exception, "response_for_exception", _respond),
)
