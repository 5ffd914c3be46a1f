"""The log: events that can be searched for, a request's id on each line, and one stream on demand."""

import asyncio
import re
import shutil
import threading
from pathlib import Path
from typing import Annotated, Any

import pytest
import structlog
from django.conf import settings as django_settings
from django.db import connections
from fastapi import Depends, FastAPI
from structlog.testing import LogCapture

from fastapi_django_orm import CachedRepository, DjangoORM, ORMSettings, run
from fastapi_django_orm.database import engines
from fastapi_django_orm.errors import DatabaseBusy, RefreshFailed
from tests.project.board.models import Topic
from tests.support.databases import default_changed
from tests.support.gates import Gate, gated, started
from tests.support.hearing import DEADLINE, eventually, follows, hearing, link, write
from tests.support.projects import MAIN, Project, events
from tests.support.repositories import declare
from tests.support.serving import serving

JSON = "\nfrom fastapi_django_orm import logs\n\nlogs.configure(json=True)\n"

LOGGING = """
LOGGING = {
    "version": 1,
    "disable_existing_loggers": True,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "loggers": {
        "django": {"handlers": ["console"], "level": "INFO"},
        "uvicorn": {"handlers": ["console"], "level": "INFO"},
    },
    "root": {"handlers": ["console"], "level": "WARNING"},
}
"""

SPEAKING = """

@app.get("/speak")
async def speak():
    import logging

    import structlog

    structlog.get_logger("mine").info("said", word="hello")
    logging.getLogger("django.request").warning("django says %s", "hello")
    logging.getLogger("mine").info("plainly")


@app.get("/break")
async def broken():
    password = "s3cret"
    raise RuntimeError("broken")
"""


@pytest.fixture
def lines(sqlite: str) -> list[Any]:
    """All events, with what is bound at that moment."""
    capture = LogCapture()
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, capture])
    return capture.entries


def application(**settings: Any) -> FastAPI:
    topics = type("Topics", (CachedRepository,), {"model": Topic, "fields": ("id",)})
    app = FastAPI(lifespan=DjangoORM(ORMSettings(**settings), repositories=[topics]).lifespan)

    @app.get("/speak")
    async def speak(topics: Annotated[Any, Depends(topics.current)]) -> None:
        await asyncio.sleep(0)
        structlog.get_logger().info("said")

    @app.get("/speak/plain")
    def speak_plainly() -> None:
        structlog.get_logger().info("said")

    return app


def named(lines: list[Any], event: str) -> list[Any]:
    return [line for line in lines if line["event"] == event]


# Events


def test_life_is_logged(lines: list[Any]) -> None:
    """Load, refresh, refusal and shutdown have names and fields that stay."""
    Topic.objects.create(comment="first")
    with serving(application(refresh_token="s3cret")) as client:
        assert client.post("/refresh/").status_code == 401
        assert client.post("/refresh/", headers={"Authorization": "Bearer wrong"}).status_code == 403
        assert client.post("/refresh/", headers={"Authorization": "Bearer s3cret"}).status_code == 200
    (loaded,) = named(lines, "repository_loaded")
    (refreshed,) = named(lines, "repository_refreshed")
    assert {**loaded, "duration_ms": 0} == {
        "event": "repository_loaded",
        "log_level": "info",
        "repository": "topics",
        "rows": 1,
        "version": 1,
        "duration_ms": 0,
        "trigger": "startup",
    }
    assert loaded["duration_ms"] > 0
    assert (refreshed["version"], refreshed["trigger"]) == (2, "route")
    assert loaded.keys() <= refreshed.keys()
    refusals = named(lines, "refresh_refused")
    assert [(line["status"], line["reason"]) for line in refusals] == [
        (401, "no token sent"),
        (403, "wrong token"),
    ]
    assert all(line["log_level"] == "warning" for line in refusals)
    assert lines[-1]["event"] == "shut_down"
    assert "s3cret" not in str(lines)
    assert "wrong" not in str(refusals).replace("wrong token", "")


def test_setup_is_logged(project: Project) -> None:
    """The settings module and Django's version are in the log of the set-up."""
    project.write("main.py", MAIN + JSON)
    code = """
        from main import app
        from fastapi_django_orm import DjangoORM

        DjangoORM.setup()
    """
    (line,) = named(events(project.python(code)), "django_set_up")
    assert line["settings_module"] == "config.settings"
    assert re.match(r"\d+\.\d+", line["version"])
    assert (line["level"], line["logger"]) == ("info", "fastapi_django_orm")


