"""Triggers on the test project's tables, and what they say."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from django.db import connections

from fastapi_django_orm.coherence.hints import CHANNEL, Hint, decode
from fastapi_django_orm.django import selection, triggers
from tests.project import router

DEADLINE = 20.0  # seconds

EXOTIC_TABLES = """
CREATE SCHEMA "Else where";
CREATE TABLE "Else where".thing (id serial PRIMARY KEY, name text);
CREATE TABLE places_reading (id serial, value int, PRIMARY KEY (id, value)) PARTITION BY RANGE (value);
CREATE TABLE places_reading_low PARTITION OF places_reading FOR VALUES FROM (0) TO (100);
CREATE TABLE places_reading_high PARTITION OF places_reading FOR VALUES FROM (100) TO (200);
CREATE TABLE "Select Me" ("Order" varchar(2000) PRIMARY KEY);
CREATE TABLE places_piece (part int PRIMARY KEY);
CREATE TABLE places_note (id serial PRIMARY KEY, place_id int REFERENCES places_place ON DELETE CASCADE);
CREATE VIEW places_overview AS SELECT id, name FROM places_place;
"""

WITHOUT_EXOTIC_TABLES = """
DROP VIEW places_overview;
DROP TABLE places_note, places_piece, places_reading, "Select Me";
DROP SCHEMA "Else where" CASCADE;
"""


@contextmanager
def exotic_tables() -> Iterator[None]:
    """Tables that Django would not make, for the length of the block, and no places."""
    execute("TRUNCATE places_place, places_tag CASCADE", EXOTIC_TABLES)
    try:
        yield
    finally:
        connections[router.chosen].close()
        execute(WITHOUT_EXOTIC_TABLES)


class Ear:
    """A connection that hears all that is announced."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self._connection = connection
        connection.execute(f"LISTEN {CHANNEL}")

    def messages(self) -> list[str]:
        """What was committed before this call, and not heard by an earlier one."""
        end = "the end"  # notifications come in the order of commits
        self._connection.execute("SELECT pg_notify(%s, %s)", [CHANNEL, end])
        found: list[str] = []
        for notification in self._connection.notifies(timeout=DEADLINE):
            if notification.payload == end:
                return found
            found.append(notification.payload)
        raise AssertionError(f"heard {found}, and not what this connection has sent itself")

    def hints(self) -> list[Hint]:
        """As `messages`, read."""
        return [decode(message) for message in self.messages()]


@contextmanager
def ear() -> Iterator[Ear]:
    """Hear what is announced in the chosen database."""
    with plain_connection() as connection:
        yield Ear(connection)


@contextmanager
def plain_connection() -> Iterator[psycopg.Connection]:
    """A connection to the chosen database that knows nothing of Django, as psql's."""
    parameters = connections[router.chosen].get_connection_params()
    wanted = {name: parameters[name] for name in ("dbname", "user", "host", "port")}
    with psycopg.connect(**wanted, autocommit=True) as connection:
        yield connection


@contextmanager
def announced(*models: type[Any]) -> Iterator[None]:
    """These models have triggers, for the length of the block."""
    tables = selection.by_database(models, router.chosen)[router.chosen]
    for table in tables:
        triggers.install(router.chosen, table)
    try:
        yield
    finally:
        for table in tables:
            triggers.uninstall(router.chosen, table)


def execute(*statements: str) -> None:
    """Run statements on the chosen database."""
    with connections[router.chosen].cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


def keys(hints: Collection[Hint]) -> list[Any]:
    """All keys of hints that have keys, sorted."""
    assert all(hint.keys is not None for hint in hints)
    return sorted(key for hint in hints for key in hint.keys or ())
