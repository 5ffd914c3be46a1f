"""The application's own routes beside published ones: they win.

A published row's path, ``/topics/{pk}``, stands in front of all routes, so that no mount at ``/`` hides it.
It would match what the application itself serves below ``/topics/``, too, and so it looks there first.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, wraps
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute, iter_route_contexts
from starlette._utils import get_route_path
from starlette.exceptions import HTTPException
from starlette.routing import Match, Mount, WebSocketRoute
from starlette.types import Receive, Scope, Send

from ..shared import SharedContext

_PARAMETER = re.compile(r"{[^}]*}")

_ADDING = ("add_api_route", "add_route", "include_router", "mount")
_told: list[Callable[[], None]] = []


@contextmanager
def told_of_additions(tell: Callable[[], None]) -> Iterator[None]:
    """Have a function called whenever a router has got a route, for the length of the block.

    A router that an application has included gives it what is added later, too, and to look through all of
    them would cost every request. So the methods that add routes are instrumented, as tracers do.
    """
    with _additions_instrumented.entered():
        _told.append(tell)
        try:
            yield
        finally:
            _told.remove(tell)


@contextmanager
def _instrumented() -> Iterator[None]:
    originals = {name: vars(APIRouter).get(name) for name in _ADDING}  # None: it is Starlette's
    for name in _ADDING:
        setattr(APIRouter, name, _telling(getattr(APIRouter, name)))
    try:
        yield
    finally:
        for name, original in originals.items():
            if original is None:
                delattr(APIRouter, name)
            else:
                setattr(APIRouter, name, original)


_additions_instrumented = SharedContext(_instrumented)


def _telling(add: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(add)
    def telling(*args: Any, **options: Any) -> Any:
        added = add(*args, **options)
        for tell in tuple(_told):
            tell()
        return added

    return telling


class OwnRoutes:
    """An application's own routes for GET, at and below a path."""

    def __init__(self, app: FastAPI, base: str) -> None:
        """Look at an application.

        Args:
            app: whose routes to look at.
            base: the path, without a slash at the end.
        """
        self._app = app
        self._base = base
        self._patterns: list[re.Pattern[str]] = []
        self._seen = -1

    def forget(self) -> None:
        """Look at the routes again with the next question."""
        self._seen = -1

    def serve(self, path: str) -> bool:
        """Whether one of the routes matches a path."""
        seen = len(self._app.router.routes)
        if seen != self._seen:  # the application may add routes while it runs
            self._patterns = [pattern for _, pattern in self._below()]
            self._seen = seen
        return any(pattern.match(path) for pattern in self._patterns) if self._patterns else False

    def serve_rows(self) -> bool:
        """Whether one of the routes is for rows, whatever it calls their key."""
        return any(_PARAMETER.sub("{}", path) == f"{self._base}/{{}}" for path, _ in self._below())

    def _below(self) -> Iterator[tuple[str, re.Pattern[str]]]:
        for route in iter_route_contexts(self._app.router.routes):
            path, pattern = route.path_format, getattr(route, "path_regex", None)
            if path is None or pattern is None or not _is_read(route):
                continue
            if path.startswith(f"{self._base}/") or path == self._base:
                yield path, pattern


def _is_read(route: Any) -> bool:
    original = route.original_route
    if isinstance(original, PublishedRoute | WebSocketRoute):
        return False
    if isinstance(original, Mount) and not route.path:
        return False  # what is mounted at "/" gets what nobody else serves
    return route.methods is None or "GET" in route.methods


class PublishedRoute(APIRoute):
    """A route that the plugin adds for a published repository.

    Attributes:
        own: routes that go first; None for a path without parameters.
    """

    own: OwnRoutes | None = None

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match what none of the application's own routes matches."""
        # Every request of the application is looked at here, and FastAPI's own look is long.
        if self._beginning not in scope["path"]:
            return Match.NONE, {}
        if self.own is not None and self.own.serve(get_route_path(scope)):
            return Match.NONE, {}
        match, child_scope = super().matches(scope)
        if match is Match.PARTIAL and scope["method"] == "HEAD":
            match = Match.FULL
        return match, child_scope

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer HEAD as well, which the OpenAPI document need not say."""
        if scope["method"] not in ("GET", "HEAD"):
            raise HTTPException(405, headers={"Allow": "GET, HEAD"})
        await self.app(scope, receive, send)

    @cached_property
    def _beginning(self) -> str:
        return self.path.partition("{")[0]