def test_failure_is_logged_with_its_cause(lines: list[Any]) -> None:
    """A load that fails is an error with the repository, the trigger, the cause, and what is served on."""

    class Topics(CachedRepository):
        model = Topic
        broken = False

        def queryset(self) -> Any:
            if self.broken:
                raise ArithmeticError("out of order")
            return super().queryset()

    app = FastAPI(lifespan=DjangoORM(ORMSettings(refresh_token="s3cret"), repositories=[Topics]).lifespan)
    with serving(app) as client:
        Topics.broken = True
        assert client.post("/refresh/", headers={"Authorization": "Bearer s3cret"}).status_code == 503
        Topics.broken = False
    line = named(lines, "refresh_failed")[0]
    assert line["log_level"] == "error"
    assert (line["repository"], line["trigger"], line["serving"]) == ("topics", "route", 1)
    assert line["error"] == "ArithmeticError"


@pytest.mark.parametrize("debug", [True, False])
def test_refresh_without_a_token_is_warned_of(
    lines: list[Any], debug: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At startup the log says whether everybody or nobody may refresh, and which setting changes that."""
    monkeypatch.setattr("django.conf.settings.DEBUG", debug)
    with serving(application()):
        pass
    (line,) = named(lines, "refresh_open_to_all" if debug else "refresh_closed")
    assert line["log_level"] == "warning"
    assert "DJANGO_ORM_REFRESH_TOKEN" in line["hint"]
    assert line["path"] == "/refresh/"


def test_refresh_that_is_settled_is_not_warned_of(lines: list[Any]) -> None:
    """With a token, or without the route, there is nothing to say."""
    for settings in ({"refresh_token": "s3cret"}, {"refresh_path": "off"}):
        with serving(application(**settings)):
            pass
    assert not [line for line in lines if line["log_level"] == "warning"]


@pytest.mark.parametrize(
    ("changes", "warns"),
    [({"CONN_MAX_AGE": 0}, True), ({"CONN_MAX_AGE": 1}, False), ({"CONN_MAX_AGE": None}, False)],
)
def test_connections_that_are_not_kept_are_warned_of(
    lines: list[Any], changes: dict[str, Any], warns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log says once for each database what it costs, and which setting changes it."""
    monkeypatch.setattr(engines, "_warned_of", set())
    with default_changed(**changes):
        for _ in range(2):
            with serving(application(refresh_token="s3cret")):
                pass
    warnings = named(lines, "connections_not_kept")
    assert len(warnings) == warns
    for warning in warnings:
        assert warning["database"] == "default"
        assert "DATABASES['default']['CONN_MAX_AGE']" in warning["hint"]
        assert "0.1 to 0.3 ms" in warning["hint"]


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_pool_of_the_driver_keeps_connections(
    database: str, lines: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Django wants `CONN_MAX_AGE = 0` with psycopg's pool, and that is not warned of."""
    monkeypatch.setattr(engines, "_warned_of", set())
    settings = {**connections.settings[database], "CONN_MAX_AGE": 0, "OPTIONS": {"pool": True}}
    with default_changed(**settings), serving(application(refresh_token="s3cret")):
        pass
    assert not named(lines, "connections_not_kept")


# The request's id


@pytest.mark.parametrize("error", [BrokenPipeError("its reader has gone"), OSError("the disk is full")])
def test_a_log_that_raises_ends_nothing(sqlite: str, tmp_path: Path, error: Exception) -> None:
    """A transport that was lost is connected again, and a call that waits too long is given up as ever."""
    lost: set[str] = set()

    def lose(logger: Any, method: str, event: Any) -> Any:
        lost.add(event["event"])
        raise error

    async def main() -> None:
        patience = {"threads": 1, "thread_timeout": 0.2}
        async with hearing(declare(), coherence_poll=0.02, **patience) as (topics, coherence):
            structlog.configure(processors=[lose])
            watch = link(coherence, "sqlite")
            before = watch.connected_since
            shutil.copyfile(file, tmp_path / "copy")
            (tmp_path / "copy").replace(file)
            await eventually(lambda: watch.connected_since not in (None, before), "it watches again")
            await write("one")
            await follows(topics, "one")
            begun, held = threading.Event(), threading.Event()
            holding = asyncio.create_task(run(lambda: (begun.set(), held.wait(DEADLINE))))
            await asyncio.to_thread(begun.wait, DEADLINE)
            for _ in range(2):  # the second after a call that does not end was to be logged
                with pytest.raises(DatabaseBusy):
                    await run(int)
            held.set()
            await holding

    file = tmp_path / "board.sqlite3"
    connections.close_all()
    shutil.copyfile(django_settings.DATABASES["default"]["NAME"], file)
    with default_changed(NAME=file):
        asyncio.run(main())
        connections.close_all()
    assert {"coherence_lost", "coherence_connected", "call_does_not_end"} <= lost


def test_an_error_that_cannot_be_told_is_named(lines: list[Any]) -> None:
    """Of an error whose text cannot be made the class is in the log."""

    class Untold(Exception):
        def __str__(self) -> str:
            raise ValueError("no text")

    gate = Gate()

    async def main() -> None:
        async with started(gated(gate), gate=gate) as (topics,):
            gate.error = Untold()
            with pytest.raises(RefreshFailed):
                await topics.refresh()

    asyncio.run(main())
    assert named(lines, "refresh_failed")[0]["cause"] == "Untold"


@pytest.mark.parametrize("path", ["/speak", "/speak/plain"])
def test_each_request_has_an_id(lines: list[Any], path: str) -> None:
    """All that one request logs has the same id, in a thread too, and the next request has another."""
    with serving(application()) as client:
        for _ in range(2):
            assert client.get(path).status_code == 200
    first, second = (line["request_id"] for line in named(lines, "said"))
    assert first != second
    assert len(first) >= 16


def test_id_ends_with_the_request(lines: list[Any]) -> None:
    """What is logged outside of requests has no id."""
    with serving(application()) as client:
        assert client.get("/speak").status_code == 200
    assert "request_id" not in named(lines, "repository_loaded")[0]
    assert "request_id" not in named(lines, "shut_down")[0]


def test_refresh_that_a_request_asked_for_has_its_id(lines: list[Any]) -> None:
    """The load runs in a task of its own, and what it logs has the id of the request that asked first."""

    class Topics(CachedRepository):
        model = Topic
        broken = False

        def queryset(self) -> Any:
            if self.broken:
                raise ArithmeticError("out of order")
            return super().queryset()

    app = FastAPI(lifespan=DjangoORM(ORMSettings(refresh_token="s3cret"), repositories=[Topics]).lifespan)

    @app.get("/reload")
    async def reload(topics: Annotated[Any, Depends(Topics.current)]) -> None:
        await topics.refresh()

    with serving(app) as client:
        client.post("/refresh/", headers={"Authorization": "Bearer s3cret", "X-Request-ID": "by-route"})
        client.get("/reload", headers={"X-Request-ID": "by-handler"})
        Topics.broken = True
        client.get("/reload", headers={"X-Request-ID": "in-vain"})
        Topics.broken = False
    refreshed = [line for line in named(lines, "repository_refreshed") if line["trigger"] != "retry"]
    assert [line["request_id"] for line in refreshed] == ["by-route", "by-handler"]
    assert named(lines, "refresh_failed")[0]["request_id"] == "in-vain"
    assert "request_id" not in named(lines, "repository_loaded")[0]


def test_id_from_a_proxy_is_kept(lines: list[Any]) -> None:
    """The id that X-Request-ID names is the one in the log."""
    with serving(application()) as client:
        client.get("/speak", headers={"X-Request-ID": "6f1c:a-B_9/@x=.+"})
    assert named(lines, "said")[0]["request_id"] == "6f1c:a-B_9/@x=.+"


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"x" * 129,
        b"a b",
        b"a\tevent=shut_down",
        b'"}{"event"',
        b"\xff",
        "ü".encode(),
        b"<script>",
        b"\x1b[2J",
    ],
)
def test_forged_id_is_replaced(lines: list[Any], value: bytes) -> None:
    """An id that could pass for something else in a log is not taken over, and the request is answered."""
    with serving(application(), http="h11") as client:
        try:
            status = client.get("/speak", headers={b"X-Request-ID": value}).status_code
        except Exception:  # the client's own refusal to send it
            pytest.skip("cannot be sent")
    if status == 400:  # the server's
        return
    assert status == 200
    assert re.fullmatch("[0-9a-f]{16}-[0-9a-f]+", named(lines, "said")[0]["request_id"])


