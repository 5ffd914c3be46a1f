"""The routes that the plugin adds to an application, and how they stand beside its own."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

from django.db import connections, transaction
from fastapi import APIRouter, FastAPI, HTTPException, Response
from fastapi.routing import APIRoute, iter_route_contexts
from starlette._utils import get_route_path
from starlette.routing import BaseRoute, Match
from starlette.types import Receive, Scope, Send

from ..events import logger
from ..settings import ORMSettings
from .access import warn_if_closed
from .health import DatabaseProbe, DjangoORMHealth, report
from .refresh import Refreshers, add_refresh

TAG = "django-orm"


class _OwnRoute(APIRoute):
    """A route that names all methods of its path where it refuses one; FastAPI names those of one route."""

    allowed: Collection[str] = ()

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse the method."""
        if scope["method"] not in (self.methods or ()):
            raise HTTPException(405, headers={"Allow": ", ".join(sorted(self.allowed))})
        await super().handle(scope, receive, send)


def build_router(
    settings: ORMSettings, refreshers: Refreshers, probes: Mapping[str, DatabaseProbe]
) -> APIRouter:
    """The routes that the settings ask for."""
    router = APIRouter(tags=[TAG], route_class=_OwnRoute)
    if settings.refresh_path:
        add_refresh(router, settings.refresh_path, settings.refresh_token, refreshers)
    if settings.health_path:
        _add_health(router, settings.health_path, refreshers, probes)
    routes = _routes(router)
    for route in routes:
        beside = [each.methods or set() for each in routes if each.path == route.path]
        route.allowed = set().union(*beside)
        # ATOMIC_REQUESTS is for the application's handlers. These would hold a connection while they wait.
        for alias in connections:
            transaction.non_atomic_requests(using=alias)(route.endpoint)
    return router


def _routes(router: APIRouter) -> list[_OwnRoute]:
    return [route for route in router.routes if isinstance(route, _OwnRoute)]


def _add_health(
    router: APIRouter, path: str, refreshers: Refreshers, probes: Mapping[str, DatabaseProbe]
) -> None:
    async def health(response: Response) -> DjangoORMHealth:
        now = await report(probes, refreshers.values())
        if now.status == "unavailable":
            response.status_code = 503
        return now

    router.add_api_route(
        path,
        health,
        methods=["GET"],
        responses={503: {"model": DjangoORMHealth, "description": "Something needed is not there."}},
        summary="Whether the database answers, and how fresh the data is",
    )
    # What watches an application often asks with HEAD. The server leaves the body out.
    router.add_api_route(path, health, methods=["HEAD"], include_in_schema=False)


def _leave_out_taken(app: FastAPI, router: APIRouter, settings: ORMSettings) -> None:
    paths = {getattr(route, "path", None) for route in iter_route_contexts(app.routes)}
    for path, setting in (
        (settings.refresh_path, "DJANGO_ORM_REFRESH_PATH"),
        (settings.health_path, "DJANGO_ORM_HEALTH_PATH"),
    ):
        if path is not None and path in paths:
            logger.warning(
                "route_not_added",
                path=path,
                reason="the application has a route of its own there",
                hint=f"set {setting} to another path to have both, or to `off` to have yours alone",
            )
            router.routes[:] = [route for route in router.routes if getattr(route, "path", None) != path]


def _refuse_quickly(route: BaseRoute, paths: Collection[str | None]) -> None:
    """Spare requests for other paths what FastAPI does to find out: these routes are looked at first."""
    matches = route.matches

    def match(scope: Scope) -> tuple[Match, Scope]:
        path = get_route_path(scope) if scope.get("root_path") else scope["path"]
        return matches(scope) if path in paths else (Match.NONE, {})

    route.matches = match  # type: ignore[method-assign]


def _include(app: FastAPI, router: APIRouter, *, include_in_schema: bool) -> list[BaseRoute]:
    """Include a router at the end, and nothing of its lifespan."""
    lifespan, before = app.router.lifespan_context, len(app.router.routes)
    app.include_router(router, include_in_schema=include_in_schema)
    app.router.lifespan_context = lifespan  # or it would grow with each start of the application
    return app.router.routes[before:]


@contextmanager
def routes_added(app: FastAPI, router: APIRouter, settings: ORMSettings) -> Iterator[None]:
    """Add the routes in front of the application's own, and take them away again.

    In front, because an application that mounts Django at ``/`` has a route there that matches everything.
    A path that the application itself serves is left to it.
    """
    _leave_out_taken(app, router, settings)
    added = _include(app, router, include_in_schema=False)
    for route in added:
        app.router.routes.remove(route)
        _refuse_quickly(route, {each.path for each in _routes(router)})
    app.router.routes[:0] = added
    with _removed_again(app, added):
        if any(route.path == settings.refresh_path for route in _routes(router)):
            warn_if_closed(settings)
        yield


@contextmanager
def routes_documented(app: FastAPI, router: APIRouter, settings: ORMSettings) -> Iterator[None]:
    """Have the same routes in the OpenAPI document, behind those of the application.

    The document lists routes in the order in which requests look at them. So these stand there twice, and
    only the last ones, which no request comes to, are documented.
    """
    with _removed_again(
        app, _include(app, router, include_in_schema=True) if settings.include_in_schema else []
    ):
        yield


@contextmanager
def _removed_again(app: FastAPI, added: Sequence[BaseRoute]) -> Iterator[None]:
    app.openapi_schema = None  # it may have been made already, without these
    try:
        yield
    finally:
        for route in added:
            app.router.routes.remove(route)
        app.openapi_schema = None
