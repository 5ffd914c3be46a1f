"""One request refreshes every connected worker, and says which have not; hints come to the same route."""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import httpx
import psycopg
import pytest
from django.db import OperationalError, connections
from fastapi import FastAPI
from structlog.testing import capture_logs

from fastapi_django_orm import DjangoORM, ORMSettings
from fastapi_django_orm.coherence import roll_call
from fastapi_django_orm.coherence.roll_call import EVERY_WORKER, Answer, Question, new_worker
from tests.project import router
from tests.project.board.models import Topic
from tests.support.databases import get_all
from tests.support.gates import Gate, comments, gated
from tests.support.hearing import (
    DEADLINE,
    eventually,
    execute,
    hearing,
    install_triggers,
    uninstall_triggers,
    write,
)
from tests.support.playing import outside
from tests.support.projects import Project
from tests.support.repositories import declare
from tests.support.servers import PostgreSQL, Valkey

TOKEN = "open sesame"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
HINT = b'{"v":1,"m":"board.Topic"}'
WHO = """

@app.get("/who/")
async def who(topics: TopicRepo):
    import os
    return [os.getpid(), [topic["comment"] for topic in topics.all()]]
"""


@pytest.fixture
def board(_databases: Any, postgresql: PostgreSQL) -> Iterator[PostgreSQL]:
    """PostgreSQL with empty tables and without triggers, so that nothing is heard of a write."""
    router.choose(_databases("postgresql"))
    uninstall_triggers()
    Topic.objects.all().delete()
    yield postgresql
    uninstall_triggers()
    connections.close_all()
    router.choose("default")


@pytest.fixture(params=["postgresql", "valkey"])
def transport(request: pytest.FixtureRequest) -> str:
    """Each transport that connects workers, in turn: the setting."""
    if request.param == "postgresql":
        request.getfixturevalue("board")
        return "postgresql"
    request.getfixturevalue("sqlite")
    return str(request.getfixturevalue("valkey").url())


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[Any]]:
    """What is logged, instead of the output."""
    with capture_logs() as entries:
        yield entries


class Application:
    """A running application, a worker among others, and its client."""

    def __init__(self, repository: Any, client: httpx.AsyncClient) -> None:
        self.repository = repository
        self.client = client

    async def refresh(self, query: str = "", **options: Any) -> httpx.Response:
        return await self.client.post(f"/refresh/{query}", headers=HEADERS, **options)

    async def report(self, query: str = "") -> Any:
        return (await self.refresh(query)).json()["topics"]["workers"]


@asynccontextmanager
async def worker(*classes: type[Any], **settings: Any) -> AsyncIterator[Application]:
    app = FastAPI()
    plugin = DjangoORM(ORMSettings(refresh_token=TOKEN, **settings), repositories=classes)
    async with asyncio.timeout(3 * DEADLINE), plugin.lifespan(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=DEADLINE) as client:
            yield Application(await classes[0].current(), client)


def run(main: Any) -> None:
    asyncio.run(main())


# Asking other workers


def test_every_connected_worker_refreshes(transport: str) -> None:
    """When the answer comes, all serve what nobody has announced, and the report names them."""

    async def main() -> None:
        async with (
            worker(declare(), coherence=transport) as one,
            worker(declare(), coherence=transport) as two,
            worker(declare(), coherence=transport) as three,
        ):
            await write("unheard")
            answer = await one.refresh()
            assert answer.status_code == 200, answer.text
            for each in (one, two, three):
                assert comments(each.repository) == ["unheard"]
            workers = answer.json()["topics"]["workers"]
            assert len(set(workers["have"])) == 3
            assert all(name.split(":")[1] == str(os.getpid()) for name in workers["have"])
            assert workers["asked_by"] == ["postgresql:postgresql" if "://" not in transport else "redis"]
            assert workers["missing"] == workers["failed"] == workers["down"] == []
            assert "Workers-Missing" not in answer.headers

    run(main)


def test_get_refreshes_every_worker_too(transport: str) -> None:
    """The answer has the rows, and they are served everywhere."""

    async def main() -> None:
        async with (
            worker(declare(), coherence=transport) as one,
            worker(declare(), coherence=transport) as two,
        ):
            await write("unheard")
            answer = await one.client.get("/refresh/", headers=HEADERS)
            assert [topic["comment"] for topic in answer.json()["topics"]] == ["unheard"]
            assert comments(two.repository) == ["unheard"]

    run(main)


