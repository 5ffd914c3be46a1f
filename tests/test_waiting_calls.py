"""Calls that wait for the event loop, and functions that are no fit for ``run()``."""

import asyncio
from typing import Any

import anyio.from_thread
import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.db import transaction
from django.db.transaction import TransactionManagementError
from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool

from fastapi_django_orm import DjangoORM, ORMSettings, atomic, run
from fastapi_django_orm.errors import LazyValue
from tests.playing import awrite, committed, play, stored, write
from tests.project.board.models import Topic
from tests.serving import serving


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


def test_a_block_under_async_to_sync_is_never_beside_the_transaction_around(default_database: str) -> None:
    """Inside of a synchronous transaction it is refused, and all is rolled back."""

    async def block() -> None:
        async with atomic():
            await awrite("beside")

    def function() -> None:
        with transaction.atomic():
            write("around")
            async_to_sync(block)()

    async def main() -> None:
        with pytest.raises(TransactionManagementError, match="async_to_sync"):
            await run(function)
        assert await committed() == []

    play(main, thread_timeout=5)


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
