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
from starlette.routing import Host, Match, Mount, WebSocketRoute
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
        self._patterns: list[tuple[re.Pattern[str], bool]] = []  # and whether for HEAD alone
        self._hosts: list[Host] = []
        self._seen = -1

    def forget(self) -> None:
        """Look at the routes again with the next question."""
        self._seen = -1

    def serve(self, path: str, method: str = "GET") -> bool:
        """Whether one of the routes matches a path.

        Args:
            path: below the application's root path.
            method: GET, or HEAD, which a route for GET alone counts for, too.
        """
        self._look()
        if not self._patterns:  # as mostly
            return False
        return any(
            pattern.match(path) for pattern, for_head in self._patterns if not for_head or method == "HEAD"
        )

    def may_serve(self, path: str, method: str) -> bool:
        """Whether one of them matches a path, or may match it on some host."""
        return self.serve(path, method) or bool(self._hosts)

    def serve_host(self, scope: Scope) -> bool:
        """Whether one of them serves the host of a request, as they were at the last look."""
        return any(host.matches(scope)[0] is not Match.NONE for host in self._hosts)

    def serve_rows(self) -> bool:
        """Whether one of the routes is for rows, whatever it calls their key."""
        return any(
            not for_head and _PARAMETER.sub("{}", path) == f"{self._base}/{{}}"
            for path, _, for_head in self._below()
        )

    def _look(self) -> None:
        routes = self._app.router.routes
        if len(routes) != self._seen:  # the application may add routes while it runs
            self._patterns = [(pattern, for_head) for _, pattern, for_head in self._below()]
            self._hosts = [route for route in routes if isinstance(route, Host)]
            self._seen = len(routes)

    def _below(self) -> Iterator[tuple[str, re.Pattern[str], bool]]:
        for route in iter_route_contexts(self._app.router.routes):
            path, pattern = route.path_format, getattr(route, "path_regex", None)
            if path is None or pattern is None or not _is_read(route):
                continue
            if path.startswith(f"{self._base}/") or path == self._base:
                yield path, pattern, route.methods is not None and "GET" not in route.methods


def _is_read(route: Any) -> bool:
    original = route.original_route
    if isinstance(original, PublishedRoute | WebSocketRoute):
        return False
    if isinstance(original, Mount) and not route.path:
        return False  # what is mounted at "/" gets what nobody else serves
    return route.methods is None or not route.methods.isdisjoint(("GET", "HEAD"))


class PublishedRoute(APIRoute):
    """A route that the plugin adds for a published repository.

    Attributes:
        own: routes that go first; None if FastAPI has made it again, for a router that includes this one.
        takes_slashes: whether it is the route of rows whose keys may have slashes.
    """

    own: OwnRoutes | None = None
    takes_slashes = False

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match what none of the application's own routes matches."""
        # Every request of the application is looked at here, and FastAPI's own look is long.
        if scope["type"] != "http" or self._beginning not in scope["path"]:
            return Match.NONE, {}
        if self.takes_slashes and not self._is_row(scope):
            return Match.NONE, {}
        own = self.own
        if own is not None and (own.serve(get_route_path(scope), scope["method"]) or own.serve_host(scope)):
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

    def _is_row(self, scope: Scope) -> bool:
        """Whether a path has one part below the list's, in which slashes of a key were sent as ``%2F``.

        What has several parts is the application's: a page of Django's, mounted at "/". Servers decode the
        path and leave what was sent in ``raw_path``.
        """
        below = get_route_path(scope).removeprefix(self._beginning)
        if "/" not in below:
            return True
        before = scope["path"].removesuffix(below)
        return bool(scope.get("raw_path", b"").count(b"/") == before.count("/"))

    @cached_property
    def _beginning(self) -> str:
        return self.path.partition("{")[0]
