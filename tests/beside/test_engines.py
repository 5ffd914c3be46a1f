"""Engines of other packages: what they make of PostgreSQL is PostgreSQL."""

import asyncio
import importlib
import io
from collections.abc import Iterator
from typing import Any

import dj_database_url
import pytest
from django.core.management import call_command
from django.db import connection, connections
from structlog.testing import capture_logs

from fastapi_django_orm import run
from fastapi_django_orm.database.engines import kind_of
from fastapi_django_orm.django.management.commands.coherence import Command
from tests.project import router
from tests.project.board.models import Topic
from tests.support.databases import BOARD, default_changed
from tests.support.hearing import follows, hearing, link, write
from tests.support.playing import play
from tests.support.repositories import declare
from tests.support.servers import PostgreSQL

ENGINES = {
    "django-postgres-extra": "psqlextra.backend",
    "django-tenants": "django_tenants.postgresql_backend",
    "django-prometheus": "django_prometheus.db.backends.postgresql",
    "django-db-connection-pool": "dj_db_conn_pool.backends.postgresql",
}


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[Any]]:
    """What is logged, instead of the output."""
    with capture_logs() as entries:
        yield entries


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, postgresql: PostgreSQL, _databases: Any) -> Iterator[str]:
    """The engine of a package, for Django's `default`, whose tables are there."""
    engine = ENGINES[request.param]
    try:
        importlib.import_module(f"{engine}.base")
    except ImportError as error:
        pytest.skip(f"{request.param} is not here: {error}")
    _databases("postgresql")
    with default_changed(**{**dj_database_url.parse(postgresql.url(BOARD)), "ENGINE": engine}):
        router.choose("default")
        Topic.objects.all().delete()
        yield engine
        connections.close_all()


def coherence(*arguments: str) -> str:
    """What `manage.py coherence` writes."""
    output = io.StringIO()
    call_command(Command(), *arguments, stdout=output)
    return output.getvalue()


@pytest.mark.parametrize("named", ["auto", "postgresql"])
def test_writes_are_followed(engine: str, named: str) -> None:
    """Installed, listened to, followed by the engine's own connections, and removed without a trace."""

    async def main() -> None:
        async with hearing(declare(), coherence=named) as (topics, found):
            assert found.why_unheard("topics") is None
            await write("one")
            await follows(topics, "one")
            assert not link(found, "postgresql").degraded

    assert kind_of("default") == "postgresql"
    assert "installed" in coherence("install", "board.Topic")
    try:
        asyncio.run(main())
    finally:
        connections.close_all()
        assert "removed" in coherence("uninstall")
    assert "nothing is there" in coherence("uninstall")


def test_what_is_left_on_a_connection_ends_with_it(engine: str) -> None:
    """A setting of the session meets no other call, also where the engine has a pool of its own."""

    def left() -> str:
        with connection.cursor() as cursor:
            cursor.execute("SHOW application_name")
            before: str = cursor.fetchone()[0]
            cursor.execute("SET application_name = 'mine'")
        return before

    async def main() -> list[str]:
        return [await run(left) for _ in range(3)]

    assert play(main) == ["", "", ""]
