"""What a call leaves on its connection: its request finds it, and nothing else ever does."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Annotated, Any

import anyio.to_thread
import pytest
from django.db import connection, connections, transaction
from django.db.backends.signals import connection_created
from fastapi import Depends, FastAPI
from structlog.testing import capture_logs

from fastapi_django_orm import InTransaction, atomic, run
from fastapi_django_orm.errors import DatabaseBusy
from tests.project.board.models import Topic
from tests.support.databases import (
    BOARD,
    DEADLINE,
    application,
    ask,
    client_of,
    default_changed,
    failed,
    session,
    until,
    wait_until_gone,
)
from tests.support.playing import outside

on_postgresql = pytest.mark.parametrize("default_database", ["postgresql"], indirect=True)
on_servers = pytest.mark.parametrize("default_database", ["postgresql", "mariadb"], indirect=True)

seen: list[str] = []


def note(execute: Any, *statement: Any) -> Any:
    seen.append(statement[0])
    return execute(*statement)


def put_wrapper() -> None:
    connection.execute_wrappers.append(note)


def has_wrapper() -> bool:
    return note in connection.execute_wrappers


def remove_wrapper() -> None:
    connection.execute_wrappers.remove(note)


def execute(statement: str) -> Callable[[], None]:
    def work() -> None:
        with connection.cursor() as cursor:
            cursor.execute(statement)

    return work


def set_tenant() -> None:
    connection.tenant = "mine"  # type: ignore[attr-defined]


def tenant() -> Any:
    return getattr(connection, "tenant", None)


# What a call may leave, and how a later one sees whether it is there.
LEFT: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "a wrapper": (put_wrapper, has_wrapper),
    "an attribute": (set_tenant, lambda: tenant() == "mine"),
    "a debug cursor": (
        lambda: setattr(connection, "force_debug_cursor", True),
        lambda: connection.force_debug_cursor,
    ),
    "BEGIN": (execute("BEGIN"), lambda: ask("SELECT count(*) FROM board_topic") == 1),
}
ON_POSTGRESQL = {
    "search_path": "SET search_path = pg_catalog",
    "TimeZone": "SET TIME ZONE 'Asia/Tokyo'",
    "DateStyle": "SET datestyle = 'SQL, DMY'",
    "client_encoding": "SET client_encoding = latin1",
    "application_name": "SET application_name = 'mine'",
    "default_transaction_read_only": "SET default_transaction_read_only = on",
    "is_superuser": "SET ROLE pg_monitor",
}


def leaving(leave: Callable[[], Any], there: Callable[[], Any]) -> FastAPI:
    """An application with a handler that leaves something, and asks for it in every way."""
    app = FastAPI()
    inside = asyncio.Event()
    app.state.inside, app.state.go = inside, asyncio.Event()

    @app.get("/leaves")
    async def leaves(wait: bool = False) -> list[bool]:
        await run(leave)
        inside.set()
        if wait:
            await app.state.go.wait()
        found = [await run(there), await anyio.to_thread.run_sync(there)]
        found += await asyncio.gather(run(there), run(there), anyio.to_thread.run_sync(there))
        return [bool(each) for each in found]

    @app.get("/def")
    def in_thread(_: Annotated[None, Depends(lambda: leave())]) -> list[bool]:
        return [bool(there())]

    @app.get("/asks")
    async def asks() -> list[bool]:
        return [bool(await run(there))]

    return app


def check_kept(app: FastAPI) -> None:
    async def main() -> None:
        async with client_of(app, threads=2, thread_timeout=5) as client:
            leaving = asyncio.create_task(client.get("/leaves?wait=true"))
            await asyncio.wait_for(app.state.inside.wait(), DEADLINE)
            others = await asyncio.gather(*(client.get("/asks") for _ in range(10)))
            app.state.go.set()
            others += [await client.get("/asks") for _ in range(3)]
            assert {str(other.json()) for other in others} == {"[False]"}
            assert (await leaving).json() == [True] * 5
            assert (await client.get("/def")).json() == [True]
            assert {str((await client.get("/asks")).json()) for _ in range(4)} == {"[False]"}

    asyncio.run(main())


@pytest.mark.parametrize("what", LEFT)
def test_what_is_left_stays_with_its_request(what: str, default_database: str) -> None:
    """The later calls of the request find it, on all kinds of threads; a hundred others never do."""
    if what == "BEGIN":  # it is seen by what is written inside
        leave, there = LEFT[what]

        def begin() -> None:
            leave()
            Topic.objects.create(comment="not committed")

        check_kept(leaving(begin, there))
        assert Topic.objects.count() == 0
    else:
        check_kept(leaving(*LEFT[what]))


@on_postgresql
@pytest.mark.parametrize("name", ON_POSTGRESQL)
def test_what_postgresql_reports(name: str, default_database: str) -> None:
    """Session settings of which PostgreSQL tells its clients count as left as well."""

    def reported() -> Any:
        connection.ensure_connection()
        raw: Any = connection.connection
        return raw.info.parameter_status(name)

    clean = reported()
    check_kept(leaving(execute(ON_POSTGRESQL[name]), lambda: reported() != clean))


@on_servers
def test_a_clean_connection_goes_on(default_database: str) -> None:
    """What the request takes away again leaves the connection open for others, as if nothing had been."""
    app = FastAPI()

    @app.get("/session")
    async def ask_session() -> int:
        return await run(session)

    @app.get("/")
    async def handler() -> list[int]:
        await run(put_wrapper)
        numbers = [await run(session)]
        await run(remove_wrapper)
        return [*numbers, await run(session)]

    async def main() -> None:
        async with client_of(app, threads=1) as client:
            first = (await client.get("/session")).json()
            assert (await client.get("/")).json() == [first, first]
            assert (await client.get("/session")).json() == first

    asyncio.run(main())


@on_servers
def test_what_is_left_at_the_end_is_closed(default_database: str, request: Any) -> None:
    """When the request ends its connection is closed, and the bound has room for another at once."""
    server = request.getfixturevalue(default_database)
    connections.close_all()
    wait_until_gone(server)
    app = leaving(put_wrapper, session)

    async def main() -> None:
        async with client_of(app, threads=1, thread_timeout=5) as client:
            for path in ("/leaves", "/def", "/asks", "/leaves"):
                assert not failed([await client.get(path)])
            await until(lambda: server.connections(BOARD) <= 1, "closed")

    asyncio.run(main())
    wait_until_gone(server)


@on_postgresql
def test_the_thread_stays_with_the_connection(default_database: str) -> None:
    """What the call has left in a threading.local is there as long as the connection, and then gone."""
    local = threading.local()
    app = FastAPI()

    def leave() -> None:
        local.value = "mine"
        put_wrapper()

    def value() -> Any:
        return getattr(local, "value", None)

    @app.get("/leaves")
    async def leaves() -> list[Any]:
        await run(leave)
        async with atomic():
            inside = await run(value)
        return [await run(value), inside, *await asyncio.gather(*(run(value) for _ in range(3)))]

    @app.get("/asks")
    async def asks() -> Any:
        return await run(value)

    async def main() -> None:
        async with client_of(app, threads=2) as client:
            for _ in range(3):
                assert (await client.get("/leaves")).json() == ["mine"] * 5
                asked = await asyncio.gather(*(client.get("/asks") for _ in range(8)))
                assert {answer.json() for answer in asked} == {None}
            with capture_logs() as logs:
                await run(leave)  # in no request
            lost = [entry["left"] for entry in logs if entry["event"] == "session_state_lost"]
            assert lost == ["execute_wrappers"]
            assert {await run(value) for _ in range(8)} == {None}
            assert not await run(has_wrapper)

    asyncio.run(main())


def autocommit_off() -> None:
    connection.set_autocommit(False)
    Topic.objects.create(comment="not committed")


def begin() -> None:
    execute("BEGIN")()
    Topic.objects.create(comment="not committed")


@pytest.mark.parametrize("write", [autocommit_off, begin])
def test_a_lost_transaction_is_logged(write: Callable[[], None], default_database: str) -> None:
    """What a request has begun by hand and not committed is rolled back, and a warning says what to write."""
    app = FastAPI()

    @app.get("/def")
    def in_thread() -> None:
        write()

    @app.get("/run")
    async def in_call() -> None:
        await run(write)

    @app.get("/reads")
    def reads() -> int:
        return Topic.objects.count()

    async def main() -> None:
        with capture_logs() as logs:
            async with client_of(app, threads=2) as client:
                for path in ("/def", "/run"):
                    assert (await client.get(path)).status_code == 200
                assert (await client.get("/reads")).json() == 0
        lost = [entry for entry in logs if entry["event"] == "transaction_lost"]
        assert len(lost) == 2
        assert all("`async with atomic():`" in entry["hint"] for entry in lost)

    asyncio.run(main())


@on_postgresql
def test_a_transaction_where_something_is_left(default_database: str) -> None:
    """atomic() of the request is on its connection, commits and rolls back there, and nests."""
    app = FastAPI()

    @app.get("/")
    async def handler(fails: bool = False) -> list[bool]:
        await run(set_tenant)
        number = await run(session)
        try:
            async with atomic():
                same = [await run(session) == number, await run(tenant) == "mine"]
                await Topic.objects.acreate(comment="outer")
                async with atomic():
                    await Topic.objects.acreate(comment="inner")
                if fails:
                    raise LookupError
        except LookupError:
            pass
        return [*same, await run(session) == number, not await run(lambda: connection.in_atomic_block)]

    async def main() -> None:
        async with client_of(app, threads=1, thread_timeout=5) as client:
            assert (await client.get("/")).json() == [True] * 4
            assert await outside(Topic.objects.count) == 2
            assert (await client.get("/?fails=true")).json() == [True] * 4
            assert await outside(Topic.objects.count) == 2

    asyncio.run(main())


@on_postgresql
def test_what_a_transaction_leaves(default_database: str) -> None:
    """A connection that a block leaves unclean is its request's as well; others have clean ones."""
    app = FastAPI()

    @app.get("/leaves")
    async def leaves(_: InTransaction) -> bool:
        await run(put_wrapper)
        return await run(has_wrapper)

    @app.get("/after")
    async def after() -> list[bool]:
        async with atomic():
            await run(put_wrapper)
        return [await run(has_wrapper), await anyio.to_thread.run_sync(has_wrapper)]

    @app.get("/asks")
    async def asks() -> bool:
        return await run(has_wrapper)

    async def main() -> None:
        async with client_of(app, threads=2) as client:
            for _ in range(3):
                assert (await client.get("/leaves")).json() is True
                assert (await client.get("/after")).json() == [True, True]
                asked = await asyncio.gather(*(client.get("/asks") for _ in range(4)))
                assert {answer.json() for answer in asked} == {False}

    asyncio.run(main())


