"""Routes that stand in an application while its lifespan is open, and those that the plugin adds to each.

``/refresh/`` and ``/health/`` stand in front of the application's own routes, because an application that
mounts Django at ``/`` has a route there that matches everything. The OpenAPI document lists routes in the
order in which requests look at them, and should have these last. So they stand at the end as well, where no
request comes to, and only there they are documented.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from django.db import connections, transaction
from fastapi import FastAPI, HTTPException
from fastapi.routing import APIRoute, iter_route_contexts
from starlette._utils import get_route_path
from starlette.routing import BaseRoute, Match
from starlette.types import Receive, Scope, Send

from ..events import logger
from ..settings import PREFIX, ORMSettings
from .health import DatabaseProbe, health_operations
from .refresh import Refreshers, refresh_operations, warn_if_closed

TAG = "django-orm"

RouteT = TypeVar("RouteT", bound=APIRoute)


def make_route(
    app: FastAPI, kind: type[RouteT], path: str, endpoint: Callable[..., Any], **options: Any
) -> RouteT:
    """Make a route with the dependencies and defaults of the application, and do not add it yet."""
    # ATOMIC_REQUESTS is for the application's handlers. Ours would hold a connection while they wait.
    for alias in connections:
        transaction.non_atomic_requests(using=alias)(endpoint)
    app.router.add_api_route(path, endpoint, route_class_override=kind, **options)
    route = app.router.routes.pop()
    assert isinstance(route, kind)
    return route


@contextmanager
def routes_inserted(app: FastAPI, routes: Sequence[BaseRoute], place: int) -> Iterator[None]:
    """Have these routes stand at this place among the application's, for the length of the block."""
    app.router.routes[place:place] = routes
    app.openapi_schema = None  # it may have been made already, without these
    try:
        yield
    finally:
        # By identity: routes that answer alike are equal.
        ours = set(map(id, routes))
        app.router.routes[:] = [each for each in app.router.routes if id(each) not in ours]
        app.openapi_schema = None


class _PluginRoute(APIRoute):
    allowed: Collection[str] = ()  # all methods of its path; FastAPI names those of one route

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Spare requests for other paths FastAPI's own way to find out: these routes are looked at first."""
        path = get_route_path(scope) if scope.get("root_path") else scope["path"]
        return super().matches(scope) if path == self.path else (Match.NONE, {})

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in (self.methods or ()):
            raise HTTPException(405, headers={"Allow": ", ".join(sorted(self.allowed))})
        await super().handle(scope, receive, send)


def plugin_routes(
    app: FastAPI, settings: ORMSettings, refreshers: Refreshers, probes: Mapping[str, DatabaseProbe]
) -> list[dict[str, Any]]:
    """What to make the plugin's routes of, as far as settings and the application's own routes allow."""
    taken = {getattr(route, "path", None) for route in iter_route_contexts(app.routes)}
    found: list[dict[str, Any]] = []
    for path, setting, operations in (
        (settings.refresh_path, "REFRESH_PATH", refresh_operations(settings.refresh_token, refreshers)),
        (settings.health_path, "HEALTH_PATH", health_operations(probes, refreshers)),
    ):
        if path is None:  # off
            continue
        if path in taken:
            logger.warning(
                "route_not_added",
                path=path,
                reason="the application has a route of its own there",
                hint=f"set {PREFIX}{setting} to another path to have both, or to `off` to have yours alone",
            )
        else:
            found += [{"path": path, "tags": [TAG], **each} for each in operations]
            if path == settings.refresh_path:
                warn_if_closed(settings)
    return found


@contextmanager
def in_front(app: FastAPI, found: Sequence[dict[str, Any]]) -> Iterator[None]:
    """Have the plugin's routes answer, for the length of the block."""
    routes = [make_route(app, _PluginRoute, **{**each, "include_in_schema": False}) for each in found]
    for route in routes:
        route.allowed = set().union(*(each.methods or () for each in routes if each.path == route.path))
    with routes_inserted(app, routes, 0):
        yield


@contextmanager
def documented(app: FastAPI, found: Sequence[dict[str, Any]]) -> Iterator[None]:
    """Have the plugin's routes in the OpenAPI document, for the length of the block."""
    routes = [make_route(app, APIRoute, **each) for each in found]
    with routes_inserted(app, routes, len(app.router.routes)):
        yield
