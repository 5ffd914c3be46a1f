"""Reads that several peers share: they differ in how they call the ORM, in nothing else."""

from datetime import datetime
from typing import TypedDict

import orjson

from benchmarks.project.bbs.models import Topic


class Row(TypedDict):
    """One topic, as `.values()` gives it."""

    id: int
    comment: str
    created_at: datetime


def row(topic: Topic) -> Row:
    """Take the columns off a model instance."""
    return {"id": topic.pk, "comment": topic.comment, "created_at": topic.created_at}


def get(pk: int) -> Row:
    """Read one topic by its key."""
    return row(Topic.objects.get(pk=pk))


def latest() -> list[Row]:
    """Read the 20 latest."""
    return [row(topic) for topic in Topic.objects.order_by("-pk")[:20]]


async def aget(pk: int) -> Row:
    """Read one topic by its key through Django's async API."""
    return row(await Topic.objects.aget(pk=pk))


async def alatest() -> list[Row]:
    """Read the 20 latest through Django's async API."""
    return [row(topic) async for topic in Topic.objects.order_by("-pk")[:20]]


def rows() -> list[dict[str, object]]:
    """Read all topics as dicts."""
    return list(Topic.objects.values())


def payload() -> bytes:
    """Make the whole list's JSON once, for the peers that send ready bytes."""
    return orjson.dumps({"topics": rows()})


def payloads() -> dict[int, bytes]:
    """Make each row's JSON once, by its key, for the peers that send ready bytes."""
    return {row["id"]: orjson.dumps(row) for row in Topic.objects.values()}
