"""The plugin's life in an application: begun anywhere, ended without a trace, and begun again."""

import asyncio
import contextvars
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import fastapi.routing
import httpx
import pytest
from asgiref.sync import sync_to_async
from django.db import connections
from fastapi import APIRouter, Depends, FastAPI, Request
from pydantic import BaseModel
from structlog.testing import capture_logs

from fastapi_django_orm import CachedRepository, DjangoORM, ORMSettings
from fastapi_django_orm.errors import InvalidRow, NotStarted, UnknownFastAPI
from fastapi_django_orm.instrumentation.asgi_layer import RequestContext
from tests.project.board.models import Topic
from tests.support.projects import Project
from tests.support.servers import PostgreSQL
from tests.support.serving import serving


class Numbered(BaseModel):
    comment: int


def board(name: str = "topics") -> type[CachedRepository]:
    """A new repository class of topics."""
    return type("Topics", (CachedRepository,), {"model": Topic, "name": name, "fields": ("id", "comment")})


def application(topics: type[CachedRepository], lifespan: Any = None) -> FastAPI:
    app = FastAPI(lifespan=lifespan or DjangoORM(repositories=[topics]).lifespan)

    @app.get("/")
    async def index(topics: Annotated[Any, Depends(topics.current)]) -> Any:
        return topics.response()

    @app.get("/count")
    async def count() -> int:
        return await Topic.objects.acount()

    return app


def comments(response: httpx.Response) -> list[str]:
    assert response.status_code == 200, response.text
    return [topic["comment"] for topic in response.json()["topics"]]


@pytest.fixture
def topic(sqlite: str) -> Topic:
    return Topic.objects.create(comment="first")


# Where it works


def test_lifespan_of_the_class(project: Project) -> None:
    """FastAPI(lifespan=DjangoORM.lifespan) is all: data at once, both routes, and a clean end."""
    with project.uvicorn() as server:
        assert server.get("/").json() == {"topics": [{"id": 1, "comment": "first"}]}
        assert server.get("/health/").json()["status"] == "ok"
        project.add_topic("second")
        assert len(server.get("/refresh/").json()["topics"]) == 2
        assert server.stop() == 0
    output = server.output()
    assert output.index("django_set_up") < output.index("repository_loaded") < output.index("Uvicorn running")
    assert "shut_down" in output
    assert "Warning" not in output


def test_lifespan_of_an_instance(topic: Topic) -> None:
    """An instance brings its own settings."""
    topics = board()
    plugin = DjangoORM(ORMSettings(health_path="/up/"), repositories=[topics])
    with serving(application(topics, plugin.lifespan)) as client:
        assert comments(client.get("/")) == ["first"]
        assert client.get("/up/").status_code == 200


def test_an_instance_is_a_lifespan_itself(topic: Topic) -> None:
    """FastAPI(lifespan=DjangoORM(…)) means that instance's lifespan."""
    topics = board()
    with serving(application(topics, DjangoORM(repositories=[topics]))) as client:
        assert comments(client.get("/")) == ["first"]


def test_a_lifespan_that_is_named_wrong_says_how_to_write_it(sqlite: str) -> None:
    """Giving the class ends with the right line, and calling the lifespan with what it lacks."""
    with pytest.raises(TypeError, match=r"lifespan.* missing 1 required positional argument: 'app'"):
        FastAPI(lifespan=DjangoORM.lifespan())  # type: ignore[call-arg]
    right = r"FastAPI\(lifespan=DjangoORM\.lifespan\)"
    with pytest.raises(TypeError, match=right), serving(FastAPI(lifespan=DjangoORM)):
        pass


def test_settings_of_another_kind_are_refused() -> None:
    """What the plugin is given is `ORMSettings`, and the error says so where it is written."""
    with pytest.raises(TypeError, match=r"takes ORMSettings\(…\), not 'config.settings'"):
        DjangoORM("config.settings")  # type: ignore[arg-type]


