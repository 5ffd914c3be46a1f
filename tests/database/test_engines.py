"""Engines of others: a database is what its class says, and is connected to as the engine does."""

import asyncio
import sys
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import dj_database_url
import pytest
from django.db import connections
from django.db.backends.sqlite3 import base
from structlog.testing import capture_logs

from fastapi_django_orm.coherence.postgresql_session import way_to
from fastapi_django_orm.database.engines import (
    POSTGRESQL_PATIENCE,
    fit_driver_pools,
    kind_of,
    name_of,
    notice_dead_networks,
)
from fastapi_django_orm.database.startup_checks import check_shareable
from fastapi_django_orm.errors import PrivateDatabase
from tests.project import router
from tests.project.board.models import Topic
from tests.project.engines.tokens import base as tokens
from tests.support.databases import BOARD, default_changed
from tests.support.hearing import (
    eventually,
    execute,
    follows,
    hearing,
    install_triggers,
    link,
    uninstall_triggers,
    write,
)
from tests.support.playing import outside
from tests.support.repositories import declare
from tests.support.servers import PostgreSQL

ENGINES = "tests.project.engines"
HEARTBEAT = 0.4  # seconds

OWNED = (
    "CREATE ROLE login LOGIN",
    "CREATE ROLE owner ROLE login",
    "CREATE SCHEMA owner AUTHORIZATION owner",
    "ALTER TABLE board_topic SET SCHEMA owner",
    "GRANT ALL ON ALL TABLES IN SCHEMA owner, public TO owner",
    "GRANT ALL ON ALL SEQUENCES IN SCHEMA owner, public TO owner",
)
PUBLIC = (
    "DELETE FROM owner.board_topic",
    "ALTER TABLE owner.board_topic SET SCHEMA public",
    "DROP OWNED BY owner CASCADE",
    "DROP ROLE owner, login",
)


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[Any]]:
    """What is logged, instead of the output."""
    with capture_logs() as entries:
        yield entries


@pytest.fixture
def board(postgresql: PostgreSQL, _databases: Any) -> Iterator[dict[str, Any]]:
    """A database with the tables, as `DATABASES` has it; and it is Django's `default`."""
    _databases("postgresql")
    known = dj_database_url.parse(postgresql.url(BOARD), conn_max_age=None)
    with default_changed(**known):
        router.choose("default")
        Topic.objects.all().delete()
        yield known
        uninstall_triggers()
        connections.close_all()


@pytest.fixture
def vault(postgresql: PostgreSQL, board: dict[str, Any]) -> Iterator[PostgreSQL]:
    """A server with the tables, which only the engine knows the way to."""
    execute("CREATE SCHEMA hidden")
    execute("CREATE ROLE second LOGIN SUPERUSER")
    tokens.secrets.update(port=board["PORT"], user=board["USER"])
    with default_changed(**{**board, "ENGINE": f"{ENGINES}.tokens", "PORT": "9", "USER": "nobody"}):
        yield postgresql
        connections.close_all()
    tokens.secrets.clear()
    execute("DROP SCHEMA hidden CASCADE")
    execute("DROP ROLE second")


def users() -> list[str]:
    """Who listens to the chosen database."""
    with connections[router.chosen].cursor() as cursor:
        cursor.execute(
            "SELECT usename FROM pg_stat_activity WHERE application_name LIKE 'fastapi-django-orm %'"
        )
        return [name for (name,) in cursor.fetchall()]


def test_listening_as_the_engine_connects(vault: PostgreSQL) -> None:
    """The engine is asked at each connect, and never on the event loop: its token may have expired."""

    async def main() -> None:
        async with hearing(declare(), coherence_heartbeat=HEARTBEAT) as (topics, coherence):
            loop = threading.current_thread()
            await write("one")
            await follows(topics, "one")
            assert coherence.why_unheard("topics") is None
            assert await outside(users) == [tokens.secrets["user"]]
            tokens.secrets["user"] = "second"
            postgresql = link(coherence, "postgresql")
            before = postgresql.connected_since
            await asyncio.to_thread(vault.terminate_backends, BOARD)
            await eventually(lambda: postgresql.connected_since not in (None, before), "it listens again")
            assert await outside(users) == ["second"]
            await write("two")
            await follows(topics, "one", "two")
            assert loop not in tokens.asked

    install_triggers(Topic)
    tokens.asked.clear()
    asyncio.run(main())


