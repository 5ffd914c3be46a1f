"""What an application publishes, found by the bytes of a URL.

A server protocol asks here before it makes anything of a request. It may answer only what the application's
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
from ..responses.representation import READING
from .route import PublishedRoute
from .sources import Question

MOST_URLS = 10_000  # whose meaning is kept
PROTOCOL = (
    f"{__package__.partition('.')[0]}.server.protocol"  # imported by servers that use it, and by them alone
)


class Directory:
    """Finds what a URL of one application asks for.

    Attributes:
        application: what the plugin holds for the application; it counts its requests.
    """

    def __init__(self, app: FastAPI, routes: Sequence[PublishedRoute], application: Application) -> None:
        """Look at the routes, which are in the application's router already.

        Args:
            app: the application.
            routes: what it publishes.
            application: what the plugin holds for it.
        """
        self.application = application
        self._app = app
        self._routes = app.router.routes
        self._number = len(self._routes)
        bases = {route.path.partition("{")[0] for route in routes}
        roots = {"", app.root_path.rstrip("/")}
        self._beginnings = tuple((root + base).encode() for root in roots for base in bases)
        self._known: dict[str, dict[bytes, Question | None]] = {method: {} for method in READING}

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
        if len(self._routes) != self._number:  # the application has added one of its own
            self._number = len(self._routes)
            for known in self._known.values():
                known.clear()
        known = self._known[method]
        try:
            return known[url]
        except KeyError:
            pass
        if len(known) >= MOST_URLS:
            known.clear()  # the cheapest way to make room, once in ten thousand times
        question = known[url] = self._read(method, url, root_path)
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


class Place:
    """Where a server protocol finds the directory of an application; empty while its lifespan is not open."""

    directory: Directory | None = None


_places: WeakKeyDictionary[FastAPI, Place] = WeakKeyDictionary()


def place_of(served: Any) -> Place:
    """The place of the application that a server serves, inside of whatever the server puts around it.

    Args:
        served: an ASGI application. Middleware keeps the application that it wraps as ``app``.
    """
    seen = 0
    while not isinstance(served, FastAPI):
        served, seen = getattr(served, "app", None), seen + 1
        if served is None or seen > 100:
            return Place()
    return _places.setdefault(served, Place())


@contextmanager
def answered_below(
    app: FastAPI, routes: Sequence[PublishedRoute], application: Application
) -> Iterator[None]:
    """Let a server protocol answer for these routes, for the length of the block.

    Not where something in the application decides on each request: dependencies that all routes have, and
    routes by host.

    Args:
        app: the application.
        routes: what it publishes.
        application: what the plugin holds for it.
    """
    guarded = any(route.is_guarded for route in routes)
    if not routes or guarded or any(isinstance(route, Host) for route in app.router.routes):
        yield
        return
    if PROTOCOL in sys.modules and app.user_middleware:
        logger.info(
            "published_below_middleware",
            paths=[route.path for route in routes],
            middleware=[getattr(each.cls, "__name__", repr(each.cls)) for each in app.user_middleware],
        )
    place = place_of(app)
    place.directory = Directory(app, routes, application)
    try:
        yield
    finally:
        place.directory = None
