"""What an application publishes, found by the bytes of a URL.

The server protocol asks here before it makes anything of a request. It may answer only what the application's
router would have given to one of our routes. So the router decides, once for each URL, and the decision is
kept.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote
from weakref import WeakKeyDictionary

from fastapi import FastAPI
from starlette.routing import Host, Match

from ..application import Application
from ..events import logger
from .published_route import PublishedRoute
from .sources import Question

MOST_URLS = 10_000  # whose meaning is kept
SERVER = "fastapi_django_orm.server"  # imported by servers that use it, and by nothing else


class Directory:
    """Finds what a URL of one application asks for. Its routes are in the application's router already."""

    def __init__(self, app: FastAPI, routes: Sequence[PublishedRoute], application: Application) -> None:
        self.application = application
        self._app = app
        self._routes = app.router.routes
        self._number = len(self._routes)
        bases = {route.path.partition("{")[0] for route in routes}
        roots = {"", app.root_path.rstrip("/")}
        self._beginnings: tuple[bytes, ...] = tuple(
            (root + base).encode() for root in roots for base in bases
        )
        self._known: dict[tuple[str, bytes], Question | None] = {}

    def find(self, method: str, url: bytes, root_path: str) -> Question | None:
        """What a request asks for; None if ASGI has to find out.

        Args:
            method: GET or HEAD; the application may have a route of its own for one of them.
            url: the request's target, as it was sent.
            root_path: the server's, which it puts before the path.
        """
        # Most requests of an application are for something else.
        if not url.startswith(self._beginnings):
            return None
        # Also if the application has added a route. To clear all is the cheapest way to make room.
        if len(self._routes) != self._number or len(self._known) >= MOST_URLS:
            self._number = len(self._routes)
            self._known.clear()
        try:
            return self._known[method, url]
        except KeyError:
            question = self._known[method, url] = self._read(method, url, root_path)
            return question

    def _read(self, method: str, url: bytes, root_path: str) -> Question | None:
        raw_path, _, query = url.partition(b"?")
        # As uvicorn and FastAPI make it.
        scope: dict[str, Any] = {
            "type": "http",
            "method": method,
            "path": root_path + unquote(raw_path.decode("latin-1")),
            "raw_path": root_path.encode() + raw_path,
            "root_path": self._app.root_path or root_path,
            "query_string": query,
            "headers": [],
        }
        for route in self._routes:
            match, child_scope = route.matches(scope)
            if match is Match.FULL:
                if isinstance(route, PublishedRoute):
                    return route.question(query, child_scope["path_params"])
                return None
        return None

    def close(self) -> None:
        """Find nothing any more: connections of clients may outlive the application's lifespan."""
        self._beginnings = ()


_directories: WeakKeyDictionary[FastAPI, Directory] = WeakKeyDictionary()


def directory_of(served: Any) -> Directory | None:
    """The directory of the application that a server serves, while its lifespan is open.

    Args:
        served: the application, or middleware around it, which keeps what it wraps as ``app``.
    """
    for _ in range(100):
        if isinstance(served, FastAPI):
            return _directories.get(served)
        served = getattr(served, "app", None)
    return None


@contextmanager
def answered_below(
    app: FastAPI, routes: Sequence[PublishedRoute], application: Application
) -> Iterator[None]:
    """Let the server protocol answer for these routes of an application, for the length of the block."""
    # Not if something in the application decides on each request.
    guarded = any(route.is_guarded for route in routes)
    if not routes or guarded or any(isinstance(route, Host) for route in app.router.routes):
        yield
        return
    if SERVER in sys.modules and app.user_middleware:
        logger.info(
            "published_below_middleware",
            paths=[route.path for route in routes],
            middleware=[getattr(each.cls, "__name__", repr(each.cls)) for each in app.user_middleware],
        )
    directory = _directories[app] = Directory(app, routes, application)
    try:
        yield
    finally:
        del _directories[app]
        directory.close()
