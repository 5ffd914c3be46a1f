"""What tests of connections need: Django's `default` changed for a while, applications without a server."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx
from django.conf import settings
from django.core.management import call_command
from django.db import connection, connections, models
from fastapi import FastAPI

from fastapi_django_orm import DjangoORM, ORMSettings, atomic, run
from fastapi_django_orm.application import find
from tests.project import router

BOARD = "board"  # the database's name on every server
DEADLINE = 20.0  # seconds


def set_default(config: dict[str, Any]) -> None:
    """Let Django's alias `default` be another database."""
    connections["default"].close()
    del connections["default"]
    settings.DATABASES["default"] = config
    connections.__dict__.pop("settings", None)  # a cached property; Django's own tests do the same
    connections._settings = None  # type: ignore[attr-defined]


@contextmanager
def default_changed(migrate: bool = False, **changes: Any) -> Iterator[None]:
    """Django's alias `default` with other settings, for the length of the block."""
    before = settings.DATABASES["default"]
    base = {} if "ENGINE" in changes else before
    set_default({**base, **changes})
    try:
        if migrate:
            call_command("migrate", verbosity=0, run_syncdb=True)
            connections.close_all()
        yield
    finally:
        set_default(before)


@contextmanager
def created(*tables: type[models.Model]) -> Iterator[None]:
    """The tables of models that the project does not have, for the length of the block."""
    connection = connections[router.chosen]
    with connection.schema_editor() as editor:
        for table in tables:
            editor.create_model(table)
    try:
        yield
    finally:
        with connection.schema_editor() as editor:
            for table in reversed(tables):
                editor.delete_model(table)


def through(url: str, port: int) -> str:
    """The URL with another port."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{parts.netloc.rsplit(':', 1)[0]}:{port}"))


@asynccontextmanager
async def application(**options: Any) -> AsyncIterator[FastAPI]:
    """An application that runs, without a server; the options are those of `ORMSettings`."""
    app = FastAPI()
    async with DjangoORM(ORMSettings(**options), repositories=[]).lifespan(app):
        yield app


@asynccontextmanager
async def client_of(app: FastAPI, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application whose lifespan is open for the length of the block."""
    async with DjangoORM(ORMSettings(**options), repositories=[]).lifespan(app):
        # As a server does: an error is a 500.
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=DEADLINE) as client:
            yield client


async def get(base: str, path: str) -> tuple[str, int, str]:
    """Ask a server for a path, at less cost than with httpx: the path, the status, the body."""
    parts = urlsplit(base)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n".encode())
        head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
    finally:
        writer.close()
        await writer.wait_closed()
    return path, int(head.split()[1]) if head else 0, body


async def get_all(base: str, paths: Iterable[str]) -> list[tuple[str, int, str]]:
    """Ask for them all at once."""
    return await asyncio.gather(*(get(base, path) for path in paths))


def session() -> int:
    """The number that the server knows the running code's connection by."""
    function = {"postgresql": "pg_backend_pid()", "mysql": "connection_id()"}[connection.vendor]
    return int(ask(f"SELECT {function}"))


def end_session(number: int) -> None:
    """Have the server end a connection."""
    statement = {"postgresql": "SELECT pg_terminate_backend(%s)", "mysql": "KILL %s"}[connection.vendor]
    with connection.cursor() as cursor:
        cursor.execute(statement, [number])


def sleep(seconds: float) -> None:
    """Keep the connection busy on the server."""
    function = {"postgresql": "pg_sleep", "mysql": "SLEEP"}[connection.vendor]
    ask(f"SELECT {function}({seconds})")


def ask(query: str) -> Any:
    """The only value of a query."""
    with connection.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchone()[0]


def wait_until(condition: Callable[[], Any], what: str) -> None:
    """Look again and again, for what a server does in its own time."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"not within {DEADLINE} s: {what}"
        time.sleep(0.02)


def wait_until_gone(server: Any) -> None:
    """Return when no client of the board is left; servers notice a closed socket a little later."""
    wait_until(lambda: server.connections(BOARD) == 0, "all connections gone")


def failed(responses: Iterable[httpx.Response]) -> list[str]:
    """What has gone wrong with which requests."""
    return [f"{r.url.path} {r.status_code} {r.text}" for r in responses if r.status_code != 200]


async def until(condition: Callable[[], Any], what: str) -> None:
    """As `wait_until`, beside a running event loop."""
    await asyncio.to_thread(wait_until, condition, what)


async def sessions(number: int) -> set[int]:
    """Open as many connections, by using them at once; the numbers that the server knows them by."""
    barrier = threading.Barrier(number)

    def use() -> int:
        found = session()
        barrier.wait(DEADLINE)
        return found

    return set(await asyncio.gather(*(run(use) for _ in range(number))))


def on_every_thread(function: Callable[[], Any], threads: int) -> list[asyncio.Future[Any]]:
    """Run a function on each of an application's threads: handlers', and those of its own reads."""
    executor = find("a test").executor
    calls = [asyncio.ensure_future(run(function)) for _ in range(threads)]
    return [*calls, *(asyncio.wrap_future(executor.own.submit(function)) for _ in range(threads))]


@asynccontextmanager
async def transactions_held(number: int) -> AsyncIterator[asyncio.Event]:
    """As many open transactions, each of a task that waits, until the block ends or the event is set."""
    release = asyncio.Event()
    begun = asyncio.Semaphore(0)

    async def hold() -> None:
        async with atomic():
            begun.release()
            await release.wait()

    async with asyncio.TaskGroup() as holders:
        for _ in range(number):
            holders.create_task(hold())
        for _ in range(number):
            await asyncio.wait_for(begun.acquire(), DEADLINE)
        try:
            yield release
        finally:
            release.set()
