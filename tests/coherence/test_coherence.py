"""A write anywhere reaches a repository by itself, on every kind of database and in every process."""

import asyncio
import random
import threading
from typing import Any

import httpx
import pytest
from django.db import connections, transaction
from django.db.models import Value
from django.db.models.functions import Concat
from structlog.contextvars import bound_contextvars, get_contextvars
from structlog.testing import capture_logs

from fastapi_django_orm import DjangoORM, ORMSettings
from fastapi_django_orm.application import find
from fastapi_django_orm.coherence import process
from fastapi_django_orm.coherence.hints import EVERYTHING, Hint
from fastapi_django_orm.coherence.publishers import DatabasePublisher
from fastapi_django_orm.coherence.service import Coherence, seen
from fastapi_django_orm.errors import InvalidSettings
from tests.project.board.models import Author, Topic
from tests.support.gates import Gate, comments, gated
from tests.support.hearing import DEADLINE, eventually, follows, hearing, link, roll_back, write
from tests.support.playing import outside
from tests.support.projects import Project
from tests.support.repositories import declare, of


def run(main: Any) -> None:
    asyncio.run(main())


# SQLite


def test_a_commit_elsewhere_is_followed(sqlite: str) -> None:
    """Created, changed in bulk, deleted: the repository has it without a call."""

    async def main() -> None:
        async with hearing(declare()) as (topics, _):
            await write("one", "two")
            await follows(topics, "one", "two")
            await outside(lambda: Topic.objects.filter(comment="one").update(comment="three"))
            await follows(topics, "two", "three")
            await outside(lambda: Topic.objects.all().delete())
            await follows(topics)

    run(main)


