"""The routes of a published repository: raw ASGI for a plain request, FastAPI's own way for any other."""

import re
from collections.abc import Callable, Hashable
from datetime import datetime
from typing import Annotated, Any, TypeVar
from uuid import UUID

from fastapi import FastAPI, Path, Query, Request
from fastapi.routing import APIRoute
from starlette._utils import get_route_path
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from ..errors import NotFound
from ..queries.conditions import in_zone
from ..reading.windows import Window
from ..responses.negotiation import deliver
from ..responses.response import READING, RepositoryResponse
from .publication import Publication
from .routing import make_route
from .sources import WHOLE, Question

# What nginx calls it; nobody will see it, but logs and metrics should not take it for an answer or an error.
GONE = Response(status_code=499)

FAILED = "fastapi_django_orm.failed"  # in a scope: the error with which the server's protocol failed to read

_WINDOW = re.compile(rb"(?:offset=(\d{1,15}))?(?:(?:^|(?<=.)&)limit=([1-9]\d{0,14}))?").fullmatch
_INTEGER = re.compile(r"0|-?[1-9]\d{0,17}", re.ASCII).fullmatch
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch

_RESPONSES: dict[int | str, dict[str, Any]] = {
    304: {"description": "What the client has, by `If-None-Match` or `If-Modified-Since`, is what there is."},
    503: {"description": "Nothing could be read yet, or too much is asked for at the moment."},
}
_NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"description": "No row has this key."}}


class PublishedRoute(APIRoute):
    """An ordinary route of the application, in its OpenAPI document and behind its middleware.

    FastAPI solves dependencies, validates parameters and serializes what a handler returns. A request for
    published bytes needs none of that if the application has no dependencies of its own and the parameters
    are written plainly. FastAPI handles any other request, with its own error messages.
    """

    publication: Publication

    def question(self, query: bytes, params: dict[str, Any]) -> Question | None:
        """The question of a plain request with these parameters; None if FastAPI has to read it."""
        raise NotImplementedError

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match HEAD as well as GET. HEAD is not in ``methods``, or the OpenAPI document would list it."""
        match, child_scope = super().matches(scope)
        if match is Match.PARTIAL and scope["method"] == "HEAD":
            match = Match.FULL
        return match, child_scope

    @property
    def is_guarded(self) -> bool:
        """Whether dependencies decide on each request: those that the application has for all its routes."""
        return bool(self.dependant.dependencies)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that the router has matched."""
        if scope["method"] not in READING:
            raise HTTPException(405, headers={"Allow": ", ".join(READING)})
        asked = None if self.is_guarded else self.question(scope["query_string"], scope["path_params"])
        if asked is None:
            await self.app(scope, receive, send)
            return
        if FAILED in scope:
            raise scope.pop(FAILED)
        source, window, key = asked
        try:
            found = source.at_hand(window, key) or await source.read(window, key, receive)
        except ClientDisconnect:
            await GONE(scope, receive, send)
        else:
            await deliver(found, scope, send, source.cache_control)


PublishedT = TypeVar("PublishedT", bound=PublishedRoute)


class ListRoute(PublishedRoute):
    """The list's."""

    def question(self, query: bytes, params: dict[str, Any]) -> Question | None:
        """Which rows of the list."""
        source = self.publication.source
        window = source.admitted(_plain_window(query))
        return None if window is None else Question(source, window)


class FilteredRoute(PublishedRoute):
    """A list's whose parameters are a filter, which FastAPI reads."""

    def question(self, query: bytes, params: dict[str, Any]) -> Question | None:
        """None."""
        return None