def test_a_password_that_only_connecting_shows(vault: PostgreSQL, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine may give it to the driver when it connects, and to nobody before."""
    connect = tokens.DatabaseWrapper.get_new_connection
    monkeypatch.setattr(
        tokens.DatabaseWrapper,
        "get_new_connection",
        lambda self, params: connect(self, {**params, "password": "of this moment"}),
    )
    connections.close_all()
    assert way_to("default", {}).parameters["password"] == "of this moment"


def test_tables_are_found_where_django_finds_them(vault: PostgreSQL) -> None:
    """A table in a schema that the engine puts on its search path has its triggers, and is heard."""

    async def main() -> None:
        async with hearing(declare(), coherence_heartbeat=HEARTBEAT) as (topics, coherence):
            assert link(coherence, "postgresql").listener.unheard == frozenset()
            await write("hidden")
            await follows(topics, "hidden")

    execute("CREATE TABLE hidden.board_topic (LIKE public.board_topic INCLUDING ALL)")
    install_triggers(Topic)  # on the table that comes first
    asyncio.run(main())


def test_a_role_that_django_takes(board: dict[str, Any]) -> None:
    """With OPTIONS["assume_role"] tables are looked for where that role finds them, and with its rights."""

    async def main() -> None:
        async with hearing(declare()) as (topics, coherence):
            assert coherence.why_unheard("topics") is None
            await write("theirs")
            await follows(topics, "theirs")

    install_triggers(Topic)
    for statement in OWNED:
        execute(statement)
    try:
        with default_changed(USER="login", OPTIONS={"assume_role": "owner"}):
            asyncio.run(main())
            connections.close_all()
    finally:
        for statement in PUBLIC:
            execute(statement)


@pytest.mark.parametrize(
    ("engine", "kind", "name"),
    [
        ("django.db.backends.mysql", "mysql", "MariaDB or MySQL"),
        ("django.db.backends.postgresql", "postgresql", "PostgreSQL"),
        ("django.db.backends.sqlite3", "sqlite", "SQLite"),
        (f"{ENGINES}.connector", "mysql", "MariaDB or MySQL"),
        (f"{ENGINES}.tokens", "postgresql", "PostgreSQL"),
        (f"{ENGINES}.not_there.postgresql", None, f"{ENGINES}.not_there.postgresql"),
    ],
)
def test_the_kind_of_a_database(
    monkeypatch: pytest.MonkeyPatch, engine: str, kind: str | None, name: str
) -> None:
    """It is what the engine's class says. Nothing is connected to: nothing is at this port."""
    there = {"ENGINE": engine, "NAME": "nothing", "HOST": "127.0.0.1", "PORT": "9", "OPTIONS": {}}
    monkeypatch.setitem(connections.settings, "other", there)
    assert (kind_of("other"), name_of("other")) == (kind, name)


@pytest.mark.parametrize(
    ("engine", "options", "expected"),
    [
        (f"{ENGINES}.connector", {"pool": {"min": 1}}, {"pool": {"min": 1}}),
        (
            f"{ENGINES}.tokens",
            {"pool": {"min_size": 9}},
            {**POSTGRESQL_PATIENCE, "pool": {"min_size": 3, "max_size": 3}},
        ),
        ("django.db.backends.mysql", {}, {"read_timeout": 10}),
    ],
)
def test_options_for_djangos_own_drivers(
    monkeypatch: pytest.MonkeyPatch, engine: str, options: Any, expected: Any
) -> None:
    """What those take is given to them alone, whatever the engine is called."""
    settings = {"ENGINE": engine, "OPTIONS": options}
    monkeypatch.setattr(connections, "settings", {"other": settings})
    notice_dead_networks(10.0)
    fit_driver_pools(3)
    assert settings["OPTIONS"] == expected


def test_a_private_database_behind_any_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite in memory is refused by what it is, not by what its engine is called."""
    monkeypatch.setitem(sys.modules, "tests.lite", ModuleType("tests.lite"))
    monkeypatch.setitem(sys.modules, "tests.lite.base", base)
    monkeypatch.setitem(connections.settings, "other", {"ENGINE": "tests.lite", "NAME": ":memory:"})
    with pytest.raises(PrivateDatabase):
        check_shareable("other")
