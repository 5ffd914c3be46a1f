"""The commands and checks about triggers that write into a table, and about NOTIFY's lock."""

import io
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import dj_database_url
import psycopg
import pytest
from django.core.management import CommandError, call_command
from django.db import connections

from fastapi_django_orm.coherence.hints import Hint, decode
from fastapi_django_orm.django import checks, notify_lock
from fastapi_django_orm.django.management.commands import coherence, refresh
from tests.project import router
from tests.project.board.models import Topic
from tests.support.databases import DEADLINE, default_changed
from tests.support.hearing import execute
from tests.support.hint_table import hints, installed
from tests.support.servers import PostgreSQL


@pytest.fixture
def by_table(database: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each database, whose workers read the table."""
    monkeypatch.setenv("DJANGO_ORM_COHERENCE", "table")
    return database


def manage(*arguments: str) -> str:
    """What `manage.py coherence` prints."""
    output = io.StringIO()
    call_command(coherence.Command(), *arguments, "--database", router.chosen, stdout=output)
    return output.getvalue()


def test_install_and_uninstall(by_table: str) -> None:
    """The triggers come, are there, and go."""
    with pytest.raises(CommandError, match="coherence install --table"):
        manage("status", "board.Topic")
    try:
        assert "board.Topic (board_topic" in manage("install", "board.Topic", "--table")
        assert "up to date already" in manage("install", "board.Topic", "--table")
        assert "installed" in manage("status", "board.Topic")
        Topic.objects.create(pk=7)
        assert [decode(message) for message in hints()] == [Hint("board.Topic", (7,))]
    finally:
        assert "removed" in manage("uninstall", "--table")
    assert "nothing is there" in manage("uninstall")


def test_sql(by_table: str) -> None:
    """What --sql prints installs the same triggers, as does what it prints about their end."""
    printed = manage("install", "board.Topic", "--table", "--sql")
    run_sql(printed)
    try:
        assert "installed" in manage("status", "board.Topic")
        Topic.objects.create(pk=7)
        assert len(hints()) == 1
        run_sql(manage("uninstall", "board.Topic", "--sql"))
    finally:
        manage("uninstall", "board.Topic")
    assert "nothing is there" in manage("uninstall")


def run_sql(script: str) -> None:
    """Run a script as a client of the database would."""
    vendor = connections[router.chosen].vendor
    if vendor == "mysql":
        script = re.sub(r"^-- .*$", "", script, flags=re.MULTILINE)
        assert script.strip().startswith("DELIMITER //")
        script = script.replace("DELIMITER //", "").replace("DELIMITER ;", "")
        for statement in filter(None, map(str.strip, script.split("//"))):
            execute(statement)
    elif vendor == "sqlite":
        connections[router.chosen].ensure_connection()
        connections[router.chosen].connection.executescript(script)
    else:
        with connections[router.chosen].cursor() as cursor:
            cursor.execute(script)  # without parameters, so that a percent sign stands for itself


@pytest.mark.parametrize("database", ["sqlite", "mariadb"], indirect=True)
def test_not_asked_for(database: str) -> None:
    """Elsewhere than on PostgreSQL, the command says what to add."""
    with pytest.raises(CommandError, match="--table"):
        manage("install", "board.Topic")


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_other_triggers(by_table: str) -> None:
    """Triggers that send NOTIFY are not what workers that read the table need."""
    manage("install", "board.Topic")
    try:
        with pytest.raises(CommandError, match="coherence install --table"):
            manage("status", "board.Topic")
        assert "brought up to date" in manage("install", "board.Topic", "--table")
        assert "brought up to date" in manage("install", "board.Topic")
    finally:
        manage("uninstall")
    assert "nothing is there" in manage("uninstall")


def test_refresh(by_table: str) -> None:
    """`manage.py refresh` reaches workers that read the table; PostgreSQL's by NOTIFY, as ever."""
    with installed(Topic):
        output = io.StringIO()
        call_command(refresh.Command(), "board.Topic", stdout=output)
        assert "load board.Topic again" in output.getvalue()
        if by_table != "postgresql":
            assert [decode(message) for message in hints()] == [Hint("board.Topic")]


@pytest.fixture
def slow() -> Iterator[PostgreSQL]:
    """A server whose commits take 20 ms, as Django's `default`."""
    if reason := PostgreSQL.unavailable():
        pytest.skip(reason)
    slowly = {"fsync": "on", "commit_delay": "20000", "commit_siblings": "0"}
    with (
        PostgreSQL(settings=slowly) as server,
        default_changed(**dj_database_url.parse(server.create_database("slow"))),
    ):
        yield server
        connections["default"].close()


def test_commits_that_wait(slow: PostgreSQL) -> None:
    """Writers that wait for NOTIFY's lock are counted, and a check says what to do."""
    assert notify_lock.advice("default") is None
    with psycopg.connect(slow.url("slow"), autocommit=True) as connection:
        connection.execute("CREATE TABLE written (id int)")
    end = threading.Event()

    def write() -> None:
        with psycopg.connect(slow.url("slow"), autocommit=True) as connection:
            while not end.is_set():
                connection.execute("WITH new AS (INSERT INTO written VALUES (1)) SELECT pg_notify('x', '')")

    writers = [threading.Thread(target=write) for _ in range(6)]
    for writer in writers:
        writer.start()
    try:
        until = time.monotonic() + DEADLINE
        while (advice := notify_lock.advice("default")) is None:
            assert time.monotonic() < until, "no writer waits"
        assert "coherence install --table" in advice
        found: list[Any] = list(checks._waiting("default"))
        assert [message.id for message in found] == ["fastapi_django_orm.W005"]
    finally:
        end.set()
        for writer in writers:
            writer.join()
