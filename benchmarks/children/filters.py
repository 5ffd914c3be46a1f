"""What filtered pages cost: `python -m benchmarks.children.filters -` prints seconds, and bytes of memory.

Handlers are called as a server calls them, without one, so that nothing else is measured.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Annotated, Any

from benchmarks.children.memory import settled

ROUNDS = 7
ANSWERS = 500
PAGES = 10_000


async def best(work: Callable[[int], Awaitable[Any]], times: int) -> float:
    """Return the seconds that one of so many takes, in the best of some rounds."""
    found = []
    for number in range(ROUNDS):
        began = time.perf_counter()
        for each in range(times):
            await work(number * times + each)
        found.append((time.perf_counter() - began) / times)
    return min(found)


async def measure() -> dict[str, float]:
    """Measure one after the other."""
    os.environ["DJANGO_ORM_COHERENCE"] = "off"
    from fastapi import Depends, FastAPI, Query

    from fastapi_django_orm import CachedRepository, DjangoORM, Filter, run

    DjangoORM.setup()
    from benchmarks.project.bbs.models import Topic

    class TopicFilter(Filter, model=Topic, search=("comment",)):
        created_at__lt: datetime | None = None

    class Topics(CachedRepository):
        model = Topic
        ordering = ("-pk",)

    app = FastAPI()
    topics_of = Annotated[Topics, Depends(Topics.current)]
    filter_of = Annotated[TopicFilter, Query()]

    @app.get("/plain")
    async def plain(topics: topics_of, where: filter_of) -> Any:
        return topics.response(limit=where.limit)

    @app.get("/filtered")
    async def filtered(topics: topics_of, where: filter_of) -> Any:
        return topics.response(where)

    def bare(before: datetime) -> list[Any]:
        rows = Topic.objects.filter(created_at__lt=before).order_by("-pk")
        return list(rows.values_list("pk", flat=True)[:50])

    async with DjangoORM(repositories=[Topics]).lifespan(app):
        topics = await Topics.current()
        newest = topics.all()[0]["created_at"]

        def moment(number: int) -> datetime:
            return newest - timedelta(seconds=number % 500, microseconds=number)  # type: ignore[no-any-return]

        async def first(number: int) -> None:
            await sent(topics.response(TopicFilter(created_at__lt=moment(number))))

        found = {
            "response": await best(lambda _: asked(app, "/plain"), ANSWERS),
            "remembered": await best(lambda _: asked(app, "/filtered"), ANSWERS),
            "bare": await best(lambda number: run(bare, moment(number)), ANSWERS),
            "first": await best(first, ANSWERS),
        }
        # The one before the other is slower, whichever it is, so both again.
        found["bare"] = min(found["bare"], await best(lambda number: run(bare, moment(number)), ANSWERS))
        found["response"] = min(found["response"], await best(lambda _: asked(app, "/plain"), ANSWERS))
        before = settled()
        for number in range(PAGES):
            await first(number + ROUNDS * ANSWERS)
        found["memory"] = settled() - before
    return found


async def asked(app: Any, path: str) -> None:
    """Have an application answer a request."""
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"created_at__lt=2030-01-01T00:00:00Z",
        "headers": [(b"host", b"127.0.0.1"), (b"accept", b"*/*")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }
    await app(scope, _nothing, _sent)


async def sent(response: Any) -> None:
    """Send a response to nobody."""
    await response({"type": "http", "method": "GET", "headers": []}, _nothing, _sent)


async def _nothing() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _sent(message: Any) -> None:
    if message["type"] == "http.response.start":
        assert message["status"] == 200


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure())))
