"""The layer in front of FastAPI's router, which answers requests for what is published from the bytes.

A request for prebuilt bytes takes 12 µs of processor time from a bare ASGI callable, 16 from this layer
before the application, 28 behind one middleware and before the router, 74 from a handler: FastAPI's
telemetry, its middlewares and exception handlers cost more than the answer. So the layer sits before the
router, inside of all middleware; where there is no middleware but FastAPI's own, it answers before the
application.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from starlette._utils import get_route_path
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from .. import running
from ..reading.windows import Window
from ..responses.editions import Answer
from ..responses.negotiation import at_once, deliver
from ..responses.representation import READING
from .bare import LOOK_AGAIN, BeforeApplication
from .own_routes import OwnRoutes, PublishedRoute, told_of_additions
from .sources import GONE, Source, plain_window

PATHS = 10_000  # that are noted with what they mean


@dataclass(frozen=True, slots=True)
class Published:
    """Where a source answers.

    Attributes:
        source: what answers.
        list_route: the route of the list, if there is one.
        row_route: the route of the rows, if there is one; its path ends in ``/{pk}``.
        key: reads a key from its text, or gives None.
        own: the application's own routes.
    """

    source: Source
    list_route: PublishedRoute | None
    row_route: PublishedRoute | None
    key: Callable[[str], Hashable]
    own: OwnRoutes


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for.

    Attributes:
        source: what answers it.
        window: which rows of the list; None for one row.
        key: of the row.
        route: the route that it would have come to.
        endpoint: the route's.
        text: the key as it stands in the path.
    """

    source: Source
    window: Window | None
    key: Hashable
    route: PublishedRoute
    endpoint: Callable[..., Any]
    text: str | None = None

    def tell(self, scope: Scope) -> None:
        """Leave in the scope what the router would: logs and metrics call a request by its route."""
        scope["route"] = self.route
        scope["endpoint"] = self.endpoint
        params = {} if self.text is None else {"pk": self.text}
        scope["path_params"] = {**scope["path_params"], **params} if "path_params" in scope else params


class Directory:
    """Finds what answers a request."""

    def __init__(self, app: FastAPI, published: Iterable[Published]) -> None:
        """List what is published.

        Args:
            app: the application.
            published: what it publishes.
        """
        everything = list(published)
        self._lists = {each.list_route.path: each for each in everything if each.list_route is not None}
        self._rows = {
            each.row_route.path.removesuffix("/{pk}"): each
            for each in everything
            if each.row_route is not None
        }
        self._beginnings = (*self._lists, *(f"{base}/" for base in self._rows))
        self._routes = app.router.routes
        self._routes_seen = len(self._routes)
        self._noted: dict[str, Asked] = {}

    def forget(self) -> None:
        """Read paths anew: the application may have a route of its own now for one that is noted."""
        self._noted.clear()

    def find(self, scope: Scope) -> Asked | None:
        """What a request asks for; None if that is for the router to decide."""
        path: str = get_route_path(scope) if scope.get("root_path") else scope["path"]
        # Every request of the application is looked at here, and most are for something else.
        if not path.startswith(self._beginnings) or scope["method"] not in READING:
            return None
        query: bytes = scope["query_string"]
        if (published := self._lists.get(path)) is not None:
            window = published.source.admitted(plain_window(query))
            if window is None or published.own.may_serve(path, scope["method"]):
                return None
            assert published.list_route is not None
            route = published.list_route
            return Asked(published.source, window, None, route, route.endpoint)
        base, _, text = path.rpartition("/")
        if (published := self._rows.get(base)) is None or not text or query:
            return None
        key = published.key(text)
        if key is None or published.own.may_serve(path, scope["method"]):
            return None
        assert published.row_route is not None
        route = published.row_route
        return Asked(published.source, None, key, route, route.endpoint, text)

    def at_once(self, scope: Scope) -> Answer | None:
        """The answer to a GET request, if it is there already."""
        # What a path means is noted, since to read it takes longer than all the rest of this.
        known = asked = self._noted.get(scope["path"])
        if (
            known is None
            or scope["method"] != "GET"
            or scope["query_string"]
            or scope.get("root_path")
            or len(self._routes) != self._routes_seen
        ):
            known = None
            asked = self.find(scope) if scope["method"] == "GET" else None
        if asked is None or (found := asked.source.at_hand(asked.window, asked.key)) is None:
            return None
        if (answer := at_once(found[0], scope["headers"])) is not None:
            asked.tell(scope)
            if known is None:
                self._note(scope, asked)
            status, headers, body = answer
            # A list of its own, since what is around the application may change it.
            return status, [*headers, asked.source.cache_control], body
        return None

    def _note(self, scope: Scope, asked: Asked) -> None:
        # The application may add routes while it runs; and a full list is cleared, which is the cheapest way
        # to make room, once in ten thousand times.
        if len(self._routes) != self._routes_seen or len(self._noted) >= PATHS:
            self._noted.clear()
            self._routes_seen = len(self._routes)
        if not scope["query_string"] and not scope.get("root_path"):
            self._noted[scope["path"]] = asked


class BeforeRouter:
    """Answers inside of the application's middleware, under which errors become responses."""

    def __init__(self, app: ASGIApp, directory: Directory) -> None:
        """Wrap a router."""
        self.app = app
        self._directory = directory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or let the router do it, which alone tells FastAPI's telemetry what it does."""
        if scope["type"] == "http" and "fastapi.telemetry" not in scope:
            asked = self._directory.find(scope)
            if asked is not None:
                asked.tell(scope)
                source, window, key = asked.source, asked.window, asked.key
                try:
                    found = source.at_hand(window, key) or await source.read(window, key, receive)
                except ClientDisconnect:
                    await GONE(scope, receive, send)
                else:
                    await deliver(*found, scope, send, source.cache_control)
                return
        await self.app(scope, receive, send)


@contextmanager
def layer_added(app: FastAPI, published: Iterable[Published]) -> Iterator[None]:
    """Put the layer in front of the router, for the length of the block."""
    directory = Directory(app, published)
    before = app.router.middleware_stack
    layer = BeforeRouter(before, directory)
    app.router.middleware_stack = layer
    try:
        with told_of_additions(directory.forget), _class_changed(app, directory, BeforeApplication(layer)):
            yield
    finally:
        app.router.middleware_stack = before


@contextmanager
def _class_changed(app: FastAPI, directory: Directory, place: BeforeApplication) -> Iterator[None]:
    """Answer where the server calls the application, which Python looks up in the class."""
    original = app.__class__
    if original is not FastAPI:  # one of the application's own may do anything with a request
        yield
        return
    here = running.find("publish")

    async def call(self: FastAPI, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (
            place.spared if self.middleware_stack is place.stack else place.is_spared(self)
        ):
            if self.root_path:
                scope["root_path"] = self.root_path  # as FastAPI does
            answer = directory.at_once(scope)
            if answer is not None:
                here.requests += 1
                place.answers += 1
                if place.answers >= LOOK_AGAIN:
                    place.look_again()
                scope["app"] = self  # as Starlette does
                status, headers, body = answer
                await send({"type": "http.response.start", "status": status, "headers": headers})
                await send({"type": "http.response.body", "body": body})
                return
        await FastAPI.__call__(self, scope, receive, send)

    names = {name: getattr(FastAPI, name) for name in ("__module__", "__qualname__", "__doc__")}
    app.__class__ = type(FastAPI.__name__, (FastAPI,), names | {"__call__": call})
    try:
        yield
    finally:
        app.__class__ = FastAPI