def test_a_worker_that_does_not_finish_in_time(transport: str) -> None:
    """It is named after the seconds that the request allows, and has the rows later."""
    gate = Gate()

    async def main() -> None:
        async with (
            worker(declare(), coherence=transport) as one,
            worker(gated(gate), coherence=transport) as slow,
        ):
            gate.close()
            await write("unheard")
            try:
                answer = await one.refresh("?wait=0.3")
                assert answer.status_code == 504
                workers = answer.json()["topics"]["workers"]
                assert len(workers["have"]) == len(workers["missing"]) == 1
                assert answer.headers["Workers-Missing"] == workers["missing"][0]
            finally:
                gate.open()
            await eventually(lambda: comments(slow.repository) == ["unheard"], "the rows")

    run(main)


def test_a_worker_that_cannot_load(transport: str) -> None:
    """It is named as one that serves what it had, at once and not after the time."""
    gate = Gate()

    async def main() -> None:
        async with (
            worker(declare(), coherence=transport) as one,
            worker(gated(gate), coherence=transport),
        ):
            gate.error = OperationalError("the disk is gone")
            answer = await one.refresh("?wait=30")
            assert answer.status_code == 504
            workers = answer.json()["topics"]["workers"]
            assert (len(workers["have"]), len(workers["failed"]), workers["missing"]) == (1, 1, [])

    run(main)


def test_a_worker_that_has_gone_is_not_waited_for(transport: str) -> None:
    """Who ends while it is waited for is connected no more, and not missing."""
    gate = Gate()

    async def main() -> None:
        async with worker(declare(), coherence=transport) as one:
            async with worker(gated(gate), coherence=transport):
                gate.reset()
                gate.close()
                asking = asyncio.create_task(one.refresh("?wait=30"))
                await gate.load_begun()
                gate.open()
            answer = await asking
            assert answer.json()["topics"]["workers"]["missing"] == []

    run(main)


def test_workers_without_such_a_repository(transport: str) -> None:
    """Another application on the same transport has nothing to refresh, and is not in the report."""

    async def main() -> None:
        async with (
            worker(declare(), coherence=transport) as one,
            worker(gated(Gate(), name="others"), coherence=transport),
        ):
            workers = await one.report()
            assert (len(workers["have"]), workers["missing"]) == (1, [])

    run(main)


def test_a_call_is_passed_on_by_nobody(valkey: Valkey, sqlite: str) -> None:
    """Three workers cost one question, and one load of each."""
    gates = [Gate(), Gate(), Gate()]

    async def main() -> None:
        import redis.asyncio

        async with (
            worker(gated(gates[0]), coherence=valkey.url()) as one,
            worker(gated(gates[1]), coherence=valkey.url()),
            worker(gated(gates[2]), coherence=valkey.url()),
            redis.asyncio.from_url(valkey.url()) as client,
            client.pubsub() as listening,
        ):
            await listening.subscribe(EVERY_WORKER)
            assert await listening.get_message(timeout=DEADLINE)
            for _ in range(2):  # the second waits for what connecting has caused
                assert (await one.refresh()).status_code == 200
            for gate in gates:
                gate.reset()
            assert (await one.refresh()).status_code == 200
            await client.publish(EVERY_WORKER, "end")
            heard = []
            while not heard or heard[-1] != b"end":
                message = await listening.get_message(timeout=DEADLINE)
                assert message is not None
                heard.append(message["data"])
            assert len(heard) == 3 + 1
            assert [gate.loads for gate in gates] == [1, 1, 1]

    run(main)


def test_the_transport_is_down(valkey: Valkey, sqlite: str) -> None:
    """This worker refreshes, and does not pretend that the others have."""

    async def main() -> None:
        async with worker(declare(), coherence=valkey.url()) as one:
            valkey.kill()
            await write("unheard")
            answer = await one.refresh("?wait=1")
            assert answer.status_code == 504
            assert comments(one.repository) == ["unheard"]
            workers = answer.json()["topics"]["workers"]
            assert (len(workers["have"]), workers["asked_by"], workers["down"]) == (1, [], ["redis"])
            assert answer.headers["Workers-Missing"] == "redis"

    run(main)


@pytest.mark.parametrize("coherence", ["auto", "off"])
def test_nothing_connects_workers(sqlite: str, coherence: str) -> None:
    """The report says that only this worker has answered, for itself."""

    async def main() -> None:
        async with worker(declare(), coherence=coherence) as one:
            workers = await one.report()
            assert len(workers["have"]) == 1
            assert workers["asked_by"] == workers["missing"] == workers["down"] == []

    run(main)


