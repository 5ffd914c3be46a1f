"""Django mounted under FastAPI: each request has one thread and one connection, as Django promises it."""

import asyncio
import socket
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from asgiref.sync import ThreadSensitiveContext, async_to_sync, sync_to_async
from django.core.handlers.asgi import ASGIHandler
from django.core.wsgi import get_wsgi_application
from django.db import connection, connections, transaction
from django.http import HttpRequest, JsonResponse, StreamingHttpResponse
from django.test import override_settings
from django.urls import path
from fastapi import FastAPI

from fastapi_django_orm import DjangoORM, ORMSettings, atomic, run
from tests.project.board.models import Topic
from tests.support.databases import (
    BOARD,
    DEADLINE,
    ask,
    client_of,
    failed,
    session,
    until,
    wait_until,
    wait_until_gone,
)
from tests.support.handlers import every_kind
from tests.support.playing import outside
from tests.support.serving import serving

on_postgresql = pytest.mark.parametrize("default_database", ["postgresql"], indirect=True)
on_servers = pytest.mark.parametrize("default_database", ["postgresql", "mariadb"], indirect=True)

local = threading.local()
inside = threading.Semaphore(0)
go = threading.Event()


def here() -> list[Any]:
    """The thread, the connection, and what this request has left on the thread."""
    connection.ensure_connection()
    return [threading.current_thread().name, id(connection.connection), getattr(local, "left", None)]


def sync_view(request: HttpRequest) -> JsonResponse:
    first, local.left = here(), "by a view"
    Topic.objects.count()
    return JsonResponse({"first": first, "then": [here()[:2]]})


async def async_view(request: HttpRequest) -> JsonResponse:
    first = await sync_to_async(here)()
    await Topic.objects.acount()
    then = [await run(here), await sync_to_async(lambda: async_to_sync(_deeper)())()]
    async with ThreadSensitiveContext():  # inside another it means nothing
        then.append(await sync_to_async(here)())
    async with atomic():
        then.append(await run(here))
    then += await asyncio.gather(*(run(here) for _ in range(3)))
    return JsonResponse({"first": first, "then": [each[:2] for each in then]})


async def _deeper() -> list[Any]:
    return await sync_to_async(here)()


async def streaming_view(request: HttpRequest) -> StreamingHttpResponse:
    first = await sync_to_async(here)()

    async def parts() -> AsyncIterator[str]:
        async for topic in Topic.objects.order_by("pk").aiterator(chunk_size=1):
            assert (await sync_to_async(here)())[:2] == first[:2]
            yield f"{topic.comment} "

    return StreamingHttpResponse(parts())


def leaving_view(request: HttpRequest) -> JsonResponse:
    """What cannot be seen from outside: a session variable, a temporary table, a lock; and an open BEGIN."""
    found = ask(
        "SELECT concat(current_setting('app.who', true), to_regclass('pg_temp.mine')::text,"
        " (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 7))"
    )
    with connection.cursor() as cursor:
        cursor.execute("SELECT set_config('app.who', 'me', false), pg_advisory_lock(7)")
        cursor.execute("CREATE TEMPORARY TABLE mine ()")
    connection.tenant = "mine"  # type: ignore[attr-defined]
    transaction.atomic().__enter__()
    Topic.objects.create(comment="never committed")
    return JsonResponse({"found": found})


def waiting_view(request: HttpRequest) -> JsonResponse:
    Topic.objects.count()
    inside.release()
    assert go.wait(DEADLINE)
    return JsonResponse({})


async def failing_view(request: HttpRequest) -> JsonResponse:
    async with atomic():
        await Topic.objects.acreate(comment="rolled back")
        raise LookupError


urlpatterns = [
    path("sync/", sync_view),
    path("async/", async_view),
    path("streaming/", streaming_view),
    path("leaving/", leaving_view),
    path("waiting/", waiting_view),
    path("failing/", failing_view),
]


def mounted(by: str = "asgi") -> FastAPI:
    """An application with every kind of handler, and Django under /django."""
    app = every_kind(FastAPI())
    if by == "asgi":
        app.mount("/django", ASGIHandler())  # type: ignore[arg-type]
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from starlette.middleware.wsgi import WSGIMiddleware
        app.mount("/django", WSGIMiddleware(get_wsgi_application()))
    return app


