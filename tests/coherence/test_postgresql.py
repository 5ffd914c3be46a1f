"""PostgreSQL's notifications: exact at commit, in order, and found out when they do not come."""

import asyncio
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from django.conf import settings as django_settings
from django.db import connections
from django.db.models import Func, IntegerField
from django.db.models.expressions import RawSQL
from pydantic import BaseModel
from structlog.testing import capture_logs

from fastapi_django_orm.coherence.hints import EVERYTHING, Hint
from fastapi_django_orm.coherence.postgresql import PostgreSQLListener
from fastapi_django_orm.coherence.postgresql_session import Way, libpq_parameters
from fastapi_django_orm.coherence.publishers import DatabasePublisher
from fastapi_django_orm.coherence.service import Coherence, seen
from fastapi_django_orm.coherence.transport import TransportUnavailable
from fastapi_django_orm.django import triggers
from fastapi_django_orm.django.tables import table_of
from fastapi_django_orm.http.health import report
from tests.project import router
from tests.project.board.models import Author, Topic
from tests.project.places.models import Elsewhere, Overview, Place, Reading
from tests.support.announcing import announced, exotic_tables, plain_connection
from tests.support.databases import BOARD, DEADLINE, wait_until
from tests.support.gates import Gate, comments, gated
from tests.support.hearing import (
    create,
    eventually,
    execute,
    follows,
    hearing,
    install_triggers,
    link,
    notify,
    roll_back,
    uninstall_triggers,
    write,
)
from tests.support.playing import outside
from tests.support.projects import Project
from tests.support.repositories import declare, of
from tests.support.servers import PgBouncer, PostgreSQL, TCPProxy

HEARTBEAT = 0.4  # seconds
MINUTE = timedelta(minutes=1)
NAME = "fastapi-django-orm%"  # by which the server knows listeners


@pytest.fixture
def board(_databases: Any, postgresql: PostgreSQL) -> Iterator[PostgreSQL]:
    """A server with empty tables and the triggers, chosen for every query."""
    router.choose(_databases("postgresql"))
    uninstall_triggers()
    Topic.objects.all().delete()
    Author.objects.all().delete()
    install_triggers()
    yield postgresql
    uninstall_triggers()
    connections.close_all()
    router.choose("default")


@pytest.fixture
def proxy(board: PostgreSQL) -> Iterator[TCPProxy]:
    """What stands between the listeners and the server, and nobody else."""
    with TCPProxy("127.0.0.1", board.port) as proxy:
        yield proxy
        proxy.resume()


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[Any]]:
    """What is logged, instead of the output."""
    with capture_logs() as entries:
        yield entries


def listener(coherence: Coherence) -> Any:
    return link(coherence, "postgresql")


def through(proxy: TCPProxy) -> dict[str, Any]:
    return {
        "coherence_dsn": f"host=127.0.0.1 port={proxy.port} connect_timeout=2",
        "coherence_heartbeat": HEARTBEAT,
    }


def end_listeners() -> None:
    """Have the server cut every listener off."""
    execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE %s", NAME)


def write_unheard() -> None:
    """A topic that no trigger announces, as if its hint were lost."""
    execute("SET session_replication_role = replica")
    create(["unheard"])
    execute("SET session_replication_role = origin")


def run(main: Any) -> None:
    asyncio.run(main())


# Writes


def test_every_kind_of_write(board: PostgreSQL) -> None:
    """What the ORM does in bulk, raw SQL and TRUNCATE count, at once and by key."""

    async def main() -> None:
        async with hearing(declare()) as (topics, coherence):
            assert not listener(coherence).degraded
            await write("one")
            await follows(topics, "one")
            await outside(lambda: Topic.objects.bulk_create([Topic(comment="two"), Topic(comment="three")]))
            await follows(topics, "one", "two", "three")
            await outside(lambda: Topic.objects.filter(comment="two").update(comment="2"))
            await follows(topics, "one", "2", "three")
            await outside(lambda: execute("UPDATE board_topic SET comment = comment || '!'"))
            await follows(topics, "one!", "2!", "three!")
            await outside(lambda: execute("DELETE FROM board_topic WHERE comment = '2!'"))
            await follows(topics, "one!", "three!")
            await outside(lambda: execute("TRUNCATE board_topic"))
            await follows(topics)

    run(main)