def test_nobody_is_asked_without_time(transport: str) -> None:
    """With `wait=0` this worker alone refreshes; more than a minute is refused."""

    async def main() -> None:
        async with (
            worker(declare(), coherence=transport) as one,
            worker(declare(), coherence=transport),
        ):
            workers = await one.report("?wait=0")
            assert (len(workers["have"]), workers["asked_by"]) == (1, [])
            for wait in ("61", "-1", "nan", "inf", "soon"):
                assert (await one.refresh(f"?wait={wait}")).status_code == 422

    run(main)


GARBAGE = [
    b"",
    b"\xff\xfe",
    b"hello",
    b"[" * 5000,
    b"null",
    b'{"v":1,"c":"x","w":"nobody","r":["topics"],"s":5}',
    b'{"v":1,"c":"x","w":"a:1:00000000","r":["topics",1],"s":5}',
    b'{"v":1,"c":"x","w":"a:1:00000000","r":["topics"],"s":NaN}',
    b'{"v":1,"c":"x","w":"a:1:00000000","r":["nothing"],"s":1' + b"0" * 400 + b"}",
    b'{"v":1,"c":"x","w":"a:1:00000000","h":[0,-1,"a"],"f":[]}',
    b'{"v":1,"c":"x","w":"a:1:00000000","h":[7],"f":[0]}',
    b'{"v":2,"c":"x","w":"a:1:00000000","h":[0],"f":[]}',
]


def test_messages_that_cannot_be_understood(valkey: Valkey, sqlite: str) -> None:
    """They load nothing and break nothing: the next call is answered by all."""
    gate = Gate()

    async def main() -> None:
        import redis.asyncio

        async with (
            worker(gated(gate), coherence=valkey.url()) as one,
            worker(declare(), coherence=valkey.url()),
            redis.asyncio.from_url(valkey.url()) as client,
        ):
            assert len((await one.report())["have"]) == 2
            gate.reset()
            channels = [EVERY_WORKER.encode(), *await client.pubsub_channels("fastapi_django_orm_to_*")]
            assert len(channels) == 3
            for channel in channels:
                for message in GARBAGE:
                    await client.publish(channel, message)
            assert len((await one.report())["have"]) == 2
            assert gate.loads == 1

    run(main)


def test_the_version_is_written_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A later version of the messages is understood by those who write it, and not by those of before."""
    messages = Question("1", new_worker(), ("topics",), 5.0), Answer("1", new_worker(), (0,), ())
    now = [roll_call.write(message) for message in messages]
    assert [roll_call.read(payload) for payload in now] == list(messages)
    monkeypatch.setattr(roll_call, "VERSION", roll_call.VERSION + 1)
    later = [roll_call.write(message) for message in messages]
    assert [roll_call.read(payload) for payload in later] == list(messages)
    assert [roll_call.read(payload) for payload in now] == [None, None]


def test_a_connection_with_a_name_of_the_projects_own(board: PostgreSQL) -> None:
    """Who has named the project's connections is found by the others all the same."""
    dsn = "application_name=ours"

    async def main() -> None:
        async with (
            worker(declare(), coherence="postgresql", coherence_dsn=dsn) as one,
            worker(declare(), coherence="postgresql", coherence_dsn=dsn),
        ):
            assert len((await one.report())["have"]) == 2

    run(main)


@pytest.mark.parametrize("message", ["", "hello", '{"v":1,"c":"x","w":"a:1:00000000","r":[1],"s":5}'])
def test_notifications_that_cannot_be_understood(board: PostgreSQL, message: str) -> None:
    """On the channel of questions they are nothing, and no hints either."""
    gate = Gate()

    async def main() -> None:
        async with worker(gated(gate), coherence="postgresql") as one:
            assert (await one.refresh()).status_code == 200
            gate.reset()
            await outside(lambda: execute("SELECT pg_notify(%s, %s)", EVERY_WORKER, message))
            assert (await one.refresh()).status_code == 200
            assert gate.loads == 1

    run(main)


def test_many_repositories(board: PostgreSQL) -> None:
    """Names that do not fit into one message are asked for in several."""
    classes = [gated(Gate(), name="x" * 300 + str(number)) for number in range(60)]

    async def main() -> None:
        async with worker(*classes, coherence="postgresql") as one, worker(*classes, coherence="postgresql"):
            report = (await one.refresh("?wait=30")).json()
            assert len(report) == 60
            assert {len(entry["workers"]["have"]) for entry in report.values()} == {2}

    run(main)


# Hints over HTTP


@pytest.mark.parametrize("query", ["?model=board.Topic&wait=0", "?wait=0", ""])
def test_a_posted_hint_is_answered_at_once(sqlite: str, query: str) -> None:
    """The answer does not wait for the load, which comes."""
    gate = Gate()

    async def main() -> None:
        async with worker(gated(gate), coherence="off") as one:
            gate.close()
            await write("one")
            answer = await one.refresh(query, content=HINT)
            assert (answer.status_code, answer.content) == (202, b"")
            gate.open()
            await eventually(lambda: comments(one.repository) == ["one"], "the row")

    run(main)


