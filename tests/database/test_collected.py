"""A coroutine that is collected leaves the context in which it ends as it is.

Python closes a coroutine that nothing refers to any more: its ``finally`` blocks run in the middle of other
code, with the context variables of that.
"""

import asyncio
import gc
import sys
import threading
from collections.abc import Callable, Coroutine
from contextvars import ContextVar, copy_context
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import transaction
from fastapi import FastAPI

from fastapi_django_orm import DjangoORM, atomic, run
from tests.support.playing import DEADLINE, awrite, committed, play, stored

mark: ContextVar[str] = ContextVar("mark", default="none")
Wait = Callable[[], Any]
Lost = Callable[[Wait], Coroutine[Any, Any, None]]


async def in_sync_to_async(wait: Wait) -> None:
    """Waits for a thread that Django's calls share."""
    await sync_to_async(wait)()


async def in_run(wait: Wait) -> None:
    """Waits for a database thread."""
    await run(wait)


async def in_another_thread(wait: Wait) -> None:
    """Waits for one of asyncio's threads."""
    await sync_to_async(wait, thread_sensitive=False)()


@pytest.mark.parametrize("lost", [in_sync_to_async, in_run, in_another_thread])
def test_a_call_that_is_collected(lost: Lost, default_database: str) -> None:
    """The running code stays in its transaction, and keeps its context variables."""
    hooks: list[str] = []

    async def main() -> None:
        release = threading.Event()
        coroutine = lost(lambda: release.wait(DEADLINE))
        elsewhere = copy_context()
        elsewhere.run(mark.set, "lost")
        elsewhere.run(coroutine.send, None)
        mark.set("here")
        try:
            async with atomic():
                await awrite("one")
                coroutine.close()  # as the collector does
                assert mark.get() == "here"
                transaction.on_commit(lambda: hooks.append("committed"))
                release.set()
                await awrite("two")
        finally:
            release.set()
        assert await committed() == ["one", "two"]

    play(main)
    assert hooks == ["committed"]


def test_a_request_that_is_collected(default_database: str) -> None:
    """The running code stays in its transaction."""
    app = FastAPI()

    @app.get("/")
    async def waits() -> None:
        await asyncio.get_running_loop().create_future()

    async def main() -> None:
        async with asyncio.timeout(DEADLINE), DjangoORM(repositories=[]).lifespan(app):
            scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
            request: Any = app(scope, _nothing, _nothing)
            copy_context().run(request.send, None)
            async with atomic():
                await awrite("one")
                request.close()  # as the collector does
                assert transaction.get_connection().in_atomic_block
                await awrite("two")

    async def _nothing(*message: Any) -> Any:
        raise AssertionError("it reads and sends nothing")

    asyncio.run(main())
    assert stored() == ["one", "two"]


@pytest.mark.parametrize("default_database", ["postgresql", "mariadb"], indirect=True)
def test_a_block_that_is_collected(default_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is rolled back, and the running code stays in its own transaction."""
    unraisable: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: unraisable.append(found.exc_value))
    hooks: list[str] = []

    async def lost(entered: asyncio.Event) -> None:
        async with atomic():
            entered.set()
            await asyncio.get_running_loop().create_future()  # to which nothing else refers

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)  # "Task was destroyed"
        entered = asyncio.Event()
        task = asyncio.create_task(lost(entered))
        await entered.wait()
        async with atomic():
            await awrite("one")
            del task
            gc.collect()
            transaction.on_commit(lambda: hooks.append("committed"))
            await awrite("two")
        assert await committed() == ["one", "two"]

    play(main)
    for _ in range(3):  # what has "ignored GeneratorExit" is closed once more
        gc.collect()
    assert hooks == ["committed"]
    assert {type(error) for error in unraisable} == {RuntimeError}  # it "ignored GeneratorExit"