@pytest.fixture(autouse=True)
def _site(default_database: str) -> Iterator[None]:
    go.clear()
    connections.close_all()  # the test's own, which has emptied the tables
    with override_settings(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], MIDDLEWARE=[]):
        yield
    go.set()


async def arrived(number: int) -> None:
    for _ in range(number):
        assert await asyncio.to_thread(inside.acquire, timeout=DEADLINE)


def play(main: Callable[[Any], Any], by: str = "asgi", **settings: Any) -> None:
    async def with_client() -> None:
        async with client_of(mounted(by), **settings) as client:
            await main(client)

    asyncio.run(with_client())


@pytest.mark.parametrize("view", ["sync", "async"])
def test_one_thread_and_one_connection(view: str, default_database: str) -> None:
    """All calls of a request are on one thread and one connection, and what is on the thread is its own."""

    async def main(client: Any) -> None:
        for _ in range(3):
            answers = await asyncio.gather(*(client.get(f"/django/{view}/") for _ in range(8)))
            assert not failed(answers)
            for answer in (answer.json() for answer in answers):
                assert answer["first"][2] is None
                assert {tuple(each) for each in answer["then"]} == {tuple(answer["first"][:2])}

    play(main, threads=3)


def test_a_streaming_response(default_database: str) -> None:
    """What a response reads while it is sent is read on the request's connection."""
    Topic.objects.bulk_create([Topic(comment=str(number)) for number in range(5)])
    connections.close_all()

    async def main(client: Any) -> None:
        answers = await asyncio.gather(*(client.get("/django/streaming/") for _ in range(4)))
        assert [answer.text for answer in answers] == ["0 1 2 3 4 "] * 4

    play(main, threads=2)


@on_postgresql
@pytest.mark.parametrize("by", ["asgi", "wsgi"])
def test_nothing_is_left(by: str, default_database: str, postgresql: Any) -> None:
    """Session variables, temporary tables, locks, attributes, transactions: no other request has them."""

    async def main(client: Any) -> None:
        for _ in range(4):
            assert (await client.get("/django/leaving/")).json() == {"found": "0"}
            assert await run(lambda: getattr(connection, "tenant", None)) is None
            assert await run(ask, "SELECT current_setting('app.who', true)") is None
        await until(lambda: postgresql.in_transaction(BOARD) == 0, "rolled back")
        assert await Topic.objects.acount() == 0

    play(main, by, threads=2)
    wait_until_gone(postgresql)


@on_servers
def test_many_clients(default_database: str, request: pytest.FixtureRequest) -> None:
    """More requests at once than have threads, handlers among them: all are answered, within the bound."""
    server = request.getfixturevalue(default_database)
    before, most = threading.active_count(), [0, 0]

    async def main(client: Any) -> None:
        async def watch() -> None:
            while True:
                number = await asyncio.to_thread(server.connections, BOARD)
                most[:] = max(most[0], number), max(most[1], threading.active_count())

        watching = asyncio.create_task(watch())
        paths = ["/django/sync/", "/django/async/", "/await", "/def"] * 30
        assert not failed(await asyncio.gather(*map(client.get, paths)))
        watching.cancel()
        await asyncio.wait([watching])
        await until(lambda: threading.active_count() <= before + 60, "threads have ended")

    play(main, threads=3)
    assert 0 < most[0] <= 3
    assert most[1] <= before + 40 + 40 + 20  # contexts', AnyIO's, the database's and asyncio's
    wait_until_gone(server)


@on_servers
@pytest.mark.parametrize("by", ["asgi", "wsgi"])
def test_busy(by: str, default_database: str) -> None:
    """A request that gets no connection in time is a 503; one connection is left to handlers."""

    async def main(client: Any) -> None:
        waiting = [asyncio.create_task(client.get("/django/waiting/")) for _ in range(2)]
        await arrived(2)
        busy = await client.get("/django/sync/")
        assert (busy.status_code, busy.headers["retry-after"]) == (503, "1")
        assert "mounted" in busy.text
        assert not failed([await client.get("/await"), await client.get("/def")])
        go.set()
        assert not failed(await asyncio.gather(*waiting))
        assert not failed([await client.get("/django/sync/")])

    play(main, by, threads=3, thread_timeout=1.5)