def test_what_is_rolled_back_is_not_heard(board: PostgreSQL) -> None:
    """No hint comes of it, and the next commit's does."""

    async def main() -> None:
        async with hearing(declare()) as (_, coherence):
            await outside(roll_back)
            assert await listener(coherence).listener.caught_up()
            assert listener(coherence).last_hint is None
            await write("one")
            assert await listener(coherence).listener.caught_up()
            assert listener(coherence).last_hint is not None

    run(main)


def test_related_tables(board: PostgreSQL) -> None:
    """A repository that joins authors follows a change of an author."""

    async def main() -> None:
        repository = of(lambda: Topic.objects.values("id", "author__name"))
        async with hearing(repository) as (topics, _):
            await outside(lambda: Topic.objects.create(comment="x", author=Author.objects.create(name="a")))
            await outside(lambda: Author.objects.update(name="b"))
            await eventually(lambda: [row["author__name"] for row in topics.all()] == ["b"], "the new name")

    run(main)


def test_other_databases(board: PostgreSQL) -> None:
    """A hint from one database does not concern rows of the same model in another."""

    async def main() -> None:
        here, elsewhere = declare(), of(lambda: Topic.objects.using("default"), name="elsewhere")
        async with hearing(here, elsewhere) as (topics, _):
            await write("one")
            await follows(topics, "one")
            await seen("elsewhere")
            assert (await elsewhere.current()).snapshot.version == 1

    run(main)


def test_a_publisher_without_triggers(board: PostgreSQL) -> None:
    """A hint may come from anybody who can connect."""
    gate = Gate()

    async def main() -> None:
        async with hearing(gated(gate), gate=gate):
            await outside(lambda: DatabasePublisher("postgresql").publish(Hint("board.Topic", None)))
            await gate.load_begun()

    run(main)


@pytest.mark.parametrize("label", ["l" * 9000, "no\x00model", "\ud800", ""])
def test_a_hint_that_is_hard_to_pass_on(board: PostgreSQL, label: str) -> None:
    """A label of any length and of any characters reaches the other workers, and cuts no connection."""

    async def main() -> None:
        gate = Gate()
        async with hearing(gated(gate), gate=gate) as (_, coherence):
            before = listener(coherence).connected_since
            for keys in (None, (1,), ("k" * 9000,)):
                await coherence.announce(Hint(label, keys))
            assert listener(coherence).connected_since == before

    run(main)


def test_a_query_that_the_server_refuses(board: PostgreSQL) -> None:
    """What cannot be said to other workers is an error of whoever says it, and no end of listening."""

    async def main() -> None:
        async with hearing(declare()) as (topics, coherence):
            before = listener(coherence).connected_since
            with pytest.raises(TransportUnavailable, match="payload string too long"):
                await listener(coherence).listener.say("elsewhere", b"x" * 9000)
            await write("one")
            await follows(topics, "one")
            assert listener(coherence).connected_since == before

    run(main)


def test_a_burst_ends_exact(board: PostgreSQL) -> None:
    """Two thousand commits of single rows cost a bounded number of loads, and none is lost."""
    gate = Gate()

    async def main() -> None:
        async with hearing(gated(gate), gate=gate) as (topics, _):
            started = time.monotonic()
            await outside(lambda: [create([str(number)]) for number in range(2000)] and None)
            await seen("topics")
            assert len(topics) == 2000
            assert gate.loads <= 110 * (time.monotonic() - started) + 2

    run(main)


# Seeing what was committed


def test_seen_waits_for_the_commits_before(board: PostgreSQL) -> None:
    """The caller's own commit is served after it; where nothing was written it costs no load."""
    gate = Gate()

    async def main() -> None:
        async with hearing(gated(gate), gate=gate) as (topics, _):
            for number in range(5):
                await Topic.objects.acreate(comment=str(number))
                await seen("topics")
                assert len(topics) == number + 1
            loads = gate.loads
            await asyncio.gather(*(seen("topics") for _ in range(20)))
            assert gate.loads == loads

    run(main)


