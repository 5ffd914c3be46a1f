"""Concurrency: ORM code runs on a few database threads at once, wherever in an application it stands."""

import asyncio
import contextvars
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import pytest
from asgiref.sync import sync_to_async
from django.core.exceptions import SynchronousOnlyOperation
from django.db.models import QuerySet
from fastapi import BackgroundTasks, Depends, FastAPI, Request, WebSocket
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool
from websockets.sync.client import connect

from fastapi_django_orm import DjangoORM, ORMSettings, run
from fastapi_django_orm.errors import DatabaseBusy, LazyValue, NotStarted
from tests.project.board.models import Topic
from tests.support.gates import add_topics
from tests.support.playing import DEADLINE, awrite, committed, play, stored, wait_for, write
from tests.support.serving import serving

Way = Callable[[Callable[[], Any]], Awaitable[Any]]

# How asynchronous code has a synchronous function run.
WAYS: list[Way] = [run, lambda function: sync_to_async(function)(), run_in_threadpool]
ways = pytest.mark.parametrize("way", WAYS, ids=["run", "sync_to_async", "AnyIO"])
threads = pytest.mark.parametrize("threads", [1, 4])


def thread() -> str:
    return threading.current_thread().name


class Meeting:
    """Functions that return only when as many of them run at once."""

    def __init__(self, of: int) -> None:
        self._barrier = threading.Barrier(of)

    def attend(self) -> str:
        """Use a connection, and wait for the others with it."""
        Topic.objects.count()
        self._barrier.wait(DEADLINE)
        return str(threading.get_ident())


# At once


@ways
def test_four_calls_of_one_gather_run_at_once(default_database: str, way: Way) -> None:
    """Four functions that wait for each other come to an end, each on a thread of its own."""
    meeting = Meeting(4)

    async def main() -> None:
        names = await asyncio.gather(*(way(meeting.attend) for _ in range(4)))
        assert len(set(names)) == 4

    play(main, threads=4)


def test_calls_of_every_kind_run_at_once(default_database: str) -> None:
    """Django's async API, sync_to_async, run() and calls on AnyIO's threads do not wait for each other."""
    meeting = Meeting(4)

    class Attending(QuerySet[Topic]):
        def first(self) -> Any:
            meeting.attend()
            return super().first()

    async def main() -> None:
        await asyncio.gather(Attending(Topic).afirst(), *(way(meeting.attend) for way in WAYS))

    add_topics("one")
    play(main, threads=4)


@ways
def test_no_more_than_the_threads_run_at_once(default_database: str, way: Way) -> None:
    """Of twenty calls that use a connection no more than DJANGO_ORM_THREADS have one at a time."""
    inside = most = 0
    lock = threading.Lock()

    def call() -> None:
        nonlocal inside, most
        Topic.objects.count()
        with lock:
            inside += 1
            most = max(most, inside)
        Topic.objects.count()
        with lock:
            inside -= 1

    async def main() -> None:
        await asyncio.gather(*(way(call) for _ in range(20)))
        assert most <= 3

    play(main, threads=3)


def test_the_threads_are_few_and_live_long(default_database: str) -> None:
    """A hundred queries leave as many database threads as the setting says, and all were run by those."""
    seen: set[str] = set()

    async def main() -> None:
        for _ in range(10):
            seen.update(await asyncio.gather(*(way(thread) for way in WAYS[:2] for _ in range(5))))
        assert seen <= {each.name for each in threading.enumerate()}

    play(main, threads=2)
    assert seen == {"database-1", "database-2"}


def test_eight_threads_are_the_default() -> None:
    """Without the setting, eight calls run at once and a ninth waits."""
    assert ORMSettings(_env_file=None).threads == 8


# Django's async API


