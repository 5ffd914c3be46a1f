"""What goes wrong with servers, networks, clients and handlers, and what goes on all the same."""

import asyncio
import gc
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import anyio.to_thread
import httpx
import pytest
from django.db import Error, connection, connections
from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.testing import capture_logs

from fastapi_django_orm import DjangoORM, ORMSettings, atomic, run
from fastapi_django_orm.database.threads import DatabaseThreads, Job
from fastapi_django_orm.errors import DatabaseBusy
from tests.project.board.models import Topic
from tests.support.databases import (
    BOARD,
    DEADLINE,
    application,
    client_of,
    default_changed,
    failed,
    session,
    sessions,
    sleep,
    transactions_held,
    until,
    wait_until,
    wait_until_gone,
)
from tests.support.handlers import PATHS, count, every_kind
from tests.support.projects import Project
from tests.support.servers import TCPProxy
from tests.support.serving import serving

on_servers = pytest.mark.parametrize("default_database", ["postgresql", "mariadb"], indirect=True)
on_postgresql = pytest.mark.parametrize("default_database", ["postgresql"], indirect=True)


@pytest.fixture
def server(default_database: str, request: pytest.FixtureRequest) -> Any:
    """The server of Django's `default`, without a client of the board's database."""
    server = request.getfixturevalue(default_database)
    connections.close_all()
    server.terminate_backends(BOARD)  # one that works on for a client that is gone, too
    wait_until_gone(server)
    return server


@pytest.fixture
def proxy(server: Any, default_database: str) -> Iterator[TCPProxy]:
    """What stands between Django's `default` and its server."""
    options = {"connect_timeout": 1 if default_database == "mariadb" else 2}  # libpq's least
    with (
        TCPProxy("127.0.0.1", server.port) as proxy,
        default_changed(HOST="127.0.0.1", PORT=proxy.port, OPTIONS=options),
    ):
        yield proxy
        proxy.resume()


def logged(logs: Any, event: str) -> list[Any]:
    return [entry for entry in logs if entry["event"] == event]


# Servers


def test_restarted(mortal: Any) -> None:
    """The server is restarted while the application is idle: no request fails afterwards."""

    async def main() -> None:
        async with client_of(every_kind(FastAPI()), threads=3) as client:
            await sessions(3)
            await asyncio.to_thread(mortal.restart)
            assert not failed(await asyncio.gather(*map(client.get, PATHS)))

    asyncio.run(main())
    wait_until_gone(mortal)


def test_killed_under_load(mortal: Any) -> None:
    """The server is killed under load and started again: errors while it is away, and none after that."""

    async def main() -> None:
        back = False
        statuses: set[int] = set()
        async with client_of(every_kind(FastAPI()), threads=3, thread_timeout=5) as client:

            async def work(number: int) -> None:
                while not back:
                    number += 1
                    response = await client.get(PATHS[number % len(PATHS)])
                    statuses.add(response.status_code)

            load = [asyncio.create_task(work(number)) for number in range(20)]
            await until(lambda: bool(statuses), "load")
            await asyncio.to_thread(mortal.kill)
            await until(lambda: 503 in statuses, "errors")
            await asyncio.to_thread(mortal.start)
            back = True
            await asyncio.gather(*load)
            assert statuses <= {200, 500, 503}
            assert not failed(await asyncio.gather(*map(client.get, PATHS * 3)))
            assert len(await sessions(3)) == 3
            assert mortal.in_transaction(BOARD) == 0

    asyncio.run(main())
    wait_until_gone(mortal)


# Networks


@on_servers
def test_black_hole(proxy: TCPProxy) -> None:
    """A network that swallows everything: calls are cut off in time, and work again when it is back."""

    async def main() -> None:
        # Whoever waits for a thread gives up before the first call is cut off.
        limits = {"threads": 2, "thread_timeout": 0.7, "call_timeout": 1.5}
        async with client_of(every_kind(FastAPI()), **limits) as client:
            await sessions(2)
            proxy.black_hole()
            with capture_logs() as logs:
                outcomes = await asyncio.gather(*(run(count) for _ in range(6)), return_exceptions=True)
            assert all(isinstance(outcome, Error | DatabaseBusy) for outcome in outcomes)
            assert any(isinstance(outcome, Error) for outcome in outcomes)
            assert any(isinstance(outcome, DatabaseBusy) for outcome in outcomes)
            assert logged(logs, "call_cut_off")
            responses = await asyncio.gather(*(client.get(path) for path in PATHS))
            assert {response.status_code for response in responses} <= {500, 503}
            proxy.resume()
            assert not failed([await client.get(path) for path in PATHS])
            assert len(await sessions(2)) == 2

    asyncio.run(main())