# Django leaves the body of a request open when `request_started` raises.
@pytest.mark.filterwarnings("ignore:.*SpooledTemporaryFile:pytest.PytestUnraisableExceptionWarning")
def test_busy_threads(default_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that gets no thread in time is a 503, and one that waits for less goes on."""
    monkeypatch.setattr("fastapi_django_orm.database.threads.MOST_KEPT", 1)

    async def main(client: Any) -> None:
        waiting = asyncio.create_task(client.get("/django/waiting/"))
        await arrived(1)
        busy = await client.get("/django/sync/")
        assert (busy.status_code, busy.headers["retry-after"]) == (503, "1")
        later = asyncio.create_task(client.get("/django/sync/"))
        go.set()
        assert not failed(await asyncio.gather(waiting, later))
        assert not failed([await client.get("/django/async/")])

    play(main, threads=2, thread_timeout=2)


def test_a_transaction_in_a_view_that_fails(default_database: str) -> None:
    """atomic() in a view that raises rolls back on the request's connection."""

    async def main(client: Any) -> None:
        for _ in range(3):
            assert (await client.get("/django/failing/")).status_code == 500
            assert not failed([await client.get("/django/async/")])
        assert await outside(Topic.objects.count) == 0

    with override_settings(DEBUG_PROPAGATE_EXCEPTIONS=False):
        play(main, threads=2)


@on_servers
def test_a_client_that_hangs_up(default_database: str, request: pytest.FixtureRequest) -> None:
    """A request whose client has gone keeps its connection until its view has ended, and no longer."""
    server = request.getfixturevalue(default_database)
    app = mounted()
    app.router.lifespan_context = DjangoORM(
        ORMSettings(threads=1, thread_timeout=5), repositories=[]
    ).lifespan
    with serving(app) as client:
        with socket.create_connection((client.base_url.host, client.base_url.port)) as raw:
            raw.sendall(b"GET /django/waiting/ HTTP/1.1\r\nHost: test\r\n\r\n")
            assert inside.acquire(timeout=DEADLINE)
        go.set()
        assert not failed([client.get("/django/sync/") for _ in range(3)])
        wait_until(lambda: server.connections(BOARD) == 0, "released")
    wait_until_gone(server)


def test_contexts_elsewhere(default_database: str) -> None:
    """A context outside of requests has one thread and one connection; what outlives it has others."""

    async def in_context() -> tuple[list[list[Any]], Any]:
        async with ThreadSensitiveContext():
            found = [await run(here), await sync_to_async(here)(), await run(here)]
            ended = asyncio.Event()

            async def late() -> Any:
                await ended.wait()
                return await run(here)

            task = asyncio.create_task(late())
        ended.set()
        return [each[:2] for each in found], (await task)[:2]

    async def main(client: Any) -> None:
        for found, late in await asyncio.gather(*(in_context() for _ in range(6))):
            assert found[0] == found[1] == found[2]
            assert late[0] != found[0][0]

    play(main, threads=3)


@on_postgresql
def test_a_context_that_is_open_at_the_end(default_database: str, postgresql: Any) -> None:
    """An application that ends while a context has a transaction open rolls it back, and leaves nothing."""
    tasks: list[asyncio.Task[None]] = []

    async def never_ends(begun: asyncio.Event) -> None:
        async with ThreadSensitiveContext(), atomic():
            await Topic.objects.acreate(comment="never committed")
            begun.set()
            await asyncio.sleep(DEADLINE)

    async def main(client: Any) -> None:
        begun = asyncio.Event()
        tasks.append(asyncio.create_task(never_ends(begun)))
        await asyncio.wait_for(begun.wait(), DEADLINE)

    play(main, threads=2)
    wait_until_gone(postgresql)
    assert Topic.objects.count() == 0


@on_postgresql
def test_warm_connections_are_left_to_handlers(default_database: str) -> None:
    """A mounted request opens its connection: that of the handlers stays open."""

    async def main(client: Any) -> None:
        first = await run(session)
        assert not failed([await client.get("/django/sync/") for _ in range(3)])
        assert await run(session) == first

    play(main, threads=2)
