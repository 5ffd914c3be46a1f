"""Transactions: one connection for all that runs inside, committed once, or rolled back whatever happens."""

# ruff: noqa: PT012 - exceptions that leave a block are what this is about

import asyncio
import gc
import itertools
import os
import socket
import threading
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager, nullcontext, suppress
from contextvars import copy_context
from functools import partial
from queue import Queue
from typing import Annotated, Any

import anyio
import anyio.from_thread
import anyio.to_thread
import httpx
import pytest
from anyio.to_thread import run_sync as anyio_by_name
from asgiref.sync import SyncToAsync, async_to_sync, sync_to_async
from django.conf import settings
from django.core.exceptions import SynchronousOnlyOperation
from django.db import IntegrityError, connection, connections, transaction
from django.db.transaction import TransactionManagementError
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from fastapi.concurrency import contextmanager_in_threadpool
from fastapi.responses import StreamingResponse
from fastapi.sse import EventSourceResponse
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send
from structlog.testing import capture_logs

from fastapi_django_orm import DjangoORM, InTransaction, ORMSettings, atomic, run
from fastapi_django_orm.dependencies import in_transaction
from fastapi_django_orm.errors import DatabaseBusy, InvalidHandler, TransactionLeftOpen
from tests.project.board.models import Author, Topic
from tests.support.databases import client_of, set_default, until
from tests.support.gates import started
from tests.support.playing import DEADLINE, awrite, committed, outside, play, stored, wait_for, write
from tests.support.servers import PostgreSQL
from tests.support.serving import serving


def backend() -> int:
    """Which connection to the database the running code has."""
    connection.ensure_connection()
    return id(connection.connection)


# For what SQLite, with its single writer, would serialise.
on_postgresql = pytest.mark.parametrize("default_database", ["postgresql"], indirect=True)


def is_open() -> bool:
    """Whether the running code is in a transaction."""
    return connection.in_atomic_block


async def _nested_write(comment: str) -> None:
    async with atomic():
        await awrite(comment)


# Committing and rolling back


def test_a_block_commits_when_it_ends(default_database: str) -> None:
    """What a block has written is seen by others when it has ended, and not before."""

    async def main() -> None:
        async with atomic():
            await awrite("inside")
            assert await committed() == []
        assert await committed() == ["inside"]

    play(main)


def test_an_exception_rolls_a_block_back(default_database: str) -> None:
    """An exception that leaves the block takes with it all that the block has written, and arrives."""

    async def main() -> None:
        with pytest.raises(LookupError, match="mine"):
            async with atomic():
                await awrite("inside")
                raise LookupError("mine")
        assert await committed() == []
        await awrite("after")
        assert await committed() == ["after"]

    play(main)


def test_everything_inside_sees_one_transaction(default_database: str) -> None:
    """Whatever way the code runs, inside a block it sees what the block has written, on its connection."""

    async def main() -> None:
        async with atomic():
            await awrite("inside")
            mine = await run(backend)
            assert await sync_to_async(backend)() == mine
            assert await run_in_threadpool(backend) == mine
            assert await asyncio.create_task(run(backend)) == mine
            assert await run(stored) == ["inside"]
            assert await sync_to_async(stored)() == ["inside"]
            assert await run_in_threadpool(stored) == ["inside"]
            assert [topic.comment async for topic in Topic.objects.all()] == ["inside"]
            assert [topic.comment async for topic in Topic.objects.aiterator(chunk_size=1)] == ["inside"]
            assert await Topic.objects.acount() == 1
            async with asyncio.TaskGroup() as group:
                group.create_task(awrite("from a task"))
                group.create_task(run(write, "from another"))
                group.create_task(run_in_threadpool(write, "from AnyIO's"))
            assert await committed() == []
        assert await committed() == ["from AnyIO's", "from a task", "from another", "inside"]

    play(main)


def test_a_block_within_a_call_works_as_ever(default_database: str) -> None:
    """Django's own transaction.atomic() in synchronous code keeps its meaning, alone and inside a block."""

    def twice(comment: str) -> None:
        with transaction.atomic():
            write(comment)
            with pytest.raises(LookupError), transaction.atomic():
                write(f"not {comment}")
                raise LookupError

    async def main() -> None:
        await run(twice, "alone")
        assert await committed() == ["alone"]
        async with atomic():
            await run(twice, "inside")
            assert await committed() == ["alone"]
        assert await committed() == ["alone", "inside"]

    play(main)


def test_a_block_that_fails_to_commit_says_so(default_database: str) -> None:
    """An error of the database inside a block leaves it as Django's error, and nothing stays behind."""

    async def main() -> None:
        author = await Author.objects.acreate(pk=1, name="one")
        with pytest.raises(IntegrityError):
            async with atomic():
                await awrite("inside")
                await Author.objects.acreate(pk=author.pk, name="two")
        assert await committed() == []
        assert not await run(is_open)

    play(main, threads=1)


# Callbacks


def test_on_commit_runs_after_the_commit(default_database: str) -> None:
    """A callback runs once, when others see what was written, and before the block has been left."""
    seen: list[list[str]] = []

    def callback() -> None:
        seen.append(stored())
        write("from the callback")

    async def main() -> None:
        async with atomic():
            await awrite("inside")
            await run(transaction.on_commit, callback)
            await run_in_threadpool(transaction.on_commit, callback)
            assert seen == []
        assert seen == [["inside"], ["from the callback", "inside"]]
        assert await committed() == ["from the callback", "from the callback", "inside"]

    play(main, threads=1)


def test_on_commit_does_not_run_after_a_rollback(default_database: str) -> None:
    """Callbacks of a block, and of a savepoint, that was rolled back are forgotten."""
    seen: list[str] = []

    async def main() -> None:
        with pytest.raises(LookupError):
            async with atomic():
                await run(transaction.on_commit, partial(seen.append, "outer"))
                raise LookupError
        async with atomic():
            with pytest.raises(LookupError):
                async with atomic():
                    await run(transaction.on_commit, partial(seen.append, "nested"))
                    raise LookupError
            await run(transaction.on_commit, partial(seen.append, "kept"))
        assert seen == ["kept"]

    play(main)


# Nested blocks


def test_a_nested_block_is_a_savepoint(default_database: str) -> None:
    """A nested block that raises takes back its own writes and nothing else."""

    async def main() -> None:
        async with atomic():
            await awrite("outer")
            with pytest.raises(LookupError):
                async with atomic():
                    await awrite("nested")
                    assert await run(stored) == ["nested", "outer"]
                    raise LookupError
            assert await run(stored) == ["outer"]
            async with atomic():
                await awrite("kept")
                async with atomic():
                    await awrite("deep")
            assert await committed() == []
        assert await committed() == ["deep", "kept", "outer"]

    play(main)


def test_without_a_savepoint_the_outer_block_is_lost_too(default_database: str) -> None:
    """A nested block with savepoint=False that raises dooms the outer one, as in Django, which says so."""

    async def main() -> None:
        with pytest.raises(TransactionManagementError, match="ended without an exception"):
            async with atomic():
                await awrite("outer")
                with pytest.raises(LookupError):
                    async with atomic(savepoint=False):
                        raise LookupError
                with pytest.raises(TransactionManagementError):
                    await Topic.objects.acount()
        assert await committed() == []

    play(main)


def test_without_a_savepoint_a_block_is_part_of_the_outer_one(default_database: str) -> None:
    """A nested block with savepoint=False that does not raise is committed with the outer one."""

    async def main() -> None:
        async with atomic(), atomic(savepoint=False):
            assert await run(lambda: connection.savepoint_ids) == [None]
            await awrite("nested")
        assert await committed() == ["nested"]

    play(main)


def _given_up(begun: threading.Event, go_on: threading.Event) -> None:
    begun.set()
    wait_for(go_on)
    Topic.objects.create(pk=Topic.objects.get(comment="first").pk)  # there is one


