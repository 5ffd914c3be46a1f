"""The routes that the plugin adds to an application, and how they stand beside its own."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

from django.db import connections, transaction
from fastapi import APIRouter, FastAPI, Response
from fastapi.routing import iter_route_contexts
from starlette._utils import get_route_path
from starlette.routing import BaseRoute, Match
from starlette.types import Scope

from ..events import logger
from ..settings import ORMSettings
from .health import DatabaseProbe, Health, report
from .refresh import Refreshers, add_refresh


def build_router(
    settings: ORMSettings, refreshers: Refreshers, probes: Mapping[str, DatabaseProbe]
) -> APIRouter:
    """The routes that the settings ask for."""
    router = APIRouter(tags=["django-orm"])
    if settings.refresh_path:
        add_refresh(router, settings, refreshers)
    if settings.health_path:
        _add_health(router, settings.health_path, refreshers, probes)
    for route in router.routes:
        # ATOMIC_REQUESTS is for the application's handlers. These would hold a connection while they wait.
        for alias in connections:
            transaction.non_atomic_requests(using=alias)(getattr(route, "endpoint"))  # noqa: B009
    return router


def _add_health(
    router: APIRouter, path: str, refreshers: Refreshers, probes: Mapping[str, DatabaseProbe]
) -> None:
    @router.get(
        path,
        response_model=Health,
        responses={503: {"model": Health, "description": "Something needed is not there."}},
        summary="Whether the database answers, and how fresh the data is",
    )
    async def health(response: Response) -> Health:
        now = await report(probes, refreshers.values())
        if now.status == "unavailable":
            response.status_code = 503
        return now


def _leave_out_taken(app: FastAPI, router: APIRouter) -> None:
    paths = {getattr(route, "path", None) for route in iter_route_contexts(app.routes)}
    for route in [route for route in router.routes if getattr(route, "path", None) in paths]:
        logger.warning("route_not_added", path=getattr(route, "path", None), reason="the path is taken")
        router.routes.remove(route)


def _refuse_quickly(route: BaseRoute, paths: Collection[str | None]) -> None:
    """Spare requests for other paths what FastAPI does to find out: these routes are looked at first."""
    matches = route.matches

    def match(scope: Scope) -> tuple[Match, Scope]:
        path = get_route_path(scope) if scope.get("root_path") else scope["path"]
        return matches(scope) if path in paths else (Match.NONE, {})

    route.matches = match  # type: ignore[method-assign]


@contextmanager
def routes_added(app: FastAPI, router: APIRouter) -> Iterator[None]:
    """Add the routes in front of the application's own, and take them away again.

    In front, because an application that mounts Django at ``/`` has a route there that matches everything.
    A path that the application itself serves is left to it.
    """
    _leave_out_taken(app, router)
    own = app.router.routes
    before = len(own)
    app.include_router(router)
    added = own[before:]
    del own[before:]
    for route in added:
        _refuse_quickly(route, {getattr(each, "path", None) for each in router.routes})
    own[:0] = added
    app.openapi_schema = None  # it may have been made already, without these
    try:
        yield
    finally:
        for route in added:
            own.remove(route)
        app.openapi_schema = None