def test_seen_while_the_connection_is_down(proxy: TCPProxy) -> None:
    """It reads the database instead, and does not wait for the connection."""

    async def main() -> None:
        async with hearing(declare(), **through(proxy)) as (topics, coherence):
            proxy.refuse()
            proxy.reset()
            await eventually(lambda: listener(coherence).degraded, "the loss is noticed")
            await write("one")
            await seen("topics")
            assert comments(topics) == ["one"]

    run(main)


# Faults


def test_a_listener_that_the_server_cuts_off(board: PostgreSQL, logs: list[Any]) -> None:
    """It connects again and reads everything anew; what was written between is served."""

    async def main() -> None:
        async with hearing(declare()) as (topics, coherence):
            before = listener(coherence).connected_since
            await outside(write_unheard)
            assert comments(topics) == []
            await outside(end_listeners)
            await follows(topics, "unheard")
            assert listener(coherence).connected_since > before

    run(main)
    assert [entry["log_level"] for entry in logs if entry["event"] == "coherence_lost"] == ["error"]


@pytest.mark.parametrize("mortal", ["postgresql"], indirect=True)
def test_a_server_that_dies_and_comes_back(mortal: PostgreSQL) -> None:
    """What was written before the listener is back is served when it is."""
    install_triggers()

    async def main() -> None:
        async with hearing(declare()) as (topics, coherence):
            await write("before")
            await follows(topics, "before")
            await asyncio.to_thread(mortal.kill)
            await eventually(lambda: listener(coherence).degraded, "the loss is noticed")
            assert comments(topics) == ["before"]
            await asyncio.to_thread(mortal.start)
            await write("after")
            await follows(topics, "before", "after")
            await eventually(lambda: not listener(coherence).degraded, "it is back")

    run(main)


def test_a_connection_that_goes_silent(proxy: TCPProxy) -> None:
    """The heartbeat finds it, sooner than the network, and what was written is served afterwards."""

    async def main() -> None:
        async with hearing(declare(), **through(proxy)) as (topics, coherence):
            await asyncio.to_thread(proxy.black_hole)
            await write("one")
            await eventually(lambda: listener(coherence).degraded, "the silence is noticed")
            assert comments(topics) == []
            await asyncio.to_thread(proxy.resume)
            await follows(topics, "one")

    run(main)


def test_a_server_that_is_away_at_startup(proxy: TCPProxy, logs: list[Any]) -> None:
    """The application starts and serves; when the listener gets through, everything is read anew."""

    async def main() -> None:
        async with hearing(declare(), **through(proxy)) as (topics, coherence):
            assert listener(coherence).degraded
            await write("one")
            await asyncio.to_thread(proxy.resume)
            await follows(topics, "one")
            await asyncio.to_thread(proxy.reset)
            await eventually(lambda: "coherence_lost" in events(), "the loss is noticed")

    def events() -> list[str]:
        names = ("coherence_unavailable", "coherence_connected", "coherence_lost")
        told = (entry["event"] for entry in logs if entry.get("transport") == "postgresql:postgresql")
        return [event for event in told if event in names]

    proxy.refuse()
    run(main)
    assert events()[:3] == ["coherence_unavailable", "coherence_connected", "coherence_lost"]


def test_an_end_in_the_middle_of_silence(proxy: TCPProxy) -> None:
    """Shutting down does not wait for a server that does not answer."""

    async def main() -> None:
        async with asyncio.timeout(DEADLINE), hearing(declare(), **through(proxy)):
            await asyncio.to_thread(proxy.black_hole)

    run(main)