@on_servers
def test_black_hole_in_a_transaction(proxy: TCPProxy, server: Any) -> None:
    """A transaction whose network dies raises, and its connection is not lost for those to come."""

    async def cut_off() -> None:
        async with atomic():
            await Topic.objects.acreate(comment="lost")
            proxy.black_hole()
            await Topic.objects.acount()

    async def main() -> None:
        async with application(threads=1, call_timeout=1):
            with pytest.raises(Error):
                await cut_off()
            proxy.resume()
            async with atomic():
                assert await Topic.objects.acount() == 0
            await until(lambda: server.in_transaction(BOARD) == 0, "rolled back")

    asyncio.run(main())


def sleeps(before: float, queries: int, each: float) -> int:
    """Some work, then some queries, in one call."""
    connection.ensure_connection()
    time.sleep(before)
    for _ in range(queries):
        sleep(each)
    return queries


@on_servers
@pytest.mark.parametrize("way", [run, lambda *call: anyio.to_thread.run_sync(*call)], ids=["run", "def"])
def test_what_a_call_timeout_counts(server: Any, way: Any) -> None:
    """It counts the time that one answer takes: no waiting for a connection, no work, no sum of queries."""

    async def main() -> None:
        async with application(threads=1, call_timeout=0.8, thread_timeout=DEADLINE):
            async with transactions_held(1) as release:
                waiting = asyncio.create_task(way(sleeps, 0, 1, 0.05))
                await asyncio.wait([waiting], timeout=0.9)
                release.set()
            assert await waiting == 1
            assert await way(sleeps, 0.9, 1, 0.05) == 1
            assert await way(sleeps, 0, 18, 0.05) == 18
            async with atomic():
                assert await way(sleeps, 0.9, 2, 0.05) == 2
                await asyncio.sleep(0.9)
            with pytest.raises(Error):
                await way(sleeps, 0, 1, 5)
            assert await way(sleeps, 0, 1, 0) == 1

    with capture_logs() as logs:
        asyncio.run(main())
    assert len(logged(logs, "call_cut_off")) == 1


@on_postgresql
def test_a_loop_in_a_black_hole(proxy: TCPProxy) -> None:
    """The next step of a loop over aiterator() is cut off as well, though its call has acquired nothing."""
    Topic.objects.bulk_create([Topic(comment="-") for _ in range(5)])

    async def main() -> None:
        async with application(threads=2, call_timeout=1):
            loop = Topic.objects.aiterator(chunk_size=2)
            await anext(loop)
            await anext(loop)
            proxy.black_hole()
            with pytest.raises(Error):
                await anext(loop)
            proxy.resume()
            assert await run(count) == 5

    asyncio.run(main())


@on_servers
def test_reset_while_idle(proxy: TCPProxy) -> None:
    """A network that resets idle connections costs no request."""

    async def main() -> None:
        async with client_of(every_kind(FastAPI()), threads=3) as client:
            for _ in range(3):
                await sessions(3)
                proxy.reset()
                assert not failed(await asyncio.gather(*map(client.get, PATHS)))

    asyncio.run(main())


@on_servers
def test_reset_in_the_middle(proxy: TCPProxy) -> None:
    """Calls that run when the network resets fail; those that come next do not."""

    async def main() -> None:
        async with client_of(every_kind(FastAPI()), threads=3) as client:
            begun = threading.Semaphore(0)

            def work() -> None:
                session()
                begun.release()
                sleep(60)

            running = [asyncio.create_task(run(work)) for _ in range(3)]
            for _ in running:
                assert await asyncio.to_thread(begun.acquire, timeout=DEADLINE)
            proxy.reset()
            for outcome in await asyncio.gather(*running, return_exceptions=True):
                assert isinstance(outcome, Error)
            assert not failed(await asyncio.gather(*map(client.get, PATHS)))

    asyncio.run(main())


