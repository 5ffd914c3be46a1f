"""Dependencies: those that handlers may take, and those that they do take."""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated, Any

from fastapi import Depends, FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import iter_route_contexts

from .database.atomic import atomic


async def in_transaction() -> AsyncIterator[None]:
    """Open a transaction on the default database for the rest of the handler's work."""
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


def _below(dependant: Dependant, app: FastAPI) -> Iterator[Callable[..., Any]]:
    for each in dependant.dependencies:
        if each.call is not None and each.call not in app.dependency_overrides:
            yield each.call
            yield from _below(each, app)
