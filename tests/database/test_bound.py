"""Never more connections than threads, whatever the mix, and whoever gets none in time is told."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context, copy_context
from itertools import cycle, islice
from typing import Annotated, Any

import pytest
from anyio.to_thread import run_sync
from asgiref.sync import sync_to_async
from django.db import connections, transaction
from django.db.utils import ConnectionDoesNotExist
from fastapi import Depends, FastAPI
from websockets.sync.client import connect

from fastapi_django_orm import DjangoORM, ORMSettings, atomic, run
from fastapi_django_orm.errors import DatabaseBusy, TransactionLeftOpen
from tests.project.board.models import Topic
from tests.support.databases import (
    BOARD,
    DEADLINE,
    application,
    client_of,
    failed,
    get_all,
    session,
    sessions,
    transactions_held,
    until,
    wait_until_gone,
)
from tests.support.handlers import PATHS, WRITES, Count, count, counted_before_and_after, every_kind
from tests.support.serving import serving

REQUESTS = 500
BUSY = ["/await", "/run", "/sync-to-async", "/def", "/dependency", "/yield", "/atomic", "/in-transaction"]

on_servers = pytest.mark.parametrize("default_database", ["postgresql", "mariadb"], indirect=True)
on_postgresql = pytest.mark.parametrize("default_database", ["postgresql"], indirect=True)


@pytest.fixture
def server(default_database: str, request: pytest.FixtureRequest) -> Any:
    """The server of Django's `default`, without a client of the board's database."""
    server = request.getfixturevalue(default_database)
    connections.close_all()
    wait_until_gone(server)
    return server


@contextmanager
def watched(server: Any) -> Iterator[list[int]]:
    """How many connections the server counts, again and again, while the block runs."""
    seen: list[int] = []
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            seen.append(server.connections(BOARD))
            ended.wait(0.02)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def converse(base: str, answers: list[Any]) -> None:
    with connect(f"ws{base.removeprefix('http')}/websocket", proxy=None) as socket:
        answers.append(socket.recv())


@on_postgresql
@pytest.mark.parametrize("threads", [8, 2])
def test_requests_of_all_kinds_at_once(server: Any, threads: int) -> None:
    """500 mixed requests and some websockets: all are answered, and the bound is kept all the while."""
    app = every_kind(FastAPI(lifespan=DjangoORM(ORMSettings(threads=threads), repositories=[]).lifespan))
    answers: list[Any] = []
    with serving(app) as client:
        base = str(client.base_url)
        sockets = [threading.Thread(target=converse, args=[base, answers]) for _ in range(10)]
        with watched(server) as seen:
            for thread in sockets:
                thread.start()
            answered = asyncio.run(get_all(base, islice(cycle(PATHS), REQUESTS)))
            for thread in sockets:
                thread.join()
    assert [answer for answer in answered if answer[1] != 200] == []
    assert len(answers) == len(sockets)
    assert 0 < max(seen) <= threads
    wait_until_gone(server)
    assert Topic.objects.count() == sum(WRITES.get(path, 0) for path, _, _ in answered)


def test_every_database_answers_the_mix(default_database: str) -> None:
    """Each kind of request is answered at once with the others, on every database."""
    app = every_kind(FastAPI(lifespan=DjangoORM(ORMSettings(threads=3), repositories=[]).lifespan))
    with serving(app) as client:
        answered = asyncio.run(get_all(str(client.base_url), 5 * PATHS))
    assert [answer for answer in answered if answer[1] != 200] == []
    assert Topic.objects.count() == 5 * sum(WRITES.values())


@on_servers
def test_as_many_connections_as_threads(server: Any) -> None:
    """Calls that need connections at the same moment get as many as there are threads, and no more."""

    async def main() -> None:
        async with application(threads=3):
            assert len(await sessions(3)) == 3
            await asyncio.gather(*(run(session) for _ in range(50)))
            assert server.connections(BOARD) == 3

    asyncio.run(main())
    wait_until_gone(server)


@on_servers
def test_def_handlers_share_the_bound(server: Any) -> None:
    """FastAPI's forty worker threads use no more connections than the database threads may."""
    app = FastAPI()
    most = 0
    inside = 0
    lock = threading.Lock()
    pair = threading.Barrier(2, timeout=DEADLINE)  # each handler keeps its connection until another has one

    @app.get("/")
    def handler() -> None:
        nonlocal inside, most
        count()
        with lock:
            inside += 1
            most = max(most, inside)
        pair.wait()
        session()
        with lock:
            inside -= 1

    async def main() -> None:
        async with client_of(app, threads=2) as client:
            responses = await asyncio.gather(*(client.get("/") for _ in range(60)))
            assert not failed(responses)
            assert server.connections(BOARD) == most == 2

    asyncio.run(main())


