"""An application with a handler of every kind that may use the ORM."""

import asyncio
from collections.abc import Iterator
from typing import Annotated

from asgiref.sync import sync_to_async
from django.db import transaction
from fastapi import BackgroundTasks, Depends, FastAPI, WebSocket
from fastapi.responses import StreamingResponse

from fastapi_django_orm import InTransaction, atomic, run
from tests.project.board.models import Topic

# Every path but that of the websocket; each is answered with 200 if its ORM code has worked.
PATHS = [
    *("/await", "/loop", "/gather", "/sync-to-async", "/run", "/task"),
    *("/def", "/dependency", "/yield", "/yield-transaction", "/async-over-def"),
    *("/stream", "/background"),
    *("/atomic", "/nested", "/in-transaction", "/def-in-transaction", "/thread-in-atomic"),
]
# Those that write, and how many topics a request adds.
WRITES = {
    **dict.fromkeys(["/yield-transaction", "/in-transaction", "/def-in-transaction", "/thread-in-atomic"], 1),
    "/atomic": 1,
    "/nested": 2,
}


def count() -> int:
    return Topic.objects.count()


async def acount() -> int:
    return await Topic.objects.acount()


def write() -> None:
    Topic.objects.create(comment="written")


def counted_before_and_after() -> Iterator[int]:
    yield Topic.objects.count()
    Topic.objects.count()


def in_a_transaction() -> Iterator[None]:
    with transaction.atomic():
        write()
        yield


Count = Annotated[int, Depends(count)]


def every_kind(app: FastAPI) -> FastAPI:
    """Add the handlers to an application."""

    @app.get("/await")
    async def await_() -> int:
        return await Topic.objects.acount()

    @app.get("/loop")
    async def loop() -> list[int]:
        return [topic.pk async for topic in Topic.objects.all()[:5].aiterator(chunk_size=2)]

    @app.get("/gather")
    async def gather() -> list[int]:
        return await asyncio.gather(*(Topic.objects.acount() for _ in range(4)))

    @app.get("/sync-to-async")
    async def any_sync_to_async() -> int:
        return await sync_to_async(count)()

    @app.get("/run")
    async def run_() -> int:
        return await run(count)

    @app.get("/task")
    async def task() -> int:
        return await asyncio.create_task(Topic.objects.acount())

    @app.get("/def")
    def def_() -> int:
        return count()

    @app.get("/dependency")
    def dependency(first: Count) -> int:
        return first + count()

    @app.get("/yield")
    async def yield_(number: Annotated[int, Depends(counted_before_and_after)]) -> int:
        return number + await Topic.objects.acount()

    @app.get("/yield-transaction")
    async def yield_transaction(_: Annotated[None, Depends(in_a_transaction)]) -> int:
        return await Topic.objects.acount()

    @app.get("/async-over-def")
    async def async_over_def(number: Count) -> int:
        return number + await run(count)

    @app.get("/stream")
    def stream() -> StreamingResponse:
        return StreamingResponse(f"{topic.pk}\n" for topic in Topic.objects.all()[:5].iterator(chunk_size=2))

    @app.get("/background")
    async def background(tasks: BackgroundTasks) -> int:
        tasks.add_task(count)
        tasks.add_task(acount)
        return await Topic.objects.acount()

    @app.get("/atomic")
    async def atomic_() -> int:
        async with atomic():
            await Topic.objects.acreate(comment="written")
            return await Topic.objects.acount()

    @app.get("/nested")
    async def nested() -> None:
        async with atomic():
            await Topic.objects.acreate(comment="written")
            async with atomic():
                await run(write)

    @app.get("/in-transaction")
    async def in_transaction(_: InTransaction) -> None:
        await Topic.objects.acreate(comment="written")

    @app.get("/def-in-transaction")
    def def_in_transaction(_: InTransaction) -> None:
        write()

    @app.get("/thread-in-atomic")
    async def thread_in_atomic(number: Count) -> int:
        async with atomic():
            await sync_to_async(write)()
            return number + await run(count)

    @app.websocket("/websocket")
    async def websocket(socket: WebSocket, number: Count) -> None:
        await socket.accept()
        await socket.send_json(number + await Topic.objects.acount())
        await socket.close()

    return app