@on_servers
def test_slow(proxy: TCPProxy) -> None:
    """A slow network makes requests slow, and nothing else."""

    async def main() -> None:
        async with client_of(every_kind(FastAPI()), threads=4) as client:
            proxy.slow(0.02)
            assert not failed(await asyncio.gather(*map(client.get, PATHS)))
            proxy.resume()

    asyncio.run(main())


@on_servers
def test_refused(proxy: TCPProxy) -> None:
    """While no new connection can be made the open ones serve, and errors end with the refusal."""

    async def main() -> None:
        async with client_of(every_kind(FastAPI()), threads=2) as client:
            await sessions(2)
            proxy.refuse()
            assert not failed(await asyncio.gather(*map(client.get, PATHS)))
            proxy.reset()
            paths = [path for path in PATHS if path != "/stream"]  # which has begun to answer when it fails
            responses = await asyncio.gather(*map(client.get, paths))
            assert {response.status_code for response in responses} == {503}
            proxy.resume()
            assert not failed(await asyncio.gather(*map(client.get, PATHS)))
            assert len(await sessions(2)) == 2

    asyncio.run(main())


def test_exhausted_for_a_while(default_database: str) -> None:
    """With every connection taken, two hundred requests get 503 while it lasts, and 200 afterwards."""

    async def main() -> None:
        async with client_of(every_kind(FastAPI()), threads=1, thread_timeout=1) as client:
            async with transactions_held(1):
                for _ in range(2):
                    responses = await asyncio.gather(*(client.get("/await") for _ in range(100)))
                    assert {response.status_code for response in responses} == {503}
            assert not failed([await client.get(path) for path in PATHS])

    asyncio.run(main())


# Clients