def test_a_pool_in_transaction_mode(board: PostgreSQL, logs: list[Any]) -> None:
    """Notifications do not come through it: the error names the setting for a direct DSN."""
    if reason := PgBouncer.unavailable():
        pytest.skip(reason)

    async def main(dsn: str) -> None:
        async with hearing(declare(), coherence_dsn=dsn) as (topics, coherence):
            assert listener(coherence).degraded
            assert "DJANGO_ORM_COHERENCE_DSN" in str(listener(coherence).error)
            await write("one")
            await seen("topics")
            assert comments(topics) == ["one"]

    with PgBouncer(board.url(BOARD)) as pool:
        run(lambda: main(pool.url()))
    (unavailable,) = [entry for entry in logs if entry["log_level"] == "error"]
    assert unavailable["event"] == "coherence_unavailable"  # and not lost, since it has never been there
    assert "DJANGO_ORM_COHERENCE_DSN" in unavailable["cause"]


def test_django_behind_the_pool_and_the_listener_not(board: PostgreSQL) -> None:
    """With a direct DSN the listener works, wherever Django's connections lead."""

    async def main() -> None:
        dsn = f"host=127.0.0.1 port={board.port}"
        async with hearing(declare(), coherence_dsn=dsn) as (topics, coherence):
            assert listener(coherence).error is None
            await write("one")
            await follows(topics, "one")

    before = django_settings.DATABASES["postgresql"]["PORT"]
    connections["postgresql"].close()
    if reason := PgBouncer.unavailable():
        pytest.skip(reason)
    with PgBouncer(board.url(BOARD)) as pool:
        config = connections.settings["postgresql"]
        config.update(PORT=pool.port, DISABLE_SERVER_SIDE_CURSORS=True)
        try:
            run(main)
        finally:
            connections["postgresql"].close()
            config.update(PORT=before, DISABLE_SERVER_SIDE_CURSORS=False)


@pytest.mark.parametrize(
    "payload", ["", "hello", '{"v":2,"m":"board.Topic"}', "[" * 7000, '{"v":1,"m":"board.Topic","k":["x"]}']
)
def test_messages_that_cannot_be_understood(board: PostgreSQL, payload: str) -> None:
    """Malformed, or of another version: everything is read anew, and the next one is heard."""
    gate = Gate()

    async def main() -> None:
        async with hearing(gated(gate), gate=gate) as (topics, _):
            await outside(lambda: notify(payload))
            await gate.load_begun()
            await write("one")
            await follows(topics, "one")

    run(main)


def test_bytes_that_are_no_text(board: PostgreSQL) -> None:
    """In a database without an encoding a payload may be anything: nothing breaks."""

    class Receiver:
        def __init__(self) -> None:
            self.hints: list[Hint] = []
            self.up = asyncio.Event()

        def connected(self) -> None:
            self.up.set()

        def received(self, hint: Hint) -> None:
            self.hints.append(hint)

    async def main(parameters: dict[str, Any]) -> None:
        receiver = Receiver()
        listener = PostgreSQLListener("bytes", lambda: Way(parameters, None, "public"), {}, 10)
        listening = asyncio.create_task(listener.listen(receiver))
        await asyncio.wait_for(receiver.up.wait(), DEADLINE)
        for payload in (r"E'\\xff'", """'{"v":1,"m":"board.Topic"}'"""):
            with psycopg.connect(**parameters) as writer:
                writer.execute(f"SELECT pg_notify('fastapi_django_orm', {payload})")
        assert await listener.caught_up()
        assert receiver.hints == [EVERYTHING, Hint("board.Topic")]
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)

    with psycopg.connect(board.url(), autocommit=True) as server:
        server.execute("DROP DATABASE IF EXISTS bytes")
        server.execute("CREATE DATABASE bytes ENCODING SQL_ASCII LOCALE 'C' TEMPLATE template0"
                       " LOCALE_PROVIDER libc")  # fmt: skip
        try:
            run(lambda: main({**libpq_parameters("postgresql"), "dbname": "bytes"}))
        finally:
            server.execute("DROP DATABASE bytes WITH (FORCE)")


def test_unknown_models_cost_nothing(board: PostgreSQL) -> None:
    """A hint about somebody else's table loads nothing."""
    gate = Gate()

    async def main() -> None:
        async with hearing(gated(gate), gate=gate):
            await outside(lambda: notify('{"v":1,"m":"nobody.Knows","k":[1]}'))
            await seen("topics")
            assert gate.loads == 0

    run(main)


