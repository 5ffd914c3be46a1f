"""Parts of published live lists: how much anybody may ask for, and what that costs the others."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from django.db import connection
from fastapi import Depends, FastAPI, Request

from fastapi_django_orm import CachedRepository, DjangoORM, ORMSettings, Repository
from fastapi_django_orm.errors import InvalidRepository
from fastapi_django_orm.reading import windows as reading_windows
from fastapi_django_orm.reading.live_queries import LiveQueries
from fastapi_django_orm.reading.readers import ColumnReader
from fastapi_django_orm.reading.windows import LARGE_AT_ONCE, Windows, is_large
from tests.support.gates import Gate
from tests.support.serving import DEADLINE, serving

pytestmark = pytest.mark.usefixtures("sqlite")

ROWS = 2500
LARGE = 101  # rows


@pytest.fixture
def many(sqlite: str) -> None:
    add_topics(ROWS, "'topic ' || n")


def add_topics(rows: int, comment: str) -> None:
    with connection.cursor() as cursor:  # as instances they would take longer than all the rest
        cursor.execute(
            "INSERT INTO board_topic (comment, tags, created_at)"
            " WITH RECURSIVE counter(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM counter WHERE n < %s)"
            f" SELECT {comment}, '[]', '2026-01-01 00:00:00' FROM counter",
            [rows],
        )


def live(base: type[Any] = Repository, **attributes: Any) -> type[Any]:
    """A published repository of topics."""
    given = {"model": "board.Topic", "fields": ("id", "comment"), "publish": "/live/", **attributes}
    return type("Live", (base,), given)


def plain(repository: type[Any], **settings: Any) -> FastAPI:
    """An application that answers in front of its router."""
    plugin = DjangoORM(ORMSettings(**settings), repositories=[repository])
    return FastAPI(lifespan=plugin.lifespan)


def with_middleware(repository: type[Any], **settings: Any) -> FastAPI:
    """One with middleware that has a `receive` of its own."""
    app = plain(repository, **settings)

    @app.middleware("http")
    async def nothing(request: Request, call_next: Any) -> Any:
        return await call_next(request)

    return app


def with_dependencies(repository: type[Any], **settings: Any) -> FastAPI:
    """One that answers from routes."""

    async def nothing() -> None:
        """Guard nothing."""

    plugin = DjangoORM(ORMSettings(**settings), repositories=[repository])
    return FastAPI(lifespan=plugin.lifespan, dependencies=[Depends(nothing)])


everywhere = pytest.mark.parametrize(
    "make", [plain, with_middleware, with_dependencies], ids=lambda make: make.__name__
)


def count(answer: httpx.Response) -> int:
    assert answer.status_code == 200, answer.text
    return len(answer.json()["live"])


# How much


@everywhere
def test_a_live_list_gives_a_thousand_rows_at_most(make: Callable[..., FastAPI], many: None) -> None:
    """Without `limit` too; more is refused with what is allowed, which the OpenAPI document says."""
    with serving(make(live())) as client:
        assert count(client.get("/live/")) == 1000
        assert count(client.get("/live/?offset=2000")) == ROWS - 2000
        assert count(client.get("/live/?limit=1000")) == 1000
        assert client.get("/live/?offset=100000").json() == {"live": []}
        for query, most in (("limit=1001", 1000), ("limit=" + "9" * 40, 1000), ("offset=100001", 100_000)):
            answer = client.get(f"/live/?{query}")
            assert answer.status_code == 422
            assert f"less than or equal to {most}" in answer.text
            assert client.head(f"/live/?{query}").status_code == 422
        offset, limit = client.get("/openapi.json").json()["paths"]["/live/"]["get"]["parameters"]
        assert offset["schema"] | {"maximum": 100_000, "minimum": 0} == offset["schema"]
        assert limit["schema"] | {"maximum": 1000, "default": 1000, "minimum": 1} == limit["schema"]


@everywhere
@pytest.mark.parametrize("base", [Repository, CachedRepository])
def test_limits_of_a_repositorys_own(make: Callable[..., FastAPI], base: type[Any], many: None) -> None:
    """Of a live list, and of one from memory, which has none by itself."""
    with serving(make(live(base, max_limit=20, max_offset=50))) as client:
        assert count(client.get("/live/")) == 20
        assert count(client.get("/live/?offset=50")) == 20
        assert client.get("/live/?limit=21").status_code == 422
        assert client.get("/live/?offset=51").status_code == 422
    with serving(make(live(base, max_limit=None, max_offset=None))) as client:
        assert count(client.get("/live/")) == ROWS
        assert count(client.get("/live/?limit=2000")) == 2000
        assert client.get("/live/?offset=1000000000").json() == {"live": []}
    with serving(make(live(CachedRepository))) as client:
        assert count(client.get("/live/")) == ROWS


@pytest.mark.parametrize(
    "limits", [{"max_limit": 0}, {"max_limit": "20"}, {"max_limit": True}, {"max_offset": -1}]
)
def test_limits_that_are_none(limits: dict[str, Any]) -> None:
    """The start says which, and what to write."""
    (name,) = limits
    app = plain(live(**limits))
    with pytest.raises(InvalidRepository, match=rf"Live\.{name}: .* whole number"), serving(app):
        pass


# What it costs the others


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """What reads of large windows pass, on their threads, before they begin."""
    gate, read = Gate(), LiveQueries.read_window

    def gated(self: LiveQueries, window: Any, *is_wanted: Any) -> Any:
        if is_large(window):
            gate.enter()
        return read(self, window, *is_wanted)

    monkeypatch.setattr(LiveQueries, "read_window", gated)
    yield gate
    gate.open()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Windows]:
    """What reads the windows of the application that starts next."""
    made: list[Windows] = []
    init = Windows.__init__
    monkeypatch.setattr(Windows, "__init__", lambda self, *given: made.append(self) or init(self, *given))
    return made


def wanted(reads: list[Windows]) -> list[bool]:
    """For each large window that waits whether anybody still wants it."""
    return [asked.is_wanted() for asked in [*reads[0]._large.waiting.values()]]


def soon(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.005)


class Asking:
    """A client that asks for windows on connections of their own, and does not read answers by itself."""

    def __init__(self, client: httpx.Client, stack: ExitStack) -> None:
        self._address = (client.base_url.host, client.base_url.port)
        self._stack = stack

    def ask(self, limit: int, method: str = "GET") -> socket.socket:
        connection = self._stack.enter_context(socket.create_connection(self._address, DEADLINE))
        request = f"{method} /live/?limit={limit} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        connection.sendall(request.encode())
        return connection

    @staticmethod
    def status(connection: socket.socket) -> int:
        """Read an answer to its end; its status."""
        answer = b""
        while more := connection.recv(2**16):
            answer += more
        return int(answer.split(None, 2)[1])


@pytest.fixture
def asking() -> Iterator[Callable[[httpx.Client], Asking]]:
    with ExitStack() as stack:
        yield lambda client: Asking(client, stack)


Ask = Callable[[httpx.Client], Asking]


@everywhere
def test_small_windows_do_not_wait_for_large_ones(
    make: Callable[..., FastAPI], many: None, gate: Gate, reads: list[Windows], asking: Ask
) -> None:
    """However many large ones are asked for, they are read a few at a time, and small ones go beside them."""
    gate.close()
    with serving(make(live())) as client:
        ask = asking(client)
        large = [ask.ask(LARGE + number) for number in range(10)]
        for _ in range(LARGE_AT_ONCE):
            gate.wait_for_load()
        soon(lambda: len(wanted(reads)) == 10 - LARGE_AT_ONCE)
        assert count(client.get("/live/?limit=20")) == 20
        assert count(client.get(f"/live/?offset={ROWS - 1}&limit=5")) == 1
        gate.open()
        assert [ask.status(each) for each in large] == [200] * 10
        assert (gate.loads, gate.most) == (10, LARGE_AT_ONCE)


@everywhere
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_windows_whose_clients_have_gone_are_not_read(
    make: Callable[..., FastAPI],
    many: None,
    gate: Gate,
    reads: list[Windows],
    asking: Ask,
    caplog: pytest.LogCaptureFixture,
    method: str,
) -> None:
    """Nor does anybody hear of an error."""
    gate.close()
    with serving(make(live())) as client:
        ask = asking(client)
        large = [ask.ask(LARGE + number, method) for number in range(LARGE_AT_ONCE)]
        for _ in large:
            gate.wait_for_load()
        gone = [ask.ask(500 + number, method) for number in range(20)]
        stays = ask.ask(600, method)
        soon(lambda: wanted(reads) == [True] * 21)
        for each in gone:
            each.close()
        soon(lambda: wanted(reads).count(True) == 1)
        gate.open()
        assert [ask.status(each) for each in (*large, stays)] == [200] * (LARGE_AT_ONCE + 1)
        assert gate.loads == LARGE_AT_ONCE + 1
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []


def test_a_window_is_read_no_further_when_its_client_has_gone(
    many: None, monkeypatch: pytest.MonkeyPatch, asking: Ask, reads: list[Windows]
) -> None:
    """Between two chunks of rows it is given up."""
    read, chunks, begun, go_on = ColumnReader.read, 0, threading.Event(), threading.Event()

    def counted(self: ColumnReader, *given: Any, **named: Any) -> Iterator[Any]:
        nonlocal chunks
        for chunk in read(self, *given, **named):
            chunks += 1
            begun.set()
            assert go_on.wait(DEADLINE)
            yield chunk

    asked: list[Any] = []
    read_window = Windows._read
    monkeypatch.setattr(
        Windows, "_read", lambda self, *given: asked.append(given[1]) or read_window(self, *given)
    )
    monkeypatch.setattr(ColumnReader, "read", counted)
    with serving(plain(live(max_limit=None))) as client:
        connection = asking(client).ask(ROWS)
        assert begun.wait(DEADLINE)
        connection.close()
        soon(lambda: not asked[0].is_wanted())
        go_on.set()
        soon(lambda: reads[0]._large.running == 0)
        assert chunks == 1


def test_each_window_is_handed_out_as_soon_as_it_is_read(
    many: None, gate: Gate, asking: Ask, reads: list[Windows]
) -> None:
    """Though others that were asked for at the same moment are not."""
    held = threading.Event()
    slow = LARGE + 1

    with serving(plain(live())) as client, pytest.MonkeyPatch.context() as monkeypatch:
        read = LiveQueries.read_window

        def one_is_slow(self: LiveQueries, window: Any, *is_wanted: Any) -> Any:
            if window[1] == slow:
                assert held.wait(DEADLINE)
            return read(self, window, *is_wanted)

        monkeypatch.setattr(LiveQueries, "read_window", one_is_slow)
        ask = asking(client)
        connections = [ask.ask(LARGE + number) for number in range(4)]
        others = [each for number, each in enumerate(connections) if number != 1]
        assert [ask.status(each) for each in others] == [200] * 3
        held.set()
        assert ask.status(connections[1]) == 200


def test_a_window_that_many_ask_for_is_read_once(
    many: None, gate: Gate, asking: Ask, reads: list[Windows]
) -> None:
    """All who wait for it have the same bytes."""
    gate.close()
    with serving(plain(live())) as client:
        ask = asking(client)
        others = [ask.ask(LARGE + number) for number in range(LARGE_AT_ONCE)]
        for _ in others:
            gate.wait_for_load()
        same = [ask.ask(700) for _ in range(10)]
        soon(lambda: [len(each.futures) for each in [*reads[0]._large.waiting.values()]] == [10])
        gate.open()
        assert [ask.status(each) for each in (*others, *same)] == [200] * (LARGE_AT_ONCE + 10)
        assert gate.loads == LARGE_AT_ONCE + 1


@everywhere
def test_clients_that_read_slowly_hold_a_bounded_number_of_bytes(
    make: Callable[..., FastAPI],
    sqlite: str,
    monkeypatch: pytest.MonkeyPatch,
    asking: Ask,
    reads: list[Windows],
) -> None:
    """Beyond that large windows wait, and end with 503; small ones are served."""
    add_topics(150, "'%%' || hex(zeroblob(50000))")  # 15 MB: more than sockets take
    monkeypatch.setattr(reading_windows, "MOST_BYTES", 10 * 2**20)
    with serving(make(live(), thread_timeout=0.3)) as client:
        ask = asking(client)
        slow = ask.ask(120)
        soon(lambda: reads[0]._bytes > 0)
        answer = client.get("/live/?limit=130")
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
        assert "fewer rows" in answer.json()["detail"]
        assert count(client.get("/live/?limit=2")) == 2
        slow.close()
        soon(lambda: reads[0]._bytes == 0)
        assert count(client.get("/live/?limit=130")) == 130


def test_a_window_outside_of_the_event_loop_of_the_application(many: None) -> None:
    """Under async_to_sync, in a transaction or on another loop it is read alone."""

    async def main() -> None:
        app = plain(repository := live())
        async with app.router.lifespan_context(app):
            board = await repository.current()
            listed = await asyncio.to_thread(lambda: asyncio.run(board.live.window(0, 2)))
            assert len(json.loads(listed)["live"]) == 2

    asyncio.run(main())