@threads
def test_queries_of_the_async_api_work(default_database: str, threads: int) -> None:
    """Queries by aget, acreate, acount, aexists, async for and aiterator() do what Django says."""

    async def main() -> None:
        one = await Topic.objects.acreate(comment="one")
        await Topic.objects.abulk_create([Topic(comment="two"), Topic(comment="three")])
        assert (await Topic.objects.aget(pk=one.pk)).comment == "one"
        assert await Topic.objects.acount() == 3
        assert await Topic.objects.filter(comment="two").aexists()
        assert {topic.comment async for topic in Topic.objects.all()} == {"one", "two", "three"}
        async for topic in Topic.objects.aiterator(chunk_size=1):
            assert topic.comment in {"one", "two", "three"}
        await one.adelete()
        assert await committed() == ["three", "two"]
        with pytest.raises(Topic.DoesNotExist):
            await Topic.objects.aget(comment="one")

    play(main, threads=threads)


@threads
def test_iterators_share_few_connections(default_database: str, threads: int) -> None:
    """Six loops over aiterator() and other queries between their chunks read every row, once and in order."""
    expected = [str(number).zfill(3) for number in range(60)]

    async def read() -> list[str]:
        seen = []
        async for topic in Topic.objects.order_by("comment").aiterator(chunk_size=7):
            seen.append(topic.comment)
            if len(seen) % 10 == 0:
                assert await Topic.objects.filter(comment=topic.comment).aexists()
                await asyncio.gather(run(Topic.objects.count), run_in_threadpool(Topic.objects.count))
        return seen

    async def main() -> None:
        for seen in await asyncio.gather(*(read() for _ in range(6))):
            assert seen == expected

    add_topics(*expected)
    play(main, threads=threads, thread_timeout=10)


@threads
def test_a_loop_that_is_left_early_leaves_nothing(default_database: str, threads: int) -> None:
    """A loop over aiterator() that breaks off does not disturb the queries after it."""

    async def main() -> None:
        for _ in range(5):
            async for topic in Topic.objects.aiterator(chunk_size=1):
                assert topic.comment
                break
            assert await Topic.objects.acount() == 3
            await awrite("more")
            await Topic.objects.filter(comment="more").adelete()

    add_topics("one", "two", "three")
    play(main, threads=threads, thread_timeout=10)


# run()


def test_run_passes_arguments_results_and_errors() -> None:
    """Arguments by position and name go in; what the function returns or raises comes out, untouched."""
    error = LookupError("mine")

    def fails() -> None:
        raise error

    async def main() -> None:
        assert await run(lambda *args, **options: (args, options), 1, 2, three=3) == ((1, 2), {"three": 3})
        with pytest.raises(LookupError) as raised:
            await run(fails)
        assert raised.value is error

    play(main)