# Triggers


def test_triggers_that_were_never_there(board: PostgreSQL, logs: list[Any]) -> None:
    """The log names the models and the command, and it is degraded as it is by those that are lost."""
    uninstall_triggers()

    async def main() -> None:
        async with hearing(declare()) as (topics, coherence):
            assert listener(coherence).listener.unheard == {"board.Topic"}
            assert listener(coherence).degraded
            assert (await report({}, [])).status == "degraded"
            await write("one")
            await seen("topics")  # nobody has announced it
            assert comments(topics) == ["one"]
        for named in ("postgresql", "auto,postgresql"):
            async with hearing(declare(), coherence=named) as (_, coherence):
                assert listener(coherence).degraded

    run(main)
    missing = [entry for entry in logs if entry["event"] == "triggers_missing"]
    assert missing[0]["hint"] == (
        "Put fastapi_django_orm.django into INSTALLED_APPS first, "
        "then run: python manage.py coherence install board.Topic"
    )


def test_triggers_that_come_later(board: PostgreSQL) -> None:
    """A heartbeat after `coherence install` all is well."""
    uninstall_triggers()

    async def main() -> None:
        async with hearing(declare(), coherence_heartbeat=HEARTBEAT) as (topics, coherence):
            await write("one")
            assert listener(coherence).degraded
            await outside(install_triggers)
            await follows(topics, "one")
            await eventually(lambda: not listener(coherence).degraded, "they are noticed")

    run(main)


ELSEWHERE = "http://127.0.0.1:9/refresh/"  # where nobody listens, and an application posts nothing


@pytest.mark.parametrize(
    ("max_ages", "coherence", "expected"),
    [
        ([MINUTE], "auto", False),
        ([None], f"auto,{ELSEWHERE}", False),
        ([MINUTE, None], "auto", True),
        ([MINUTE], "postgresql", True),
        ([None], f"auto,postgresql,{ELSEWHERE}", True),
    ],
    ids=str,
)
def test_triggers_that_nobody_needs(
    board: PostgreSQL, max_ages: list[timedelta | None], coherence: str, expected: bool
) -> None:
    """All is well without them if every repository has a `max_age`, or if Django tells of writes."""
    uninstall_triggers()
    repositories = [declare(name=f"R{number}", max_age=age) for number, age in enumerate(max_ages)]

    async def main() -> None:
        async with hearing(*repositories, coherence=coherence) as (_, service):
            assert listener(service).listener.unheard == {"board.Topic"}
            assert listener(service).degraded is expected

    run(main)


def test_triggers_that_are_lost_under_a_max_age(board: PostgreSQL) -> None:
    """What has been relied on is missed, whatever else refreshes the rows."""

    async def main() -> None:
        repository = declare(max_age=MINUTE)
        async with hearing(repository, coherence_heartbeat=HEARTBEAT) as (_, coherence):
            assert not listener(coherence).degraded
            await outside(uninstall_triggers)
            await eventually(lambda: listener(coherence).degraded, "the missing triggers are noticed")

    run(main)