def test_lifespan_nests_in_the_applications_own(topic: Topic) -> None:
    """Inside a user's lifespan repositories and the ORM can be used, and its state reaches the requests."""
    topics = board()
    plugin = DjangoORM(repositories=[topics])
    seen: list[Any] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        app.state.before = "set"
        async with plugin.lifespan(app):
            seen.append(len(await topics.current()))
            seen.append(await Topic.objects.acount())
            yield {"greeting": "hello"}
            seen.append(len(await topics.current()))
            seen.append(await Topic.objects.acount())

    app = application(topics, lifespan)

    @app.get("/state")
    async def state(request: Request) -> list[str]:
        return [request.state.greeting, request.app.state.before]

    with serving(app) as client:
        assert comments(client.get("/")) == ["first"]
        assert client.get("/state").json() == ["hello", "set"]
        assert seen == [1, 1]
    assert seen == [1, 1, 1, 1]


def test_lifespan_is_entered_again(topic: Topic) -> None:
    """An application can be started again in the same process, and loads again."""
    topics = board()
    app = application(topics)
    for expected in (["first"], ["first", "second"]):
        with serving(app) as client:
            assert comments(client.get("/")) == expected
            assert client.get("/health/").json()["repositories"]["topics"]["version"] == 1
        Topic.objects.create(comment="second")


def test_two_applications_have_data_of_their_own(topic: Topic) -> None:
    """Side by side in one process each application answers from what it has loaded itself."""
    topics = board()
    with serving(application(topics)) as one:
        Topic.objects.create(comment="second")
        with serving(application(topics)) as two:
            assert comments(one.get("/")) == ["first"]
            assert comments(two.get("/")) == ["first", "second"]
        assert comments(one.get("/")) == ["first"]


def test_mounted_application_uses_what_its_parent_has_loaded(topic: Topic) -> None:
    """A sub-application's own lifespan does not run; its handlers find the parent's repositories."""
    topics = board()
    parent = application(topics)
    parent.mount("/api", application(topics))
    with serving(parent) as client:
        assert comments(client.get("/api/")) == ["first"]
        assert client.get("/api/count").json() == 1


def test_override_replaces_the_repository(topic: Topic) -> None:
    """A test may put what it likes in the place of Topics.current, as of any dependency."""
    topics = board()
    app = FastAPI(lifespan=DjangoORM(repositories=[topics]).lifespan)

    @app.get("/")
    async def index(topics: Annotated[Any, Depends(topics.current)]) -> list[Any]:
        return list(topics)

    app.dependency_overrides[topics.current] = lambda: ["fake"]
    with serving(app) as client:
        assert client.get("/").json() == ["fake"]


# Handlers of on_event


def registered(app: FastAPI, ran: list[str], name: str, *, on: Any = None) -> None:
    """Register a startup and a shutdown handler that note their names."""

    async def start() -> None:
        ran.append(f"{name} up {await Topic.objects.acount()}")

    def stop() -> None:
        ran.append(f"{name} down")

    router = app.router if on is None else on
    router.add_event_handler("startup", start)
    router.add_event_handler("shutdown", stop)


def run(app: FastAPI) -> None:
    """Start the application and end it, as a server does."""

    async def main() -> None:
        async with app.router.lifespan_context(app):
            pass

    asyncio.run(main())


@pytest.mark.filterwarnings(r"ignore:\s*on_event is deprecated:DeprecationWarning")
def test_the_classic_code_runs(topic: Topic) -> None:
    """`@app.on_event` handlers, which FastAPI ignores beside a lifespan, load what they load."""
    topics = board()
    app = FastAPI(lifespan=DjangoORM(repositories=[topics]).lifespan)
    cache: list[Any] = []

    @app.on_event("startup")
    async def startup() -> None:
        cache[:] = await sync_to_async(lambda: list(Topic.objects.values("comment")))()

    @app.get("/")
    async def index() -> Any:
        return {"topics": cache}

    with serving(app) as client:
        assert comments(client.get("/")) == ["first"]