# Busy


def test_busy_is_a_timeout(default_database: str) -> None:
    """Who catches TimeoutError catches DatabaseBusy, and the message names the setting to raise."""

    async def main() -> None:
        async with application(threads=1, thread_timeout=0.1), transactions_held(1):
            with pytest.raises(TimeoutError, match="DJANGO_ORM_THREADS") as caught:
                await run(count)
            assert isinstance(caught.value, DatabaseBusy)
            with pytest.raises(DatabaseBusy):
                async with atomic():
                    raise AssertionError("entered without a connection")

    asyncio.run(main())


def test_busy_connections_are_answered_with_503(default_database: str) -> None:
    """While a transaction holds the only connection, every kind of request gets 503 and Retry-After."""

    async def main() -> None:
        async with client_of(every_kind(FastAPI()), threads=1, thread_timeout=1) as client:
            async with transactions_held(1):
                responses = await asyncio.gather(*map(client.get, BUSY))
            assert {r.url.path: r.status_code for r in responses} == dict.fromkeys(BUSY, 503)
            assert {r.headers["retry-after"] for r in responses} == {"1"}
            for path in PATHS:
                assert (await client.get(path)).status_code == 200, path

    asyncio.run(main())


def test_busy_threads_are_answered_with_503(default_database: str) -> None:
    """While calls that do not end have all threads, requests that wait for one get 503, and later 200."""
    paths = ["/await", "/run", "/sync-to-async"]

    async def main() -> None:
        release = threading.Event()
        async with client_of(every_kind(FastAPI()), threads=2, thread_timeout=1) as client:
            blocked = [asyncio.create_task(run(release.wait, DEADLINE)) for _ in range(2)]
            responses = await asyncio.gather(*map(client.get, paths * 3))
            assert [r.status_code for r in responses] == [503] * 9
            assert {r.headers["retry-after"] for r in responses} == {"1"}
            assert (
                await client.get("/def")
            ).status_code == 200  # it needs a connection, not one of these threads
            release.set()
            assert await asyncio.gather(*blocked) == [True, True]
            assert not failed(await asyncio.gather(*map(client.get, paths * 3)))

    asyncio.run(main())


def test_calls_that_wait_go_on_when_a_transaction_ends(default_database: str) -> None:
    """Whoever waits for a connection gets it when the transaction that held it is over."""

    async def main() -> None:
        async with (
            client_of(every_kind(FastAPI()), threads=1) as client,
            transactions_held(1) as release,
        ):
            requests = [asyncio.create_task(client.get(path)) for path in BUSY]
            await asyncio.wait(requests, timeout=0.1)
            assert not any(request.done() for request in requests)
            release.set()
            assert not failed(await asyncio.gather(*requests))

    asyncio.run(main())


def test_giving_up_leaves_no_one_behind(default_database: str) -> None:
    """Callers that are cancelled while they wait for a thread or a connection take none with them."""

    async def main() -> None:
        async with application(threads=1):
            async with transactions_held(1):
                for work in (Topic.objects.acount, lambda: run(count), a_transaction):
                    waiting = [asyncio.create_task(work()) for _ in range(10)]
                    await asyncio.wait(waiting, timeout=0.05)
                    for task in waiting:
                        task.cancel()
                    await asyncio.wait(waiting, timeout=0.05)
            async with transactions_held(1):
                pass
            assert await run(count) == await Topic.objects.acount()

    async def a_transaction() -> None:
        async with atomic():
            await Topic.objects.acount()

    asyncio.run(main())


def test_more_transactions_than_connections(default_database: str) -> None:
    """A hundred transactions with sync and async steps take turns on two connections, without a deadlock."""

    async def work(number: int) -> None:
        async with atomic():
            await Topic.objects.acreate(comment=f"{number}")
            await sync_to_async(count)()
            await run(count)

    async def main() -> None:
        async with application(threads=2):
            await asyncio.gather(*map(work, range(100)))
            assert await run(count) == 100

    asyncio.run(main())


# Nothing is held by who waits


def waiting_application(gate: asyncio.Event, arrived: asyncio.Semaphore) -> FastAPI:
    """An application whose requests query, and then wait."""
    app = every_kind(FastAPI())

    async def wait() -> None:
        arrived.release()
        await gate.wait()

    @app.get("/waits")
    async def waits() -> int:
        await Topic.objects.acount()
        await wait()
        return await Topic.objects.acount()

    @app.get("/waits/def-dependency")
    async def waits_under_def(number: Count) -> int:
        await wait()
        return number + await run(count)

    @app.get("/waits/yield-dependency")
    async def waits_under_yield(number: Annotated[int, Depends(counted_before_and_after)]) -> int:
        await wait()
        return number

    @app.get("/waits/loop")
    async def waits_in_a_loop() -> list[int]:
        found = []
        async for topic in Topic.objects.order_by("pk").aiterator(chunk_size=1):
            if not found:
                await wait()
            found.append(topic.pk)
        return found

    return app


