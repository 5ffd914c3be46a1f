"""The ASGI layer that every request and websocket of an application passes first.

A server starts each request in a context of its own, which knows nothing of what the lifespan has entered.
This layer says it again: which application this is, and which threads run its ORM code. It sits around the
application's whole middleware, so that middleware may use the ORM as well.
"""

import re
import secrets
from collections.abc import Iterable
from itertools import count

import structlog
from asgiref.sync import SyncToAsync, ThreadSensitiveContext
from django.core.exceptions import SynchronousOnlyOperation
from starlette.types import ASGIApp, Receive, Scope, Send

from . import running

HOW_TO_QUERY = (
    "In an `async def` function write `await Topic.objects.aget(…)`, `async for topic in queryset`, or "
    "`await run(function)` with run from fastapi_django_orm; or make the handler a plain `def`."
)

_REQUEST_ID = re.compile(rb"[\w.:@/+=-]{1,128}", re.ASCII)  # nothing that could forge a log line


class RequestContext:
    """Runs an ASGI application's requests under the plugin."""

    def __init__(self, app: ASGIApp, here: running.Running, threads: ThreadSensitiveContext) -> None:
        """Wrap an application.

        Args:
            app: the application with its middleware.
            here: the plugin's side of it.
            threads: the context of its database threads.
        """
        self.app = app
        self._here = here
        self._threads = threads
        # Not a random id for each request, which would cost a system call.
        self._request_ids = map(f"{secrets.token_hex(8)}-{{:x}}".format, count(1))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run a request under the application's context, with its id bound for the logs."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        entered = running.enter(self._here)
        # What entering the context would do; it can be entered once, and the lifespan has.
        selected = SyncToAsync.thread_sensitive_context.set(self._threads)
        bound = structlog.contextvars.bind_contextvars(request_id=self._request_id(scope["headers"]))
        try:
            await self.app(scope, receive, send)
        except SynchronousOnlyOperation as error:
            error.add_note(HOW_TO_QUERY)
            raise
        finally:
            # A server's request ends here with its context; a test client may run many in one.
            structlog.contextvars.reset_contextvars(**bound)
            SyncToAsync.thread_sensitive_context.reset(selected)
            running.leave(entered)

    def _request_id(self, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """The id that a proxy has given the request in ``X-Request-ID``, else one of our own."""
        for name, value in headers:
            if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
                return value.decode()
        return next(self._request_ids)
