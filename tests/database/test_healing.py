"""Connections that are kept, that grow old and that die: nobody has to notice."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from django.db import Error, connection, connections
from fastapi import FastAPI

from fastapi_django_orm import atomic, run
from tests.project.board.models import Topic
from tests.support.databases import (
    BOARD,
    application,
    client_of,
    default_changed,
    end_session,
    failed,
    session,
    sessions,
    sleep,
    until,
    wait_until_gone,
)
from tests.support.handlers import PATHS, count, every_kind

pytestmark = pytest.mark.parametrize("default_database", ["postgresql", "mariadb"], indirect=True)


@pytest.fixture
def server(default_database: str, request: pytest.FixtureRequest) -> Any:
    """The server of Django's `default`, without a client of the board's database."""
    server = request.getfixturevalue(default_database)
    connections.close_all()
    wait_until_gone(server)
    return server


# Kept


def test_connections_persist(server: Any) -> None:
    """One call after the other is served by one connection, whatever thread it runs on."""

    async def main() -> None:
        async with client_of(every_kind(FastAPI())) as client:
            first = await run(session)
            for path in PATHS:
                assert (await client.get(path)).status_code == 200
            assert first in await sessions(4)

    with default_changed(CONN_MAX_AGE=None):
        asyncio.run(main())


def test_no_age_means_no_connection_is_kept(server: Any) -> None:
    """CONN_MAX_AGE = 0: each call opens its connection and closes it."""

    async def main() -> None:
        async with client_of(every_kind(FastAPI())) as client:
            assert await run(session) != await run(session)
            assert not failed(await asyncio.gather(*map(client.get, PATHS)))
            await until(lambda: server.connections(BOARD) == 0, "all closed")
            async with atomic():
                assert await run(session) == await run(session)

    with default_changed(CONN_MAX_AGE=0):
        asyncio.run(main())


@pytest.mark.parametrize("path", ["/loop", "/stream"])
def test_no_age_means_no_connection_is_kept_after_a_loop(server: Any, path: str) -> None:
    """Nor the one that a loop over rows has had, which spans calls and ends in one that acquires none."""
    Topic.objects.bulk_create([Topic(comment="-") for _ in range(5)])
    connections.close_all()

    async def main() -> None:
        async with client_of(every_kind(FastAPI())) as client:
            assert not failed([await client.get(path)])
            await until(lambda: server.connections(BOARD) == 0, "all closed")

    with default_changed(CONN_MAX_AGE=0):
        asyncio.run(main())


def test_a_connection_is_replaced_at_its_age(server: Any) -> None:
    """A call that finds the connection past CONN_MAX_AGE gets another, and until then all get the same."""

    async def main() -> None:
        async with application():
            first = await run(session)
            assert await run(session) == first
            for _ in range(200):
                if await run(session) != first:
                    break
                await asyncio.sleep(0.05)
            else:
                pytest.fail("the connection was never replaced")
            assert server.connections(BOARD) <= 2

    with default_changed(CONN_MAX_AGE=1):
        asyncio.run(main())


def test_idle_connections_above_one_are_closed(server: Any) -> None:
    """After a peak, connections past their age are closed though nobody calls; one is kept warm."""

    async def main() -> None:
        async with application():
            opened = await sessions(5)
            await until(lambda: server.connections(BOARD) == 1, "one left")
            assert len(opened) == 5
            assert await run(count) == 0

    with default_changed(CONN_MAX_AGE=1):
        asyncio.run(main())


def test_idle_connections_stay_without_an_age(server: Any) -> None:
    """CONN_MAX_AGE = None: what a peak has opened is there for the next."""

    async def main() -> None:
        async with application():
            opened = await sessions(4)
            await asyncio.sleep(1.2)  # the housekeeping has looked
            assert await sessions(4) == opened

    with default_changed(CONN_MAX_AGE=None):
        asyncio.run(main())


# Dead while idle


@pytest.mark.parametrize("path", PATHS)
def test_killed_while_idle(server: Any, path: str) -> None:
    """All connections are cut by the server while nobody uses them: no request of any kind fails."""

    async def main() -> None:
        async with client_of(every_kind(FastAPI()), threads=3) as client:
            await sessions(3)
            assert await asyncio.to_thread(server.terminate_backends, BOARD) == 3
            await until(lambda: server.connections(BOARD) == 0, "all cut")
            assert not failed(await asyncio.gather(*(client.get(path) for _ in range(6))))

    asyncio.run(main())


def test_killed_again_and_again(server: Any) -> None:
    """Ten times all connections are cut between two bursts of mixed requests: none fails."""

    async def main() -> None:
        async with client_of(every_kind(FastAPI()), threads=4) as client:
            for _ in range(10):
                assert not failed(await asyncio.gather(*map(client.get, PATHS)))
                await asyncio.to_thread(server.terminate_backends, BOARD)
                await until(lambda: server.connections(BOARD) == 0, "all cut")

    asyncio.run(main())


def test_cut_by_the_server_for_being_idle(server: Any, default_database: str) -> None:
    """The server's own time limit for idle connections (MariaDB's wait_timeout) costs no request."""
    options = {
        "postgresql": {"options": "-c idle_session_timeout=300"},
        "mariadb": {"init_command": "SET SESSION wait_timeout = 1"},
    }

    async def main() -> None:
        async with client_of(every_kind(FastAPI()), threads=3) as client:
            await sessions(3)
            await until(lambda: server.connections(BOARD) == 0, "all cut")
            assert not failed(await asyncio.gather(*map(client.get, PATHS)))

    with default_changed(OPTIONS=options[default_database]):
        asyncio.run(main())


def test_health_checks(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The look at the socket stands for CONN_HEALTH_CHECKS; where there is none, Django asks once a call."""
    checks: list[int] = []
    kind = type(connections["default"])
    is_usable = kind.is_usable
    monkeypatch.setattr(kind, "is_usable", lambda self: checks.append(1) or is_usable(self))

    def twice() -> None:
        count()
        count()

    async def main() -> int:
        async with application(threads=1):
            await run(count)
            checks.clear()
            for _ in range(5):
                await run(twice)
            return len(checks)

    with default_changed(CONN_HEALTH_CHECKS=False):
        assert asyncio.run(main()) == 0
    with default_changed(CONN_HEALTH_CHECKS=True):
        assert asyncio.run(main()) == (5 if connections["default"].vendor == "sqlite" else 0)