def test_requests_that_wait_hold_nothing(default_database: str) -> None:
    """A hundred requests have queried and wait for something else: one connection still serves all others."""
    Topic.objects.bulk_create([Topic(comment=f"{number}") for number in range(3)])
    paths = ["/waits", "/waits/def-dependency", "/waits/yield-dependency", "/waits/loop"]

    async def main() -> None:
        gate, arrived = asyncio.Event(), asyncio.Semaphore(0)
        app = waiting_application(gate, arrived)
        async with client_of(app, threads=1, thread_timeout=5) as client:
            waiting = [asyncio.create_task(client.get(path)) for path in paths * 25]
            for _ in waiting:
                await asyncio.wait_for(arrived.acquire(), DEADLINE)
            for path in PATHS:
                assert (await client.get(path)).status_code == 200, path
            gate.set()
            assert not failed(await asyncio.gather(*waiting))

    asyncio.run(main())


@on_servers
@pytest.mark.parametrize("leave_open", ["atomic", "autocommit"])
def test_a_call_that_leaves_a_transaction_open(server: Any, leave_open: str) -> None:
    """What a call leaves open is rolled back at once, and the only connection serves the next call."""

    def begin() -> None:
        if leave_open == "atomic":
            transaction.atomic().__enter__()
        else:
            transaction.set_autocommit(False)
        Topic.objects.create(comment="never committed")

    async def main() -> None:
        async with application(threads=1, thread_timeout=5):
            if leave_open == "atomic":
                with pytest.raises(TransactionLeftOpen, match=r"async with atomic\(\)"):
                    await run(begin)
            else:
                await run(begin)
            await until(lambda: server.in_transaction(BOARD) == 0, "rolled back")
            assert await run(count) == 0
            async with atomic():
                assert await Topic.objects.acount() == 0

    asyncio.run(main())


def test_a_database_that_does_not_exist_costs_nothing(default_database: str) -> None:
    """Asking for an unknown alias, however often, leaves the known one as it was."""

    def use(alias: str) -> Callable[[], Any]:
        return lambda: Topic.objects.using(alias).count()

    async def main() -> None:
        async with application(threads=1, thread_timeout=1):
            for _ in range(3):
                with pytest.raises(ConnectionDoesNotExist, match="nowhere"):
                    await run(use("nowhere"))
                with pytest.raises(ConnectionDoesNotExist, match="nowhere"):
                    async with atomic(using="nowhere"):
                        pass
            assert await run(count) == 0

    asyncio.run(main())


async def _by_executor(function: Callable[[], None]) -> None:
    await asyncio.get_running_loop().run_in_executor(None, function)


THREADS_OF_OTHERS: dict[str, Callable[[Callable[[], None]], Any]] = {
    "anyio.to_thread, by name": run_sync,
    "asyncio.to_thread": asyncio.to_thread,
    "run_in_executor": _by_executor,
    "thread_sensitive=False": lambda function: sync_to_async(function, thread_sensitive=False)(),
}


@on_postgresql
@pytest.mark.parametrize("way", THREADS_OF_OTHERS)
def test_threads_of_others_keep_the_bound(server: Any, way: str) -> None:
    """Functions on threads of AnyIO and asyncio share the connections, and leave none behind."""
    inside = threading.Barrier(2)

    def query() -> None:
        Topic.objects.count()
        inside.wait(DEADLINE)  # there are two connections at a time, so two functions meet here

    async def main() -> None:
        async with application(threads=2):
            with watched(server) as seen:
                await asyncio.gather(*(THREADS_OF_OTHERS[way](query) for _ in range(10)))
            assert max(seen) <= 2

    asyncio.run(main())
    wait_until_gone(server)


@on_postgresql
def test_a_function_in_a_context_of_its_own_has_djangos_own_connection(server: Any) -> None:
    """`Context().run` on an executor's thread leads out of the application, as a thread of one's own does."""

    def look() -> int:
        try:
            return session()
        finally:
            connections.close_all()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with application(threads=1), atomic():
            mine = await run(session)
            assert await asyncio.to_thread(session) == mine
            assert await loop.run_in_executor(None, Context().run, look) != mine
            found: list[int] = []
            context = copy_context()
            thread = threading.Thread(target=lambda: found.append(context.run(look)))
            thread.start()
            await asyncio.to_thread(thread.join)
            assert found != [mine]

    asyncio.run(main())