@pytest.mark.parametrize("label", ["board.Topic", "board.topic", "board.LoudTopic"])
def test_a_model_alone_is_a_hint(sqlite: str, label: str) -> None:
    """`?model=` without a body means all its rows, by any label that Django knows it or its proxy by."""
    gate = Gate()

    async def main() -> None:
        async with worker(gated(gate), coherence="off") as one:
            await write("one")
            assert (await one.refresh(f"?model={label}")).status_code == 202
            await eventually(lambda: comments(one.repository) == ["one"], "the row")

    run(main)


UNCONCERNED = [
    ("?model=board.Author", b""),
    ("?model=nobody.Knows", b'{"v":1,"m":"nobody.Knows","k":[1]}'),
    ("", b'{"v":1,"m":"nobody.Knows"}'),
]


@pytest.mark.parametrize(("query", "body"), UNCONCERNED)
def test_a_hint_that_concerns_nobody(sqlite: str, query: str, body: bytes) -> None:
    """A model that no repository reads loads nothing, nor one in a hint that only the poster knows."""
    gate = Gate()

    async def main() -> None:
        async with worker(gated(gate), coherence="off") as one:
            gate.reset()
            assert (await one.refresh(query, content=body)).status_code == 202
            assert gate.loads == 0

    run(main)


UNKNOWN = [
    ("board.Topik", "There is no model 'board.Topik' in INSTALLED_APPS. Did you mean 'board.Topic'"),
    ("BOARD.TOPIC", "There is no model 'BOARD.TOPIC' in INSTALLED_APPS. Did you mean 'board.Topic'"),
    ("Topic", "There is no model 'Topic' in INSTALLED_APPS. "),
    ("a.b.c", "There is no model 'a.b.c' in INSTALLED_APPS. There is: "),
]


@pytest.mark.parametrize(("label", "message"), UNKNOWN)
def test_a_model_that_is_none(sqlite: str, label: str, message: str) -> None:
    """`?model=` with a label of no model is a mistake, answered with the nearest labels."""

    async def main() -> None:
        async with worker(declare(), coherence="off") as one:
            answer = await one.refresh(f"?model={label}")
            assert answer.status_code == 404
            assert answer.json()["detail"].startswith(message)

    run(main)


@pytest.mark.parametrize("body", [b"hello", b"\xff\xfe", b'{"v":7}', b"[" * 5000, b"x" * 1_000_000])
def test_a_posted_hint_that_cannot_be_understood(sqlite: str, body: bytes) -> None:
    """As on every way by which hints come, everything is loaded."""

    async def main() -> None:
        async with worker(declare(), coherence="off") as one:
            await write("one")
            assert (await one.refresh(content=body)).status_code == 202
            await eventually(lambda: comments(one.repository) == ["one"], "the row")

    run(main)


def test_a_posted_hint_reaches_every_worker(transport: str) -> None:
    """Who is told passes it on to those that a transport connects it with; with `wait=0` it does not."""
    gate = Gate()

    async def main() -> None:
        async with (
            worker(declare(), coherence=transport) as one,
            worker(gated(gate), coherence=transport) as other,
        ):
            await write("one")
            assert (await one.refresh(content=HINT)).status_code == 202
            await eventually(lambda: comments(one.repository) == ["one"], "the row where it was posted")
            await eventually(lambda: comments(other.repository) == ["one"], "the row elsewhere")
            gate.reset()
            assert (await one.refresh("?wait=0", content=HINT)).status_code == 202
            await one.refresh()  # which comes after it, and loads in both
            assert gate.loads == 1

    run(main)


def test_a_posted_hint_that_cannot_be_passed_on(sqlite: str, valkey: Valkey) -> None:
    """It is followed, and whoever has posted it is to try again; unless there never was a connection."""

    async def main() -> None:
        async with worker(declare(), coherence=valkey.url()) as one:
            valkey.kill()
            await write("one")
            answer = await one.refresh(content=HINT)
            assert (answer.status_code, "could not pass it on" in answer.text) == (503, True)
            await eventually(lambda: comments(one.repository) == ["one"], "the row")
        async with worker(declare(), coherence=valkey.url()) as one:
            assert (await one.refresh(content=HINT)).status_code == 202

    run(main)


