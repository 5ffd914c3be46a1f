"""Calls that wait for the event loop, and functions that are no fit for ``run()``."""

import asyncio
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any

import anyio.from_thread
import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.core.exceptions import SynchronousOnlyOperation
from django.db import transaction
from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool

from fastapi_django_orm import DjangoORM, ORMSettings, atomic, run
from fastapi_django_orm.errors import LazyValue
from tests.project.board.models import Topic
from tests.support.playing import awrite, committed, play, stored, write
from tests.support.serving import serving


def test_a_call_that_waits_for_the_loop_holds_no_connection(default_database: str) -> None:
    """Many def functions that query, and wait for a query of the loop, get by with one connection."""

    def handler() -> int:
        return Topic.objects.count() + anyio.from_thread.run(Topic.objects.acount)

    async def main() -> None:
        assert await asyncio.gather(*(run_in_threadpool(handler) for _ in range(20))) == [0] * 20

    play(main, threads=1, thread_timeout=5)


def test_a_block_under_async_to_sync_finds_a_connection(default_database: str) -> None:
    """A function that has queried may wait for atomic(), though there is but one connection."""

    async def block() -> None:
        async with atomic():
            await awrite("inside")

    def function() -> None:
        assert stored() == []
        async_to_sync(block)()

    async def main() -> None:
        await run(function)
        assert await committed() == ["inside"]

    play(main, threads=1, thread_timeout=5)


def from_thread(function: Callable[..., Any], *args: Any) -> None:
    anyio.from_thread.run(function, *args)


def by_async_to_sync(function: Callable[..., Any], *args: Any) -> None:
    async_to_sync(function)(*args)


def by_asyncio_run(function: Callable[..., Any], *args: Any) -> None:
    asyncio.run(function(*args))


# How synchronous code waits for asynchronous code, and the ways there where it can.
WAITS = [
    (run_in_threadpool, from_thread),
    (run_in_threadpool, by_async_to_sync),
    (run_in_threadpool, by_asyncio_run),
    (run, by_async_to_sync),
    (run, by_asyncio_run),
    (asyncio.to_thread, by_async_to_sync),
    (lambda function: sync_to_async(function, thread_sensitive=False)(), by_async_to_sync),
]


async def write_in_every_way() -> None:
    """Five topics, one of them in a savepoint that is rolled back."""
    await awrite("async ORM")
    await run(write, "run")
    await sync_to_async(write)("sync_to_async")
    await run_in_threadpool(write, "AnyIO")
    with suppress(LookupError):
        async with atomic():
            await awrite("rolled back")
            raise LookupError
    async with atomic():
        await awrite("savepoint")


@pytest.mark.parametrize(("way", "wait"), WAITS)
@pytest.mark.parametrize("fail", [False, True])
def test_what_a_synchronous_transaction_waits_for_is_inside_of_it(
    sqlite: str, way: Any, wait: Any, fail: bool
) -> None:
    """Asynchronous code that `with transaction.atomic():` calls is committed or rolled back with it."""

    def function() -> None:
        with transaction.atomic():
            write("around")
            wait(write_in_every_way)
            assert len(stored()) == 6
            if fail:
                raise LookupError

    async def main() -> None:
        with pytest.raises(LookupError) if fail else nullcontext():
            await way(function)
        kept = ["AnyIO", "around", "async ORM", "run", "savepoint", "sync_to_async"]
        assert await committed() == ([] if fail else kept)
        await awrite("the connection is back")

    play(main, threads=4, thread_timeout=5)


@pytest.mark.parametrize("wait", [from_thread, by_async_to_sync])
def test_a_transaction_without_autocommit_keeps_its_connection_while_it_waits(
    default_database: str, wait: Any
) -> None:
    """What set_autocommit(False) has begun is there after a wait, and what ran meanwhile is part of it."""

    def function() -> None:
        transaction.set_autocommit(False)
        try:
            write("before")
            wait(awrite, "meanwhile")
            write("after")
            transaction.commit()
        finally:
            transaction.set_autocommit(True)

    async def main() -> None:
        await run_in_threadpool(function)
        assert await committed() == ["after", "before", "meanwhile"]

    play(main, threads=1, thread_timeout=5)


def test_code_on_a_loop_of_a_call_takes_no_connection(default_database: str) -> None:
    """What Django refuses on an event loop, on the thread of a def function, costs no connection."""

    async def on_the_loop() -> None:
        with pytest.raises(SynchronousOnlyOperation):
            transaction.on_commit(lambda: None)

    def function() -> None:
        write("before")
        asyncio.run(on_the_loop())
        write("after")

    async def main() -> None:
        await run_in_threadpool(function)
        assert await committed() == ["after", "before"]
        await awrite("the connection is back")

    play(main, threads=1, thread_timeout=5)


@pytest.mark.parametrize("how", [run, lambda function, *args: sync_to_async(function)(*args)])
def test_the_end_of_an_iterator_is_an_error(sqlite: str, how: Any) -> None:
    """StopIteration, which no future can carry, arrives as a RuntimeError and is not waited for."""

    async def main() -> None:
        with pytest.raises(RuntimeError, match="StopIteration"):
            await how(next, iter(()))

    play(main)


def test_run_refuses_raw_queries_and_coroutines(sqlite: str) -> None:
    """What would query later, and what was never run, is not handed over."""

    async def main() -> None:
        with pytest.raises(LazyValue, match="RawQuerySet"):
            await run(lambda: Topic.objects.raw("SELECT * FROM board_topic"))
        with pytest.raises(TypeError, match="await this one"):
            await run(Topic.objects.acount)

    play(main)


def test_an_instance_inside_a_list_does_not_leave_without_a_response_model(sqlite: str) -> None:
    """However deep it is nested, its columns are not sent unless somebody has named them."""
    write("secret")
    app = FastAPI(lifespan=DjangoORM(ORMSettings(), repositories=[]).lifespan)

    @app.get("/")
    async def handler():  # type: ignore[no-untyped-def]
        return [{"topics": [await Topic.objects.aget()]}]

    with serving(app) as client:
        answer = client.get("/")
        assert answer.status_code == 500
        assert "secret" not in answer.text
