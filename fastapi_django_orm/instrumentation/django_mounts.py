"""Django applications that are mounted under FastAPI by WSGI, and what they answer when the database is busy.

A WSGI bridge runs a whole request on one thread. So the request has one connection to each database, opened
for it and closed at its end, as one that is mounted by ASGI: what its middleware leaves on it (a tenant,
session variables) never reaches a handler or a load.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import django.core.handlers.exception
from django.http import HttpRequest, HttpResponse

from ..errors import DatabaseBusy
from .calls import Call
from .pool import Pool

# Starlette's is deprecated, a2wsgi is what it recommends, uvicorn's is a copy of an old one.
BRIDGES = ("a2wsgi.wsgi", "starlette.middleware.wsgi", "uvicorn.middleware.wsgi")


@contextmanager
def mounts_instrumented(pools: Callable[[str], Pool]) -> Iterator[None]:
    """Make each request of a WSGI bridge a call, and a busy database a 503, for the length of the block.

    Args:
        pools: the connections, by alias.
    """
    bridges = [sys.modules[name].WSGIResponder for name in BRIDGES if name in sys.modules]
    before = [(bridge, bridge.wsgi) for bridge in bridges]
    handlers: Any = django.core.handlers.exception
    respond = handlers.response_for_exception
    for bridge, run in before:
        bridge.wsgi = _as_call(run, pools)
    handlers.response_for_exception = _busy_is_503(respond)
    try:
        yield
    finally:
        handlers.response_for_exception = respond
        for bridge, run in before:
            bridge.wsgi = run


def _as_call(run: Callable[..., Any], pools: Callable[[str], Pool]) -> Callable[..., Any]:
    @wraps(run)
    def wsgi(self: Any, *args: Any, **options: Any) -> Any:
        return _WholeRequest(lambda alias: pools(alias).fresh).run(lambda: run(self, *args, **options))

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


def _busy_is_503(respond: Callable[..., Any]) -> Callable[..., Any]:
    """Have Django answer ``DatabaseBusy`` as FastAPI does. To Django it is an error like any other: 500."""

    @wraps(respond)
    def response_for_exception(request: HttpRequest, exc: Exception) -> Any:
        if isinstance(exc, DatabaseBusy):
            return HttpResponse(exc.detail, status=exc.status_code, headers=exc.headers)
        return respond(request, exc)

    return response_for_exception
