"""What writes cost: `python -m benchmarks.children.writes -` prints seconds for each, as medians of rounds.

Handlers are called without a server, so that nothing else is measured.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable
from statistics import median
from typing import Any

ROUNDS = 9
WRITES = 100
CLIENTS = 32

Write = Callable[[], Awaitable[Any]]


async def one_after_the_other(write: Write) -> float:
    """Return the seconds that a write takes."""
    began = time.perf_counter()
    for _ in range(WRITES):
        await write()
    return (time.perf_counter() - began) / WRITES


async def at_once(write: Write) -> float:
    """Return the seconds for each write of many clients."""

    async def client() -> None:
        for _ in range(WRITES // 10):
            await write()

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return (time.perf_counter() - began) / (CLIENTS * (WRITES // 10))


async def measure() -> dict[str, dict[str, float]]:
    """Let the ways take turns, and return the seconds of each."""
    os.environ["DJANGO_ORM_COHERENCE"] = "off"
    from django.utils import timezone
    from fastapi import FastAPI

    from fastapi_django_orm import CachedRepository, DjangoORM, Repository, run

    DjangoORM.setup()
    from benchmarks.project.bbs.models import Topic

    class Live(Repository):
        model = Topic

    class Topics(CachedRepository):
        model = Topic
        ordering = ("-pk",)

    values = {"comment": "written", "created_at": timezone.now()}

    def create() -> Topic:
        Topic(**values).full_clean()
        return Topic.objects.create(**values)

    async with DjangoORM(repositories=[Live, Topics]).lifespan(FastAPI()):
        live, topics = await Live.current(), await Topics.current()
        ways: dict[str, Write] = {
            "alone": lambda: run(create),
            "live": lambda: live.create(values),
            "cached": lambda: topics.create(values),
        }
        kinds = {"one client": one_after_the_other, f"{CLIENTS} clients": at_once}
        found: dict[str, dict[str, list[float]]] = {kind: {name: [] for name in ways} for kind in kinds}
        for number in range(ROUNDS + 1):
            for kind, took in kinds.items():
                for name, write in ways.items():
                    seconds = await took(write)
                    if number:  # the first one warms up
                        found[kind][name].append(seconds)
    return {kind: {name: median(each) for name, each in ways.items()} for kind, ways in found.items()}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure())))