def test_event_handlers_run_in_order_inside_the_lifespan(topic: Topic) -> None:
    """Startup handlers find the repositories ready, shutdown handlers find them still there."""
    topics = board()
    ran: list[Any] = []

    async def look() -> None:
        ran.append(len(await topics.current()))

    plugin = DjangoORM(repositories=[topics])
    app = FastAPI(lifespan=plugin.lifespan, on_startup=[look], on_shutdown=[look])
    registered(app, ran, "one")
    registered(app, ran, "two")
    for _ in range(2):
        run(app)
        assert ran == [1, "one up 1", "two up 1", 1, "one down", "two down"]
        ran.clear()


@pytest.mark.parametrize("how", ["plain", "wrapped", "replaced", "own"])
def test_event_handlers_of_included_routers_run_once(topic: Topic, how: str) -> None:
    """Those that FastAPI runs by a router's own lifespan are left to it, however that one is wrapped."""
    ran: list[str] = []
    plugin = DjangoORM(repositories=[])
    app, router = FastAPI(lifespan=plugin.lifespan), APIRouter()
    if how == "own":
        router = APIRouter(lifespan=asynccontextmanager(_nothing))  # then FastAPI does not run the handlers
    registered(app, ran, "router", on=router)
    app.include_router(router)
    registered(app, ran, "application")
    if how == "wrapped":
        inner = app.router.lifespan_context

        @asynccontextmanager
        async def outer(app: FastAPI) -> AsyncIterator[Any]:
            async with inner(app) as state:
                yield state

        app.router.lifespan_context = outer
    elif how == "replaced":
        app.router.lifespan_context = plugin.lifespan
    run(app)
    assert sorted(ran) == ["application down", "application up 1", "router down", "router up 1"]


def test_an_event_handler_that_fails_ends_the_start(topic: Topic) -> None:
    """Its own error is raised, and nothing of the application is left."""
    app = application(board())

    def fail() -> None:
        raise ZeroDivisionError("at startup")

    app.router.add_event_handler("startup", fail)
    before, lifespan = list(app.routes), app.router.lifespan_context
    with pytest.raises(ZeroDivisionError, match="at startup"):
        run(app)
    assert list(app.routes) == before
    assert app.router.lifespan_context is lifespan
    assert "fastapi_django_orm" not in type(connections).__module__


# Event loops and tasks


@pytest.mark.parametrize("context", ["the same", "another"])
def test_lifespan_may_end_in_another_task(topic: Topic, context: str) -> None:
    """Fixtures enter it in one task and leave it in another: it works between, and nothing is left."""
    topics = board()
    app = application(topics)
    ran: list[str] = []
    registered(app, ran, "handler")
    same = contextvars.copy_context()

    async def main() -> None:
        threads = set(threading.enumerate())
        loop = asyncio.get_running_loop()

        async def in_a_task(work: Any) -> Any:
            where = same if context == "the same" else None
            return await loop.create_task(work, context=where)

        lifespan = app.router.lifespan_context(app)
        await in_a_task(lifespan.__aenter__())
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            assert comments(await client.get("/")) == ["first"]
            assert (await client.get("/count")).json() == 1
        await in_a_task(lifespan.__aexit__(None, None, None))
        assert set(threading.enumerate()) == threads
        assert asyncio.all_tasks() == {asyncio.current_task()}
        with pytest.raises(NotStarted):
            await topics.current()

    asyncio.run(main())
    assert ran == ["handler up 1", "handler down"]


@pytest.mark.parametrize("asked", ["refresh", "wait_until_current"])
def test_a_loop_that_stands_still_is_told(topic: Topic, asked: str) -> None:
    """Code on another loop gets an error, where it would wait for ever for one that does not run."""
    topics = board()
    app = application(topics)
    loop = asyncio.new_event_loop()
    try:
        lifespan = app.router.lifespan_context(app)
        loop.run_until_complete(lifespan.__aenter__())

        async def ask() -> None:
            async with asyncio.timeout(10):
                await getattr(await topics.current(), asked)()

        with pytest.raises(NotStarted, match="that loop does not run"):
            asyncio.run(ask())
        loop.run_until_complete(ask())
        loop.run_until_complete(lifespan.__aexit__(None, None, None))
    finally:
        loop.close()