class RowRoute(PublishedRoute):
    """The rows'."""

    _key_of: Callable[[str], Hashable]
    _takes_slashes = False

    def question(self, query: bytes, params: dict[str, Any]) -> Question | None:
        """Which row."""
        key = None if query else self._key_of(params["pk"])
        return None if key is None else Question(self.publication.source, None, key)

    def take_keys(self, key_type: Any) -> None:
        """Match keys of this type."""
        self._key_of = _READ.get(key_type, lambda text: None)
        if key_type in (str, Any):  # which may have slashes in them, sent as ``%2F``
            self._takes_slashes = True
            # `{pk}` does not match a slash, and `{pk:path}` no line end.
            self.path_regex = re.compile(re.escape(self._beginning) + "(?P<pk>.+)", re.DOTALL)

    @property
    def _beginning(self) -> str:
        return self.path.partition("{")[0]

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

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match a key with slashes in it, and no path below a row."""
        if self._takes_slashes and scope["type"] == "http" and not self._is_row(scope):
            return Match.NONE, {}
        return super().matches(scope)


# How to read a key from a path, by its type: None for what is not in the plain form.
_READ: dict[Any, Callable[[str], Hashable]] = {
    str: str,
    int: lambda text: int(text) if _INTEGER(text) else None,
    UUID: lambda text: UUID(text) if _UUID(text) else None,
}


def _plain_window(query: bytes) -> Window | None:
    """The window that a URL's query asks for, if it is written plainly."""
    if not query:
        return WHOLE
    if (match := _WINDOW(query)) is None:
        return None
    offset, limit = match.groups()
    return int(offset or 0), int(limit) if limit else None


def list_route(app: FastAPI, publication: Publication) -> PublishedRoute:
    """Make the route of a list."""
    if publication.filter is not None:
        return _filtered_route(app, publication)
    most = publication.max_limit

    async def rows(request: Request, offset: Any = 0, limit: Any = most) -> Response:
        source = publication.source
        try:
            found = await source.read((offset, limit), None, request.receive)
        except ClientDisconnect:
            return GONE
        return RepositoryResponse(found, source.repository.cache_control)

    offsets = Query(ge=0, le=publication.max_offset, description="How many rows to leave out.")
    limits = Query(ge=1, le=most, description="How many rows to give at most.")
    rows.__annotations__ |= {
        "offset": Annotated[int, offsets],
        "limit": Annotated[int | None if most is None else int, limits],
    }
    return _made_list(app, publication, ListRoute, rows)


def _filtered_route(app: FastAPI, publication: Publication) -> FilteredRoute:
    async def rows(where: Any) -> Response:
        return publication.source.filtered(where)

    rows.__annotations__["where"] = Annotated[publication.filter, Query()]
    return _made_list(app, publication, FilteredRoute, rows)


def _made_list(
    app: FastAPI, publication: Publication, kind: type[PublishedT], rows: Callable[..., Any]
) -> PublishedT:
    return _made(
        app,
        publication,
        kind,
        publication.path,
        rows,
        name=f"list_{publication.name}",
        summary=f"The rows of {publication.name}",
        response_model=publication.list_model,
        responses=_RESPONSES,
    )


def row_route(app: FastAPI, publication: Publication) -> RowRoute:
    """Make the route of its rows."""

    async def row(request: Request, pk: Any) -> Response:
        source = publication.source
        key = _in_zone(publication, pk) if isinstance(pk, datetime) else pk
        found = await source.read(None, key, request.receive)
        return RepositoryResponse(found, source.repository.cache_control)

    row.__annotations__["pk"] = Annotated[publication.key_type, Path(description="The row's primary key.")]
    route = _made(
        app,
        publication,
        RowRoute,
        publication.row_path,
        row,
        name=f"get_{publication.name}",
        summary=f"A row of {publication.name}",
        response_model=publication.row_model,
        responses=_NOT_FOUND | _RESPONSES,
    )
    route.take_keys(publication.key_type)
    return route


def _made(
    app: FastAPI, publication: Publication, kind: type[PublishedT], *args: Any, **options: Any
) -> PublishedT:
    route = make_route(
        app,
        kind,
        *args,
        response_class=JSONResponse,  # whatever the application's default is
        description=publication.description,
        tags=[publication.name],
        **options,
    )
    route.publication = publication
    return route


def _in_zone(publication: Publication, moment: datetime) -> datetime:
    try:
        return in_zone(moment)
    except OverflowError:
        raise NotFound.of(publication.name, moment) from None