def test_a_posted_hint_that_is_too_long(sqlite: str) -> None:
    """It is refused, and loads nothing."""
    gate = Gate()

    async def main() -> None:
        async with worker(gated(gate), coherence="off") as one:
            gate.reset()
            assert (await one.refresh(content=b"x" * 1_000_001)).status_code == 413
            assert gate.loads == 0

    run(main)


def test_a_posted_hint_without_the_token(sqlite: str) -> None:
    """It is refused before it is read."""

    async def main() -> None:
        async with worker(declare(), coherence="off") as one:
            answer = await one.client.post("/refresh/?model=board.Topic", content=b"x" * 1_000_001)
            assert answer.status_code == 401

    run(main)


# Seeing what was committed


@pytest.mark.parametrize("kind", ["off", "process", "sqlite", "valkey", "postgresql", "triggers"])
def test_refreshed(kind: str, request: pytest.FixtureRequest) -> None:
    """After it the repository has what was committed before, whatever transport there is."""
    request.getfixturevalue("board" if kind in ("postgresql", "triggers") else "sqlite")
    coherence = {"valkey": lambda: request.getfixturevalue("valkey").url(), "triggers": lambda: "postgresql"}
    if kind == "triggers":
        install_triggers()

    async def main() -> None:
        setting = coherence.get(kind, lambda: kind)()
        async with hearing(declare(), coherence=setting, coherence_poll=60) as (topics, _):
            for number in range(3):
                await write(str(number))
                snapshot = await topics.wait_until_current()
                assert len(topics) == len(snapshot) == number + 1

    run(main)


# Processes


@contextmanager
def on_postgresql(project: Project, server: PostgreSQL) -> Iterator[tuple[Any, dict[str, str]]]:
    url = server.create_database("workers")
    try:
        project.use_server(url)
        with psycopg.connect(url, autocommit=True) as writer:
            writer.execute("CREATE TABLE bbs_topic (id serial PRIMARY KEY, comment varchar(2000) NOT NULL)")

            def add(comment: str) -> None:
                writer.execute("INSERT INTO bbs_topic (comment) VALUES (%s)", [comment])

            yield add, {"DJANGO_ORM_COHERENCE": "postgresql"}
    finally:
        server.drop_database("workers")


@contextmanager
def on_valkey(project: Project, server: Valkey) -> Iterator[tuple[Any, dict[str, str]]]:
    project.empty_table()
    yield project.add_topic, {"DJANGO_ORM_COHERENCE": server.url()}


@pytest.mark.parametrize("kind", ["postgresql", "valkey"])
def test_four_workers(kind: str, project: Project, request: pytest.FixtureRequest) -> None:
    """After a POST to whichever worker all serve the new row; one that is stopped is named."""
    server = request.getfixturevalue(kind)
    environment = on_postgresql if kind == "postgresql" else on_valkey
    project.append("main.py", WHO)
    with (
        environment(project, server) as (add, variables),
        project.uvicorn("--workers", "4", **variables) as uvicorn,
    ):
        uvicorn.wait_for_output("(Application startup complete(.*\n)*.*){4}")
        transport = {"postgresql": "postgresql", "valkey": "redis"}[kind]
        uvicorn.wait_for_output(f"(coherence_connected +transport={transport}(.*\n)*.*){{4}}")
        add("unheard")
        answer = uvicorn.post("/refresh/?wait=20")
        assert answer.status_code == 200, answer.text
        workers = answer.json()["topics"]["workers"]
        pids = {int(name.split(":")[1]) for name in workers["have"]}
        assert len(pids) == 4
        assert everybody_serves(uvicorn.url, pids, ["unheard"])
        stopped = max(pids)
        os.kill(stopped, signal.SIGSTOP)
        try:
            # Not on a connection that the stopped one may hold.
            answer = httpx.post(f"{uvicorn.url}/refresh/?wait=3", timeout=DEADLINE, trust_env=False)
            assert answer.status_code == 504
            workers = answer.json()["topics"]["workers"]
            assert {int(name.split(":")[1]) for name in workers["have"]} == pids - {stopped}
            assert [int(name.split(":")[1]) for name in workers["missing"]] == [stopped]
        finally:
            with suppress(ProcessLookupError):
                os.kill(stopped, signal.SIGCONT)


def everybody_serves(url: str, pids: set[int], expected: list[str]) -> bool:
    """Ask until each has answered; no answer may be another."""
    seen: set[int] = set()
    end = time.monotonic() + DEADLINE
    while seen != pids:
        assert time.monotonic() < end, f"only {seen} of {pids} have answered"
        for _, status, body in asyncio.run(get_all(url, ["/who/"] * 16)):
            assert status == 200
            pid, served = json.loads(body.split("\r\n")[0])
            assert served == expected
            seen.add(pid)
    return True