@pytest.mark.parametrize("nested", [False, True])
def test_a_block_that_was_rolled_back_silently_says_so(default_database: str, nested: bool) -> None:
    """A block that ends without an error, after a call that was given up has failed in it, raises."""
    called: list[str] = []

    async def block() -> None:
        begun, go_on = threading.Event(), threading.Event()
        with pytest.raises(TransactionManagementError, match="on_commit callbacks did not run") as caught:
            async with atomic():
                await awrite("lost")
                await run(lambda: transaction.on_commit(partial(called.append, "lost")))
                task = asyncio.create_task(run(_given_up, begun, go_on))
                await outside(partial(wait_for, begun))
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                go_on.set()
        assert isinstance(caught.value.__cause__, IntegrityError)

    async def main() -> None:
        await awrite("first")
        async with atomic() if nested else nullcontext():
            await block()
        assert await committed() == ["first"]
        assert not called

    play(main, thread_timeout=5)


@pytest.mark.parametrize("way", [run, run_in_threadpool, None])
def test_a_rollback_that_was_asked_for_is_no_error(sqlite: str, way: Any) -> None:
    """transaction.set_rollback(True) rolls a block back quietly, as in Django, at every level."""

    async def main() -> None:
        async with atomic():
            await awrite("kept")
            async with atomic():
                await awrite("nested")
                if way is None:
                    transaction.set_rollback(True)
                else:
                    await way(transaction.set_rollback, True)
        assert await committed() == ["kept"]
        async with atomic():
            await awrite("lost")
            await run(transaction.set_rollback, True)
        assert await committed() == ["kept"]

    play(main, thread_timeout=5)


def test_a_durable_block_refuses_to_be_nested(default_database: str) -> None:
    """A durable block raises Django's error inside another one, and commits at its end otherwise."""

    async def main() -> None:
        async with atomic(durable=True):
            await awrite("durable")
        assert await committed() == ["durable"]
        async with atomic():
            await awrite("outer")
            with pytest.raises(RuntimeError, match="durable"):
                async with atomic(durable=True):
                    raise AssertionError("it was entered")
            await awrite("after the refusal")
        assert await committed() == ["after the refusal", "durable", "outer"]

    play(main)


def test_djangos_atomic_on_the_event_loop_says_what_to_write(sqlite: str) -> None:
    """`with` and `async with transaction.atomic()`, and the decorator, are errors that name `atomic()`."""

    @transaction.atomic
    async def decorated() -> None:
        """Never runs."""

    async def main() -> None:
        async with started():
            with pytest.raises(SynchronousOnlyOperation) as refused, transaction.atomic():
                pass
            assert "`async with atomic():`" in "".join(refused.value.__notes__)
            with pytest.raises(SynchronousOnlyOperation) as refused:
                await decorated()
            assert "`async with atomic():`" in "".join(refused.value.__notes__)
            block: Any = transaction.atomic()
            with pytest.raises(TypeError, match="`async with atomic\\(\\):`"):
                async with block:
                    pass
            assert await run(_in_djangos_atomic) is True

    asyncio.run(main())
    assert not hasattr(transaction.Atomic, "__aenter__")


def _in_djangos_atomic() -> bool:
    with transaction.atomic():
        return transaction.get_connection().in_atomic_block


def test_a_block_without_async_says_what_to_write() -> None:
    """`with atomic():` names the two ways there are."""
    advice = r"Write `async with atomic\(\):`.*`with django.db.transaction.atomic"
    with pytest.raises(TypeError, match=advice), atomic():  # type: ignore[attr-defined]
        pass


@pytest.mark.parametrize("decorate", [atomic, lambda function: atomic()(function)])  # type: ignore[operator]
def test_a_decorator_says_what_to_write(decorate: Any) -> None:
    """`@atomic` and `@atomic()`, which Django's transaction.atomic allows, name the block to write."""
    with pytest.raises(TypeError, match=r"not a decorator.*`async with atomic\(\):`.*InTransaction"):
        decorate(_in_djangos_atomic)


def test_an_atomic_object_is_for_one_block() -> None:
    """One object for two blocks at once would confuse them, so it is refused with what to write."""

    async def main() -> None:
        shared = atomic()
        async with shared:
            with pytest.raises(RuntimeError, match=r"atomic\(\)"):
                async with shared:
                    raise AssertionError("it was entered")
        async with shared:
            await awrite("one after the other is fine")

    play(main)


# Several databases


@pytest.fixture
def second(_databases: Any) -> str:
    """A database beside `default`, with empty tables. Its alias."""
    alias: str = _databases("mariadb")
    Author.objects.using(alias).all().delete()
    connections[alias].close()
    return alias


def authors(alias: str) -> list[str]:
    return sorted(Author.objects.using(alias).values_list("name", flat=True))


async def add_author(alias: str, name: str) -> None:
    await Author.objects.using(alias).acreate(name=name)


@on_postgresql
def test_blocks_of_two_databases_are_independent(default_database: str, second: str) -> None:
    """A block of another database inside a block commits when it ends, and the outer one when it does."""

    async def main() -> None:
        with pytest.raises(LookupError):
            async with atomic():
                await add_author("default", "first")
                async with atomic(using=second):
                    await add_author(second, "second")
                    assert await outside(partial(authors, second)) == []
                assert await outside(partial(authors, second)) == ["second"]
                assert await outside(partial(authors, "default")) == []
                raise LookupError
        assert await outside(partial(authors, second)) == ["second"]
        assert await outside(partial(authors, "default")) == []

    play(main)


@on_postgresql
def test_a_block_is_of_its_database_only(default_database: str, second: str) -> None:
    """What is written to another database inside a block is committed at once."""

    async def main() -> None:
        with pytest.raises(LookupError):
            async with atomic(using=second):
                await add_author("default", "first")
                await add_author(second, "second")
                await run_in_threadpool(lambda: Author.objects.using("default").create(name="in AnyIO's"))
                raise LookupError
        assert await outside(partial(authors, "default")) == ["first", "in AnyIO's"]
        assert await outside(partial(authors, second)) == []

    play(main)


# Locks


@on_postgresql
def test_rows_are_locked_until_the_block_ends(default_database: str) -> None:
    """select_for_update() works inside a block, locks others out until its end, and is refused outside."""

    async def locked() -> Topic:
        return await Topic.objects.select_for_update(nowait=True).aget(comment="row")

    def free_for_others() -> bool:
        with transaction.atomic():
            return Topic.objects.select_for_update(skip_locked=True).exists()

    async def main() -> None:
        await awrite("row")
        async with atomic():
            await locked()
            assert not await outside(free_for_others)
        assert await outside(free_for_others)
        with pytest.raises(TransactionManagementError):
            await locked()

    play(main)


def test_a_counter_is_never_lost_under_locks(default_database: str) -> None:
    """Twenty concurrent read-and-write blocks that lock their row count to twenty."""

    async def count() -> None:
        async with atomic():
            row = await Author.objects.select_for_update().aget(pk=1)
            row.name = str(int(row.name) + 1)
            await row.asave()

    async def main() -> None:
        await Author.objects.acreate(pk=1, name="0")
        await asyncio.gather(*(count() for _ in range(20)))
        assert (await Author.objects.aget(pk=1)).name == "20"

    play(main, threads=4)


# Siblings


@on_postgresql
def test_siblings_are_independent(default_database: str) -> None:
    """Four tasks of one gather are in four transactions at the same time, and end each in its own way."""
    together = asyncio.Barrier(4)

    async def one(number: int) -> int:
        async with atomic():
            await awrite(str(number))
            await together.wait()
            assert await run(stored) == [str(number)]
            mine = await run(backend)
            await together.wait()
            if number % 2:
                raise LookupError
            return mine

    async def main() -> None:
        outcomes = await asyncio.gather(*map(one, range(4)), return_exceptions=True)
        assert [isinstance(outcome, LookupError) for outcome in outcomes] == [False, True, False, True]
        assert outcomes[0] != outcomes[2]
        assert await committed() == ["0", "2"]

    play(main, threads=4)