class CancelOnDisconnect:
    """Middleware that cancels the request when its client has gone, as some servers do."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        messages: asyncio.Queue[Message] = asyncio.Queue()
        work = asyncio.create_task(self.app(scope, messages.get, send))

        async def listen() -> None:
            while True:
                message = await receive()
                await messages.put(message)
                if message["type"] == "http.disconnect":
                    work.cancel()
                    return

        listener = asyncio.create_task(listen())
        await asyncio.wait([work])
        listener.cancel()
        await asyncio.wait([listener])
        if not work.cancelled():
            work.result()


async def hang_up(base: httpx.URL, path: str, patience: float) -> None:
    """Send a request and go before it is answered."""
    _, writer = await asyncio.open_connection(base.host, base.port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
    await asyncio.sleep(patience)
    writer.transport.abort()
    with suppress(OSError):
        await writer.wait_closed()


@on_postgresql
@pytest.mark.parametrize("middleware", ["none", "cancelling", "starlette"])
def test_clients_that_hang_up(server: Any, middleware: str) -> None:
    """A thousand clients go in the middle of a transaction: none stays open, nothing is lost."""
    app = every_kind(FastAPI(lifespan=DjangoORM(ORMSettings(threads=4), repositories=[]).lifespan))
    if middleware == "cancelling":
        app.add_middleware(CancelOnDisconnect)
    if middleware == "starlette":

        @app.middleware("http")
        async def through(request: Any, call_next: Any) -> Any:
            return await call_next(request)

    @app.get("/slow")
    async def slow() -> None:
        async with atomic():
            await Topic.objects.acreate(comment="slow")
            await run(sleep, 0.002)
            async with atomic():
                await asyncio.sleep(0.002)
                await Topic.objects.acount()

    @app.get("/four")
    async def four() -> int:
        barrier = asyncio.Barrier(4)

        async def one() -> None:
            async with atomic():
                await barrier.wait()
                await Topic.objects.acount()

        await asyncio.gather(*(one() for _ in range(4)))
        return len(await sessions(4))

    async def main(base: httpx.URL) -> None:
        # No "/yield-transaction": FastAPI, when cancelled at the wrong moment, forgets a dependency's
        # generator, which then ends its transaction wherever it is collected.
        paths = ["/slow", "/slow", "/in-transaction", "/thread-in-atomic", "/nested"]
        for _ in range(1000 // 50):
            await asyncio.gather(
                *(hang_up(base, random.choice(paths), random.uniform(0, 0.05)) for _ in range(50))
            )

    with serving(app) as client:
        assert client.get("/four").json() == 4
        threads = threading.active_count()
        asyncio.run(main(client.base_url))
        wait_until(lambda: server.in_transaction(BOARD) == 0, "no open transaction")
        assert client.get("/four").json() == 4
        wait_until(lambda: server.in_transaction(BOARD) == 0, "no open transaction")
        wait_until(lambda: server.connections(BOARD) == 4, "what was cut off is gone")
        assert threading.active_count() <= threads + 50  # AnyIO's worker threads, and no more than those
    wait_until_gone(server)


# Handlers


def blocks_for_ever(begun: threading.Event, released: threading.Event) -> None:
    count()
    begun.set()
    released.wait()


def queries_for_ever() -> None:
    sleep(5)


def named(logs: list[Any], function: Callable[..., Any]) -> list[Any]:
    """What was logged of calls of a function of this file; on a busy machine others may be slow as well."""
    at = f"in {function.__name__}"
    entries = logged(logs, "call_does_not_end")
    return [
        entry for entry in entries if any(f"{__file__}:" in place and at in place for place in entry["at"])
    ]


def test_a_blocked_thread_is_named(default_database: str) -> None:
    """A function that never ends is named in the log with its file, the rest goes on, and shutdown ends."""
    released = threading.Event()

    async def main() -> None:
        async with client_of(every_kind(FastAPI()), threads=2, thread_timeout=1) as client:
            blocked = asyncio.create_task(run(blocks_for_ever, threading.Event(), released))
            await until(lambda: named(logs, blocks_for_ever), "the name of the call")
            assert not failed([await client.get(path) for path in PATHS])
        assert logged(logs, "threads_left_behind")
        released.set()
        await asyncio.wait([blocked])

    with pytest.MonkeyPatch.context() as patch, capture_logs() as logs:
        patch.setattr("fastapi_django_orm.database.lifecycle.SHUTDOWN_TIMEOUT", 0.5)
        asyncio.run(main())
    [entry] = named(logs, blocks_for_ever)
    assert entry["databases"] == ["default"]


def test_shutdown_drops_what_waits_under_no_lock() -> None:
    """A job that is dropped may need a transaction's lock, whose holder asks for a thread at that moment."""
    threads, transaction = DatabaseThreads(1, DEADLINE), threading.RLock()
    held, dropped = threading.Event(), threading.Event()

    def drop(_: object) -> None:
        dropped.set()
        with transaction:
            pass

    def ask() -> None:
        with transaction:
            held.set()
            dropped.wait(DEADLINE)
            with pytest.raises(RuntimeError, match="shut down"):
                threads.take_worker()

    job = Job(lambda: None)
    job.future.add_done_callback(drop)
    threads.watch(job, lambda: DatabaseBusy("It has waited for too long."))
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    assert held.wait(DEADLINE)
    ending = threading.Thread(target=threads.shutdown, args=(0.0,), daemon=True)
    ending.start()
    ending.join(DEADLINE)
    assert not ending.is_alive()
    asking.join(DEADLINE)
    assert job.future.cancelled()


@pytest.mark.parametrize("patience", [0.1, 30.0], ids=["named", "not named"])
def test_who_looks_after_the_threads_holds_nothing_of_what_they_work_on(
    monkeypatch: pytest.MonkeyPatch, patience: float
) -> None:
    """When a call has ended its values are freed at once, whether it was named or not, the collector off."""
    monkeypatch.setattr("fastapi_django_orm.database.housekeeping.INTERVAL", 0.01)
    looked = threading.Semaphore(0)
    expire = DatabaseThreads.expire

    def look(threads: DatabaseThreads) -> None:
        expire(threads)
        looked.release()

    monkeypatch.setattr(DatabaseThreads, "expire", look)
    held: list[weakref.ref[Any]] = []

    def work() -> None:
        value = type("Value", (), {})()
        held.append(weakref.ref(value))
        end = time.monotonic() + patience if patience < 1 else 0
        for _ in range(3):
            assert looked.acquire(timeout=DEADLINE)
        while time.monotonic() < end:
            assert looked.acquire(timeout=DEADLINE)

    async def main() -> None:
        async with application(thread_timeout=patience):
            gc.collect()
            gc.disable()
            try:
                for _ in range(3):
                    await run(work)
                await until(lambda: not any(value() for value in held), "the values have gone")
            finally:
                gc.enable()

    with capture_logs() as logs:
        asyncio.run(main())
    assert bool(logged(logs, "call_does_not_end")) is (patience < 1)