# Dead while in use


def test_a_call_that_is_cut_fails_alone(server: Any) -> None:
    """The connection of one running call is ended: that call fails, its neighbours and successors do not."""
    numbers: list[int] = []

    def work() -> None:
        numbers.append(session())
        sleep(60)

    async def main() -> None:
        async with client_of(every_kind(FastAPI()), threads=4) as client:
            broken = asyncio.create_task(run(work))
            await until(lambda: bool(numbers), "the call's connection")
            neighbours = [asyncio.create_task(client.get(path)) for path in PATHS]
            await run(end_session, numbers[0])
            with pytest.raises(Error):
                await broken
            assert not failed(await asyncio.gather(*neighbours))
            assert not failed(await asyncio.gather(*map(client.get, PATHS)))

    asyncio.run(main())


def test_a_transaction_that_is_cut_fails_alone(server: Any) -> None:
    """A transaction whose connection has died raises, writes nothing, and the next one works."""

    async def cut_off() -> None:
        async with atomic():
            await Topic.objects.acreate(comment="lost")
            await asyncio.to_thread(server.terminate_backends, BOARD)
            await Topic.objects.acreate(comment="lost")

    async def main() -> None:
        async with application(threads=2):
            with pytest.raises(Error):
                await cut_off()
            async with atomic():
                await Topic.objects.acreate(comment="kept")
            assert [topic.comment async for topic in Topic.objects.all()] == ["kept"]
            await until(lambda: server.in_transaction(BOARD) == 0, "nothing open")

    asyncio.run(main())


def test_a_transaction_cut_before_its_commit(server: Any) -> None:
    """A connection that dies between the last query and the commit: the block raises."""

    async def cut_off() -> None:
        async with atomic():
            await Topic.objects.acreate(comment="lost")
            await asyncio.to_thread(server.terminate_backends, BOARD)

    async def main() -> None:
        async with application(threads=1):
            with pytest.raises(Error):
                await cut_off()
            assert await run(count) == 0

    asyncio.run(main())


def test_a_loop_that_is_cut_fails_alone(server: Any) -> None:
    """A loop over a server-side cursor dies with its connection; calls beside it never notice."""
    Topic.objects.bulk_create([Topic(comment=f"{number}") for number in range(10)])
    connections.close_all()

    async def topics() -> AsyncIterator[int]:
        async for topic in Topic.objects.order_by("pk").aiterator(chunk_size=2):
            yield topic.pk

    async def main() -> None:
        async with application(threads=1):
            loop = topics()
            await anext(loop)
            await asyncio.to_thread(server.terminate_backends, BOARD)
            await until(lambda: server.connections(BOARD) == 0, "all cut")
            assert await run(count) == 10
            assert await Topic.objects.acount() == 10
            if connection.vendor == "postgresql":  # MySQL's drivers have all rows already
                with pytest.raises(Error):
                    [pk async for pk in loop]
            else:
                assert len([pk async for pk in loop]) == 9
            assert await run(count) == 10

    asyncio.run(main())


# Afterwards


def test_nothing_is_left_after_shutdown(server: Any) -> None:
    """The server sees no client any more when the lifespan has ended."""

    async def main() -> None:
        async with client_of(every_kind(FastAPI()), threads=4) as client:
            await sessions(4)
            assert not failed(await asyncio.gather(*map(client.get, PATHS)))
            assert server.connections(BOARD) == 4

    asyncio.run(main())
    wait_until_gone(server)