@on_postgresql
def test_a_sibling_without_a_block_is_in_no_transaction(default_database: str) -> None:
    """A task beside one that is in a block neither sees its writes nor waits for it."""
    inside, looked = asyncio.Event(), asyncio.Event()

    async def writer() -> None:
        async with atomic():
            await awrite("inside")
            inside.set()
            await looked.wait()

    async def reader() -> None:
        await inside.wait()
        assert await run(stored) == []
        assert await run_in_threadpool(stored) == []
        assert not await run(is_open)
        looked.set()

    async def main() -> None:
        await asyncio.gather(writer(), reader())

    play(main, threads=2)


def test_nested_blocks_of_siblings_come_one_after_the_other(default_database: str) -> None:
    """Nested blocks that siblings open inside one block are savepoints that do not overlap."""
    open_now: list[int] = []

    async def one(number: int) -> None:
        async with atomic():
            open_now.append(number)
            await awrite(str(number))
            await asyncio.sleep(0)
            assert open_now == [number]
            await run_in_threadpool(write, f"{number} from AnyIO's")
            open_now.remove(number)
            if number % 2:
                raise LookupError

    async def main() -> None:
        async with atomic():
            await asyncio.gather(*map(one, range(6)), return_exceptions=True)
        kept = [text for number in (0, 2, 4) for text in (f"{number}", f"{number} from AnyIO's")]
        assert await committed() == kept

    play(main)


Back = Callable[[Callable[[], Coroutine[Any, Any, None]]], Awaitable[None]]

# How code that is inside of a block comes to run asynchronous code.
INSIDE: dict[str, Back] = {
    "directly": lambda function: function(),
    "run, async_to_sync": lambda function: run(async_to_sync(function)),
    "sync_to_async, async_to_sync": lambda function: sync_to_async(async_to_sync(function))(),
    "AnyIO, async_to_sync": lambda function: run_in_threadpool(async_to_sync(function)),
    "AnyIO, from_thread": lambda function: run_in_threadpool(anyio.from_thread.run, function),
    "to_thread, async_to_sync": lambda function: asyncio.to_thread(async_to_sync(function)),
    "run, asyncio.run": lambda function: run(lambda: asyncio.run(function())),
}


@pytest.mark.parametrize("inside", INSIDE)
@pytest.mark.parametrize(
    "way", [awrite, partial(run, write), sync_to_async(write), partial(run_in_threadpool, write)]
)
def test_a_plain_query_never_falls_into_a_savepoint_of_a_sibling(
    sqlite: str, way: Callable[[str], Awaitable[Any]], inside: str
) -> None:
    """What a task writes while a sibling is in a nested block survives that block's rollback."""

    async def both() -> None:
        nested, asked = asyncio.Event(), asyncio.Event()

        async def rolled_back() -> None:
            async with atomic():
                nested.set()
                await asked.wait()
                await awrite("nested")
                raise LookupError

        async def plain() -> None:
            await nested.wait()
            writing = asyncio.ensure_future(way("plain"))
            await asyncio.sleep(0)
            asked.set()
            await writing

        await asyncio.gather(rolled_back(), plain(), return_exceptions=True)

    async def main() -> None:
        async with atomic():
            await INSIDE[inside](both)
        assert await committed() == ["plain"]

    play(main, thread_timeout=5)


def test_a_callback_never_falls_into_a_savepoint_of_a_sibling(sqlite: str) -> None:
    """on_commit() on the event loop, while a sibling is in a nested block, survives that block's rollback."""
    called: list[str] = []
    nested, asked = asyncio.Event(), asyncio.Event()

    async def rolled_back() -> None:
        async with atomic():
            await awrite("nested")
            transaction.on_commit(partial(called.append, "nested"))
            nested.set()
            await asked.wait()
            raise LookupError

    async def main() -> None:
        async with atomic():
            transaction.on_commit(partial(called.append, "first"))
            sibling = asyncio.create_task(rolled_back())
            await nested.wait()
            transaction.on_commit(partial(called.append, "beside"))
            asked.set()
            with pytest.raises(LookupError):
                await sibling
            await run(lambda: transaction.on_commit(partial(called.append, "after")))
        assert called == ["first", "beside", "after"]

    play(main)


def test_a_sibling_left_in_a_nested_block_cannot_write_on_alone(default_database: str) -> None:
    """When the outer block fails while a sibling is in a nested one, the sibling's next query fails too."""
    nested, ended = asyncio.Event(), asyncio.Event()

    async def left_behind() -> None:
        async with atomic():
            await awrite("before")
            nested.set()
            await ended.wait()
            await awrite("after")

    async def fails() -> None:
        await nested.wait()
        raise LookupError

    async def main() -> None:
        tasks = []
        with pytest.raises(LookupError):
            async with atomic():
                await awrite("outer")
                tasks = [asyncio.create_task(left_behind()), asyncio.create_task(fails())]
                await asyncio.gather(*tasks)
        ended.set()
        with pytest.raises(TransactionManagementError, match="ended"):
            await tasks[0]
        assert await committed() == []
        async with atomic():
            await awrite("the connection works")
        assert await committed() == ["the connection works"]

    play(main, threads=1)


def test_a_block_commits_without_the_nested_one_of_a_task_that_outlives_it(default_database: str) -> None:
    """A task that is still in a nested block at the commit loses that block, loudly, and the rest is kept."""
    nested, ended = asyncio.Event(), asyncio.Event()

    async def left_behind() -> None:
        async with atomic(), atomic():
            await awrite("nested")
            nested.set()
            await ended.wait()

    async def main() -> None:
        async with atomic():
            await awrite("outer")
            task = asyncio.create_task(left_behind())
            await nested.wait()
        assert await committed() == ["outer"]
        ended.set()
        with pytest.raises(TransactionManagementError, match="ended"):
            await task
        assert await committed() == ["outer"]

    play(main, threads=1)


@pytest.mark.parametrize(
    "way", [awrite, partial(run, write), partial(run_in_threadpool, write), _nested_write]
)
def test_a_call_in_a_block_that_is_being_rolled_back_never_lands_around_it(
    sqlite: str, way: Callable[[str], Awaitable[Any]]
) -> None:
    """A nested block that the end of the outer one rolls back takes no more calls, even before it is over."""
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        write("nested")
        begun.set()
        wait_for(go_on)

    async def left_behind(refused: asyncio.Event) -> None:
        async with atomic():
            first = asyncio.create_task(run(slow))
            await outside(partial(wait_for, begun))
            ending.set()
            await asyncio.sleep(0)  # the outer block asks for its end
            await asyncio.sleep(0)
            with pytest.raises(TransactionManagementError, match="rolled back before its end"):
                await way("late")
            go_on.set()
            await first
            refused.set()

    ending = asyncio.Event()

    async def main() -> None:
        refused = asyncio.Event()
        async with atomic():
            await awrite("outer")
            task = asyncio.create_task(left_behind(refused))
            await ending.wait()
        await refused.wait()
        with pytest.raises(TransactionManagementError):
            await task
        assert await committed() == ["outer"]

    play(main, threads=1, thread_timeout=5)


def test_a_task_that_outlives_the_block_is_outside_of_it(default_database: str) -> None:
    """A task made inside a block writes on a connection of its own once the block has ended."""
    ended = asyncio.Event()

    async def late(way: Callable[[str], Awaitable[Any]], comment: str) -> None:
        await ended.wait()
        assert not await run(is_open)
        await way(comment)
        async with atomic():
            await way(f"{comment} in a block")

    async def main() -> None:
        with pytest.raises(LookupError):
            async with atomic():
                await awrite("inside")
                tasks = [
                    asyncio.create_task(late(awrite, "a")),
                    asyncio.create_task(late(partial(run_in_threadpool, write), "b")),
                ]
                raise LookupError
        ended.set()
        await asyncio.gather(*tasks)
        assert await committed() == ["a", "a in a block", "b", "b in a block"]

    play(main)


# Cancellation