@on_servers
def test_a_long_query_is_named(server: Any) -> None:
    """A call that waits for its database is named by the function that asked, not by the driver's."""

    async def main() -> None:
        async with application(threads=2, thread_timeout=0.2):
            slow = asyncio.create_task(run(queries_for_ever))
            await until(lambda: named(logs, queries_for_ever), "the name of the call")
            await asyncio.to_thread(server.terminate_backends, BOARD)
            with pytest.raises(Error):
                await slow

    with capture_logs() as logs:
        asyncio.run(main())
    assert len(named(logs, queries_for_ever)) == 1


def test_a_call_that_outlives_its_application(default_database: str) -> None:
    """What a forgotten call acquired is closed when it ends, though another application runs by then."""
    begun, released = threading.Event(), threading.Event()

    async def first() -> asyncio.Task[Any]:
        async with application(threads=1):
            task = asyncio.create_task(run(blocks_for_ever, begun, released))
            assert await asyncio.to_thread(begun.wait, DEADLINE)
        return task

    async def main() -> None:
        task = await first()
        async with application(threads=1, thread_timeout=1):
            released.set()
            await asyncio.wait([task])
            assert await run(count) == 0
            async with transactions_held(1):
                with pytest.raises(DatabaseBusy):
                    await run(count)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastapi_django_orm.database.lifecycle.SHUTDOWN_TIMEOUT", 0.5)
        asyncio.run(main())


# Processes

SERVER = """
import asyncio
from fastapi import FastAPI
from fastapi_django_orm import DjangoORM, atomic, run

DjangoORM.setup()
from django.db import connection
from bbs.models import Topic

app = FastAPI(lifespan=DjangoORM.lifespan)
tasks = []

async def hold(then):
    async with atomic():
        await Topic.objects.acreate(comment="never committed")
        print("transaction open", flush=True)
        await then()

def sleep():
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(2)")

@app.get("/waits")
async def waits():
    await hold(lambda: asyncio.sleep(60))

@app.get("/queries")
async def queries():
    await hold(lambda: run(sleep))

@app.get("/task")
async def task():
    tasks.append(asyncio.create_task(hold(lambda: asyncio.sleep(60))))

@app.get("/count")
async def count():
    return await Topic.objects.acount()
"""


@pytest.fixture
def bbs(postgresql: Any, project: Project, request: pytest.FixtureRequest) -> Iterator[str]:
    """A database on PostgreSQL for the project of the test. Its name."""
    name = "processes"
    project.use_server(postgresql.create_database(name))
    project.append("config/settings.py", 'DATABASES["default"]["CONN_MAX_AGE"] = None\n')
    project.migrate()
    yield name
    postgresql.drop_database(name)


