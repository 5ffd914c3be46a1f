"""The application: an ASGI layer that every request and websocket passes first.

A server starts each request in a context of its own, without what the lifespan has entered. This layer enters
it again: which application this is, and which threads run its ORM code. It sits around the application's
whole middleware, so that middleware may use the ORM as well.

FastAPI builds that middleware with ``app.build_middleware_stack()`` at its first call, which is the
lifespan's, and keeps it in ``app.middleware_stack``. What adds middleware later, as tracers do, has it built
again.
"""

import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from itertools import count
from typing import Any

import structlog
from asgiref.sync import SyncToAsync
from django.core.exceptions import SynchronousOnlyOperation
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from .. import logs
from ..application import Application
from ..database.current import current_executor
from ..database.keeping import RequestConnections
from ..database.pool import current_request
from ..database.scopes import enter_scope, entered_scope
from .replacing import Replacement

HOW_TO_QUERY = (
    "In an `async def` function write `await Topic.objects.aget(…)`, `async for topic in queryset`, or "
    "`await run(function)` with run from fastapi_django_orm; or make the handler a plain `def`."
)

_is_clean_id = re.compile(rb"[\w.:@/+=-]{1,128}", re.ASCII).fullmatch  # nothing that could forge a log line


def _variable_of_structlog(name: str) -> ContextVar[Any]:
    """The variable that structlog keeps a bound value in."""
    bound = structlog.contextvars.bind_contextvars(**{name: None})
    structlog.contextvars.reset_contextvars(**bound)
    return bound[name].var


_request_id = _variable_of_structlog("request_id")
_threads = SyncToAsync.thread_sensitive_context


class RequestContext:
    """Runs the requests of an application, with its middleware, under the plugin."""

    def __init__(self, app: ASGIApp, here: Application) -> None:
        self.app = app
        self._here = here
        self._executor = here.executor
        self.has_ended = False  # when the lifespan has; another layer may have been put around this one
        # Ids are not random, which would cost a system call each.
        self._prefix = secrets.token_hex(8)
        self._numbers = count()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run a request under the application's context, with its id bound for the logs."""
        if scope["type"] == "lifespan" or self.has_ended:
            await self.app(scope, receive, send)
            return
        request_id: str | None = None
        for name, value in scope["headers"]:
            if name == b"x-request-id" and request_id is None and _is_clean_id(value):
                request_id = value.decode()  # which a proxy has given the request
        # The variables are set directly, since this is done for every request: to enter the threads' context
        # and to call structlog's bind_contextvars() would do the same and cost more.
        self._here.requests += 1
        connections = RequestConnections(self._executor)
        entered = current_executor.set(self._executor)
        kept = current_request.set(connections)
        selected = _threads.set(self._executor.context)
        bound = _request_id.set(request_id or f"{self._prefix}-{next(self._numbers):x}")
        around = entered_scope()  # a test may run its client inside of atomic()
        try:
            await self.app(scope, receive, send)
        except Exception as error:
            if isinstance(error, SynchronousOnlyOperation):
                error.add_note(HOW_TO_QUERY)
            # The server logs it, when the id is not bound any more.
            logs.mark(error, _request_id.get())
            raise
        finally:
            connections.end()
            # ValueError: the request was collected, and ends here in the context of other code.
            with suppress(ValueError):
                _request_id.reset(bound)
                _threads.reset(selected)
                current_request.reset(kept)
                current_executor.reset(entered)
                # A server's request ends here with its context; a test client may run many in one. A
                # transaction that the request has left, and that was rolled back under it, must not meet the
                # next one.
                enter_scope(around)


@contextmanager
def layer_added(app: FastAPI, here: Application) -> Iterator[None]:
    """Have every request pass the layer, for the length of the block."""
    layers: list[RequestContext] = []

    def added(stack: ASGIApp) -> RequestContext:
        layers.append(RequestContext(stack, here))
        return layers[-1]

    def building(build: Callable[[], ASGIApp]) -> Callable[[], ASGIApp]:
        return lambda: added(build())

    app.middleware_stack = added(app.middleware_stack or app.build_middleware_stack())
    with Replacement(app, "build_middleware_stack", building).open():
        try:
            yield
        finally:
            for layer in layers:
                layer.has_ended = True
            if isinstance(app.middleware_stack, RequestContext):
                app.middleware_stack = app.middleware_stack.app
