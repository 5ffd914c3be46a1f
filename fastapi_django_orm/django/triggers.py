"""The triggers in a PostgreSQL database: their state, how they are installed, and how they are removed."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Any

from django.db import DatabaseError, connections, transaction

from ..coherence.hints import CHANNEL
from ..errors import ConfigurationError, DjangoORMError, TableMissing
from .tables import AnnouncedTable
from .trigger_sql import DROP_UNUSED, TriggerSQL

# Whoever waits for a table's lock keeps its writers waiting, too.
LOCK_TIMEOUT = "5s"

_FIRING = {"O", "A"}  # neither disabled by ALTER TABLE, nor enabled for replicas alone
_WITH_TRIGGERS = {"r", "p"}  # an ordinary table, a partitioned one

# SQLSTATE codes: https://www.postgresql.org/docs/current/errcodes-appendix.html
_REASONS = {
    "42501": "This user may not create triggers there: only the table's owner may. Run the command as the "
    "owner, or add --sql and give what it prints to whoever may.",
    "55P03": f"Another transaction kept the table for more than {LOCK_TIMEOUT}. Try again when it has ended.",
    "40P01": "Another transaction wanted the same tables in another order. Try again.",
}


class NotPostgreSQL(ConfigurationError):
    """Triggers were asked for in a database that has no ``NOTIFY``."""


class TriggersRefused(DjangoORMError, DatabaseError):
    """The database does not let the triggers be changed; the message says what to do."""


class NoTable(TriggersRefused):
    """What has the table's name is a view, or a foreign table: it has no rows of its own to tell of."""


class State(StrEnum):
    """The state of a table's triggers."""

    INSTALLED = "installed"
    OUTDATED = "outdated"
    MISSING = "missing"


def check_postgresql(alias: str) -> None:
    """Refuse a database without ``NOTIFY``.

    Raises:
        NotPostgreSQL: it is another kind of database.
    """
    connection = connections[alias]
    if connection.vendor != "postgresql":
        raise NotPostgreSQL(
            f"The database {alias!r} is {connection.display_name}, and triggers that tell of writes need "
            "PostgreSQL. Changes in SQLite are noticed without them; for other databases let "
            "DJANGO_ORM_COHERENCE name a Redis or Valkey, redis://host."
        )


def state(alias: str, table: AnnouncedTable) -> State:
    """The state of a table's triggers.

    Raises:
        NotPostgreSQL: the database has no ``NOTIFY``.
        TableMissing: there is no such table.
        NoTable: what has the table's name cannot have such triggers.
    """
    check_postgresql(alias)
    wanted = TriggerSQL(table, connections[alias])
    found = _read(alias, wanted.table)
    if not found:
        raise TableMissing(
            f"The database {alias!r} has no table {wanted.table} for {table.label}. "
            "Create it with `python manage.py migrate`."
        )
    if found[0][0] not in _WITH_TRIGGERS:
        raise NoTable(
            f"{wanted.table} ({table.label}) is no ordinary table, and only those tell what a statement has "
            "changed. Name the models of the tables behind it in the repository's `depends_on`."
        )
    triggers = {name: (enabled in _FIRING, mark) for _, name, enabled, mark in found if name}
    if not triggers:
        return State.MISSING
    return (
        State.INSTALLED if triggers == dict.fromkeys(wanted.triggers, (True, wanted.mark)) else State.OUTDATED
    )


def install(alias: str, table: AnnouncedTable) -> State:
    """Bring a table's triggers to this version, unless they have it.

    Returns:
        What was there before.

    Raises:
        TriggersRefused: this user may not, or the table stays locked.
    """
    before = state(alias, table)
    if before is not State.INSTALLED:
        execute(alias, table.label, [*TriggerSQL(table, connections[alias]).install(), DROP_UNUSED])
    return before


def uninstall(alias: str, table: AnnouncedTable) -> State:
    """Remove a table's triggers, of whatever version.

    Returns:
        What was there before.

    Raises:
        TriggersRefused: this user may not, or the table stays locked.
    """
    before = state(alias, table)
    if before is not State.MISSING:
        execute(alias, table.label, [*TriggerSQL(table, connections[alias]).uninstall(), DROP_UNUSED])
    return before


def _read(alias: str, quoted: str) -> list[tuple[Any, ...]]:
    """For each of our triggers: the table's kind, its name, when it fires, its function's comment."""
    with connections[alias].cursor() as cursor:
        cursor.execute(
            "SELECT c.relkind::text, t.tgname::text, t.tgenabled::text, obj_description(t.tgfoid, 'pg_proc')"
            " FROM pg_class c"
            " LEFT JOIN pg_trigger t ON t.tgrelid = c.oid AND starts_with(t.tgname::text, %s)"
            " WHERE c.oid = to_regclass(%s)",
            [f"{CHANNEL}_", quoted],
        )
        return list(cursor.fetchall())


def execute(alias: str, what: str, statements: Iterable[str]) -> None:
    """Execute statements in one transaction, which waits for no lock for long.

    Args:
        alias: the database's key in ``DATABASES``.
        what: what they are about, for the message.
        statements: SQL.

    Raises:
        TriggersRefused: this user may not, or the table stays locked.
    """
    with _explained(what), transaction.atomic(using=alias), connections[alias].cursor() as cursor:
        cursor.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
        # One at a time: of two sessions that create or drop a function at once, PostgreSQL fails one.
        cursor.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [CHANNEL])
        for statement in statements:
            cursor.execute(statement)


@contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except DatabaseError as error:
        reason = _REASONS.get(getattr(error.__cause__, "sqlstate", None) or "")
        if reason is None:
            raise
        raise TriggersRefused(f"{what}: {str(error).strip()}\n{reason}") from error
