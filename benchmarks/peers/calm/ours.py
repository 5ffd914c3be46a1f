"""This package: a published repository, and another one of the same application that is refreshed."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from fastapi_django_orm import CachedRepository, DjangoORM

DjangoORM.setup()
from benchmarks.peers.calm.refreshing import SERVED, Refreshing  # noqa: E402  # needs Django


class Topics(CachedRepository):
    """What clients ask for."""

    model = "bbs.Topic"
    ordering = ("pk",)
    fields = ("id", "comment", "created_at")
    publish = "/topics"

    def queryset(self):  # type: ignore[no-untyped-def]  # Django's types would say little here
        """Leave out what changes."""
        return super().queryset().filter(pk__lte=SERVED)


class Board(CachedRepository):
    """What is refreshed meanwhile."""

    model = "bbs.Topic"
    ordering = ("pk",)


async def refresh() -> None:
    """Load all rows of the board."""
    await (await Board.current()).refresh()


refreshing = Refreshing(refresh)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """End refreshing before the package ends."""
    async with DjangoORM.lifespan(app):
        yield
        await refreshing.idle()


app = FastAPI(lifespan=lifespan)
app.get("/busy")(refreshing.busy)
app.get("/idle")(refreshing.idle)
