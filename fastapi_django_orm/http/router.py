"""``Topics.router(…)``: the routes of a repository, as an ordinary ``APIRouter``.

Each route does what a handler would write: it takes the repository from ``Depends(Topics.current)``, answers
reads by its bytes, and calls its ``create()``, ``update()`` and ``delete()``. No route is there that was not
asked for.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Annotated, Any, get_args
from urllib.parse import quote

from django.apps import apps
from django.db import connections, transaction
from django.db.models import SlugField
from fastapi import APIRouter, Depends, Header, Path, Query, Request
from pydantic import BaseModel
from starlette._utils import get_route_path
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from ..errors import InvalidRepository
from ..reading.codec import value_of
from ..reading.encoding import plain_encoder, tag_of
from ..reading.reader_factory import choose_reader
from ..reading.schema_code import source_of
from ..repository import Repository
from ..responses.response import RepositoryResponse
from ..settings import read_settings, where_written
from ..setup import set_up_django
from ..writing.values import check_names
from ..writing.writes import Writes
from .publication import key_type, list_model, row_model
from .published_route import GONE
from .sources import source_for


async def _if_match(
    value: Annotated[
        str | None,
        Header(alias="If-Match", description="The `ETag` of the row: refuse to write if it has changed."),
    ] = None,
) -> str | None:
    return value


IfMatch = Annotated[str | None, Depends(_if_match)]
"""The header ``If-Match`` of a request, None without it: ``topics.update(pk, topic, if_match=if_match)``."""

Documented = dict[int | str, dict[str, Any]]


def _error(status: int, description: str, detail: dict[str, Any] | None = None) -> Documented:
    shape = {"type": "object", "required": ["detail"], "properties": {"detail": detail or {"type": "string"}}}
    return {status: {"description": description, "content": {"application/json": {"schema": shape}}}}


# Inline, since models of the package would rename an application's own of the same name.
_ETAG = {"ETag": {"description": "The tag for `If-Match`.", "schema": {"type": "string"}}}
_LOCATION = {"Location": {"description": "The URL of the new row.", "schema": {"type": "string"}}}
_UNMODIFIED: Documented = {304: {"description": "What the client has, by `If-None-Match`, is what there is."}}
_UNAVAILABLE = _error(503, "The database cannot answer now. Repeat after the seconds of `Retry-After`.")
_NOT_FOUND = _error(404, "No row has this key.")
_CHANGED = _error(412, "The row is another than that of `If-Match`.")
_CONFLICT = _error(
    409,
    "A constraint refuses it: another row has the value, or refers to this one.",
    {
        "type": "object",
        "required": ["type", "msg", "fields"],
        "properties": {
            "type": {"type": "string"},
            "msg": {"type": "string"},
            "fields": {"type": "array", "items": {"type": "string"}},
        },
    },
)


def router(
    cls: type[Repository[Any]],
    *,
    filter: Any = None,  # noqa: A002  # the word for it
    create: Any = None,
    update: Any = None,
    delete: bool = False,
    dependencies: Sequence[Any] = (),
    write_dependencies: Sequence[Any] = (),
    **options: Any,
) -> APIRouter:
    """Make routes for a repository: the list, each row under its key, and the writes that are asked for.

    ``app.include_router(Topics.router(create=TopicIn), prefix="/topics")``. It sets Django up, as
    ``DjangoORM.setup()`` does.

    Args:
        cls: the repository.
        filter: a class of query parameters, given to ``response()``; by default ``offset`` and ``limit``.
        create: the class of the body of POST; by default no POST.
        update: the class of the body of PATCH; by default no PATCH.
        delete: whether there is DELETE.
        dependencies: of all routes, such as ``[Depends(signed_in)]``.
        write_dependencies: of POST, PATCH and DELETE besides.
        **options: those of ``APIRouter``.

    Raises:
        InvalidRepository: the rows have no key that can stand in a path.
        UnknownField: a body has a field that the model does not have.
    """
    if not apps.ready:
        settings = read_settings()
        set_up_django(settings.settings_module, where_written(settings, "settings_module"))
    routes = _Routes(cls, filter)
    for name, body in (("create", create), ("update", update)):
        routes.check_body(name, body)
    made = APIRouter(**{"tags": [cls.name], **options, "dependencies": [*dependencies]})

    def add(endpoint: Callable[..., Any], method: str, path: str, **more: Any) -> None:
        name = f"{endpoint.__name__}_{cls.name}"
        made.add_api_route(path, endpoint, methods=[method], name=name, operation_id=name, **more)

    row, one = routes.row_model, routes.row_path
    add(routes.list(), "GET", "/", response_model=routes.list_model, responses=_UNMODIFIED | _UNAVAILABLE)
    add(routes.get(), "GET", one, response_model=row, responses=_UNMODIFIED | _NOT_FOUND | _UNAVAILABLE)
    writing: dict[str, Any] = {"dependencies": [*write_dependencies]}
    if create is not None:
        created: Documented = {201: {"headers": _LOCATION | _ETAG}}
        responses = created | _CONFLICT | _UNAVAILABLE
        writing_one = {"response_model": row, "status_code": 201, "responses": responses}
        add(routes.create(create), "POST", "/", **writing, **writing_one)
    if update is not None:
        responses = {200: {"headers": _ETAG}} | _NOT_FOUND | _CONFLICT | _CHANGED | _UNAVAILABLE
        add(routes.update(update), "PATCH", one, **writing, response_model=row, responses=responses)
    if delete:
        responses = _NOT_FOUND | _CONFLICT | _CHANGED | _UNAVAILABLE
        add(routes.delete(), "DELETE", one, **writing, status_code=204, responses=responses)
    return made


class _Routes:
    """The handlers of one repository's routes."""

    def __init__(self, cls: type[Repository[Any]], where: Any) -> None:
        instance = cls()
        instance._reader = choose_reader(instance, instance.queryset())
        self._cls, self._filter, self._model = cls, where, instance.model_class
        self._repository = Annotated[cls, Depends(cls.current)]
        self.row_model = row_model(instance)
        self.list_model = list_model(f"{cls.__name__}List", cls.name, self.row_model, pages=where is not None)
        if (kind := key_type(instance)) is None:
            raise InvalidRepository(
                f"{cls.__qualname__}.router(): its rows have no key that can stand in a path. Serve rows "
                "that have a primary key of one column, from a queryset() in which Django can look for it."
            )
        # A text may have slashes in it, which a client sends as ``%2F`` and a server decodes.
        has_slashes = kind in (str, Any) and not isinstance(self._model._meta.pk, SlugField)
        self.row_path = "/{pk:path}" if has_slashes else "/{pk}"
        self._key = Annotated[kind, Path(description="The row's primary key.")]

    def check_body(self, method: str, body: Any) -> None:
        """Refuse a body whose values ``create()`` or ``update()`` would refuse."""
        schema = next(iter(get_args(body)), body)
        if not (isinstance(schema, type) and issubclass(schema, BaseModel)):
            return
        if getattr(self._cls, method) is getattr(Writes, method):  # another may take more, or less
            check_names(
                self._model, f"{schema.__name__}, a body of {self._cls.__qualname__}", schema.model_fields
            )

    # Reading

    def list(self) -> Callable[..., Any]:
        """GET of the list."""
        if self._filter is not None:

            async def page(repository: Any, where: Any) -> Any:
                return repository.response(where)

            page.__name__ = "list"  # the operation's id is made of it
            return self._reading(page, where=Annotated[self._filter, Query()])
        most, deepest = self._cls.max_limit, self._cls.max_offset

        async def list(request: Any, repository: Any, offset: Any = 0, limit: Any = most) -> Any:  # noqa: A001
            return await _read(repository, (offset, limit), None, request)

        offsets = Query(ge=0, le=deepest, description="How many rows to leave out.")
        limits = Query(ge=1, le=most, description="How many rows to give at most.")
        limit = int | None if most is None else int
        return self._reading(
            list, request=Request, offset=Annotated[int, offsets], limit=Annotated[limit, limits]
        )

    def get(self) -> Callable[..., Any]:
        """GET of a row."""

        async def get(request: Any, repository: Any, pk: Any) -> Any:
            return await _read(repository, None, pk, request)

        return self._reading(get, request=Request, pk=self._key)

    def _reading(self, endpoint: Callable[..., Any], **types: Any) -> Callable[..., Any]:
        # With ATOMIC_REQUESTS it would hold a connection while it waits.
        for alias in connections:
            transaction.non_atomic_requests(using=alias)(endpoint)
        return self._typed(endpoint, **types)

    # Writing

    def create(self, body: Any) -> Callable[..., Any]:
        """POST of a row."""

        async def create(request: Any, repository: Any, data: Any) -> Any:
            row = await repository.create(data)
            headers, key = {}, self._key_of(row)
            if key is not None:
                headers["location"] = _below(request, key)
            return _written(row, 201, headers)

        return self._typed(create, request=Request, data=body)

    def update(self, body: Any) -> Callable[..., Any]:
        """PATCH of a row."""

        async def update(repository: Any, pk: Any, data: Any, if_match: Any) -> Any:
            return _written(await repository.update(pk, data, if_match=if_match), 200, {})

        return self._typed(update, pk=self._key, data=body, if_match=IfMatch)

    def delete(self) -> Callable[..., Any]:
        """DELETE of a row."""

        async def delete(repository: Any, pk: Any, if_match: Any) -> Any:
            await repository.delete(pk, if_match=if_match)
            return Response(status_code=204)

        return self._typed(delete, pk=self._key, if_match=IfMatch)

    def _typed(self, endpoint: Callable[..., Any], **types: Any) -> Callable[..., Any]:
        endpoint.__annotations__ = {"repository": self._repository, **types}
        return endpoint

    def _key_of(self, row: Any) -> Hashable:
        """The primary key in a row, under whatever name; None if the row does not have it."""
        pk: Any = self._model._meta.pk
        names = {"pk", pk.name, pk.attname}
        if isinstance(row, BaseModel):
            fields = type(row).model_fields
            names = {name for name, field in fields.items() if source_of(name, field, self._model) in names}
        elif isinstance(row, dict):
            names &= row.keys()
        else:
            return None
        return next((value_of(row, name) for name in names), None)


def _below(request: Request, key: Hashable) -> str:
    """The URL of a row in the list that a request has posted to.

    It is made of the request, since the same routes may be included under several prefixes.
    """
    path = request.scope.get("root_path", "") + get_route_path(request.scope)
    return str(request.url.replace(path=quote(path) + quote(str(key), safe=""), query=""))


async def _read(repository: Repository[Any], window: Any, key: Any, request: Request) -> Response:
    try:
        found = await source_for(repository).read(window, key, request.receive)
    except ClientDisconnect:
        return GONE
    return RepositoryResponse(found, repository.cache_control)


def _written(row: Any, status: int, headers: dict[str, str]) -> Response:
    """Answer with a row in the form of GET, so that its tag is that of GET."""
    if row is None:  # a method of the application's own has returned nothing
        return Response(status_code=status, headers=headers)
    body = plain_encoder.encode(None, row)
    headers["etag"] = f'"{tag_of(body).decode()}"'
    return Response(body, status, headers, "application/json")


# Set here, since a repository knows no FastAPI.
Repository.router = classmethod(router)  # type: ignore[assignment,arg-type]