# What is configured


def test_nothing_is_configured_by_itself(project: Project) -> None:
    """Importing the package and running an application changes neither structlog nor logging."""
    code = """
        import asyncio, logging
        import structlog

        def state():
            names = ["", "uvicorn", "uvicorn.access", "fastapi_django_orm"]
            loggers = [logging.getLogger(name) for name in names]
            return structlog.is_configured(), [
                (logger.level, list(logger.handlers), logger.propagate, logger.disabled) for logger in loggers
            ]

        before = state()
        from main import app

        async def main():
            async with app.router.lifespan_context(app):
                assert state() == before, state()
            assert state() == before, state()

        asyncio.run(main())
        print("unchanged")
    """
    assert "unchanged" in project.python(code)


@pytest.mark.parametrize("early", [False, True], ids=["set up by the lifespan", "set up at import"])
def test_configured_logs_are_one_stream_of_json(project: Project, early: bool) -> None:
    """Against Django's LOGGING, uvicorn's access log, Django and structlog all write JSON, each line once."""
    project.append("config/settings.py", LOGGING)
    setup = "from fastapi_django_orm import DjangoORM\nDjangoORM.setup()\n" if early else ""
    project.write("main.py", MAIN + JSON + setup + SPEAKING)
    with project.uvicorn() as server:
        assert server.get("/speak?x=1", headers={"X-Request-ID": "abc"}).status_code == 200
        assert server.get("/break", headers={"X-Request-ID": "broken"}).status_code == 500
        server.stop()
    output = server.output()
    lines = events(output)
    others = [line for line in output.splitlines() if not line.startswith("{")]
    assert others == [], others
    (access,) = [line for line in named(lines, "request") if line["path"].startswith("/speak")]
    assert (access["method"], access["path"], access["status"]) == ("GET", "/speak?x=1", 200)
    assert access["logger"] == "uvicorn.access"
    (said,) = named(lines, "said")
    assert (said["word"], said["request_id"], said["logger"]) == ("hello", "abc", "mine")
    (django,) = named(lines, "django says hello")
    assert (django["request_id"], django["level"]) == ("abc", "warning")
    (failure,) = [line for line in lines if "exception" in line]
    assert (failure["request_id"], failure["logger"]) == ("broken", "uvicorn.error")
    assert len(named(lines, "plainly")) == 1
    for event in ("django_set_up", "repository_loaded", "Application startup complete.", "shut_down"):
        assert len(named(lines, event)) == 1, event
    assert all(re.match(r"\d{4}-\d\d-\d\dT.*Z$", line["timestamp"]) for line in lines)
    assert "RuntimeError" in output
    assert "s3cret" not in output