@pytest.mark.parametrize(
    "removal",
    [
        "DROP TRIGGER fastapi_django_orm_update ON board_topic",
        "ALTER TABLE board_topic DISABLE TRIGGER USER",
        # Whatever it does now, the label is in it.
        "DO $$ BEGIN EXECUTE 'CREATE OR REPLACE FUNCTION ' || (SELECT tgfoid::regprocedure FROM pg_trigger"
        " WHERE tgname = 'fastapi_django_orm_update' AND tgrelid = 'board_topic'::regclass)"
        " || ' RETURNS trigger LANGUAGE plpgsql AS $f$BEGIN RETURN NULL; -- \"board.Topic\"\nEND$f$'; END $$",
        # As of a model that has another name now.
        "CREATE FUNCTION fastapi_django_orm_other() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN RETURN NULL; END'; CREATE OR REPLACE TRIGGER fastapi_django_orm_update AFTER UPDATE"
        " ON board_topic FOR EACH STATEMENT EXECUTE FUNCTION fastapi_django_orm_other()",
    ],
    ids=["dropped", "disabled", "replaced", "renamed"],
)
def test_triggers_that_go_and_come_back(board: PostgreSQL, removal: str) -> None:
    """A heartbeat later it is known; when they are back, everything is read anew."""

    async def main() -> None:
        async with hearing(declare(), coherence_heartbeat=HEARTBEAT) as (topics, coherence):
            await write("one")
            await follows(topics, "one")
            await outside(lambda: execute(removal))
            await eventually(lambda: listener(coherence).degraded, "the missing trigger is noticed")
            await outside(lambda: execute("UPDATE board_topic SET comment = 'two'"))
            await outside(lambda: execute("ALTER TABLE board_topic ENABLE TRIGGER USER"))
            await outside(install_triggers)
            await follows(topics, "two")
            # They come back one after the other, and a look between two of them reads everything, too.
            await eventually(lambda: not listener(coherence).degraded, "all are back")

    run(main)


def test_triggers_that_were_off_for_a_moment(board: PostgreSQL) -> None:
    """What was written meanwhile, as by a restore in one transaction, is served after a heartbeat."""

    async def main() -> None:
        async with hearing(declare(), coherence_heartbeat=HEARTBEAT) as (topics, coherence):
            await write("one")
            await follows(topics, "one")
            await outside(
                lambda: execute(
                    "ALTER TABLE board_topic DISABLE TRIGGER USER; UPDATE board_topic SET comment = 'two';"
                    " ALTER TABLE board_topic ENABLE TRIGGER USER"
                )
            )
            await follows(topics, "two")
            assert not listener(coherence).degraded

    run(main)


def test_tables_whose_triggers_are_looked_for(board: PostgreSQL) -> None:
    """One in another schema is found; of a view those that it reads."""
    elsewhere = of(Elsewhere.objects.all, model="places.Elsewhere", name="elsewhere")
    view = of(Overview.objects.all, model="places.Overview", name="view")

    async def main() -> None:
        async with hearing(view, elsewhere) as (overview, coherence):
            assert listener(coherence).listener.unheard < {"places.Place", "places.PlaceName"}  # of one table
            assert listener(coherence).degraded
            await outside(lambda: triggers.install("postgresql", table_of(Place)))
            await outside(lambda: Place.objects.create(name="one"))
            await eventually(lambda: [row["name"] for row in overview] == ["one"], "the view's row")

    with exotic_tables(), announced(Elsewhere):
        run(main)


def test_partitions_that_come_and_go(board: PostgreSQL) -> None:
    """Rows that ATTACH and DETACH bring and take are followed, and one without triggers is told."""
    readings = of(Reading.objects.all, model="places.Reading", name="readings")

    async def main() -> None:
        async with hearing(readings, coherence_heartbeat=HEARTBEAT) as (found, coherence):
            await outside(lambda: execute("ALTER TABLE places_reading DETACH PARTITION places_reading_low"))
            await eventually(lambda: not found.all(), "its row is gone")
            await outside(lambda: execute("DROP TABLE places_reading_low"))
            assert not listener(coherence).degraded
            await outside(
                lambda: execute(
                    "CREATE TABLE more (LIKE places_reading); INSERT INTO more VALUES (2, 50);"
                    "ALTER TABLE places_reading ATTACH PARTITION more FOR VALUES FROM (0) TO (100)"
                )
            )
            await eventually(lambda: [row["id"] for row in found] == [2], "the new row")
            await eventually(lambda: listener(coherence).degraded, "it lacks triggers")
            await outside(lambda: triggers.install("postgresql", table_of(Reading)))
            await eventually(lambda: not listener(coherence).degraded, "it has them")

    with exotic_tables(), announced(Reading):
        execute("INSERT INTO places_reading VALUES (1, 50)")
        run(main)