# Before and after


def test_repository_before_the_lifespan_says_so(topic: Topic) -> None:
    """The error names the repository and what to write."""
    topics = board()
    expected = r"Topics.* DjangoORM .*FastAPI\(lifespan=DjangoORM\.lifespan\)"
    with pytest.raises(NotStarted, match=expected):
        asyncio.run(topics.current())
    for use in (len, list, lambda topics: topics.get(1), lambda topics: topics.response()):
        with pytest.raises(NotStarted, match=r"Topics.*FastAPI\(lifespan=DjangoORM\.lifespan\)"):
            use(topics())


def test_application_without_the_lifespan_says_so(topic: Topic) -> None:
    """A request that needs a repository nobody has loaded fails with that error."""
    app = application(board(), asynccontextmanager(_nothing))
    with capture_logs(), serving(app) as client:
        assert client.get("/").status_code == 500


async def _nothing(app: FastAPI) -> AsyncIterator[None]:
    yield


def test_a_lifespan_that_nothing_has_run_is_told(project: Project) -> None:
    """The error says how each server and test runs a lifespan that is written."""
    with project.uvicorn("--lifespan", "off") as server:
        assert server.get("/").status_code == 500
    output = server.output()
    for cure in (
        "without `--lifespan off`",
        "`with TestClient(app) as client:`",
        "`async with app.router.lifespan_context(app):`",
        "`async with DjangoORM.lifespan(mounted_app):`",
    ):
        assert cure in output


def test_repository_after_the_lifespan_says_so(topic: Topic) -> None:
    """When the application has ended its repositories are not handed out any more."""
    topics = board()
    with serving(application(topics)):
        pass
    with pytest.raises(NotStarted):
        asyncio.run(topics.current())


def test_application_is_put_back(topic: Topic) -> None:
    """Afterwards its middleware stack, its routes and its documentation are what they were."""
    topics = board()
    app = application(topics)
    app.middleware_stack = app.build_middleware_stack()
    before = app.middleware_stack, list(app.router.routes), app.openapi()["paths"].keys()
    with serving(app) as client:
        assert client.get("/health/").status_code == 200
        assert "/health/" in client.get("/openapi.json").json()["paths"]
        assert app.middleware_stack is not before[0]
    assert app.middleware_stack is before[0]
    assert list(app.router.routes) == before[1]
    assert app.openapi()["paths"].keys() == before[2]


# What is left


def ended(postgresql: PostgreSQL, database: str, expected: int) -> bool:
    """Whether the server comes to have no more clients: it notices a moment later that one has left."""
    deadline = time.monotonic() + 10
    while postgresql.connections(database) > expected:  # an earlier test's may have been counted at first
        if time.monotonic() > deadline:
            return False
    return True


def use(app: FastAPI) -> None:
    """Serve, and let every kind of code that may open a connection run."""

    @app.get("/plain")
    def plain() -> int:
        return Topic.objects.count()

    with serving(app) as client:
        for path in ("/", "/count", "/plain", "/health/"):
            assert client.get(path).status_code == 200


def test_middleware_that_is_added_while_it_runs(topic: Topic) -> None:
    """A stack that is built again, as tracers do, still runs ORM code on the database threads."""
    app = application(board())

    @app.get("/thread")
    async def thread() -> str:
        return await sync_to_async(lambda: threading.current_thread().name)()

    build = app.build_middleware_stack
    with serving(app) as client:
        before = client.get("/thread").json().rpartition("_")[0]
        app.middleware_stack = app.build_middleware_stack()
        assert client.get("/thread").json().rpartition("_")[0] == before
    assert app.build_middleware_stack == build
    assert not isinstance(app.middleware_stack, RequestContext)