@pytest.mark.parametrize("database", ["sqlite", "mariadb"], indirect=True)
def test_a_full_load_is_delayed_by_chance_to_spare_a_server(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file has no server to spare: there a load follows at once."""
    bounds: list[float] = []
    monkeypatch.setattr(random, "uniform", lambda low, high: bounds.append(high) or low)

    async def main() -> None:
        async with hearing(declare(), coherence="process") as (topics, _):
            for comments in (
                ["one"],
                ["one", "two"],
            ):  # the first load that a hint causes tells what one costs
                await write(comments[-1])
                await asyncio.to_thread(process.publish, Hint("board.Topic"))
                await follows(topics, *comments)

    run(main)
    assert bounds
    assert (max(bounds) > 0) is (connections[database].vendor != "sqlite")


def test_related_rows_are_followed(sqlite: str) -> None:
    """A repository that joins authors follows a change of an author."""

    async def main() -> None:
        repository = of(lambda: Topic.objects.values("id", "comment", "author__name"))
        async with hearing(repository) as (topics, _):
            await outside(lambda: Topic.objects.create(comment="x", author=Author.objects.create(name="a")))
            await outside(lambda: Author.objects.update(name="b"))
            await eventually(lambda: [row["author__name"] for row in topics.all()] == ["b"], "the new name")

    run(main)


def test_what_is_rolled_back_loads_nothing(sqlite: str) -> None:
    """No hint comes of a transaction that is rolled back."""

    async def main() -> None:
        async with hearing(declare()) as (_, coherence):
            sqlite = link(coherence, "sqlite")
            await outside(roll_back)
            assert await sqlite.listener.caught_up()
            assert sqlite.last_hint is None
            await write("seen")
            assert await sqlite.listener.caught_up()
            assert sqlite.last_hint is not None

    run(main)


def test_a_hint_during_a_load_is_not_lost(sqlite: str) -> None:
    """What is committed after a load has read is read by the next one."""
    gate = Gate()

    async def main() -> None:
        async with hearing(gated(gate), gate=gate) as (topics, coherence):
            gate.close()
            await write("one")
            await gate.load_begun()  # it has read one topic
            await write("two")
            assert await link(coherence, "sqlite").listener.caught_up()
            gate.open()
            await follows(topics, "one", "two")

    run(main)


def test_a_commit_during_the_first_load(sqlite: str) -> None:
    """Listening begins before loading, so that nothing is lost between."""
    gate = Gate()
    repository = gated(gate)

    async def main() -> None:
        gate.close()
        begun = asyncio.create_task(gate.load_begun())

        async def write_and_let_go() -> None:
            await begun  # it has read no topic
            await write("one")
            gate.open()

        writing = asyncio.create_task(write_and_let_go())
        async with hearing(repository) as (topics, _):
            await writing
            await follows(topics, "one")

    run(main)


def test_a_manual_hint_through_the_file(sqlite: str) -> None:
    """A publisher for SQLite makes watchers look, and changes nothing of the schema's version."""
    gate = Gate()

    async def main() -> None:
        async with hearing(gated(gate), gate=gate) as (_, coherence):
            await outside(lambda: DatabasePublisher("default").publish(Hint("board.Topic")))
            assert await link(coherence, "sqlite").listener.caught_up()
            await gate.load_begun()

    run(main)


def test_another_file_in_the_place_of_the_database(project: Project) -> None:
    """A restored backup is noticed: everything is read from the new file."""
    other = project.directory / "other.sqlite3"
    other.write_bytes((project.directory / "db.sqlite3").read_bytes())
    with project.uvicorn() as server:
        project.add_topic("second")
        served_within_deadline(server, ["second", "first"])
        other.replace(project.directory / "db.sqlite3")
        server.wait_for_output("coherence_lost(.*\n)*.*coherence_connected")


# Seeing what was committed


def test_seen_waits_for_what_was_committed_before(sqlite: str) -> None:
    """After it the repository has the caller's own write, at the first look."""

    async def main() -> None:
        async with hearing(declare(), coherence_poll=60) as (topics, _):
            for number in range(5):
                await Topic.objects.acreate(comment=str(number))
                await seen("topics")
                assert len(topics) == number + 1

    run(main)


def test_seen_on_another_event_loop(sqlite: str) -> None:
    """Synchronous code in a thread, which runs a loop of its own, may ask as well."""

    async def main() -> None:
        async with hearing(declare(), coherence_poll=60) as (topics, coherence):
            await write("one")
            await asyncio.to_thread(lambda: asyncio.run(coherence.seen("topics")))
            assert comments(topics) == ["one"]

    run(main)


def test_seen_without_a_transport_that_can_tell(sqlite: str) -> None:
    """It reads the database."""

    async def main() -> None:
        for coherence in ("process", "off"):
            async with hearing(declare(), coherence=coherence) as (topics, _):
                await Topic.objects.acreate(comment=coherence)
                await seen("topics")
                assert coherence in comments(topics)

    run(main)


# In the process


def test_hints_of_the_process_itself(sqlite: str) -> None:
    """Any thread may publish; the rows concerned are read, and no others."""
    gate = Gate()

    async def main() -> None:
        async with hearing(gated(gate), coherence="process", gate=gate) as (topics, _):
            await write("one")
            thread = threading.Thread(target=process.publish, args=[Hint("board.Poem", (1,))])
            thread.start()
            await asyncio.to_thread(thread.join)
            await asyncio.to_thread(process.publish, Hint("board.Topic"))
            await follows(topics, "one")
            assert gate.loads == 1

    run(main)


def test_rows_that_depend_on_each_other_are_read_together(sqlite: str) -> None:
    """A hint that names one row of a transaction, and not yet the other, brings both."""

    async def main() -> None:
        apart = declare("Apart", ordering=("pk",))
        together = declare("Together", ordering=("pk",), depends_on=("board.Topic",))
        async with hearing(apart, together, coherence="process") as (one, _):
            first, _second = await write("a", "b")
            process.publish(EVERYTHING)
            await follows(one, "a", "b")
            other = await together.current()
            await follows(other, "a", "b")
            await outside(lambda: Topic.objects.update(comment=Concat("comment", Value("!"))))
            process.publish(Hint("board.Topic", (first,)))
            await follows(one, "a!", "b")
            await follows(other, "a!", "b!")

    run(main)


def test_a_load_is_not_part_of_the_request_that_wrote(sqlite: str) -> None:
    """What a request has bound for its logs does not stick to the loads that its hint begins."""
    bound: list[Any] = []

    def look() -> Any:
        bound.append(get_contextvars())
        return Topic.objects.all()

    async def main() -> None:
        async with hearing(of(look), coherence="process") as (topics, _):
            await write("one")
            with bound_contextvars(request_id="somebody's"):
                process.publish(Hint("board.Topic"))
            await follows(topics, "one")

    run(main)
    assert all("request_id" not in variables for variables in bound)


def test_a_burst_costs_a_bounded_number_of_loads(sqlite: str) -> None:
    """Ten thousand hints during a load cost one more load."""
    gate = Gate()

    async def main() -> None:
        async with hearing(gated(gate), coherence="process", gate=gate) as (topics, _):
            gate.close()
            process.publish(Hint("board.Topic", (0,)))
            await gate.load_begun()
            await write("one")
            for number in range(10_000):
                process.publish(Hint("board.Topic", (number,)))
            await asyncio.sleep(0)  # they are heard
            gate.open()
            await follows(topics, "one")
            await seen("topics")
            assert gate.loads <= 4

    run(main)


def test_hints_that_mean_nothing_here(sqlite: str) -> None:
    """Unknown models, keys of a wrong type, the same hint twice: nothing breaks, and later hints count."""

    async def main() -> None:
        async with hearing(declare(), coherence="process") as (topics, _):
            for hint in [
                Hint("nobody.Knows", (1,)),
                Hint("board.Topic", ("no number", (1, 2))),
                Hint("board.Topic", ()),
                EVERYTHING,
            ]:
                process.publish(hint)
                process.publish(hint)
            await write("one")
            process.publish(Hint("board.Topic"))
            await follows(topics, "one")

    run(main)


def test_a_failed_refresh_is_made_good(sqlite: str) -> None:
    """The rows of a hint whose refresh has failed are served when the database reads again."""
    gate = Gate()

    async def main() -> None:
        async with hearing(gated(gate), coherence="process", gate=gate) as (topics, _):
            gate.error = ValueError("broken")
            (topic,) = await outside(lambda: [Topic.objects.create(comment="one")])
            process.publish(Hint("board.Topic", (topic.pk,)))
            await gate.load_begun()
            gate.error = None
            await follows(topics, "one")

    with capture_logs():
        run(main)


def test_nothing_is_heard_after_the_end(sqlite: str) -> None:
    """An application that has shut down is told nothing any more."""
    gate = Gate()
    errors: list[Any] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
        async with hearing(gated(gate), coherence="process", gate=gate):
            process.publish(Hint("board.Topic"))
            await gate.load_begun()
        loads = gate.loads
        process.publish(Hint("board.Topic"))
        for _ in range(3):
            await asyncio.sleep(0)
        assert gate.loads == loads

    run(main)
    assert not errors


# Settings


WRONG_URLS = ["http://host:hunter2/refresh/", "redis://:hunter2@host:0x", "http://[::1/refresh/"]


@pytest.mark.parametrize(
    "value", ["", "postgres", "auto,carrier-pigeon", "off,auto", "redis://", *WRONG_URLS]
)
def test_a_transport_that_there_is_not(value: str) -> None:
    """The message names what there is."""
    with pytest.raises(InvalidSettings, match="DJANGO_ORM_COHERENCE"):
        ORMSettings(coherence=value)


@pytest.mark.parametrize(
    "settings",
    [
        {"coherence": "redis://host/0?timeout=3"},
        {"coherence_dsn": "hunter2"},
        {"coherence": "postgresql://host/?hunter2"},
    ],
    ids=str,
)
@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_urls_that_a_client_does_not_understand(database: str, settings: dict[str, str]) -> None:
    """The start ends with a message that names the setting, and has nothing of a password."""

    async def main() -> None:
        async with hearing(declare(), **settings):
            pass

    with pytest.raises(InvalidSettings, match="DJANGO_ORM_COHERENCE") as error:
        run(main)
    assert "hunter2" not in str(error.value)


def test_passwords_stay_unsaid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither an error nor the settings' own text shows a transport's URL."""
    settings = ORMSettings(coherence="redis://:hunter2@host/0", coherence_dsn="password=hunter2")
    assert "hunter2" not in repr(settings)
    monkeypatch.setenv("DJANGO_ORM_COHERENCE", "redi://:hunter2@host")
    with pytest.raises(InvalidSettings) as error:
        ORMSettings()
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize("coherence", ["process", "other"])
@pytest.mark.parametrize("database", ["sqlite", "postgresql", "mariadb"], indirect=True)
def test_a_database_that_nobody_listens_to(database: str, coherence: str) -> None:
    """The log names the repositories that hear of no other process, and what to set for their database."""
    kind = connections[database].vendor
    other = "process" if kind == "sqlite" else "sqlite"  # which the project has

    async def main() -> None:
        async with hearing(declare(), coherence=coherence.replace("other", other)):
            pass

    with capture_logs() as logs:
        run(main)
    (warning,) = [entry for entry in logs if entry["event"] == "writes_elsewhere_unheard"]
    assert warning["repositories"] == ["topics"]
    if kind == "mysql":
        assert "DJANGO_ORM_COHERENCE=redis://" in warning["hint"]
    else:
        assert f"DJANGO_ORM_COHERENCE leaves {kind} out. Use auto, or add {kind}" in warning["hint"]
        assert "redis" not in warning["hint"]


def test_off(sqlite: str) -> None:
    """No transport is opened."""

    async def main() -> None:
        async with hearing(declare(), coherence="off") as (_, coherence):
            assert coherence.transports == []

    run(main)


# Health


def test_health_tells_of_transports(sqlite: str) -> None:
    """Since when each is connected, and when the last hint has come."""

    async def main() -> None:
        from fastapi import FastAPI

        app = FastAPI()
        plugin = DjangoORM(ORMSettings(coherence="auto"), repositories=[declare()])
        async with asyncio.timeout(DEADLINE), plugin.lifespan(app):
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                before = (await client.get("/health/")).json()
                assert before["status"] == "ok"
                assert set(before["transports"]) == {"process", "sqlite:default"}
                assert before["transports"]["sqlite:default"]["connected_since"] is not None
                assert before["transports"]["sqlite:default"]["last_hint"] is None
                await write("one")
                await find("a test").get(Coherence).seen("topics")
                after = (await client.get("/health/")).json()
                assert after["transports"]["sqlite:default"]["last_hint"] is not None

    run(main)


# Processes


def served_within_deadline(server: Any, expected: list[str]) -> None:
    for _ in range(1000):
        served = [topic["comment"] for topic in server.get("/").json()["topics"]]
        if served == expected:
            return
        threading.Event().wait(0.02)
    raise AssertionError(f"{expected} are not served, {served} are")


def test_every_worker_follows(project: Project) -> None:
    """With two workers and a writer that knows nothing of them, both serve what it has written."""
    with project.uvicorn("--workers", "2") as server:
        for number in range(3):
            project.add_topic(f"topic {number}")
        expected = ["topic 2", "topic 1", "topic 0", "first"]
        for _ in range(20):  # whichever worker answers
            with httpx.Client(base_url=server.url, trust_env=False) as client:
                server_of = type("Server", (), {"get": client.get})
                served_within_deadline(server_of, expected)


def test_a_transaction_that_locks_the_file(sqlite: str) -> None:
    """A writer that takes its time is neither disturbed nor read too early."""

    async def main() -> None:
        async with hearing(declare()) as (topics, _):
            begun, end = threading.Event(), threading.Event()

            def slow() -> None:
                with transaction.atomic():
                    Topic.objects.create(comment="slow")
                    begun.set()
                    assert end.wait(DEADLINE)

            writing = asyncio.create_task(outside(slow))
            assert await asyncio.to_thread(begun.wait, DEADLINE)
            await seen("topics")
            assert comments(topics) == []
            end.set()
            await writing
            await follows(topics, "slow")

    run(main)