@pytest.mark.parametrize("how", ["", "CONCURRENTLY"])
def test_a_materialized_view(board: PostgreSQL, how: str) -> None:
    """REFRESH fires no trigger, and is followed, by who waits for it at once; nothing is degraded."""
    view = of(Overview.objects.all, model="places.Overview", name="view")

    async def main() -> None:
        async with hearing(view) as (overview, coherence):
            assert not listener(coherence).degraded
            assert coherence.why_unheard("view") is None
            await outside(lambda: Place.objects.create(name="one"))
            await outside(lambda: execute(f"REFRESH MATERIALIZED VIEW {how} places_overview"))
            await seen("view")
            assert [row["name"] for row in overview] == ["one"]
            await outside(lambda: Place.objects.update(name="two"))
            await outside(lambda: execute(f"REFRESH MATERIALIZED VIEW {how} places_overview"))
            await eventually(lambda: [row["name"] for row in overview] == ["two"], "the second refresh")

    with exotic_tables():
        execute(
            "DROP VIEW places_overview; CREATE MATERIALIZED VIEW places_overview AS"
            " SELECT id, name FROM places_place; CREATE UNIQUE INDEX ON places_overview (id)"
        )
        try:
            run(main)
        finally:
            execute("DROP MATERIALIZED VIEW places_overview; CREATE VIEW places_overview AS SELECT 1")


def test_logical_replication(board: PostgreSQL, logs: list[Any]) -> None:
    """A table that a subscription fills changes without firing triggers, whatever is installed."""
    execute("CREATE SUBSCRIPTION incoming CONNECTION '' PUBLICATION elsewhere WITH (connect = false)")
    execute(
        "INSERT INTO pg_subscription_rel SELECT oid, 'board_topic'::regclass, 'r', NULL FROM pg_subscription"
    )

    async def main() -> None:
        async with hearing(declare()) as (_, coherence):
            assert listener(coherence).degraded
            assert (await report({}, [])).status == "degraded"

    try:
        run(main)
    finally:
        execute("ALTER SUBSCRIPTION incoming SET (slot_name = NONE)")
        execute("DROP SUBSCRIPTION incoming")
    assert "logical replication" in next(e["hint"] for e in logs if e["event"] == "writes_unannounced")


UNANNOUNCED = {
    "raw SQL": (
        lambda: Topic.objects.annotate(n=RawSQL("SELECT count(*) FROM unmodelled", ())),
        "It reads unmodelled, the table of no installed model",
    ),
    "extra": (
        lambda: Topic.objects.extra(tables=["unmodelled"]),
        "It reads unmodelled, the table of no installed model",
    ),
    "a function": (
        lambda: Topic.objects.annotate(n=Func("id", function="how_many", output_field=IntegerField())),
        "calls the function how_many(), which may read tables",
    ),
    "a foreign table": (
        lambda: Topic.objects.annotate(n=RawSQL("SELECT count(*) FROM far", ())),
        "It reads the foreign table far",
    ),
}


@pytest.mark.parametrize("what", UNANNOUNCED)
def test_what_nothing_announces(board: PostgreSQL, what: str) -> None:
    """What a query reads beside the tables of models is told in a sentence, until a max_age is there."""
    queryset, sentence = UNANNOUNCED[what]

    async def main() -> None:
        async with hearing(of(queryset), coherence="auto") as (topics, _):
            health = await report({}, [topics.refresher])
            assert health.status == "degraded"
            assert sentence in (health.repositories["topics"].unheard or "")
        async with hearing(of(queryset, max_age=MINUTE)) as (topics, _):
            assert (await report({}, [topics.refresher])).status == "ok"

    execute(
        "CREATE EXTENSION file_fdw; CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;"
        "CREATE FOREIGN TABLE far (line text) SERVER files OPTIONS (filename '/dev/null');"
        "CREATE TABLE unmodelled (number int); CREATE FUNCTION how_many(bigint) RETURNS int LANGUAGE plpgsql"
        " STABLE AS 'BEGIN RETURN (SELECT count(*) FROM unmodelled); END'"
    )
    try:
        run(main)
    finally:
        connections["postgresql"].close()
        execute("DROP EXTENSION file_fdw CASCADE; DROP TABLE unmodelled; DROP FUNCTION how_many")