@types.coroutine
def cancelled_at(
    point: int, when: str, work: Coroutine[Any, Any, Any], reached: list[int]
) -> Generator[Any, Any, Any]:
    """Await the work, and cancel the task at its n-th await point: at once, or when the awaited is done."""
    task = asyncio.current_task()
    assert task is not None
    step: Callable[[], Any] = partial(work.send, None)
    for count in itertools.count(1):
        try:
            awaited = step()
        except StopIteration as end:
            return end.value
        if count == point:
            reached.append(point)
            if when == "at once" or awaited is None:
                asyncio.get_running_loop().call_soon(task.cancel)
            else:
                awaited.add_done_callback(lambda _: task.cancel())
        try:
            yield awaited
        except BaseException as error:
            step = partial(work.throw, error)
        else:
            step = partial(work.send, None)
    raise AssertionError("unreachable")


async def at_every_point(
    when: str, work: Callable[[], Coroutine[Any, Any, Any]], check: Callable[[], Awaitable[None]]
) -> None:
    """Cancel the work at each of its await points in turn, and check what is left each time."""
    for point in itertools.count(1):
        reached: list[int] = []

        async def cancelled(point: int = point, reached: list[int] = reached) -> None:
            await cancelled_at(point, when, work(), reached)

        await asyncio.gather(asyncio.create_task(cancelled()), return_exceptions=True)
        await check()
        if not reached:
            return


def transaction_threads() -> int:
    return sum(thread.name.startswith("transaction-") for thread in threading.enumerate())


@pytest.mark.parametrize("when", ["at once", "when it is done"])
def test_a_cancellation_anywhere_leaves_all_or_nothing(default_database: str, when: str) -> None:
    """A task that is cancelled entering, inside or leaving has committed all or nothing and holds nothing."""
    outcomes = set()

    async def work() -> None:
        async with atomic():
            await awrite("1")
            async with atomic():
                await run(write, "2")
            await run_in_threadpool(write, "3")
            await sync_to_async(write)("4")

    async def check() -> None:
        outcomes.add(tuple(await committed()))
        await Topic.objects.all().adelete()  # on the only connection, which is free and in no transaction
        assert not await run(is_open)

    async def main() -> None:
        await at_every_point(when, work, check)
        assert outcomes == {(), ("1", "2", "3", "4")}
        assert transaction_threads() == 1

    play(main, threads=1, thread_timeout=5)


@pytest.mark.parametrize("when", ["at once", "when it is done"])
def test_a_cancelled_nested_block_leaves_the_outer_one_whole(default_database: str, when: str) -> None:
    """When a nested block is cancelled anywhere and the outer one goes on, the outer one commits the rest."""
    outcomes = set()

    async def nested() -> None:
        async with atomic():
            await awrite("nested")

    async def check() -> None:
        outcomes.add(tuple(await committed()))
        await Topic.objects.all().adelete()

    async def main() -> None:
        for point in itertools.count(1):
            reached: list[int] = []
            async with atomic():
                await awrite("before")
                cancelled = asyncio.ensure_future(
                    asyncio.wait_for(_coroutine(cancelled_at(point, when, nested(), reached)), DEADLINE)
                )
                await asyncio.gather(cancelled, return_exceptions=True)
                await awrite("after")
            await check()
            if not reached:
                break
        assert outcomes == {("after", "before"), ("after", "before", "nested")}

    play(main, threads=1, thread_timeout=5)


async def _coroutine(awaitable: Any) -> Any:
    return await awaitable


@pytest.mark.parametrize("when", ["at once", "when it is done"])
@pytest.mark.parametrize("way", ["awrite", "AnyIO", "atomic"])
def test_a_cancelled_wait_for_a_sibling_leaves_it_whole(sqlite: str, when: str, way: str) -> None:
    """A task that is cancelled while it waits for a sibling's nested block does not disturb what follows."""
    ways = {"awrite": awrite, "AnyIO": partial(run_in_threadpool, write), "atomic": _nested_write}

    async def holder(entered: asyncio.Event, go_on: asyncio.Event) -> None:
        async with atomic():
            entered.set()
            await go_on.wait()
            await awrite("held")

    async def main() -> None:
        for point in itertools.count(1):
            reached: list[int] = []
            entered, go_on = asyncio.Event(), asyncio.Event()
            async with atomic():
                holding = asyncio.create_task(holder(entered, go_on))
                await entered.wait()
                work = cancelled_at(point, when, ways[way]("cancelled"), reached)
                waiting = asyncio.ensure_future(_coroutine(work))
                for _ in range(3):
                    await asyncio.sleep(0)
                go_on.set()
                await holding
                await asyncio.gather(waiting, return_exceptions=True)
                await ways[way]("next")
            assert {"held", "next"} <= set(await committed())
            await Topic.objects.all().adelete()
            if not reached:
                break

    play(main, threads=1, thread_timeout=5)


def test_a_timeout_rolls_back(default_database: str) -> None:
    """asyncio.timeout() around a block that takes too long rolls it back and raises TimeoutError."""

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05), atomic():
                await awrite("inside")
                await asyncio.Event().wait()
        assert await committed() == []

    play(main, threads=1)


def test_a_cancel_scope_rolls_back(default_database: str) -> None:
    """AnyIO's cancellation, which comes again at every await, rolls back and lets nothing behind."""

    async def main() -> None:
        with anyio.CancelScope() as scope:
            async with atomic(), atomic():
                await awrite("inside")
                scope.cancel()
                await anyio.sleep_forever()
        assert scope.cancelled_caught
        assert await committed() == []
        await awrite("after")
        assert await committed() == ["after"]

    play(main, threads=1, thread_timeout=5)


@on_postgresql
def test_a_task_group_that_fails_rolls_back_its_other_blocks(default_database: str) -> None:
    """When one task of a group raises, the blocks of the others are rolled back before the group ends."""
    inside = asyncio.Event()

    async def other() -> None:
        async with atomic():
            await awrite("other")
            inside.set()
            await asyncio.Event().wait()

    async def fails() -> None:
        await inside.wait()
        raise LookupError

    async def main() -> None:
        with pytest.raises(ExceptionGroup):
            async with asyncio.TaskGroup() as group:
                group.create_task(other())
                group.create_task(fails())
        assert not await outside(locks)
        assert await committed() == []

    def locks() -> bool:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND state LIKE 'idle in transaction%'"
            )
            return bool(cursor.fetchone()[0])

    play(main, threads=2)


def test_a_thousand_cancelled_blocks_leave_nothing_behind(sqlite: str) -> None:
    """A thousand tasks cancelled in their blocks leave no transaction open and no thread lost."""

    async def work() -> None:
        async with atomic():
            await Topic.objects.acount()
            await asyncio.Event().wait()

    async def main() -> None:
        threads = 0
        for _ in range(20):
            tasks = [asyncio.create_task(work()) for _ in range(50)]
            for turn in range(50):
                await asyncio.sleep(0)
                tasks[turn].cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            threads = max(threads, transaction_threads())
        assert threads <= 50
        before = transaction_threads()
        await asyncio.gather(*(_nested_write("x") for _ in range(4)))
        assert transaction_threads() == before  # those that came back are used again
        assert len(await committed()) == 4

    play(main, threads=4, thread_timeout=5)


def test_a_cancelled_task_does_not_take_the_transaction_from_its_running_call(default_database: str) -> None:
    """A call on AnyIO's threads whose task is cancelled ends its own transaction as it would have."""
    inside, go_on = threading.Event(), threading.Event()

    def work() -> None:
        with transaction.atomic():
            write("first")
            inside.set()
            wait_for(go_on)
            write("second")
            assert stored() == ["first", "second"]
        ended.set()

    ended = threading.Event()

    async def main() -> None:
        task = asyncio.create_task(run_in_threadpool(work))
        await outside(partial(wait_for, inside))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert await committed() == []
        go_on.set()
        await outside(partial(wait_for, ended))
        assert await committed() == ["first", "second"]
        await awrite("the connection is back")

    play(main, threads=1, thread_timeout=5)