def test_run_sees_the_context_of_its_caller() -> None:
    """Context variables of the calling task are there in the function."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")

    async def main() -> None:
        variable.set("mine")
        assert await run(variable.get) == "mine"

    play(main)


@pytest.mark.parametrize(
    "lazy",
    [
        lambda: Topic.objects.all(),
        lambda: Topic.objects.values("comment"),
        lambda: Topic.objects,
        lambda: Topic.objects.none(),
    ],
    ids=["all", "values", "manager", "none"],
)
def test_run_refuses_to_hand_over_what_would_query_later(sqlite: str, lazy: Callable[[], Any]) -> None:
    """A QuerySet or manager as the result is an error that shows list() and .values()."""

    async def main() -> None:
        with pytest.raises(LazyValue, match=r"list\(.*\.values\("):
            await run(lazy)
        assert await run(lambda: list(lazy().all())) == []

    play(main)


def test_run_without_an_application_says_how_to_start_one() -> None:
    """Outside of every lifespan run() raises an error that shows the line to write."""

    async def main() -> None:
        with pytest.raises(NotStarted, match=r"lifespan=DjangoORM\.lifespan"):
            await run(stored)

    asyncio.run(main())


def test_a_cancelled_run_that_waits_is_not_run() -> None:
    """A run() that is cancelled before its thread has begun it is never begun."""
    inside, go_on = threading.Event(), threading.Event()
    ran: list[str] = []

    def holds() -> None:
        inside.set()
        wait_for(go_on)

    async def main() -> None:
        holding = asyncio.create_task(run(holds))
        await asyncio.to_thread(wait_for, inside)
        waiting = asyncio.create_task(run(ran.append, "cancelled"))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        go_on.set()
        await holding
        await run(ran.append, "next")
        assert ran == ["next"]

    play(main, threads=1)


def test_who_waits_too_long_for_a_thread_is_told_so() -> None:
    """A call that finds no thread in time raises DatabaseBusy, a TimeoutError."""
    inside, go_on = threading.Event(), threading.Event()

    def holds() -> None:
        inside.set()
        wait_for(go_on)

    async def main() -> None:
        holding = asyncio.create_task(run(holds))
        await asyncio.to_thread(wait_for, inside)
        try:
            with pytest.raises(TimeoutError) as raised:
                await run(thread)
            assert isinstance(raised.value, DatabaseBusy)
        finally:
            go_on.set()
            await holding

    play(main, threads=1, thread_timeout=0.2)


# Everywhere in an application


def application(**options: Any) -> FastAPI:
    return FastAPI(lifespan=DjangoORM(ORMSettings(**options), repositories=[]).lifespan)


async def everything() -> list[str]:
    """Topics by every way there is, which are as many threads' names."""
    await awrite("topic")
    await Topic.objects.aget(comment="topic")
    await run(Topic.objects.count)
    await run_in_threadpool(Topic.objects.count)
    names = [await run(thread), await sync_to_async(thread)()]
    await Topic.objects.filter(comment="topic").adelete()
    return names


def on_database_threads(names: list[str]) -> bool:
    return len(names) == 2 and all(name.startswith("database-") for name in names)


def test_handlers_of_one_application_run_at_once(default_database: str) -> None:
    """Requests in different handlers, async and def, wait for each other without a deadlock."""
    app, meeting = application(threads=4), Meeting(4)

    @app.get("/0")
    async def by_run() -> str:
        return await run(meeting.attend)

    @app.get("/1")
    async def by_sync_to_async() -> str:
        return await sync_to_async(meeting.attend)()

    @app.get("/2")
    def synchronous() -> str:
        return meeting.attend()

    @app.get("/3")
    async def dependency(name: Annotated[str, Depends(meeting.attend)]) -> str:
        return name

    with serving(app) as client:
        answers: list[int] = []
        requests = [
            threading.Thread(target=lambda path=path: answers.append(client.get(path).status_code))
            for path in ("/0", "/1", "/2", "/3")
        ]
        for request in requests:
            request.start()
        for request in requests:
            request.join(DEADLINE)
        assert answers == [200] * 4


def test_lifespan_code_runs_on_database_threads(default_database: str) -> None:
    """Code of the application's own lifespan, before and after its requests, uses the ORM like a handler."""
    names: list[list[str]] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with DjangoORM(ORMSettings(threads=1), repositories=[]).lifespan(app):
            names.append(await everything())
            yield
            names.append(await everything())

    with serving(FastAPI(lifespan=lifespan)):
        pass
    assert [on_database_threads(each) for each in names] == [True, True]


def test_background_tasks_run_on_database_threads(default_database: str) -> None:
    """Background tasks of either kind use the ORM when the response has been sent."""
    app, done = application(threads=1), threading.Event()
    names: list[str] = []

    async def asynchronous() -> None:
        names.extend(await everything())

    def synchronous() -> None:
        write("from the background")
        done.set()

    @app.get("/")
    async def handler(tasks: BackgroundTasks) -> None:
        tasks.add_task(asynchronous)
        tasks.add_task(synchronous)

    with serving(app) as client:
        assert client.get("/").status_code == 200
        wait_for(done)
    assert on_database_threads(names)
    assert stored() == ["from the background"]


