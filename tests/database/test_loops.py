"""Loops over rows that span calls: their connection is not lent, and they keep nobody from the database."""

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator, Iterator
from tempfile import SpooledTemporaryFile
from typing import Any

import pytest
from django.db import IntegrityError, connection, connections
from django.db.models import Value
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from fastapi_django_orm import atomic, run
from fastapi_django_orm.database.cursors import _moved
from tests.project.board.models import Topic
from tests.support.databases import (
    BOARD,
    DEADLINE,
    ask,
    client_of,
    default_changed,
    end_session,
    failed,
    session,
    until,
)
from tests.support.handlers import count
from tests.support.playing import play

ROWS = 300

on_postgresql = pytest.mark.parametrize("default_database", ["postgresql"], indirect=True)


@pytest.fixture(autouse=True)
def _rows(default_database: str) -> None:
    Topic.objects.bulk_create([Topic(comment=f"{number:03}") for number in range(ROWS)])
    connections.close_all()


def topics(chunk: int = 10) -> AsyncIterator[Topic]:
    return Topic.objects.order_by("comment").aiterator(chunk_size=chunk)


async def read_on(loop: AsyncIterator[Topic]) -> list[int]:
    return [int(topic.comment) async for topic in loop]


def open_cursors() -> int:
    """The cursors that the server has open, in this session."""
    return int(ask("SELECT count(*) FROM pg_cursors WHERE name LIKE '\\_django\\_curs%'"))


@pytest.mark.parametrize("threads", [1, 3])
def test_loops_beside_transactions_that_fail(threads: int, default_database: str) -> None:
    """Loops read all of their rows, in order, whatever fails beside them; and disturb nothing themselves."""

    async def loop() -> list[int]:
        found = []
        async for topic in topics():
            found.append(int(topic.comment))
            if len(found) % 10 == 0:
                await asyncio.sleep(0)
        return found

    async def fails(number: int) -> None:
        async def twice() -> None:
            async with atomic():
                await Topic.objects.acreate(pk=1000 + number, comment="999")
                try:
                    await Topic.objects.acreate(pk=1000 + number, comment="twice")
                except IntegrityError:
                    await asyncio.sleep(0.005)
                    raise

        with pytest.raises(IntegrityError):
            await twice()

    async def main() -> None:
        loops = [loop() for _ in range(4)]
        found = await asyncio.gather(*loops, *map(fails, range(20)))
        assert found[:4] == [list(range(ROWS))] * 4
        assert await run(count) == ROWS

    play(main, threads=threads, thread_timeout=10)


def test_slow_downloads_do_not_stop_the_application(default_database: str) -> None:
    """With more open loops than connections everything else is answered, and the loops end as they began."""
    app, go, inside = FastAPI(), asyncio.Event(), asyncio.Semaphore(0)

    @app.get("/download")
    async def download() -> StreamingResponse:
        async def lines() -> AsyncIterator[str]:
            async for topic in topics(chunk=7):
                if topic.comment == "010":
                    inside.release()
                    await go.wait()
                yield f"{topic.comment}\n"

        return StreamingResponse(lines())

    @app.get("/download/def")
    def download_by_def() -> StreamingResponse:
        rows = Topic.objects.order_by("comment").iterator(chunk_size=7)
        return StreamingResponse(f"{topic.comment}\n" for topic in rows)

    @app.get("/count")
    async def counted() -> int:
        return await Topic.objects.acount()

    expected = "".join(f"{number:03}\n" for number in range(ROWS))

    async def main() -> None:
        async with client_of(app, threads=2, thread_timeout=5) as client:
            slow = [asyncio.create_task(client.get("/download")) for _ in range(6)]
            for _ in slow:
                await asyncio.wait_for(inside.acquire(), DEADLINE)
            assert not failed(await asyncio.gather(*(client.get("/count") for _ in range(20))))
            assert (await client.get("/download/def")).text == expected
            go.set()
            assert {answer.text for answer in await asyncio.gather(*slow)} == {expected}
            assert not failed([await client.get("/count")])

    asyncio.run(main())


@on_postgresql
def test_a_loops_connection_is_not_lent(default_database: str) -> None:
    """While there are others, no call gets the connection that an open loop reads from, until it ends."""

    async def main() -> None:
        first = await run(session)
        loop = topics()
        await anext(loop)
        assert first not in {await run(session) for _ in range(3)}
        assert len(await read_on(loop)) == ROWS - 1
        assert first in {*await asyncio.gather(*(run(session) for _ in range(4)))}

    play(main, threads=4)