@on_postgresql
def test_a_set_local_is_no_trace(default_database: str) -> None:
    """What ends with the transaction leaves the connection clean: it stays open."""

    def work() -> int:
        with transaction.atomic():
            execute("SET LOCAL search_path = pg_catalog")()
        return session()

    async def main() -> None:
        async with application(threads=1):
            assert len({await run(work) for _ in range(3)}) == 1

    asyncio.run(main())


@on_postgresql
def test_a_tracers_wrapper_is_no_trace(default_database: str) -> None:
    """A wrapper that is put on every connection when it is opened does not make it unclean."""

    def put_around(connection: Any, **_: Any) -> None:
        connection.execute_wrappers.append(note)

    async def main() -> None:
        async with application(threads=1):
            assert len({await run(session) for _ in range(3)}) == 1
            assert await run(has_wrapper)

    connection_created.connect(put_around)
    try:
        asyncio.run(main())
    finally:
        connection_created.disconnect(put_around)


@on_postgresql
def test_whoever_waits_is_told_what_was_left(default_database: str) -> None:
    """While requests keep all connections, DatabaseBusy names what they have left on them."""
    app = leaving(put_wrapper, has_wrapper)

    async def main() -> None:
        async with client_of(app, threads=1, thread_timeout=0.3) as client:
            keeping = asyncio.create_task(client.get("/leaves?wait=true"))
            await asyncio.wait_for(app.state.inside.wait(), DEADLINE)
            with pytest.raises(DatabaseBusy, match="execute_wrappers"):
                await run(session)
            assert (await client.get("/asks")).status_code == 503
            app.state.go.set()
            assert not failed([await keeping])
            assert await run(has_wrapper) is False

    asyncio.run(main())


