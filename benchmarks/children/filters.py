"""What filtered pages cost: `python -m benchmarks.children.filters -` prints seconds, and bytes of memory.

Handlers are called as a server calls them, without one, so that nothing else is measured.
"""

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Annotated, Any

from benchmarks.children.memory import settled

ROUNDS = 8
ANSWERS = 500
PAGES = 10_000


async def best(works: dict[str, Callable[[int], Awaitable[Any]]]) -> dict[str, float]:
    """Return the seconds that each takes, in its best round; in turn, since a machine is busier at times."""
    found: dict[str, float] = {}
    for number in range(ROUNDS):
        for name, work in works.items():
            began = time.perf_counter()
            for each in range(ANSWERS):
                await work(number * ANSWERS + each)
            took = (time.perf_counter() - began) / ANSWERS
            found[name] = min(took, found.get(name, took))
    return found


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

    def bare(before: datetime, counted: bool) -> list[Any]:
        rows = Topic.objects.filter(created_at__lt=before).order_by("-pk")
        found = list(rows.values_list("pk", flat=True)[:50])
        return [*found, rows.count()] if counted else found

    async with DjangoORM(repositories=[Topics]).lifespan(app):
        topics = await Topics.current()
        newest, oldest = topics.all()[0]["created_at"], topics.all()[-1]["created_at"]

        def moment(number: int) -> datetime:
            return newest - timedelta(seconds=number % 500, microseconds=number)  # type: ignore[no-any-return]

        def early(number: int) -> datetime:
            return oldest + timedelta(seconds=number % 40, microseconds=number)  # type: ignore[no-any-return]

        async def first(before: datetime) -> None:
            await sent(topics.response(TopicFilter(created_at__lt=before)))

        before = settled()
        for number in range(PAGES):
            await first(newest - timedelta(microseconds=number + 1))
        memory = settled() - before
        works: dict[str, Callable[[int], Awaitable[Any]]] = {
            "response": lambda _: asked(app, "/plain"),
            "remembered": lambda _: asked(app, "/filtered"),
            "bare": lambda number: run(bare, moment(number), False),
            "counted": lambda number: run(bare, moment(number), True),
            "first": lambda number: first(moment(number)),
            "bare_of_few": lambda number: run(bare, early(number), False),
            "first_of_few": lambda number: first(early(number)),
        }
        found = await best(works)
    return found | {"memory": memory}


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
        assert message["status"] == 200, message


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure())))