def test_no_thread_is_left(topic: Topic) -> None:
    """Shutdown ends every thread that the plugin has started, with the event loop still running."""
    topics = board()
    app = application(topics)

    async def run() -> set[str]:
        before = set(threading.enumerate())
        async with app.router.lifespan_context(app):
            await asyncio.gather(*(Topic.objects.acount() for _ in range(20)))
            assert set(threading.enumerate()) > before
        return {thread.name for thread in set(threading.enumerate()) - before}

    assert asyncio.run(run()) == set()


def test_no_task_is_left(topic: Topic) -> None:
    """Shutdown ends every task, also those that would have waited for something."""
    topics = board()
    app = application(topics)

    async def run() -> None:
        async with app.router.lifespan_context(app):
            assert len(asyncio.all_tasks()) > 1
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_no_connection_is_left(database: str, postgresql: PostgreSQL) -> None:
    """After shutdown the database server has no client of the application."""
    connections.close_all()
    before = postgresql.connections("board")
    topics = board()
    app = application(topics)

    async def run() -> None:
        async with app.router.lifespan_context(app):
            await asyncio.gather(*(Topic.objects.acount() for _ in range(20)))
            assert postgresql.connections("board") > before
        assert ended(postgresql, "board", before)

    asyncio.run(run())
    for _ in range(2):
        use(application(topics))
    assert ended(postgresql, "board", before)


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_failed_start_leaves_nothing(database: str, postgresql: PostgreSQL) -> None:
    """When the start fails after something was loaded, all that had begun is undone."""
    connections.close_all()
    before = postgresql.connections("board")
    Topic.objects.create(comment="not a number")
    connections.close_all()
    wrong = type("Wrong", (CachedRepository,), {"model": Topic, "schema": Numbered})
    app = FastAPI(lifespan=DjangoORM(repositories=[board(), wrong]).lifespan)
    routes = list(app.router.routes)

    async def run() -> None:
        threads = set(threading.enumerate())
        with capture_logs(), pytest.raises(InvalidRow):
            async with app.router.lifespan_context(app):
                pass
        assert set(threading.enumerate()) == threads
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert ended(postgresql, "board", before)

    asyncio.run(run())
    assert list(app.router.routes) == routes


def test_a_fastapi_that_lacks_what_is_needed(topic: Topic, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each start says so, not the first one alone, and with the function back the next one succeeds."""
    app = application(board())
    with monkeypatch.context() as without:
        without.delattr(fastapi.routing, "run_endpoint_function")
        for _ in range(2):
            with pytest.raises(UnknownFastAPI, match=r"FastAPI \d.*run_endpoint_function"), serving(app):
                pass
    with serving(app) as client:
        assert comments(client.get("/")) == ["first"]


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_connection_of_a_ready_that_queries_is_closed(
    project: Project, database: str, postgresql: PostgreSQL
) -> None:
    """What AppConfig.ready() has opened is not open any more when the application runs."""
    postgresql.drop_database("ready")
    project.use_server(postgresql.create_database("ready"))
    project.migrate()
    project.write(
        "bbs/apps.py",
        """
        from django.apps import AppConfig


        class BoardConfig(AppConfig):
            name = "bbs"

            def ready(self):
                import warnings
                from django.db import connection

                warnings.simplefilter("ignore")
                with connection.cursor() as cursor:
                    cursor.execute("SELECT 1")
        """,
    )
    code = """
        import asyncio, time
        import psycopg
        from fastapi_django_orm import DjangoORM

        def count():
            from django.conf import settings
            given = settings.DATABASES["default"]
            with psycopg.connect(
                host=given["HOST"], port=given["PORT"], user=given["USER"], password=given["PASSWORD"],
                dbname="postgres",
            ) as asking:
                query = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'ready'"
                return asking.execute(query).fetchone()[0]

        async def main():
            DjangoORM.setup()
            deadline = time.monotonic() + 10
            while count() and time.monotonic() < deadline:
                pass  # the server notices a moment later that a client has left
            print("left open:", count())

        asyncio.run(main())
    """
    assert "left open: 0" in project.python(code)
