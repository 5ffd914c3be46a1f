"""on_commit(): coroutine functions that are awaited after a commit."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import httpx
import pytest
from asgiref.sync import async_to_sync
from django.db import connection, transaction
from fastapi import Depends, FastAPI

from fastapi_django_orm import DjangoORM, InTransaction, ORMSettings, atomic, on_commit, run
from tests.project.board.models import Author
from tests.support.databases import DEADLINE, application, client_of

Noted = list[Any]


def play(main: Any, **settings: Any) -> None:
    """Run a test's coroutine under an application; it must end in time."""

    async def within() -> None:
        async with asyncio.timeout(DEADLINE), application(**settings):
            await main()

    asyncio.run(within())


def noting(noted: Noted, what: Any) -> Any:
    """A coroutine function that notes something, and what the database has by then."""

    async def note() -> None:
        noted.append((what, await Author.objects.acount()))

    return note


def test_it_is_awaited_when_the_block_has_ended(default_database: str) -> None:
    """In the order of registration, also from a nested block; the end of the block waits for all of them."""
    noted: Noted = []

    async def main() -> None:
        async with atomic():
            await on_commit(noting(noted, "first"))
            async with atomic():
                await Author.objects.acreate(name="a")
                await on_commit(noting(noted, "second"))
            assert noted == []
        assert noted == [("first", 1), ("second", 1)]

    play(main)


def test_outside_of_a_transaction_it_is_awaited_at_once(sqlite: str) -> None:
    """As Django calls a callback at once."""
    noted: Noted = []

    async def main() -> None:
        await on_commit(noting(noted, "now"))
        assert noted == [("now", 0)]

    play(main)


def test_what_is_rolled_back_calls_nothing(default_database: str) -> None:
    """The whole block, or the savepoint in which it was registered."""
    noted: Noted = []

    async def fail(note: str) -> None:
        async with atomic():
            await on_commit(noting(noted, note))
            raise LookupError

    async def main() -> None:
        with pytest.raises(LookupError):
            await fail("block")
        async with atomic():
            with pytest.raises(LookupError):
                await fail("savepoint")
            await on_commit(noting(noted, "kept"))
        assert noted == [("kept", 0)]

    play(main)


def test_an_error_comes_out_of_the_block(default_database: str) -> None:
    """The commit stands, and those that follow are not called, as with Django's callbacks."""
    noted: Noted = []

    async def fail() -> None:
        raise LookupError("after the commit")

    async def block() -> None:
        async with atomic():
            await Author.objects.acreate(name="a")
            await on_commit(fail)
            await on_commit(noting(noted, "after"))

    async def main() -> None:
        with pytest.raises(LookupError, match="after the commit"):
            await block()
        assert noted == []
        assert await Author.objects.acount() == 1

    play(main)


def test_it_may_use_the_only_connection(default_database: str) -> None:
    """The block has released its connection by then, to whoever comes first."""
    noted: Noted = []

    async def main() -> None:
        async def block(number: int) -> None:
            async with atomic():
                await Author.objects.acreate(name=str(number))
                await on_commit(noting(noted, number))

        await asyncio.gather(*map(block, range(5)))
        assert sorted(number for number, _ in noted) == [0, 1, 2, 3, 4]

    play(main, threads=1, thread_timeout=5)


def test_a_transaction_that_a_function_has_opened(default_database: str) -> None:
    """The thread that commits waits for the coroutine."""
    noted: Noted = []

    def function() -> None:
        with transaction.atomic():
            Author.objects.create(name="a")
            async_to_sync(on_commit)(noting(noted, "function"))
            assert noted == []
        assert noted == [("function", 1)]

    play(lambda: run(function))


@contextmanager
def app_of(noted: Noted) -> Iterator[FastAPI]:
    """An application that registers in each kind of a request's transaction."""
    app = FastAPI()

    def opened() -> Iterator[None]:
        with transaction.atomic():
            yield

    @app.post("/in-transaction")
    async def in_transaction(_: InTransaction) -> int:
        await on_commit(noting(noted, "in-transaction"))
        return len(noted)

    @app.post("/dependency")
    async def dependency(_: Annotated[None, Depends(opened, scope="function")]) -> int:
        await on_commit(noting(noted, "dependency"))
        return len(noted)

    @app.post("/request")
    async def request() -> int:
        await on_commit(noting(noted, "request"))
        return len(noted)

    yield app


@pytest.mark.parametrize("path", ["in-transaction", "dependency"])
def test_transactions_of_requests(default_database: str, path: str) -> None:
    """The answer is sent when they have been awaited."""
    noted: Noted = []

    async def main() -> None:
        with app_of(noted) as app:
            async with client_of(app) as client:
                assert (await client.post(f"/{path}")).json() == 0
                assert noted == [(path, 0)]

    asyncio.run(main())


def test_atomic_requests(default_database: str) -> None:
    """Django's setting wraps the handler, and its end commits."""
    noted: Noted = []

    async def main() -> None:
        with app_of(noted) as app:
            async with DjangoORM(ORMSettings(), repositories=[]).lifespan(app):
                transport = httpx.ASGITransport(app)
                async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                    assert (await client.post("/request")).json() == 0
                    assert noted == [("request", 0)]

    connection.settings_dict["ATOMIC_REQUESTS"] = True
    try:
        asyncio.run(main())
    finally:
        connection.settings_dict["ATOMIC_REQUESTS"] = False
