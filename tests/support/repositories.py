"""Repositories declared on the spot, and read under an application of their own."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import FastAPI

from fastapi_django_orm import CachedRepository, DjangoORM

T = TypeVar("T")


def declare(name: str = "Topics", model: Any = "board.Topic", **attributes: Any) -> type[Any]:
    """A repository class, as a class statement with these attributes would make it."""
    return type(name, (CachedRepository,), {"__module__": __name__, "model": model, **attributes})


def of(queryset: Callable[[], Any], **attributes: Any) -> type[Any]:
    """A repository of what a query gives."""
    return declare(queryset=lambda self: queryset(), **attributes)


def read(repository: type[Any], look: Callable[[Any], T]) -> T:
    """What an application sees that serves the repository, on its event loop."""

    async def main() -> T:
        async with DjangoORM(repositories=[repository]).lifespan(FastAPI()):
            return look(await repository.current())

    return asyncio.run(main())


def rows(repository: type[Any]) -> list[Any]:
    """The rows that an application serves."""
    return read(repository, lambda topics: list(topics.all()))