def test_shut_down_under_load(postgresql: Any, project: Project, bbs: str) -> None:
    """Ctrl-C with transactions open in requests and tasks: the process ends, and nothing is left of them."""
    project.write("main.py", SERVER)
    server = project.uvicorn("--timeout-graceful-shutdown", "1", DJANGO_ORM_THREADS="12")
    with server:
        assert server.get("/count").json() == 0

        async def main() -> None:
            paths = ["/waits", "/queries"] * 4
            clients = [await asyncio.open_connection("127.0.0.1", server.port) for _ in paths]
            for (_, writer), path in zip(clients, paths, strict=True):
                writer.write(f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
            for _ in range(3):
                assert (await asyncio.to_thread(server.get, "/task")).status_code == 200
            await until(lambda: server.output().count("transaction open") == 11, "all transactions")
            assert postgresql.in_transaction(bbs) >= 7
            await asyncio.to_thread(server.stop)
            for _, writer in clients:
                writer.transport.abort()

        asyncio.run(main())
    assert "shut_down" in server.output()
    wait_until(lambda: postgresql.connections(bbs) == 0, "nothing left")
    with server:
        assert server.get("/count").json() == 0


FORK = """
import asyncio, os, sys, traceback, warnings
import anyio.to_thread
from fastapi import FastAPI
from fastapi_django_orm import DjangoORM, ORMSettings, atomic, run

warnings.filterwarnings("ignore", ".*multi-threaded.*", DeprecationWarning)
DjangoORM.setup()
from django.db import connection
from bbs.models import Topic

def session():
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return cursor.fetchone()[0]

def fork(work):
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    os._exit(code)

def sync_child():
    assert session() not in parents, "the parent's connection"
    Topic.objects.create(comment="child")

async def async_work():
    await asyncio.gather(*(Topic.objects.acount() for _ in range(5)))
    async with atomic():
        await Topic.objects.acreate(comment="child")
        assert await run(session) not in parents, "the parent's connection"

def async_child():
    asyncio.run(async_work())

def application_child():
    async def main():
        async with DjangoORM(ORMSettings(threads=2), repositories=[]).lifespan(FastAPI()):
            await async_work()
    asyncio.run(main())

parents = set()

def held_fork(work):
    parents.add(session())
    before = session()
    code = fork(work)
    assert session() == before, "the parent's connection was cut"
    return code

async def main():
    async with DjangoORM(ORMSettings(threads=4), repositories=[]).lifespan(FastAPI()):
        parents.update(await asyncio.gather(*(run(session) for _ in range(4))))
        for work in (sync_child, async_child, application_child):
            assert await run(held_fork, work) == 0, work
            assert await anyio.to_thread.run_sync(held_fork, work) == 0, work
            assert fork(work) == 0, work
            async with atomic():
                parents.add(await run(session))
                await Topic.objects.acreate(comment="parent")
                assert await run(held_fork, work) == 0, work
                async with atomic():
                    assert await anyio.to_thread.run_sync(held_fork, work) == 0, work
                    assert fork(work) == 0, work
            assert await run(session) in parents
        print("rows", await Topic.objects.acount())

asyncio.run(main())
"""


def test_fork_after_start(project: Project, bbs: str) -> None:
    """Children of a running application have connections of their own, and do not touch the parent's."""
    assert "rows " in project.python(FORK)


# Two applications


@on_servers
@pytest.mark.parametrize("first_to_end", [0, 1])
def test_two_applications(server: Any, first_to_end: int) -> None:
    """Two applications in one process share the bound, and either may end first."""

    async def main() -> None:
        entered = [client_of(every_kind(FastAPI()), threads=2) for _ in range(2)]
        clients = [await context.__aenter__() for context in entered]
        most = 0
        for _ in range(3):
            requests = [client.get(path) for path in PATHS for client in clients]
            assert not failed(await asyncio.gather(*requests))
            most = max(most, server.connections(BOARD))
        assert 0 < most <= 2
        await entered[first_to_end].__aexit__(None, None, None)
        assert not failed(await asyncio.gather(*map(clients[1 - first_to_end].get, PATHS)))
        assert 0 < server.connections(BOARD) <= 2
        await entered[1 - first_to_end].__aexit__(None, None, None)

    asyncio.run(main())
    wait_until_gone(server)


@on_postgresql
def test_two_servers_in_one_process(server: Any) -> None:
    """Two uvicorns in threads of one process, started and ended again and again beside each other."""
    lifespan = DjangoORM(ORMSettings(threads=2), repositories=[]).lifespan
    steady = every_kind(FastAPI(lifespan=lifespan))
    with serving(steady) as client:
        for _ in range(4):
            with serving(every_kind(FastAPI(lifespan=lifespan))) as other:
                for path in PATHS:
                    assert not failed([client.get(path), other.get(path)])
                assert server.connections(BOARD) <= 2
        assert not failed([client.get(path) for path in PATHS])
    wait_until_gone(server)
