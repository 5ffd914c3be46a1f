"""Whether every write reaches a repository, and what the health route says where that is not so."""

import asyncio
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import dj_database_url
import psycopg
import pytest
from django.conf import settings as django_settings
from django.db import connections
from structlog.testing import capture_logs

from fastapi_django_orm.errors import InvalidSettings
from fastapi_django_orm.http.health import DjangoORMHealth as Health
from fastapi_django_orm.http.health import report
from tests.project import router
from tests.project.board.models import Topic
from tests.support.announcing import announced
from tests.support.databases import BOARD, default_changed
from tests.support.gates import comments
from tests.support.hearing import eventually, follows, hearing, write
from tests.support.repositories import declare
from tests.support.servers import PostgreSQL, Valkey

HEARTBEAT = 0.2  # seconds
MINUTE = timedelta(minutes=1)


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[Any]]:
    """What is logged, instead of the output."""
    with capture_logs() as entries:
        yield entries


@pytest.fixture(scope="module")
def _server() -> Iterator[PostgreSQL]:
    if reason := PostgreSQL.unavailable():
        pytest.skip(reason)
    with PostgreSQL() as server:
        if server.external is not None:
            pytest.skip("a server that may become a replica is started by the tests")
        server.create_database(BOARD)
        with default_changed(migrate=True, **dj_database_url.parse(server.url(BOARD))):
            pass
        yield server


@pytest.fixture
def server(_server: PostgreSQL) -> Iterator[PostgreSQL]:
    """A server with the tables, as Django's `default`, that a test may make a replica of."""
    with default_changed(**dj_database_url.parse(_server.url(BOARD), conn_max_age=None)):
        yield _server
    if (signal := signal_of(_server)).exists():
        _server.stop()
        signal.unlink()
        _server.start()


async def health(*repositories: Any) -> Health:
    return await report({}, [each.refresher for each in repositories])


def looked_at(*repositories: type[Any], **settings: Any) -> Health:
    """What the health route says of an application that has just started."""

    async def main() -> Health:
        async with hearing(*repositories, **settings):
            return await health(*[await each.current() for each in repositories])

    return asyncio.run(main())


def signal_of(server: PostgreSQL) -> Path:
    """The file that makes a server begin in recovery, as a replica does."""
    return server.directory / "data" / "standby.signal"


def restart_as_replica(server: PostgreSQL) -> None:
    """Have a server come back as a replica: in recovery, until it is promoted."""
    connections.close_all()
    server.stop()
    signal_of(server).touch(mode=0o644)
    server.start()


# MariaDB, and whatever else does not announce writes


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_a_database_that_announces_nothing(database: str) -> None:
    """Without a broker nothing brings writes of other processes: degraded, with what to set."""
    found = looked_at(declare())
    assert found.status == "degraded"
    assert "DJANGO_ORM_COHERENCE=redis://" in (found.repositories["topics"].unheard or "")
    assert found.repositories["topics"].stale is False


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_a_max_age_covers_every_write(database: str) -> None:
    """A repository that is refreshed by its age is not degraded; another beside it is."""
    assert looked_at(declare(max_age=MINUTE)).status == "ok"
    both = looked_at(declare(), declare("Bounded", max_age=MINUTE))
    assert both.status == "degraded"
    assert both.repositories["bounded"].unheard is None


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_a_broker_or_a_route_covers_every_write(database: str, valkey: Valkey) -> None:
    """Where Django's processes are told what to notify, the writes are expected to come; so is `off`."""
    assert looked_at(declare(), coherence=valkey.url()).status == "ok"
    assert looked_at(declare(), coherence="http://127.0.0.1:9/refresh/").status == "ok"
    assert looked_at(declare(), coherence="off").status == "ok"


