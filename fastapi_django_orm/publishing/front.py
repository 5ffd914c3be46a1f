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
from importlib.util import find_spec
from types import FunctionType
from typing import Any, TypeAlias

import fastapi.applications
import starlette.applications
from fastapi import FastAPI
from starlette._utils import get_route_path
from starlette.types import ASGIApp, Receive, Scope, Send

from .. import running
from ..context import RequestContext
from ..reading.live_queries import Window
from ..responses.editions import Answer
from ..responses.negotiation import at_once, deliver
from ..responses.representation import READING
from .own_routes import OwnRoutes, told_of_additions
from .sources import Source, plain_window

PATHS = 10_000  # that are noted with what they mean


@dataclass(frozen=True, slots=True)
class Published:
    """Where a source answers.

    Attributes:
        source: who answers.
        list_path: at which path it answers with the list, if it does.
        row_base: below which path it answers with rows, if it does.
        key: reads a key from its text, or gives None.
        own: the application's own routes.
    """

    source: Source
    list_path: str | None
    row_base: str | None
    key: Callable[[str], Hashable]
    own: OwnRoutes


Asked: TypeAlias = tuple[Source, Window | None, Hashable]


class Directory:
    """Finds who answers a request."""

    def __init__(self, app: FastAPI, published: Iterable[Published]) -> None:
        """List these.

        Args:
            app: the application.
            published: what it publishes.
        """
        everything = list(published)
        self._lists = {each.list_path: each for each in everything if each.list_path is not None}
        self._rows = {each.row_base: each for each in everything if each.row_base is not None}
        self._beginnings = (*self._lists, *(f"{base}/" for base in self._rows))
        self._routes = app.router.routes
        self._routes_seen = len(self._routes)
        self._noted: dict[str, Asked] = {}

    def forget(self) -> None:
        """Read paths anew: the application may have a route of its own now for one that is noted."""
        self._noted.clear()

    def find(self, scope: Scope) -> Asked | None:
        """Who answers, and what it is asked for. None if that is for the router to say."""
        path: str = get_route_path(scope) if scope.get("root_path") else scope["path"]
        # Every request of the application is looked at here, and most are not for here.
        if not path.startswith(self._beginnings) or scope["method"] not in READING:
            return None
        query: bytes = scope["query_string"]
        if (published := self._lists.get(path)) is not None:
            window = plain_window(query)
            return None if window is None else (published.source, window, None)
        base, _, text = path.rpartition("/")
        if (published := self._rows.get(base)) is None or not text or query:
            return None
        key = published.key(text)
        if key is None or published.own.serve(path):
            return None
        return published.source, None, key

    def at_once(self, scope: Scope) -> Answer | None:
        """The answer to a GET request, if it is there already."""
        # What a path means is noted, since to read it takes longer than all the rest of this.
        asked = self._noted.get(scope["path"])
        if (
            asked is None
            or scope["method"] != "GET"
            or scope["query_string"]
            or scope["root_path"]
            or len(self._routes) != self._routes_seen
        ):
            return self._read_at_once(scope)
        found = asked[0].at_hand(asked[1], asked[2])
        return None if found is None else at_once(found[0], scope)

    def _read_at_once(self, scope: Scope) -> Answer | None:
        if scope["method"] != "GET" or (asked := self.find(scope)) is None:
            return None
        if (found := asked[0].at_hand(asked[1], asked[2])) is None:
            return None
        # The application may add routes while it runs; and a full list is cleared, which is the cheapest way
        # to make room, once in ten thousand times.
        if len(self._routes) != self._routes_seen or len(self._noted) >= PATHS:
            self._noted.clear()
            self._routes_seen = len(self._routes)
        if not scope["query_string"] and not scope["root_path"]:
            self._noted[scope["path"]] = asked
        return at_once(found[0], scope)


class BeforeRouter:
    """Answers inside of the application's middleware, under which errors become responses."""

    def __init__(self, app: ASGIApp, directory: Directory) -> None:
        """Wrap a router."""
        self.app = app
        self._directory = directory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or let the router do it; it tells telemetry which route it has taken."""
        if scope["type"] == "http" and "fastapi.telemetry" not in scope:
            asked = self._directory.find(scope)
            if asked is not None:
                source, window, key = asked
                found = source.at_hand(window, key) or await source.read(window, key)
                await deliver(*found, scope, send)
                return
        await self.app(scope, receive, send)


class BeforeApplication:
    """Says whether an application may be spared a request: whether nothing of it would notice.

    Attributes:
        stack: the middleware that was looked at.
        spared: what was found.
    """

    def __init__(self, layer: BeforeRouter) -> None:
        """Look for anything around this layer."""
        self._layer = layer
        self.stack: ASGIApp | None = None
        self.spared = False

    def is_spared(self, app: FastAPI) -> bool:
        """Whether there is nothing around the layer but what FastAPI has put there."""
        if app.middleware_stack is not self.stack:
            # Looked at with the first request: by then everybody has put there what they would.
            self.stack = app.middleware_stack
            self.spared = not app.user_middleware and self._is_bare(app) and not _is_traced(app)
        return self.spared

    def _is_bare(self, app: FastAPI) -> bool:
        layer: Any = app.middleware_stack
        while layer is not app.router:
            if layer is None or (not isinstance(layer, RequestContext) and not _is_of_fastapi(type(layer))):
                return False
            layer = getattr(layer, "app", None)
        calls = FastAPI.__call__, starlette.applications.Starlette.__call__
        return app.router.middleware_stack is self._layer and all(map(_is_unpatched, calls))


def _is_of_fastapi(kind: type[Any]) -> bool:
    return kind.__module__.partition(".")[0] in ("fastapi", "starlette")


def _is_unpatched(call: Any) -> bool:
    # Tracers replace these.
    modules = vars(fastapi.applications), vars(starlette.applications)
    return isinstance(call, FunctionType) and call.__globals__ in modules


def _is_traced(app: FastAPI) -> bool:
    telemetry = getattr(app, "_native_telemetry", None)
    if telemetry is None:
        return find_spec("fastapi.telemetry") is not None  # it has telemetry, and this does not know where
    return bool(telemetry.enabled())


@contextmanager
def layer_added(app: FastAPI, published: Iterable[Published]) -> Iterator[None]:
    """Put the layer there, for the length of the block."""
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
    if original.__call__ is not FastAPI.__call__:  # a class of the application's own is middleware, too
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
                status, headers, body = answer
                # A list of its own, since what is around the application may change it.
                await send({"type": "http.response.start", "status": status, "headers": [*headers]})
                await send({"type": "http.response.body", "body": body})
                return
        await original.__call__(self, scope, receive, send)

    names = {"__module__": original.__module__, "__qualname__": original.__qualname__}
    app.__class__ = type(
        original.__name__, (original,), {**names, "__doc__": original.__doc__, "__call__": call}
    )
    try:
        yield
    finally:
        app.__class__ = original