def test_a_cancelled_task_whose_call_leaves_a_transaction_open_loses_it(default_database: str) -> None:
    """What a call leaves open is rolled back when its task is gone, and the connection comes back."""
    inside, go_on = threading.Event(), threading.Event()
    block = transaction.atomic()

    def work() -> None:
        block.__enter__()
        write("inside")
        inside.set()
        wait_for(go_on)

    async def main() -> None:
        task = asyncio.create_task(run_in_threadpool(work))
        await outside(partial(wait_for, inside))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        go_on.set()
        await awrite("the connection is back")
        assert await committed() == ["the connection is back"]

    with capture_logs() as entries:
        play(main, threads=1, thread_timeout=10)
    assert "transaction_abandoned" in [entry["event"] for entry in entries]


def test_a_call_in_a_block_is_waited_for_when_its_task_is_cancelled(default_database: str) -> None:
    """A block whose task is cancelled during a call on AnyIO's threads rolls back what that call has done."""
    inside, go_on = threading.Event(), threading.Event()

    def work() -> None:
        write("first")
        inside.set()
        wait_for(go_on)
        write("second")

    async def block() -> None:
        async with atomic():
            await run_in_threadpool(work)

    async def main() -> None:
        task = asyncio.create_task(block())
        await outside(partial(wait_for, inside))
        task.cancel()
        await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await committed() == []

    play(main, threads=1, thread_timeout=5)


@pytest.mark.parametrize("inside", INSIDE)
def test_a_cancelled_block_rolls_back_what_its_running_call_still_writes(sqlite: str, inside: str) -> None:
    """A block that is cancelled ends when its call has: nothing is kept, or lands in another block."""
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO board_author (name) VALUES ('first')")
            begun.set()
            wait_for(go_on)
            cursor.execute("INSERT INTO board_author (name) VALUES ('second')")

    async def service() -> None:
        async with atomic():
            await run(slow)

    async def cancelled() -> None:
        task = asyncio.create_task(service())
        await outside(partial(wait_for, begun))
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def other() -> None:
        await outside(partial(wait_for, begun))
        async with atomic():
            await awrite("other")

    async def main() -> None:
        await asyncio.gather(INSIDE[inside](cancelled), other())
        assert await committed() == ["other"]
        assert await run(lambda: Author.objects.count()) == 0

    play(main, threads=1, thread_timeout=5)


def test_a_call_that_waits_for_a_sibling_in_vain_fails_with_a_line_in_the_log(default_database: str) -> None:
    """A call of a block whose turn does not come within the timeout raises an error that says what to do."""
    begun, go_on = threading.Event(), threading.Event()

    def waits() -> None:
        begun.set()
        wait_for(go_on)

    async def main() -> None:
        async with atomic():
            await awrite("kept")
            first = asyncio.create_task(run(waits))
            await outside(partial(wait_for, begun))
            ways = [
                awrite("a"),
                run(write, "b"),
                run_in_threadpool(write, "c"),
                asyncio.to_thread(write, "d"),
            ]
            for outcome in await asyncio.gather(*ways, _nested_write("e"), return_exceptions=True):
                assert isinstance(outcome, DatabaseBusy)
                assert "call_does_not_end" in str(outcome)
            go_on.set()
            await first
            await awrite("kept, too")
        assert await committed() == ["kept", "kept, too"]

    with capture_logs() as entries:
        play(main, threads=1, thread_timeout=0.3)
    assert [entry["event"] for entry in entries].count("transaction_does_not_go_on") >= 5


@pytest.mark.parametrize("fail", [False, True])
def test_a_block_whose_call_does_not_end_is_rolled_back_when_it_does(
    default_database: str, fail: bool
) -> None:
    """A block waits for its calls no longer than the timeout, and releases its connection when they end."""
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        write("slow")
        begun.set()
        wait_for(go_on)
        write("late")

    async def main() -> None:
        with pytest.raises(LookupError if fail else DatabaseBusy):
            async with atomic():
                await awrite("lost")
                left = asyncio.create_task(run(slow))
                await outside(partial(wait_for, begun))
                if fail:
                    raise LookupError
        go_on.set()
        await left
        assert await run(stored) == []  # on the only connection, which has come back
        async with atomic():
            await awrite("kept")
        assert await committed() == ["kept"]

    play(main, threads=1, thread_timeout=0.3)


@pytest.mark.parametrize("ends_first", [False, True], ids=["while it waits", "before it waits"])
def test_a_call_that_waits_for_a_loop_that_has_ended_goes_on(sqlite: str, ends_first: bool) -> None:
    """async_to_sync in a function whose loop ends meanwhile raises, where the thread would wait for ever."""
    loop, inside, closed = asyncio.new_event_loop(), threading.Event(), threading.Event()
    hand_over = loop.call_soon_threadsafe
    errors: list[str] = []

    def hand_over_slowly(*args: Any) -> Any:
        handle = hand_over(*args)
        if threading.current_thread() is threads[1] and ends_first:
            wait_for(closed)
        return handle

    async def never() -> None:
        inside.set()
        await asyncio.Event().wait()

    def function() -> None:
        # As asgiref's thread_handler does for a call of this loop.
        SyncToAsync.threadlocal.main_event_loop = loop
        SyncToAsync.threadlocal.main_event_loop_pid = os.getpid()
        try:
            async_to_sync(never)()
        except RuntimeError as error:
            errors.append(str(error))

    async def main() -> None:
        for thread in threads:
            thread.start()
        await outside(partial(wait_for, inside))
        loop.call_soon_threadsafe(loop.stop)
        await outside(partial(threads[0].join, DEADLINE))
        loop.close()
        closed.set()
        await outside(partial(threads[1].join, DEADLINE))
        assert "event loop of async_to_sync has ended" in errors[0]

    threads = [threading.Thread(target=each, daemon=True) for each in (loop.run_forever, function)]
    loop.call_soon_threadsafe = hand_over_slowly  # type: ignore[method-assign]
    play(main)


def test_a_call_that_waits_for_a_loop_that_ends_goes_on(default_database: str) -> None:
    """What a thread waits for in a transaction is an error when its loop ends. The transaction goes on."""
    loop = asyncio.new_event_loop()
    begun = asyncio.Event()

    async def never() -> None:
        begun.set()
        await asyncio.Event().wait()

    def run_until_begun() -> None:
        loop.run_until_complete(begun.wait())
        loop.close()

    def call() -> None:
        write("before")
        future = asyncio.run_coroutine_threadsafe(never(), loop)
        thread = threading.Thread(target=run_until_begun)
        thread.start()
        with pytest.raises(RuntimeError, match="loop has ended"):
            future.result()
        thread.join(DEADLINE)
        write("after")

    async def main() -> None:
        async with atomic():
            await asyncio.to_thread(call)
        assert await committed() == ["after", "before"]

    play(main, threads=1, thread_timeout=5)


@on_postgresql
def test_a_shutdown_rolls_back(default_database: str, postgresql: PostgreSQL) -> None:
    """A task that is still in its block when the application ends has written nothing, and holds nothing."""

    async def forgotten(inside: asyncio.Event) -> None:
        async with atomic():
            await awrite("inside")
            inside.set()
            await asyncio.Event().wait()

    async def main() -> None:
        inside = asyncio.Event()
        async with asyncio.timeout(DEADLINE):
            async with started(threads=2):
                task = asyncio.create_task(forgotten(inside))
                await inside.wait()
            assert await outside(partial(postgresql.in_transaction, "board")) == 0
            assert await outside(partial(postgresql.connections, "board")) == 0
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    connections.close_all()
    asyncio.run(main())
    assert stored() == []


# Requests


def application(dependencies: list[Any] | None = None, **options: Any) -> FastAPI:
    lifespan = DjangoORM(ORMSettings(**options), repositories=[]).lifespan
    return FastAPI(lifespan=lifespan, dependencies=dependencies)


