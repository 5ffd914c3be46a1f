"""Repositories of the library, and an application that has them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from fastapi_django_orm import CachedRepository, DjangoORM, ORMSettings, Repository, run
from tests.project.library.models import Book, Novel, Shelf, Subject

DEADLINE = 20.0  # seconds
FIELDS = ("id", "title", "shelf_id", "place", "first", "last", "language", "shown")
KINDS = [Repository, CachedRepository]


def books(base: type[Any] = CachedRepository, name: str = "Books", **attributes: Any) -> type[Any]:
    """A repository of books, as a class statement would make it."""
    attributes = {"model": "library.Book", "fields": FIELDS, **attributes}
    return type(name, (base,), {"__module__": __name__, **attributes})


def empty() -> None:
    """Delete all that other tests have written."""
    for model in (Novel, Book, Shelf, Subject):
        model.objects.all().delete()


@asynccontextmanager
async def opened(*repositories: type[Any], **settings: Any) -> AsyncIterator[list[Any]]:
    """The repositories of an application that runs on empty tables, for the length of the block."""
    app = FastAPI()
    async with DjangoORM(ORMSettings(**settings), repositories=repositories).lifespan(app):
        await run(empty)
        found = [await repository.current() for repository in repositories]
        for each in found:
            if isinstance(each, CachedRepository):
                await each.refresh()
        yield found
