"""This package: a full load, with the JSON of every row and of the list, the ETag and the index by key."""

import asyncio

from fastapi import FastAPI

from fastapi_django_orm import CachedRepository, DjangoORM
from fastapi_django_orm.memory.snapshot import Snapshot


class Topics(CachedRepository):
    """The topics with keys up to one that the measurement chooses."""

    model = "bbs.Topic"
    ordering = ("pk",)
    upto = 0

    def queryset(self):  # type: ignore[no-untyped-def]  # Django's types would say little here
        """Leave the others out."""
        return super().queryset().filter(pk__lte=self.upto)


runner = asyncio.Runner()
lifespan = DjangoORM.lifespan(FastAPI())
runner.run(lifespan.__aenter__())  # until the process ends
topics = runner.run(Topics.current())


def load(upto: int) -> Snapshot:
    """Load again, and have the ETag and the list's size ready."""
    Topics.upto = upto
    snapshot = runner.run(topics.refresh())
    assert snapshot.etag
    assert snapshot.size
    return snapshot


def refresh(keys: list[int]) -> Snapshot:
    """Read these keys alone again, and have the ETag and the list's size ready."""
    snapshot = runner.run(topics.refresh(*keys))
    assert snapshot.etag
    assert snapshot.size
    return snapshot


def row(kept: Snapshot, key: int) -> object:
    """Give the row, through the index by key."""
    return kept.row(key)