def test_rows_that_cannot_be_put_into_a_file() -> None:
    """Where values cannot be pickled they are kept as they are."""

    class Odd:
        def __reduce__(self) -> Any:
            raise TypeError

    rows = [(1, "a"), (2, Odd()), (3, "c")]

    class Cursor:
        left = rows

        def fetchmany(self, size: int) -> list[Any]:
            taken, self.left = self.left[:1], self.left[1:]
            return taken

    with SpooledTemporaryFile() as file:
        assert list(_moved(Cursor(), file)) == rows


@on_postgresql
@pytest.mark.parametrize("chunk", [1, 10, ROWS, 2 * ROWS])
def test_more_than_memory_is_given(
    chunk: int, default_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that are read ahead into a file come in order, once, whatever the size of the loop's steps."""
    monkeypatch.setattr("fastapi_django_orm.database.cursors.IN_MEMORY", 100)
    monkeypatch.setattr("fastapi_django_orm.database.cursors.ROWS_AT_ONCE", 7)

    async def main() -> None:
        loop = topics(chunk)
        first = await anext(loop)
        await run(count)  # on the only connection
        assert [int(first.comment), *await read_on(loop)] == list(range(ROWS))

    play(main, threads=1)


@on_postgresql
@pytest.mark.parametrize("how", ["left", "collected", "in a cycle"])
def test_abandoned_loops(how: str, default_database: str) -> None:
    """A loop that is left early, or just forgotten, leaves no cursor on the server and no warning."""

    async def left() -> None:
        async for _ in topics():
            break

    async def collected() -> None:
        await anext(topics())

    async def in_a_cycle() -> None:
        class Cycle:
            loop = topics()
            itself: Any

        cycle = Cycle()
        cycle.itself, gone = cycle, weakref.ref(cycle)
        await anext(cycle.loop)
        del cycle
        gc.collect()
        assert gone() is None

    async def main() -> None:
        for _ in range(3):
            await {"left": left, "collected": collected, "in a cycle": in_a_cycle}[how]()
        gc.collect()
        await asyncio.sleep(0)
        assert await run(open_cursors) == 0

    play(main, threads=1)


@on_postgresql
def test_an_abandoned_loop_is_cleaned_up_though_nobody_calls(default_database: str, postgresql: Any) -> None:
    """With CONN_MAX_AGE = 0 the connection of a loop that was left is closed soon."""

    async def main() -> None:
        async for _ in topics():
            break
        await until(lambda: postgresql.connections(BOARD) == 0, "closed")

    with default_changed(CONN_MAX_AGE=0):
        play(main, threads=2)


@on_postgresql
def test_a_loop_that_is_left_after_its_session_has_ended(default_database: str) -> None:
    """Its cursor cannot be closed any more, and its connection is replaced, as that of any other call."""

    def left() -> None:
        rows = iter(Topic.objects.iterator(chunk_size=10))
        next(rows)
        number = session()
        thread = threading.Thread(target=end, args=[number])
        thread.start()
        thread.join(DEADLINE)

    def end(number: int) -> None:
        end_session(number)
        connections.close_all()

    async def main() -> None:
        for _ in range(3):
            await run(left)
            assert await run(count) == ROWS

    play(main, threads=1, thread_timeout=5)


def test_a_loop_in_a_transaction(default_database: str) -> None:
    """Inside atomic() a loop reads on the transaction's connection, and sees what was written there."""

    async def main() -> None:
        async with atomic():
            await Topic.objects.acreate(comment="300")
            assert await read_on(topics()) == list(range(ROWS + 1))

    play(main, threads=1)


@pytest.mark.parametrize("default_database", ["sqlite"], indirect=True)
def test_sqlite_gives_rows_as_they_are_read(default_database: str) -> None:
    """Within one call rows come from SQLite one after the other: a load does not hold them all."""
    most = 0
    alive: weakref.WeakSet[Topic] = weakref.WeakSet()

    def read() -> Iterator[int]:
        nonlocal most
        for topic in Topic.objects.annotate(one=Value(1)).iterator(chunk_size=10):
            alive.add(topic)
            most = max(most, len(connection.loops))  # type: ignore[attr-defined]
            yield topic.pk

    async def main() -> None:
        assert len(await run(lambda: list(read()))) == ROWS
        assert most == 1  # a cursor that is open while its rows are read

    play(main, threads=1)