def test_a_task_may_outlive_its_request(default_database: str) -> None:
    """A task that a handler makes and does not await uses the ORM after the request has ended."""
    app, done = application(threads=1), threading.Event()
    names: list[str] = []
    tasks: set[Any] = set()
    ended = asyncio.Event()

    async def later() -> None:
        await ended.wait()
        names.extend(await everything())
        done.set()

    @app.get("/start")
    async def start() -> None:
        tasks.add(asyncio.create_task(later()))

    @app.get("/end")
    async def end() -> None:
        ended.set()

    with serving(app) as client:
        assert client.get("/start").status_code == 200
        assert client.get("/end").status_code == 200
        wait_for(done)
    assert on_database_threads(names)


def test_websockets_run_on_database_threads(default_database: str) -> None:
    """A websocket uses the ORM between its messages, and holds nothing while it waits for one."""
    app = application(threads=1, thread_timeout=5)

    @app.websocket("/")
    async def websocket(socket: WebSocket, count: Annotated[int, Depends(Topic.objects.count)]) -> None:
        await socket.accept()
        while (text := await socket.receive_text()) != "end":
            await awrite(text)
            await socket.send_json(await everything())
        await socket.close()

    with serving(app) as client:
        url = f"ws://127.0.0.1:{client.base_url.port}/"
        with connect(url) as one, connect(url) as two:
            for socket in (one, two, one):
                socket.send("message")
                assert on_database_threads(json.loads(socket.recv(DEADLINE)))
            for socket in (one, two):
                socket.send("end")
    assert stored() == ["message"] * 3


def test_streaming_bodies_run_on_database_threads(default_database: str) -> None:
    """Generators of either kind query while they are sent, and hold nothing between two parts."""
    app = application(threads=1, thread_timeout=5)

    @app.get("/async")
    async def asynchronous() -> StreamingResponse:
        async def body() -> AsyncIterator[str]:
            yield str(on_database_threads(await everything()))
            async for topic in Topic.objects.order_by("comment").aiterator(chunk_size=1):
                await run(Topic.objects.count)
                yield topic.comment

        return StreamingResponse(body())

    @app.get("/def")
    def synchronous() -> StreamingResponse:
        def body() -> Iterator[str]:
            for topic in Topic.objects.order_by("comment").iterator(chunk_size=1):
                yield topic.comment + str(Topic.objects.count())

        return StreamingResponse(body())

    add_topics("a", "b", "c")
    with serving(app) as client:
        assert client.get("/async").text == "Trueabc"
        assert client.get("/def").text == "a3b3c3"


def test_mounted_applications_run_on_database_threads(default_database: str) -> None:
    """A sub-application, whose own lifespan nobody runs, uses the ORM of the one that it is mounted on."""
    app, sub = application(threads=1), FastAPI()

    @sub.get("/async")
    async def asynchronous() -> list[str]:
        return await everything()

    @sub.get("/def")
    def synchronous() -> int:
        return Topic.objects.count()

    app.mount("/sub", sub)
    with serving(app) as client:
        assert on_database_threads(client.get("/sub/async").json())
        assert client.get("/sub/def").json() == 0


def test_middleware_runs_on_database_threads(default_database: str) -> None:
    """Middleware of Starlette's BaseHTTPMiddleware uses the ORM, and so do the handlers behind it."""
    app = application(threads=1, thread_timeout=5)
    names: list[list[str]] = []

    @app.middleware("http")
    async def middleware(request: Request, call_next: Any) -> Any:
        names.append(await everything())
        response = await call_next(request)
        names.append(await everything())
        return response

    @app.get("/async")
    async def asynchronous() -> list[str]:
        return await everything()

    @app.get("/def")
    def synchronous() -> int:
        return Topic.objects.count()

    with serving(app) as client:
        assert on_database_threads(client.get("/async").json())
        assert client.get("/def").json() == 0
    assert [on_database_threads(each) for each in names] == [True] * 4


def test_the_event_loop_is_no_place_for_queries(sqlite: str) -> None:
    """A query on the event loop is refused by Django, as ever."""

    async def main() -> None:
        with pytest.raises(SynchronousOnlyOperation):
            Topic.objects.count()

    play(main)
