"""Dependencies: those that handlers may take, and those that they do take."""

import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Annotated, Any

from fastapi import Depends, FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.requests import HTTPConnection
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel

from .database.atomic import atomic, atomic_aliases
from .errors import InvalidHandler


async def in_transaction(connection: HTTPConnection) -> AsyncIterator[None]:
    """Open a transaction on the default database for the rest of the handler's work."""
    handler = getattr(connection.scope.get("route"), "endpoint", None)
    if _yields(handler):  # check_streams() has not seen one that was added after the application had started
        raise InvalidHandler(_refusal(handler, connection.url.path, "depends on InTransaction", ""))
    async with atomic():
        yield


# "function": it ends when the handler does, so the client is not told of what may still be rolled back.
InTransaction = Annotated[None, Depends(in_transaction, scope="function")]
"""Wraps a handler in a transaction, ``async def post(_: InTransaction)``, that is committed before the
response is sent, and rolled back if the handler raises."""


def dependencies_of(app: FastAPI) -> Iterator[Callable[..., Any]]:
    """Every function that an application's handlers depend on, but for those that it overrides."""
    for route in iter_route_contexts(app.routes):
        dependant: Dependant | None = getattr(route.original_route, "dependant", None)
        if dependant is not None:
            yield from _below(dependant, app)


def query_models_of(app: FastAPI) -> set[type[BaseModel]]:
    """Every pydantic model that an application's handlers take as query parameters."""
    found: set[type[BaseModel]] = set()
    for route in iter_route_contexts(app.routes):
        dependant: Dependant | None = getattr(route.original_route, "dependant", None)
        todo = [] if dependant is None else [dependant]
        while todo:
            one = todo.pop()
            todo += one.dependencies
            kinds = (field.field_info.annotation for field in one.query_params)
            found.update(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel))
    return found


def check_streams(app: FastAPI) -> None:
    """Refuse handlers that yield their answer and that are to be in a transaction.

    FastAPI runs such a handler while the answer is sent, when dependencies of a function's scope have ended.
    A transaction around it would last as long as a client takes to read, and be committed if that goes away.

    Raises:
        InvalidHandler: there is one.
    """
    for route in iter_route_contexts(app.routes):
        inner = getattr(route.original_route, "app", None)
        if isinstance(inner, FastAPI):  # mounted
            check_streams(inner)
        dependant: Dependant | None = getattr(route, "dependant", None)
        if dependant is None or not _yields(dependant.call):
            continue
        if in_transaction in _below(dependant, app):
            raise InvalidHandler(_refusal(dependant.call, route.path, "depends on InTransaction", ""))
        # A websocket is not a request, for Django.
        if hasattr(route.original_route, "methods") and (aliases := atomic_aliases(dependant.call)):
            named = ", ".join(map(repr, aliases))
            cure = "decorate it with @django.db.transaction.non_atomic_requests, and "
            raise InvalidHandler(
                _refusal(dependant.call, route.path, f"ATOMIC_REQUESTS is on for {named}", cure)
            )


def _refusal(handler: Any, path: str | None, why: str, cure: str) -> str:
    code = getattr(inspect.unwrap(handler), "__code__", None)
    place = f"{code.co_filename}:{code.co_firstlineno}" if code else "an unknown place"
    return (
        f"The handler {getattr(handler, '__name__', handler)}() of {path} ({place}) yields its answer, and "
        f"{why}. It runs while the answer is sent, when the transaction would have ended. To keep what it "
        f"writes together, {cure}write `async with atomic():` inside of it (in a `def` handler, `with "
        "transaction.atomic():`)."
    )


def _yields(handler: Any) -> bool:
    """Whether a handler is a generator function, or an object whose ``__call__`` is one."""
    while isinstance(handler, partial):
        handler = handler.func
    return any(
        inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
        for function in (handler, inspect.unwrap(handler), getattr(handler, "__call__", None))  # noqa: B004
    )


def _below(dependant: Dependant, app: FastAPI) -> Iterator[Callable[..., Any]]:
    for each in dependant.dependencies:
        if each.call is not None and each.call not in app.dependency_overrides:
            yield each.call
            yield from _below(each, app)