class Looks:
    """A middleware that looks at the database from outside when a response begins."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.seen: list[list[str]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def look(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.seen.append(await committed())
            await send(message)

        await self.app(scope, receive, look)


def looked_at(app: FastAPI) -> list[list[str]]:
    """What the database holds when each response of the application begins."""
    seen: list[list[str]] = []

    def looking(inner: Any) -> Looks:
        looks = Looks(inner)
        looks.seen = seen
        return looks

    app.add_middleware(looking)
    return seen


def test_in_transaction_commits_before_the_response(default_database: str) -> None:
    """When the first bytes of the answer leave, everybody can see what the handler has written."""
    app = application(threads=2)
    seen = looked_at(app)

    @app.post("/async")
    async def asynchronous(_: InTransaction) -> None:
        await awrite("async")
        assert await committed() == []

    @app.post("/def")
    def synchronous(_: InTransaction) -> None:
        write("def")

    @app.post("/stream")
    async def stream(_: InTransaction) -> StreamingResponse:
        await awrite("stream")

        async def body() -> AsyncIterator[str]:
            yield str(await run(is_open))

        return StreamingResponse(body())

    with serving(app) as client:
        assert client.post("/async").status_code == 200
        assert client.post("/def").status_code == 200
        assert client.post("/stream").text == "False"
    assert seen == [["async"], ["async", "def"], ["async", "def", "stream"]]


def test_in_transaction_rolls_back_when_the_handler_raises(default_database: str) -> None:
    """A handler under InTransaction that raises, or refuses with an HTTPException, has written nothing."""
    app = application(threads=1)

    @app.post("/async/{status}")
    async def asynchronous(status: int, _: InTransaction) -> None:
        await awrite("async")
        raise HTTPException(status)

    @app.post("/def")
    def synchronous(_: InTransaction) -> None:
        write("def")
        raise LookupError

    with serving(app) as client:
        client.headers["Connection"] = "close"  # which is what uvicorn does after an error
        assert client.post("/async/409").status_code == 409
        assert client.post("/def").status_code == 500
    assert stored() == []


def test_dependencies_and_handlers_share_the_transaction(default_database: str) -> None:
    """Under InTransaction, dependencies of every kind and the handler use one connection."""
    app = application(threads=1)

    def plain(_: InTransaction) -> int:
        return backend()

    def yielding(_: InTransaction) -> Iterator[int]:
        yield backend()

    async def asynchronous(_: InTransaction) -> int:
        return await run(backend)

    @app.get("/")
    def handler(
        _: InTransaction,
        one: Annotated[int, Depends(plain)],
        two: Annotated[int, Depends(yielding, scope="function")],
        three: Annotated[int, Depends(asynchronous)],
    ) -> bool:
        return one == two == three == backend() and is_open()

    with serving(app) as client:
        assert client.get("/").json() is True


@pytest.fixture
def atomic_requests(default_database: str) -> Iterator[None]:
    config = settings.DATABASES["default"]
    set_default({**config, "ATOMIC_REQUESTS": True})
    yield
    set_default(config)


@pytest.mark.usefixtures("atomic_requests")
def test_atomic_requests_wraps_every_handler() -> None:
    """With ATOMIC_REQUESTS a handler of either kind is one transaction, committed before the response."""
    app = application(threads=1)
    seen = looked_at(app)

    @app.post("/async")
    async def asynchronous(fail: bool) -> None:
        assert await run(is_open)
        await awrite("async")
        if fail:
            raise LookupError

    @app.post("/def")
    def synchronous(fail: bool) -> None:
        assert is_open()
        write("def")
        if fail:
            raise LookupError

    with serving(app) as client:
        client.headers["Connection"] = "close"  # which is what uvicorn does after an error
        for path in ("/async", "/def"):
            assert client.post(path, params={"fail": True}).status_code == 500
            assert client.post(path, params={"fail": False}).status_code == 200
    assert seen == [["async"], ["async", "def"]]  # errors are answered in front of all middleware


@pytest.mark.usefixtures("atomic_requests")
def test_a_handler_can_be_exempt_from_atomic_requests() -> None:
    """Django's @transaction.non_atomic_requests keeps a handler of either kind out of ATOMIC_REQUESTS."""
    app = application()

    @app.get("/async")
    @transaction.non_atomic_requests
    async def asynchronous() -> bool:
        return await run(is_open)

    @app.get("/def")
    @transaction.non_atomic_requests(using="default")
    def synchronous() -> bool:
        return is_open()

    with serving(app) as client:
        assert client.get("/async").json() is False
        assert client.get("/def").json() is False


async def yields() -> AsyncIterator[str]:
    """A handler that FastAPI streams."""
    yield "1"


def yields_synchronously() -> Iterator[str]:
    """The same, on threads."""
    yield "1"


STREAMS: dict[str, Any] = {
    "json": {},
    "events": {"response_class": EventSourceResponse},
    "raw": {"response_class": StreamingResponse},
}


@pytest.mark.parametrize("options", STREAMS)
@pytest.mark.parametrize("handler", [yields, yields_synchronously])
@pytest.mark.parametrize("place", ["handler", "router", "application", "mounted"])
def test_in_transaction_is_refused_where_a_handler_yields(options: str, handler: Any, place: str) -> None:
    """A handler that is run while its answer is sent cannot be in InTransaction, wherever that is written."""
    app = application(dependencies=[Depends(in_transaction)] if place == "application" else [])
    router = APIRouter(dependencies=[Depends(in_transaction)] if place == "router" else [])
    dependencies = [Depends(in_transaction)] if place in ("handler", "mounted") else []
    router.get("/stream", dependencies=dependencies, **STREAMS[options])(handler)
    if place == "mounted":
        inner = FastAPI()
        inner.include_router(router)
        app.mount("/inner", inner)
    else:
        app.include_router(router)

    with pytest.raises(InvalidHandler, match=rf"{handler.__name__}\(\) of /stream .*async with atomic\(\)"):
        asyncio.run(_start(app))


@pytest.mark.usefixtures("atomic_requests")
@pytest.mark.parametrize("handler", [yields, yields_synchronously])
def test_atomic_requests_is_refused_where_a_handler_yields(handler: Any) -> None:
    """ATOMIC_REQUESTS cannot hold for a handler that is run while its answer is sent, which says so."""
    app = application()
    app.get("/stream")(handler)
    with pytest.raises(InvalidHandler, match="non_atomic_requests"):
        asyncio.run(_start(app))

    app = application()

    @app.get("/stream")
    @transaction.non_atomic_requests
    async def exempt() -> AsyncIterator[str]:
        yield "1"

    asyncio.run(_start(app))


def test_in_transaction_is_refused_where_a_handler_that_yields_is_added_later(sqlite: str) -> None:
    """A route that was not there at the start answers with the error."""
    app = application()
    with serving(app) as client:
        app.get("/stream", dependencies=[Depends(in_transaction)])(yields)
        assert client.get("/stream").status_code == 500


async def _start(app: FastAPI) -> None:
    async with app.router.lifespan_context(app):
        pass


@pytest.mark.parametrize("options", STREAMS)
@pytest.mark.parametrize("fail", [False, True])
def test_a_handler_that_yields_may_hold_a_transaction(sqlite: str, options: str, fail: bool) -> None:
    """What stands in `async with atomic():`, or its like in a `def` one, is kept or lost as a whole."""
    app = application(threads=1, thread_timeout=5)

    @app.get("/async", **STREAMS[options])
    async def asynchronous() -> AsyncIterator[str]:
        async with atomic():
            await awrite("1")
            yield "1"
            await run(write, "2")
            if fail:
                raise LookupError

    @app.get("/def", **STREAMS[options])
    def synchronous() -> Iterator[str]:
        with transaction.atomic():
            write("3")
            yield "3"
            assert is_open()
            write("4")
            if fail:
                raise LookupError

    with serving(app) as client:
        client.headers["Connection"] = "close"  # which is what uvicorn does after an error
        for path in ("/async", "/def"):
            with suppress(httpx.HTTPError):  # the answer is broken off
                client.get(path)
        assert stored() == ([] if fail else ["1", "2", "3", "4"])


