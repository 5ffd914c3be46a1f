"""The same promises on every database that Django knows how to talk to, and one that is refused."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from fastapi import FastAPI

from fastapi_django_orm import atomic, run
from fastapi_django_orm.errors import PrivateDatabase
from tests.project.board.models import Topic
from tests.support.databases import (
    BOARD,
    application,
    client_of,
    default_changed,
    failed,
    sessions,
    transactions_held,
    wait_until_gone,
)
from tests.support.handlers import PATHS, WRITES, count, every_kind

MEMORY = [":memory:", "", "file:board?mode=memory"]

on_postgresql = pytest.mark.parametrize("default_database", ["postgresql"], indirect=True)
on_sqlite = pytest.mark.parametrize("default_database", ["sqlite"], indirect=True)


@pytest.fixture(params=[True, {"min_size": 1, "max_size": 2}, {"min_size": 20, "max_size": 40}], ids=str)
def pooled(request: pytest.FixtureRequest, default_database: str, postgresql: Any) -> Iterator[Any]:
    """PostgreSQL with Django's ``OPTIONS["pool"]``."""
    connections.close_all()
    wait_until_gone(postgresql)
    with default_changed(CONN_MAX_AGE=0, OPTIONS={"pool": request.param}):
        yield postgresql


@on_postgresql
def test_driver_pool_answers_the_mix(pooled: Any) -> None:
    """With OPTIONS["pool"], whatever its sizes: all requests at once are answered within the bound."""

    async def main() -> None:
        async with client_of(every_kind(FastAPI()), threads=3) as client:
            requests = asyncio.gather(*map(client.get, PATHS * 4))
            most = 0
            while not requests.done():
                most = max(most, await asyncio.to_thread(pooled.connections, BOARD))
            assert not failed(await requests)
            assert 0 < most <= 3
            assert await run(count) == 4 * sum(WRITES.values())

    asyncio.run(main())
    connections.close_all()
    wait_until_gone(pooled)


@on_postgresql
def test_driver_pool_heals(pooled: Any) -> None:
    """With OPTIONS["pool"] too, no request fails for connections that died idle."""

    async def main() -> None:
        async with client_of(every_kind(FastAPI()), threads=2) as client:
            for _ in range(3):
                await sessions(2)
                await asyncio.to_thread(pooled.terminate_backends, BOARD)
                assert not failed(await asyncio.gather(*map(client.get, PATHS)))

    asyncio.run(main())
    wait_until_gone(pooled)


@on_postgresql
def test_driver_pool_across_applications(pooled: Any) -> None:
    """One application after the other in a process opens the driver's pool, and leaves nothing of it."""

    async def main() -> None:
        async with application(threads=2):
            async with transactions_held(1):
                assert await asyncio.create_task(in_a_transaction()) == 1
            assert await run(count) == 1

    async def in_a_transaction() -> int:
        async with atomic():
            await Topic.objects.acreate(comment="kept")
            return await Topic.objects.acount()

    for _ in range(3):
        Topic.objects.all().delete()
        connections.close_all()
        asyncio.run(main())
        connection.close_pool()  # the test's own
        wait_until_gone(pooled)


def test_concurrent_transactions(default_database: str) -> None:
    """Fifty increments of one number at once: each database keeps every one."""
    topic = Topic.objects.create(comment="0")
    connections.close_all()

    async def increment() -> None:
        async with atomic():
            found = await Topic.objects.select_for_update().aget(pk=topic.pk)
            found.comment = str(int(found.comment) + 1)
            await found.asave()

    async def main() -> str:
        async with application(threads=4):
            await asyncio.gather(*(increment() for _ in range(50)))
            return (await Topic.objects.aget(pk=topic.pk)).comment

    assert asyncio.run(main()) == "50"


def test_loops_over_rows_while_others_write(default_database: str) -> None:
    """A loop with pauses reads all its rows while the connections that it shares are used to write."""
    Topic.objects.bulk_create([Topic(comment=f"{number}") for number in range(50)])
    connections.close_all()

    async def read() -> int:
        seen = 0
        async for _ in Topic.objects.filter(comment__in=map(str, range(50))).aiterator(chunk_size=5):
            seen += 1
            await Topic.objects.acreate(comment="meanwhile")
        return seen

    async def main() -> None:
        async with application(threads=2):
            assert await asyncio.gather(*(read() for _ in range(4))) == [50] * 4
            assert await run(count) == 250

    asyncio.run(main())


def test_a_call_may_have_its_own_transaction(default_database: str) -> None:
    """`transaction.atomic` inside one function commits and rolls back as it does in Django."""

    def write(comment: str, fail: bool) -> None:
        with transaction.atomic():
            Topic.objects.create(comment=comment)
            if fail:
                raise ValueError(comment)

    async def main() -> list[str]:
        async with application(threads=2):
            calls = (run(write, f"{number}", bool(number % 2)) for number in range(10))
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert sum(isinstance(outcome, ValueError) for outcome in outcomes) == 5
            return [topic.comment async for topic in Topic.objects.order_by("comment")]

    assert asyncio.run(main()) == ["0", "2", "4", "6", "8"]


# SQLite


@on_sqlite
def test_sqlite_reads_while_it_writes(default_database: str) -> None:
    """With a write-ahead log readers go on while a transaction is open, and writers wait for it."""

    async def main() -> None:
        async with application(threads=3):
            assert await run(journal) == "wal"
            async with transactions_held(1) as release:
                assert await Topic.objects.acount() == 0
                writing = asyncio.create_task(Topic.objects.acreate(comment="waits"))
                await asyncio.wait([writing], timeout=0.1)
                assert not writing.done()
                release.set()
                await writing
            assert await Topic.objects.acount() == 1

    def journal() -> str:
        with connection.cursor() as cursor:
            cursor.execute("PRAGMA journal_mode")
            return str(cursor.fetchone()[0])

    asyncio.run(main())


@on_sqlite
@pytest.mark.parametrize("name", MEMORY)
def test_private_memory_is_refused(default_database: str, name: str) -> None:
    """A database in memory would be another one for each connection: the error says so, and a way out."""

    async def main() -> None:
        async with application():
            raise AssertionError("started")

    before = threading.active_count()
    with default_changed(NAME=name, OPTIONS={}), pytest.raises(PrivateDatabase) as caught:
        asyncio.run(main())
    assert "every connection would see an empty database of its own" in str(caught.value)
    assert "cache=shared" in str(caught.value)
    assert threading.active_count() == before


@on_sqlite
def test_shared_memory_is_accepted(default_database: str) -> None:
    """What the refusal proposes works."""
    shared = {"NAME": "file:shared?mode=memory&cache=shared", "OPTIONS": {"uri": True}}

    async def main() -> None:
        async with application(threads=2):
            async with atomic():
                await Topic.objects.acreate(comment="in memory")
            assert await run(count) == 1

    with default_changed(**shared):
        keep = connections["default"]
        keep.ensure_connection()
        call_command("migrate", verbosity=0, run_syncdb=True)
        asyncio.run(main())
        BaseDatabaseWrapper.close(keep)  # SQLite's own does nothing, for it would be the end of the data