def test_a_broker_that_is_down_covers_nothing(sqlite: str, valkey: Valkey) -> None:
    """It is degraded as long as no other transport carries the writes."""
    url = valkey.url()
    valkey.kill()
    found = looked_at(declare(), coherence=url)
    assert found.status == "degraded"
    assert found.repositories["topics"].unheard == "redis is down. It is tried again; the log says why."


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_postgresql_without_its_driver(
    database: str, monkeypatch: pytest.MonkeyPatch, logs: list[Any]
) -> None:
    """Under auto the application starts without LISTEN, and says what to install."""
    monkeypatch.setitem(sys.modules, "fastapi_django_orm.coherence.postgresql", None)
    monkeypatch.delattr("fastapi_django_orm.coherence.postgresql", raising=False)
    found = looked_at(declare())
    assert found.status == "degraded"
    assert "pip install 'psycopg[binary]'" in (found.repositories["topics"].unheard or "")
    assert looked_at(declare(max_age=MINUTE)).status == "ok"


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_tables_without_triggers(database: str) -> None:
    """The tables that nothing announces are named."""
    found = looked_at(declare())
    assert found.status == "degraded"
    assert "board.Topic" in (found.repositories["topics"].unheard or "")
    assert "coherence install" in (found.repositories["topics"].unheard or "")


@pytest.mark.parametrize(
    ("coherence", "told"), [("postgresql", "postgresql"), ("postgresql://a/b", "postgresql")]
)
def test_a_transport_that_no_database_has(sqlite: str, coherence: str, told: str) -> None:
    """The start ends, with what the databases are."""
    before = dict(django_settings.DATABASES)
    others = [alias for alias in before if alias != "default"]
    for alias in others:
        del django_settings.DATABASES[alias]
    try:
        with default_changed(), pytest.raises(InvalidSettings) as error:
            looked_at(declare(), coherence=coherence)
    finally:
        django_settings.DATABASES.update({alias: before[alias] for alias in others})
        with default_changed():
            pass  # Django looks at its settings again
    assert (
        f"DJANGO_ORM_COHERENCE names {told}, and DATABASES has no such database: default is SQLite."
        in str(error.value)
    )


# Where rows come from


def test_a_replica_is_degraded_until_it_is_promoted(server: PostgreSQL) -> None:
    """A hint may come before the replica has the change; from its promotion on, everything is as usual."""

    async def main() -> None:
        async with hearing(declare(), coherence_heartbeat=HEARTBEAT) as (topics, coherence):
            found = await health(topics)
            assert found.status == "degraded"
            assert "read from a replica, 'default'" in (found.repositories["topics"].unheard or "")
            with psycopg.connect(server.url(), autocommit=True) as connection:
                connection.execute("SELECT pg_promote()")
            await eventually(lambda: coherence.why_unheard("topics") is None, "it is a primary")
            await write("one")
            await follows(topics, "one")
            assert (await health(topics)).status == "ok"

    with announced(Topic):
        restart_as_replica(server)
        asyncio.run(main())


def test_a_replica_whose_hints_come_from_elsewhere(server: PostgreSQL, postgresql: PostgreSQL) -> None:
    """The hints of another server, or a broker's, do not make it ok; a `max_age` does."""
    restart_as_replica(server)
    elsewhere = f"host=127.0.0.1 port={postgresql.port} dbname=postgres"
    found = looked_at(declare(), declare("Bounded", max_age=MINUTE), coherence_dsn=elsewhere)
    assert "read from a replica" in (found.repositories["topics"].unheard or "")
    assert found.repositories["bounded"].unheard is None
    assert looked_at(declare(max_age=MINUTE)).status == "ok"


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_listener_at_another_database(database: str, postgresql: PostgreSQL, logs: list[Any]) -> None:
    """One DSN leads every alias to one place: what is read elsewhere is degraded, and still kept current."""

    async def main() -> None:
        dsn = f"host=127.0.0.1 port={postgresql.port} dbname=postgres"
        async with hearing(declare(), coherence_dsn=dsn) as (topics, coherence):
            assert "listens at another server or database" in (coherence.why_unheard("topics") or "")
            await write("one")
            await topics.wait_until_current()
            assert comments(topics) == ["one"]

    asyncio.run(main())
    (warning,) = [entry for entry in logs if entry["event"] == "writes_elsewhere_unheard"]
    assert warning["repositories"] == ["topics"]
    assert "Correct DJANGO_ORM_COHERENCE_DSN" in warning["hint"]


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_listener_at_another_server(database: str, server: PostgreSQL, postgresql: PostgreSQL) -> None:
    """Two servers are two places, whose databases may have the same name and the same tables."""
    router.choose("default")
    with announced(Topic):
        dsn = f"host=127.0.0.1 port={postgresql.port}"
        found = looked_at(declare(), coherence_dsn=dsn)
        assert "another server" in (found.repositories["topics"].unheard or "")
        assert looked_at(declare(), coherence_dsn=f"host=127.0.0.1 port={server.port}").status == "ok"
