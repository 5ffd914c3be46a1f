"""Published repositories: routes that answer from the bytes, and a layer in front that answers most requests.

The routes are FastAPI's own. They are in the OpenAPI document, they validate, and they answer 404, 405 and
422 in FastAPI's form. The layer in front of them (``front``) answers what is asked for in the
plain form and is there.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from typing import Annotated, Any

from django.conf import settings
from django.db import connections, transaction
from django.utils import timezone
from fastapi import FastAPI, Path, Query, Request
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from ..cached import CachedRepository
from ..errors import InvalidRepository, NotFound, NotLoaded
from ..events import logger
from ..repository import Repository, naming_errors
from .front import Published, layer_added
from .own_routes import OwnRoutes, PublishedRoute, told_of_additions
from .row_models import key_type, list_model, row_model
from .sources import GONE, Source, plain_keys, response_to, source_of

_RESPONSES: dict[int | str, dict[str, Any]] = {
    304: {"description": "What the client has, by `If-None-Match` or `If-Modified-Since`, is what there is."},
    503: {"description": "Nothing could be read yet, or too much is asked for at the moment."},
}
_NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"description": "No row has this key."}}


class Publication:
    """A published repository, and what its routes need to know of the models.

    Attributes:
        repository: what is published.
        path: the list's.
        base: the same without a slash at the end.
        row_path: the rows', with ``{pk}`` for the key.
        list_model: of the list, for the OpenAPI document.
        row_model: of a row.
        key_type: of the rows' keys; None if they have none that can stand in a path.
    """

    def __init__(self, repository: Repository[Any]) -> None:
        """Look at the models. On a database thread: an overridden ``queryset()`` may query.

        Raises:
            InvalidRepository: ``publish`` is no path.
        """
        self.repository = repository
        self.path = _checked_path(repository)
        _check_limits(repository)
        self.base = self.path.rstrip("/")
        self.row_path = f"{self.base}/{{pk}}"
        self.row_model = row_model(repository)
        self.list_model = list_model(repository, self.row_model)
        self.key_type = key_type(repository)


def _checked_path(repository: Repository[Any]) -> str:
    path: Any = repository.publish
    if not isinstance(path, str) or not re.fullmatch(r"/(?:[^/{}?#\s]+/)*[^/{}?#\s]*", path):
        raise InvalidRepository(
            f"{repository.label}.publish: {path!r} is no path to publish at. Write one that begins with a "
            f'slash and has no braces, no query and no empty part: publish = "/{repository.name}/".'
        )
    return path


def _check_limits(repository: Repository[Any]) -> None:
    for name, least in (("max_limit", 1), ("max_offset", 0)):
        value = getattr(repository, name)
        if value is not None and (type(value) is not int or value < least):
            raise InvalidRepository(
                f"{repository.label}.{name}: {value!r} is not a number of rows. Write a whole number from "
                f"{least}, or None for no limit."
            )


def publications(repositories: Iterable[Repository[Any]]) -> list[Publication]:
    """What these repositories publish. On a database thread.

    Raises:
        InvalidRepository: a path is none, or is another repository's too.
    """
    found: dict[str, Publication] = {}
    for repository in repositories:
        if repository.publish is None:
            continue
        with naming_errors(repository):
            publication = Publication(repository)
        other = found.setdefault(publication.base, publication)
        if other is not publication:
            raise InvalidRepository(
                f"{repository.label}.publish: {other.repository.label} is published at {other.path!r} "
                "already. Give one of them a path of its own."
            )
    return list(found.values())


@contextmanager
def published(app: FastAPI, found: Sequence[Publication]) -> Iterator[None]:
    """Serve what is published, for the length of the block."""
    own = {publication.base: OwnRoutes(app, publication.base) for publication in found}
    sources = {publication.base: source_of(publication.repository) for publication in found}
    lists: dict[str, PublishedRoute] = {}
    rows: dict[str, PublishedRoute] = {}
    for publication in found:
        _warn_of_empty_key(publication.repository)
    with ExitStack() as stack:
        # FastAPI remembers functions for longer than their routes, and all that these can reach.
        stack.callback(sources.clear)
        for routes in own.values():
            stack.enter_context(told_of_additions(routes.forget))
        # All are looked at before any is added: a route that is added has every one look at all routes again.
        with_rows = [
            each
            for each in sorted(found, key=lambda each: each.base.count("/"))
            if each.key_type is not None and not _is_taken(each, each.row_path, own[each.base])
        ]
        beside = {each.base: f"; the rows are at {each.row_path}" for each in with_rows}
        with_list = [
            each
            for each in found
            if not _is_taken(each, each.path, own[each.base], beside.get(each.base, ""))
        ]
        # What comes later stands in front: rows below shallow paths, rows below deep ones, and then the
        # lists, since a key could be the last part of a list's path.
        for each in with_rows:
            slashes = each.key_type in (str, Any)
            route = _row_route(each, sources)
            rows[each.base] = _put_first(app, route, own[each.base], stack, slashes=slashes)
        for each in with_list:
            lists[each.base] = _put_first(app, _list_route(each, sources), own[each.base], stack)
        # The application's own dependencies guard these routes, and so does what is around its router. The
        # layer would pass both by.
        if found and not app.router.dependencies and app.router.middleware_stack == app.router.app:
            places = [
                Published(
                    sources[each.base],
                    lists.get(each.base),
                    rows.get(each.base),
                    plain_keys(each.key_type),
                    own[each.base],
                )
                for each in found
            ]
            stack.enter_context(layer_added(app, places))
        yield


def _warn_of_empty_key(repository: Repository[Any]) -> None:
    if not isinstance(repository, CachedRepository) or (snapshot := repository.refresher.snapshot) is None:
        return
    if snapshot.table.where is not None and "" in snapshot.table.where:
        logger.warning(
            "row_not_reachable",
            repository=repository.name,
            reason="its key is an empty text, and so its path would be the list's",
        )


def _is_taken(publication: Publication, path: str, own: OwnRoutes, beside: str = "") -> bool:
    """Whether there is a route already, of the application or of this package; it is said if there is."""
    if taken := own.serve_rows() if path.endswith("/{pk}") else own.serve(path):
        logger.warning(
            "route_not_added",
            path=path,
            reason="the path is taken",
            repository=publication.repository.name,
            hint=f"give {publication.repository.label}.publish another path, or leave this one to the route "
            f"that is there{beside}",
        )
    return taken


Route = tuple[str, Callable[..., Any], dict[str, Any]]


def _list_route(publication: Publication, sources: Mapping[str, Source]) -> Route:
    name, base = publication.repository.name, publication.base

    most, deepest = publication.repository.max_limit, publication.repository.max_offset

    async def rows(request: Request, offset: Any = 0, limit: Any = most) -> Response:
        source = _source(sources, base, name)
        try:
            return response_to(await source.read((offset, limit), None, request.receive), source.repository)
        except ClientDisconnect:
            return GONE

    at_most = Query(ge=1, le=most, description="How many rows to give at most.")
    rows.__annotations__ |= {
        "offset": Annotated[int, Query(ge=0, le=deepest, description="How many rows to leave out.")],
        "limit": Annotated[int | None if most is None else int, at_most],
    }
    return (
        publication.path,
        rows,
        {
            "name": f"list_{name}",
            "summary": f"The rows of {name}",
            "description": _description(publication.repository),
            "response_model": publication.list_model,
            "response_class": JSONResponse,  # whatever the application's default is
            "responses": _RESPONSES,
            "tags": [name],
        },
    )


def _row_route(publication: Publication, sources: Mapping[str, Source]) -> Route:
    name, base = publication.repository.name, publication.base

    async def row(request: Request, pk: Any) -> Response:
        source = _source(sources, base, name)
        key = _in_zone(source.repository, pk) if isinstance(pk, datetime) else pk
        return response_to(await source.read(None, key, request.receive), source.repository)

    row.__annotations__["pk"] = Annotated[publication.key_type, Path(description="The row's primary key.")]
    return (
        publication.row_path,
        row,
        {
            "name": f"get_{name}",
            "summary": f"A row of {name}",
            "description": _description(publication.repository),
            "response_model": publication.row_model,
            "response_class": JSONResponse,
            "responses": _NOT_FOUND | _RESPONSES,
            "tags": [name],
        },
    )


def _source(sources: Mapping[str, Source], base: str, name: str) -> Source:
    if (source := sources.get(base)) is None:  # the application ends
        raise NotLoaded.of(name)
    return source


def _in_zone(repository: Repository[Any], moment: datetime) -> datetime:
    """A time as rows have it, with or without a zone. Django would warn of what a client has left out."""
    if timezone.is_aware(moment) == settings.USE_TZ:
        return moment
    zone = timezone.get_default_timezone()
    try:
        return timezone.make_aware(moment, zone) if settings.USE_TZ else timezone.make_naive(moment, zone)
    except OverflowError:
        raise NotFound.of(repository.name, moment) from None


def _description(repository: Repository[Any]) -> str:
    """The docstring of the repository's own class."""
    return inspect.cleandoc(vars(type(repository)).get("__doc__") or "")


def _put_first(
    app: FastAPI, route: Route, own: OwnRoutes, stack: ExitStack, *, slashes: bool = False
) -> PublishedRoute:
    path, endpoint, options = route
    for alias in connections:  # ATOMIC_REQUESTS is for the application's handlers
        transaction.non_atomic_requests(using=alias)(endpoint)
    routes = app.router.routes
    app.router.add_api_route(path, endpoint, route_class_override=PublishedRoute, **options)
    added = routes.pop()
    assert isinstance(added, PublishedRoute)
    added.own = own
    if slashes:
        # `{pk}` matches no slash, and `{pk:path}` no line end.
        added.takes_slashes = True
        added.path_regex = re.compile(re.escape(path.removesuffix("{pk}")) + "(?P<pk>.+)", re.DOTALL)
    routes.insert(0, added)
    stack.callback(routes.remove, added)
    app.openapi_schema = None  # it may have been made already, without this
    stack.callback(setattr, app, "openapi_schema", None)
    return added