@pytest.mark.parametrize("options", STREAMS)
def test_a_def_handler_whose_client_hangs_up_rolls_back(default_database: str, options: str) -> None:
    """It is closed on a thread where it may query, inside its transaction, and the connection comes back."""
    app = application(threads=1, thread_timeout=DEADLINE)
    closed: Queue[bool] = Queue()

    @app.get("/", **STREAMS[options])
    def endless() -> Iterator[str]:
        try:
            with transaction.atomic():
                write("lost")
                while True:
                    yield "more"
        finally:
            closed.put(is_open())

    @app.post("/")
    def after() -> None:
        write("kept")

    with serving(app) as client:
        with client.stream("GET", "/") as answer:
            next(answer.iter_bytes())
        assert closed.get(timeout=DEADLINE) is False  # the `with` statement has ended its transaction
        assert client.post("/").status_code == 200
        assert stored() == ["kept"]


def test_a_task_goes_on_after_a_request_that_was_rolled_back(sqlite: str) -> None:
    """A test client runs many requests in one task: the next one is not inside what the last one has left."""
    app = FastAPI()

    @app.get("/")
    def endless() -> StreamingResponse:
        def parts() -> Iterator[str]:
            with transaction.atomic():
                write("lost")
                while True:
                    yield "more"

        return StreamingResponse(parts())

    @app.post("/")
    async def after() -> None:
        await run(write, "kept")

    async def receive() -> Message:
        return await asyncio.Event().wait()  # type: ignore[return-value]  # nothing comes

    async def send(message: Message) -> None:
        if message.get("body"):
            raise OSError("the client has gone")

    async def main() -> None:
        gone: Scope = {
            "type": "http",
            "asgi": {"spec_version": "2.4"},
            "method": "GET",
            "path": "/",
            "query_string": b"",
            "headers": [],
        }
        async with client_of(app, threads=1, thread_timeout=5) as client:
            with pytest.raises(ClientDisconnect):
                await app(gone, receive, send)
            assert (await client.post("/")).status_code == 200

    asyncio.run(main())
    assert stored() == ["kept"]


def in_a_block() -> Iterator[int]:
    """A dependency as Django's users write it: it enters in one call, and leaves in another."""
    with transaction.atomic():
        write("dependency")
        yield backend()


DependencyInABlock = Annotated[int, Depends(in_a_block, scope="function")]


@pytest.mark.parametrize("fail", [False, True])
def test_a_def_dependency_may_hold_a_transaction(default_database: str, fail: bool) -> None:
    """All that follows a def dependency with transaction.atomic() joins it, and is kept or lost with it."""
    app = application(threads=1, thread_timeout=5)

    def later(outer: DependencyInABlock) -> bool:
        write("later")
        return outer == backend()

    @app.post("/async")
    async def asynchronous(outer: DependencyInABlock, same: Annotated[bool, Depends(later)]) -> None:
        assert same
        assert await run(backend) == outer
        await awrite("async")
        async with atomic():
            await sync_to_async(write)("nested")
        assert await committed() == []
        if fail:
            raise LookupError

    @app.post("/def")
    def synchronous(outer: DependencyInABlock) -> None:
        assert backend() == outer
        write("def")
        if fail:
            raise LookupError

    with serving(app) as client:
        client.headers["Connection"] = "close"  # which is what uvicorn does after an error
        assert client.post("/async").status_code == (500 if fail else 200)
        kept = ["async", "dependency", "later", "nested"]
        assert stored() == ([] if fail else kept)
        assert client.post("/def").status_code == (500 if fail else 200)
        assert stored() == ([] if fail else sorted([*kept, "def", "dependency"]))


def test_a_def_dependency_inside_a_transaction_is_a_savepoint(default_database: str) -> None:
    """A def dependency with transaction.atomic() under InTransaction is part of it."""
    app = application(threads=1, thread_timeout=5)

    def nested(_: InTransaction) -> Iterator[None]:
        with transaction.atomic():
            write("dependency")
            yield

    @app.post("/")
    async def handler(_: Annotated[None, Depends(nested, scope="function")]) -> None:
        await awrite("handler")
        assert await committed() == []

    with serving(app) as client:
        assert client.post("/").status_code == 200
    assert stored() == ["dependency", "handler"]


@pytest.mark.parametrize("way", [run, sync_to_async])
def test_a_call_that_leaves_a_transaction_open_fails(default_database: str, way: Callable[..., Any]) -> None:
    """A call that ends inside its transaction raises an error that says what to write, and is rolled back."""

    def leaves_open() -> None:
        transaction.atomic().__enter__()
        write("left")

    async def main() -> None:
        with pytest.raises(TransactionLeftOpen, match=r"'default'.*async with atomic\(\)"):
            await (way(leaves_open) if way is run else way(leaves_open)())
        assert await committed() == []
        await awrite("the connection is back")

    play(main, threads=1, thread_timeout=5)


def test_a_def_handler_that_leaves_a_transaction_open_fails(default_database: str) -> None:
    """A def handler that ends inside its transaction is answered with an error, and is rolled back."""
    app = application(threads=1, thread_timeout=5)
    errors: list[Exception] = []

    @app.exception_handler(TransactionLeftOpen)
    async def left_open(request: Request, error: TransactionLeftOpen) -> Response:
        errors.append(error)
        return Response(status_code=500)

    @app.post("/")
    def handler() -> None:
        transaction.atomic().__enter__()
        write("left")

    @app.get("/")
    async def count() -> int:
        return await Topic.objects.acount()

    with serving(app) as client:
        assert client.post("/").status_code == 500
        assert client.get("/").json() == 0
    assert "async with atomic()" in str(errors[0])


