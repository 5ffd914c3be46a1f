"""What one list takes: `python -m benchmarks.children.costs CASE ROWS` prints bytes, of memory and of JSON.

A list of a few rows goes before, so that connecting and compiling are not counted.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

from benchmarks.children.memory import forget_peak, peak, settled

FEW = 1_000
FREED = 3.0  # seconds after which the rows of before are gone: they are freed bit by bit

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "index": {"indexes": ("comment",)},
    "kept": {"max_decoded_rows": 10**9},
    "schema": {},
    "schema_index": {"indexes": ("comment",)},
}


async def measure(case: str, rows: int) -> dict[str, int]:
    """Load, read every row, have every row changed, and load again."""
    os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.project.settings"
    os.environ["DJANGO_ORM_COHERENCE"] = "off"
    from fastapi import FastAPI

    from fastapi_django_orm import CachedRepository, DjangoORM, run

    DjangoORM.setup()
    from benchmarks.project.bbs.models import Topic
    from benchmarks.project.bbs.schemas import TopicOut

    attributes = {"model": Topic, "ordering": ("pk",), **CASES[case]}
    if case.startswith("schema"):
        attributes["schema"] = TopicOut
    few: Any = type(
        "Few", (CachedRepository,), {**attributes, "queryset": lambda _: Topic.objects.filter(pk__lte=FEW)}
    )
    every: Any = type("Every", (CachedRepository,), attributes)
    found: dict[str, int] = {}
    async with DjangoORM(repositories=[few]).lifespan(FastAPI()):
        (await few.current()).get(1)
    before = settled()
    forget_peak()
    async with DjangoORM(repositories=[every]).lifespan(FastAPI()):
        found["peak"] = peak() - before
        found["kept"] = settled() - before
        topics = await every.current()
        for key in range(1, rows + 1):
            topics.get(key)
        found["read"] = settled() - before
        await run(_change_all, Topic)
        forget_peak()
        await topics.refresh()
        found["peak_of_refresh"] = peak() - before
        await asyncio.sleep(FREED)
        found["refreshed"] = settled() - before
        found["json"] = len(topics.response().body)
    return found


def _change_all(model: Any) -> None:
    from django.db.models.functions import Reverse

    model.objects.update(comment=Reverse("comment"))


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure(sys.argv[1], int(sys.argv[2])))))