@on_postgresql
def test_a_request_that_is_given_up(default_database: str) -> None:
    """A request that is cancelled while it keeps a connection releases it, also if a call still runs."""
    app = leaving(put_wrapper, has_wrapper)
    release = threading.Event()

    @app.get("/hangs")
    async def hangs() -> None:
        await run(put_wrapper)
        app.state.inside.set()
        await run(release.wait, DEADLINE)

    async def main() -> None:
        async with client_of(app, threads=1, thread_timeout=5) as client:
            for path in ("/leaves?wait=true", "/hangs"):
                app.state.inside.clear()
                given_up = asyncio.create_task(client.get(path))
                await asyncio.wait_for(app.state.inside.wait(), DEADLINE)
                given_up.cancel()
                await asyncio.wait([given_up])
                release.set()
                assert await run(has_wrapper) is False

    asyncio.run(main())


@on_postgresql
def test_no_age_keeps_what_is_left(default_database: str) -> None:
    """With CONN_MAX_AGE = 0 a connection with something left on it stays open for its request alone."""
    with default_changed(CONN_MAX_AGE=0):
        check_kept(
            leaving(execute("SET search_path = pg_catalog"), lambda: ask("SHOW search_path") == "pg_catalog")
        )


@on_postgresql
def test_two_databases(default_database: str) -> None:
    """A request keeps a connection to each database on which it has left something."""
    url = dict(connections.settings["default"])
    app = FastAPI()

    def on(alias: str, function: Callable[[Any], Any]) -> Any:
        return function(connections[alias])

    @app.get("/")
    async def handler() -> list[Any]:
        for alias in ("default", "other"):
            await run(on, alias, lambda found: setattr(found, "tenant", found.alias))
        return [
            await run(on, alias, lambda found: getattr(found, "tenant", None))
            for alias in ("default", "other")
        ]

    async def main() -> None:
        async with client_of(app, threads=1, thread_timeout=5) as client:
            for _ in range(3):
                assert (await client.get("/")).json() == ["default", "other"]
                assert await run(on, "other", lambda found: getattr(found, "tenant", None)) is None

    with ExitStack() as stack:
        connections.settings["other"] = url
        stack.callback(connections.settings.pop, "other")
        asyncio.run(main())