@on_postgresql
def test_a_client_that_goes_away_leaves_no_transaction(default_database: str, postgresql: PostgreSQL) -> None:
    """A handler that a middleware cancels when its client disconnects has written nothing."""
    app = application(threads=2, thread_timeout=5)
    inside, ended = threading.Event(), threading.Event()

    class CancelsOnDisconnect:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http" or scope["path"] != "/":
                await self.app(scope, receive, send)
                return
            async with anyio.create_task_group() as group:

                async def watch() -> None:
                    while (await receive())["type"] != "http.disconnect":
                        pass
                    group.cancel_scope.cancel()

                group.start_soon(watch)
                await self.app(scope, anyio.sleep_forever, send)

    app.add_middleware(CancelsOnDisconnect)

    @app.get("/")
    async def handler(_: InTransaction) -> None:
        try:
            await awrite("inside")
            inside.set()
            await anyio.sleep_forever()
        finally:
            ended.set()

    @app.get("/count")
    async def count() -> int:
        return await Topic.objects.acount()

    with serving(app) as client:
        for _ in range(20):
            inside.clear()
            ended.clear()
            with socket.create_connection((client.base_url.host, client.base_url.port)) as raw:
                raw.sendall(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
                wait_for(inside)
            wait_for(ended)
        assert client.get("/count").json() == 0
        assert client.get("/count").json() == 0
        assert postgresql.in_transaction("board") == 0
    assert stored() == []


# Threads that asyncio starts


async def by_executor(function: Callable[..., Any], *args: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, function, *args)


async def not_sensitive(function: Callable[..., Any], *args: Any) -> Any:
    return await sync_to_async(function, thread_sensitive=False)(*args)


ASYNCIO = [asyncio.to_thread, by_executor, not_sensitive, anyio_by_name]


@pytest.mark.parametrize("way", ASYNCIO)
def test_a_thread_of_asyncio_takes_part_in_the_transaction(default_database: str, way: Any) -> None:
    """Its savepoint is its own: a sibling waits, and the end of the block waits for it."""
    inside, go_on = threading.Event(), threading.Event()

    def optional(fail: bool) -> None:
        with suppress(LookupError), transaction.atomic():
            write("optional")
            inside.set()
            wait_for(go_on)
            if fail:
                raise LookupError

    async def main() -> None:
        async with atomic():
            task = asyncio.create_task(way(optional, True))
            await outside(partial(wait_for, inside))
            writing = asyncio.create_task(awrite("beside"))
            await asyncio.sleep(0)
            go_on.set()
            await asyncio.gather(task, writing)
            assert await way(is_open)
        assert await committed() == ["beside"]
        async with atomic():
            inside.clear()
            go_on.clear()
            await awrite("before")
            task = asyncio.create_task(way(optional, False))
            await outside(partial(wait_for, inside))
            asyncio.get_running_loop().call_soon(go_on.set)
        await task
        assert await committed() == ["before", "beside", "optional"]

    play(main, threads=1, thread_timeout=5)


@pytest.mark.parametrize("synchronous", [False, True])
@pytest.mark.parametrize("way", [asyncio.to_thread, by_executor, not_sensitive])
def test_a_function_that_is_given_up_cannot_write_when_its_block_has_ended(
    sqlite: str, way: Any, synchronous: bool
) -> None:
    """A thread of asyncio that goes on after its block raises, in a block around it and outside of any."""
    inside, go_on, ended = threading.Event(), threading.Event(), threading.Event()
    errors: list[BaseException] = []

    def late() -> None:
        inside.set()
        wait_for(go_on)
        try:
            write("late")
        except TransactionManagementError as error:
            errors.append(error)
        ended.set()

    async def start_and_give_up() -> None:
        task = asyncio.create_task(way(late))
        await outside(partial(wait_for, inside))
        task.cancel()

    def in_a_synchronous_block() -> None:
        with suppress(LookupError), transaction.atomic():
            write("lost")
            async_to_sync(start_and_give_up)()
            raise LookupError

    async def given_up() -> None:
        if synchronous:
            await run(in_a_synchronous_block)
        else:
            async with atomic():
                await start_and_give_up()

    async def main() -> None:
        await given_up()
        go_on.set()
        await outside(partial(wait_for, ended))
        for event in (inside, go_on, ended):
            event.clear()
        async with atomic():
            await given_up()
            go_on.set()
            await outside(partial(wait_for, ended))
        assert ["has ended" in str(error) for error in errors] == [True, True]
        assert await committed() == []

    play(main, threads=1, thread_timeout=5)


def test_a_function_that_is_given_up_cannot_write_while_its_block_ends(sqlite: str) -> None:
    """Between the commit and the end of the block, where on_commit callbacks run, it raises as well."""
    inside, go_on, ended = threading.Event(), threading.Event(), threading.Event()
    errors: list[BaseException] = []

    def late() -> None:
        inside.set()
        wait_for(go_on)
        try:
            write("late")
        except TransactionManagementError as error:
            errors.append(error)
        ended.set()

    def committing() -> None:
        go_on.set()
        wait_for(ended)

    async def main() -> None:
        async with atomic():
            task = asyncio.create_task(asyncio.to_thread(late))
            await outside(partial(wait_for, inside))
            task.cancel()
            transaction.on_commit(committing)
        assert ["has ended" in str(error) for error in errors] == [True]
        assert await committed() == []

    play(main, threads=1, thread_timeout=5)


# Calls from a transaction's synchronous code back into the loop


def test_from_thread_run_works_inside(default_database: str) -> None:
    """Synchronous code on AnyIO's threads under a block calls the loop back, and that joins the block."""

    async def back() -> None:
        await awrite("aget")
        await run(write, "run")
        await run_in_threadpool(write, "again on a thread")
        async with atomic():
            await awrite("in a savepoint")
        await asyncio.gather(*(awrite("gathered") for _ in range(4)))

    def work() -> None:
        write("sync")
        anyio.from_thread.run(back)
        assert len(stored()) == 9

    async def main() -> None:
        async with atomic():
            await run_in_threadpool(work)
            assert await committed() == []
        assert len(await committed()) == 9

    play(main, threads=1, thread_timeout=5)


def test_calls_from_a_thread_run_one_at_a_time(default_database: str) -> None:
    """What a call under a block has the loop do at once still uses the connection one at a time."""
    busy = threading.Lock()

    def alone() -> None:
        assert busy.acquire(blocking=False), "two at once"
        try:
            Topic.objects.count()
        finally:
            busy.release()

    async def back() -> None:
        ways = [run(alone), sync_to_async(alone)(), run_in_threadpool(alone)] * 10
        await asyncio.gather(*ways)

    async def main() -> None:
        async with atomic():
            await run_in_threadpool(partial(anyio.from_thread.run, back))

    play(main, threads=4, thread_timeout=5)


@pytest.mark.parametrize("way", [run, sync_to_async, run_in_threadpool])
def test_async_to_sync_works_inside(default_database: str, way: Callable[..., Any]) -> None:
    """Synchronous code under a block may call asynchronous code, which joins the block."""

    async def back() -> None:
        await awrite("aget")
        await run(write, "run")
        async with atomic():
            await awrite("in a savepoint")
        await run_in_threadpool(write, "on a thread")

    def work() -> None:
        write("sync")
        async_to_sync(back)()
        assert len(stored()) == 5

    async def main() -> None:
        async with atomic():
            await (sync_to_async(work)() if way is sync_to_async else way(work))
            assert await committed() == []
        assert len(await committed()) == 5

    play(main, threads=1, thread_timeout=5)


def test_a_call_back_does_not_wait_for_a_nested_block_that_waits_for_it(default_database: str) -> None:
    """A nested block that a sibling asks for during a call comes after the call and what it calls."""
    inside, asked = threading.Event(), threading.Event()

    def work() -> None:
        inside.set()
        wait_for(asked)
        anyio.from_thread.run(awrite, "from the call")
        anyio.from_thread.run(_nested_write, "nested from the call")

    async def sibling() -> None:
        await outside(partial(wait_for, inside))
        entering = asyncio.ensure_future(_nested_write("sibling"))
        await asyncio.sleep(0)
        asked.set()
        await entering

    async def main() -> None:
        async with atomic():
            await asyncio.gather(run_in_threadpool(work), sibling())
        assert await committed() == ["from the call", "nested from the call", "sibling"]

    play(main, threads=1, thread_timeout=5)


def test_calls_inside_find_a_thread_when_all_others_wait(default_database: str) -> None:
    """A transaction goes on while every shared thread waits for the connection that it holds."""
    waiting = threading.Semaphore(0)

    def count() -> None:
        waiting.release()
        Topic.objects.count()

    async def main() -> None:
        around = copy_context()  # of no transaction
        async with atomic():
            await awrite("inside")
            work = [*(run(count) for _ in range(4)), *(run_in_threadpool(count) for _ in range(45))]
            others = [asyncio.create_task(each, context=around.copy()) for each in work]
            for _ in range(41):  # one database thread, and AnyIO's forty
                assert await outside(partial(waiting.acquire, timeout=DEADLINE))
            await run_in_threadpool(anyio.from_thread.run, awrite, "called back")
            await run_in_threadpool(partial(anyio.from_thread.run, run_in_threadpool, write, "and again"))
            await run_in_threadpool(async_to_sync(awrite), "async_to_sync")
            assert not any(task.done() for task in others)
        await asyncio.gather(*others)
        assert len(await committed()) == 4

    play(main, threads=1, thread_timeout=15)


@pytest.mark.parametrize("threads", [1, 4])
def test_a_def_dependency_is_left_when_its_request_is_cancelled_on_the_way_in(
    default_database: str, threads: int
) -> None:
    """A task that is cancelled while the dependency enters leaves no transaction and no connection behind."""
    inside, go_on = threading.Event(), threading.Event()
    left: list[str] = []

    @contextmanager
    def dependency() -> Iterator[None]:
        try:
            with transaction.atomic():
                write("never committed")
                inside.set()
                wait_for(go_on)
                yield
        except BaseException as error:
            left.append(type(error).__name__)
            raise

    async def request() -> None:
        async with contextmanager_in_threadpool(dependency()):
            pytest.fail("entered, though cancelled")

    async def main() -> None:
        task = asyncio.create_task(request())
        await asyncio.to_thread(wait_for, inside)
        task.cancel()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: left == ["CancelledError"], "the dependency is left")
        del task
        gc.collect()
        assert await run(stored) == []
        async with asyncio.TaskGroup() as group:  # every connection is there again
            for _ in range(threads):
                group.create_task(in_a_transaction())
        assert await committed() == ["again"] * threads

    async def in_a_transaction() -> None:
        async with atomic():
            await awrite("again")

    play(main, threads=threads)
