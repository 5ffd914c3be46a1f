"""Published repositories: which routes are added to an application, and where they stand among its own."""

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from django.conf import settings
from django.db import connections, transaction
from django.utils import timezone
from fastapi import FastAPI, Path, Query, Request
from fastapi.routing import iter_route_contexts
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Match, Mount

from ..cached import CachedRepository
from ..errors import InvalidRepository, NotFound, NotLoaded
from ..events import logger
from ..repository import Repository, naming_errors
from .route import PublishedRoute
from .row_models import key_type, list_model, row_model
from .sources import GONE, Question, Source, plain_keys, plain_window, response_to, source_of

_RESPONSES: dict[int | str, dict[str, Any]] = {
    304: {"description": "What the client has, by `If-None-Match` or `If-Modified-Since`, is what there is."},
    503: {"description": "Nothing could be read yet, or too much is asked for at the moment."},
}
_EXAMPLES: dict[Any, str] = {int: "0", UUID: str(UUID(int=0))}
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


@dataclass(frozen=True, slots=True)
class _Route:
    """A route to be made.

    Attributes:
        publication: what it serves.
        path: where.
        endpoint: the handler, for requests that FastAPI has to read.
        question: reads plain requests.
        options: FastAPI's.
        example: a path that it matches.
    """

    publication: Publication
    path: str
    endpoint: Callable[..., Any]
    question: Callable[[bytes, dict[str, Any]], Question | None]
    options: dict[str, Any]
    example: str


@contextmanager
def published(app: FastAPI, found: Sequence[Publication]) -> Iterator[list[PublishedRoute]]:
    """Serve what is published, for the length of the block.

    The routes stand after the application's own and before what is mounted at ``/``, as Django may be, since
    that matches every path. A path that the application serves itself is found here, once.

    Yields:
        The routes.
    """
    sources = {publication.base: source_of(publication.repository) for publication in found}
    routes, added = app.router.routes, list[PublishedRoute]()
    place = next((at for at, route in enumerate(routes) if _is_mounted_at_root(route)), len(routes))
    for publication in found:
        _warn_of_empty_key(publication.repository)
    with ExitStack() as stack:
        # FastAPI remembers functions for longer than their routes, and all that these can reach.
        stack.callback(sources.clear)
        # Lists before rows, since a key could be the last part of a list's path; deep paths before shallow
        # ones.
        rows = sorted(
            (each for each in found if each.key_type is not None), key=lambda each: -each.base.count("/")
        )
        for route in (
            *(_list_route(each, sources) for each in found),
            *(_row_route(each, sources) for each in rows),
        ):
            if (taken := _taken_by(routes[:place], route)) is not None:
                _warn_of(taken, route)
                continue
            routes.insert(place, made := _made(app, route))
            stack.callback(routes.remove, made)
            added.append(made)
            place += 1
        app.openapi_schema = None  # it may have been made already, without these
        stack.callback(setattr, app, "openapi_schema", None)
        yield added


def _warn_of_empty_key(repository: Repository[Any]) -> None:
    if not isinstance(repository, CachedRepository) or (snapshot := repository.refresher.snapshot) is None:
        return
    if snapshot.table.where is not None and "" in snapshot.table.where:
        logger.warning(
            "row_not_reachable",
            repository=repository.name,
            reason="its key is an empty text, and so its path would be the list's",
        )


def _is_mounted_at_root(route: BaseRoute) -> bool:
    return isinstance(route, Mount) and not route.path


def _taken_by(before: Iterable[BaseRoute], route: _Route) -> BaseRoute | None:
    """The route that matches this one's path and so would be reached in its place."""
    scope = {"type": "http", "method": "GET", "path": route.example, "root_path": "", "headers": []}
    # The scope is copied: FastAPI leaves notes in it.
    return next((each for each in before if each.matches({**scope})[0] is Match.FULL), None)


def _warn_of(taken: BaseRoute, route: _Route) -> None:
    label = route.publication.repository.label
    logger.warning(
        "route_not_added",
        path=route.path,
        reason="the path is taken",
        taken_by=_path_of(taken, route.example),
        repository=route.publication.repository.name,
        hint=f"give {label}.publish another path, or leave this one to the route that is there",
    )


def _path_of(taken: BaseRoute, example: str) -> str:
    """The path of a route that matches, which may be one of several in an included router."""
    for each in iter_route_contexts([taken]):
        pattern = getattr(each, "path_regex", None)
        if pattern is not None and pattern.match(example):
            return str(each.path)
    return type(taken).__name__


def _made(app: FastAPI, route: _Route) -> PublishedRoute:
    for alias in connections:  # ATOMIC_REQUESTS is for the application's handlers
        transaction.non_atomic_requests(using=alias)(route.endpoint)
    routes = app.router.routes
    app.router.add_api_route(
        route.path,
        route.endpoint,
        route_class_override=PublishedRoute,
        response_class=JSONResponse,  # whatever the application's default is
        description=_description(route.publication.repository),
        tags=[route.publication.repository.name],
        **route.options,
    )
    added = routes.pop()
    assert isinstance(added, PublishedRoute)
    added.question = route.question
    if route.publication.key_type in (str, Any) and route.path == route.publication.row_path:
        added.take_slashes()
    return added


def _list_route(publication: Publication, sources: Mapping[str, Source]) -> _Route:
    name, base = publication.repository.name, publication.base

    most, deepest = publication.repository.max_limit, publication.repository.max_offset

    async def rows(request: Request, offset: Any = 0, limit: Any = most) -> Response:
        source = _source(sources, base, name)
        try:
            return response_to(await source.read((offset, limit), None, request.receive), source.repository)
        except ClientDisconnect:
            return GONE

    def question(query: bytes, params: dict[str, Any]) -> Question | None:
        source = _source(sources, base, name)
        window = source.admitted(plain_window(query))
        return None if window is None else Question(source, window)

    at_most = Query(ge=1, le=most, description="How many rows to give at most.")
    rows.__annotations__ |= {
        "offset": Annotated[int, Query(ge=0, le=deepest, description="How many rows to leave out.")],
        "limit": Annotated[int | None if most is None else int, at_most],
    }
    options = {
        "name": f"list_{name}",
        "summary": f"The rows of {name}",
        "response_model": publication.list_model,
        "responses": _RESPONSES,
    }
    return _Route(publication, publication.path, rows, question, options, publication.path)


def _row_route(publication: Publication, sources: Mapping[str, Source]) -> _Route:
    name, base = publication.repository.name, publication.base
    key_of = plain_keys(publication.key_type)

    async def row(request: Request, pk: Any) -> Response:
        source = _source(sources, base, name)
        key = _in_zone(source.repository, pk) if isinstance(pk, datetime) else pk
        return response_to(await source.read(None, key, request.receive), source.repository)

    def question(query: bytes, params: dict[str, Any]) -> Question | None:
        key = None if query else key_of(params["pk"])
        return None if key is None else Question(_source(sources, base, name), None, key)

    row.__annotations__["pk"] = Annotated[publication.key_type, Path(description="The row's primary key.")]
    options = {
        "name": f"get_{name}",
        "summary": f"A row of {name}",
        "response_model": publication.row_model,
        "responses": _NOT_FOUND | _RESPONSES,
    }
    example = publication.row_path.format(pk=_EXAMPLES.get(publication.key_type, "~"))
    return _Route(publication, publication.row_path, row, question, options, example)


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
