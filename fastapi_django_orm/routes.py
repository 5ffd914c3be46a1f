"""The routes that the plugin adds: refresh, for who may, and health, for everybody."""

import asyncio
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import structlog
from django.db import connections, transaction
from fastapi import APIRouter, Depends, FastAPI, Query, Response
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel, Field
from starlette._utils import get_route_path
from starlette.routing import BaseRoute, Match
from starlette.types import Scope

from .access import may_refresh
from .encoding import combine
from .errors import NotFound, RefreshFailed, nearest
from .health import DatabaseProbe, Health, report
from .refresh import Load, Refresher
from .settings import ORMSettings

logger = structlog.get_logger("fastapi_django_orm")

Refreshers = Mapping[str, Refresher[Any]]


class RefreshReport(BaseModel):
    """What one repository's refresh did."""

    rows: int | None = Field(description="How many rows are served now.")
    version: int | None
    duration_ms: float | None = Field(description="How long the load took, in milliseconds.")
    trigger: str | None = Field(description="Who asked first for the load that this request shared.")
    error: str | None = Field(default=None, description="The class of the error, if the load failed.")


def build_router(
    settings: ORMSettings, refreshers: Refreshers, probes: Mapping[str, DatabaseProbe]
) -> APIRouter:
    """The routes that the settings ask for."""
    router = APIRouter(tags=["django-orm"])
    if settings.refresh_path:
        _add_refresh(router, settings, refreshers)
    if settings.health_path:
        _add_health(router, settings.health_path, refreshers, probes)
    for route in router.routes:
        # ATOMIC_REQUESTS is for the application's handlers. These would hold a connection while they wait.
        for alias in connections:
            transaction.non_atomic_requests(using=alias)(getattr(route, "endpoint"))  # noqa: B009
    return router


def _add_refresh(router: APIRouter, settings: ORMSettings, refreshers: Refreshers) -> None:
    guard = [Depends(may_refresh(settings.refresh_token))]
    refusals: dict[int | str, dict[str, Any]] = {
        401: {"description": "No token was sent."},
        403: {"description": "The token is wrong, or none is configured and DEBUG is off."},
        404: {"description": "There is no repository of that name."},
    }

    async def select(
        repository: Annotated[
            list[str] | None, Query(description="Only these repositories; by default all.")
        ] = None,
    ) -> list[Refresher[Any]]:
        return [_named(name, refreshers) for name in dict.fromkeys(repository or refreshers)]

    Selected = Annotated[list[Refresher[Any]], Depends(select)]

    @router.get(
        settings.refresh_path,
        response_model=dict[str, list[dict[str, Any]]],
        dependencies=guard,
        responses={**refusals, 503: {"description": "A load failed; the old rows are served on."}},
        summary="Reload, and return the rows",
    )
    async def refresh_and_return_rows(selected: Selected) -> Response:
        loads = await _refresh(selected)
        for load in loads:
            if isinstance(load, BaseException):
                raise load
        body = combine(load.snapshot.json for load in loads if isinstance(load, Load))
        return Response(body, media_type="application/json")

    @router.post(
        settings.refresh_path,
        response_model=dict[str, RefreshReport],
        dependencies=guard,
        responses={
            **refusals,
            503: {"model": dict[str, RefreshReport], "description": "At least one load failed."},
        },
        summary="Reload, and report what was done",
    )
    async def refresh_and_report(selected: Selected, response: Response) -> dict[str, RefreshReport]:
        loads = await _refresh(selected)
        if any(isinstance(load, BaseException) for load in loads):
            response.status_code = 503
        pairs = zip(selected, loads, strict=True)
        return {refresher.name: _report(refresher, load) for refresher, load in pairs}


async def _refresh(selected: Sequence[Refresher[Any]]) -> list[Load[Any] | BaseException]:
    return await asyncio.gather(
        *(refresher.refresh("route") for refresher in selected), return_exceptions=True
    )


def _named(name: str, refreshers: Refreshers) -> Refresher[Any]:
    try:
        return refreshers[name]
    except KeyError:
        raise NotFound(f"There is no repository {name!r}. {nearest(name, refreshers)}") from None


def _report(refresher: Refresher[Any], load: Load[Any] | BaseException) -> RefreshReport:
    if isinstance(load, Load):
        return RefreshReport(
            rows=len(load.snapshot),
            version=load.snapshot.version,
            duration_ms=round(load.duration * 1000, 3),
            trigger=load.trigger,
        )
    if not isinstance(load, RefreshFailed):
        raise load
    old, cause = refresher.snapshot, load.__cause__ or load
    return RefreshReport(
        rows=None if old is None else len(old),
        version=None if old is None else old.version,
        duration_ms=None,
        trigger=None,
        error=type(cause).__name__,
    )


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
        return matches(scope) if get_route_path(scope) in paths else (Match.NONE, {})

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