def test_a_table_that_is_locked_at_the_start(board: PostgreSQL) -> None:
    """What a query reads is asked for again, if a migration that runs just then stands in the way."""
    raw = of(lambda: Topic.objects.annotate(n=RawSQL("SELECT count(*) FROM unmodelled", ())))
    waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query NOT LIKE 'EXPLAIN%'"

    def unlock_for_the_load(locking: psycopg.Connection, looking: psycopg.Connection) -> None:
        wait_until(lambda: looking.execute(waiting).fetchone() is not None, "the load waits")
        locking.rollback()

    async def main(locking: psycopg.Connection, looking: psycopg.Connection) -> None:
        unlocked = asyncio.create_task(asyncio.to_thread(unlock_for_the_load, locking, looking))
        async with hearing(raw, coherence_heartbeat=HEARTBEAT) as (_, coherence):
            await unlocked
            await eventually(lambda: coherence.why_unheard("topics"), "it is known what is read")

    with plain_connection() as locking, plain_connection() as looking:
        locking.execute("CREATE TABLE unmodelled (number int)")
        try:
            locking.autocommit = False
            locking.execute("LOCK TABLE unmodelled")
            asyncio.run(main(locking, looking))
        finally:
            locking.rollback()
            connections["postgresql"].close()
            locking.execute("DROP TABLE unmodelled")
            locking.commit()


class TopicWithNames(BaseModel):
    """Reads another table in a property, which no query shows."""

    id: int
    names: list[str]


def test_what_python_reads(board: PostgreSQL, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that only Python code reads is followed from then on, and told until `depends_on` names it."""
    names = property(lambda self: list(Author.objects.order_by("name").values_list("name", flat=True)))
    monkeypatch.setattr(Topic, "names", names, raising=False)

    async def main() -> None:
        await write("one")
        async with hearing(declare(schema=TopicWithNames)) as (topics, coherence):
            await outside(lambda: Author.objects.create(name="a"))
            await eventually(lambda: topics.all()[0].names == ["a"], "the author's name")
            assert "depends_on = ('board.Author',)" in coherence.why_unheard("topics")
            assert (await report({}, [topics.refresher])).status == "degraded"
        depends = declare(schema=TopicWithNames, depends_on=("board.Author",))
        async with hearing(depends) as (topics, coherence):
            assert (await report({}, [topics.refresher])).status == "ok"

    run(main)


# Processes


def test_a_write_in_another_process(project: Project, board: PostgreSQL) -> None:
    """A uvicorn with two workers serves what psql has written, without a call."""
    url = board.create_database("elsewhere")
    try:
        project.use_server(url)
        with psycopg.connect(url, autocommit=True) as writer:
            writer.execute("CREATE TABLE bbs_topic (id serial PRIMARY KEY, comment varchar(2000) NOT NULL)")
            writer.execute(
                "CREATE FUNCTION announce() RETURNS trigger LANGUAGE plpgsql AS"
                """ $$ BEGIN NOTIFY fastapi_django_orm, '{"v":1,"m":"bbs.Topic"}'; RETURN NULL; END $$"""
            )
            for event in ("insert", "update", "delete", "truncate"):
                writer.execute(
                    f"CREATE TRIGGER fastapi_django_orm_{event} AFTER {event} ON bbs_topic"
                    " FOR EACH STATEMENT EXECUTE FUNCTION announce()"
                )
            with project.uvicorn("--workers", "2") as server:
                connected = "coherence_connected +transport=postgresql"
                server.wait_for_output(f"{connected}(.*\n)*.*{connected}")
                writer.execute("INSERT INTO bbs_topic (comment) VALUES ('psql')")
                end = time.monotonic() + DEADLINE
                for _ in range(20):  # whichever worker answers
                    server._close_client()
                    while server.get("/").json()["topics"] != [{"id": 1, "comment": "psql"}]:
                        assert time.monotonic() < end, "it is not served"
    finally:
        board.drop_database("elsewhere")