def test_configured_logs_for_a_person(project: Project) -> None:
    """The console's lines have the same events, without the variables of a traceback's frames."""
    project.append("config/settings.py", LOGGING)
    project.write("main.py", MAIN + JSON.replace("True", "False") + SPEAKING)
    with project.uvicorn() as server:
        assert server.get("/speak", headers={"X-Request-ID": "abc"}).status_code == 200
        assert server.get("/break").status_code == 500
        server.stop()
    output = server.output()
    assert re.search(r"said +.*\[mine\].*request_id=abc.*word=hello", output)
    assert re.search(r"request +.*\[uvicorn.access\].*path=/speak.*status=200", output)
    assert "RuntimeError: broken" in output
    assert output.count('raise RuntimeError("broken")') == 1
    assert "s3cret" not in output
    assert "\x1b" not in output


def test_access_log_that_is_off_stays_off(project: Project) -> None:
    """Uvicorn --no-access-log means it."""
    project.append("config/settings.py", LOGGING)
    project.write("main.py", MAIN + JSON)
    with project.uvicorn("--no-access-log") as server:
        assert server.get("/").status_code == 200
    assert named(events(server.output()), "shut_down")
    assert "uvicorn.access" not in server.output()


def test_configure_leaves_handlers_of_files_alone(project: Project) -> None:
    """A handler that somebody has added to write a file goes on, and configuring twice writes once."""
    code = """
        import logging
        from fastapi_django_orm import logs

        logging.getLogger().addHandler(logging.FileHandler("own.log"))
        logs.configure(json=True)
        logs.configure(json=True)
        logging.getLogger("anybody").warning("heard")
        logging.shutdown()
    """
    assert len(named(events(project.python(code)), "heard")) == 1
    assert (project.directory / "own.log").read_text() == "heard\n"


def test_configured_level_is_kept(project: Project) -> None:
    """What is below the level is left out, of structlog and of logging."""
    code = """
        import logging
        import structlog
        from fastapi_django_orm import logs

        logs.configure(json=True, level="WARNING")
        for logger in (structlog.get_logger("mine"), logging.getLogger("yours")):
            logger.info("quiet")
            logger.warning("loud")
    """
    assert [line["event"] for line in events(project.python(code))] == ["loud", "loud"]


def test_configured_stream_is_used(project: Project) -> None:
    """Logs go where they are sent, as JSON when that is no terminal."""
    code = """
        import io, json, logging
        from fastapi_django_orm import logs

        stream = io.StringIO()
        logs.configure(stream=stream)
        logging.getLogger("mine").warning("heard")
        print("got:", json.loads(stream.getvalue())["event"])
    """
    assert project.python(code) == "got: heard\n"
