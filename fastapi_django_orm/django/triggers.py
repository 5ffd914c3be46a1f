"""The triggers in a PostgreSQL database: their state, how they are installed, and how they are removed."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Any

from django.db import DatabaseError, connections, transaction

from ..coherence.hints import CHANNEL
from ..errors import ConfigurationError, DjangoORMError, TableMissing
from .tables import AnnouncedTable
from .trigger_sql import DROP_UNUSED, FAMILY, OF_TABLE, TriggerSQL

# Other writers queue behind a session that waits for a table's lock.
LOCK_TIMEOUT = "5s"

# SQLSTATE codes: https://www.postgresql.org/docs/current/errcodes-appendix.html
_REASONS = {
    "42501": "This user may not create triggers there: only the table's owner may. Run the command as the "
    "owner, or add --sql and give what it prints to whoever may.",
    "55P03": f"Another transaction kept the table for more than {LOCK_TIMEOUT}. Try again when it has ended.",
    "40P01": "Another transaction wanted the same tables in another order. Try again.",
}

# Of the table, its parents and its children: what they are, and each trigger that is there for the table.
_STATE = f"""\
{FAMILY}, ours AS (
    SELECT t.*, p.proname, p.prosrc FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid WHERE {OF_TABLE}
)
SELECT c.oid::regclass::text, c.relkind::text, c.oid = to_regclass({{table}}), t.tgname::text,
    ARRAY[t.tgtype, t.tgoldtable, t.tgnewtable, t.tgenabled, t.tgqual, t.proname, t.prosrc]::text[]
FROM family JOIN pg_class c ON c.oid = family.relation FULL JOIN ours t ON t.tgrelid = c.oid"""


class NotPostgreSQL(ConfigurationError):
    """Triggers were asked for in a database that has no ``NOTIFY``."""


class TriggersRefused(DjangoORMError, DatabaseError):
    """The database does not let the triggers be changed; the message says what to do."""


class NoTable(TriggersRefused):
    """What has the table's name fires no triggers that announce rows.

    Attributes:
        kind: ``"view"``, ``"materialized view"`` or ``"foreign table"``.
    """

    def __init__(self, table: str, kind: str) -> None:
        """Say what keeps such rows current.

        Args:
            table: its name, quoted, and the model's label.
            kind: what it is.
        """
        self.kind = kind
        super().__init__(f"{table} is a {kind}: {_ADVICE[kind]}")


_ADVICE = {
    "view": "the triggers belong on the tables that it reads. Name the models of those, or no model, since "
    "`coherence install` finds them for the repositories of an application.",
    "materialized view": "it needs no triggers. Workers that listen to this database look once a second "
    "whether it was refreshed.",
    "foreign table": "its rows change in another database, which announces nothing here. Give the repository "
    "a `max_age`, or run `manage.py refresh` after each change.",
}
_KINDS = {"v": "view", "m": "materialized view", "f": "foreign table"}


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
    """The state of a table's triggers, its function's text included.

    Raises:
        NotPostgreSQL: the database has no ``NOTIFY``.
        TableMissing: there is no such table.
        NoTable: what has the table's name cannot have such triggers.
    """
    check_postgresql(alias)
    sql = TriggerSQL(table, connections[alias])
    rows = _read(alias, sql)
    kinds = {name: kind for name, kind, *_ in rows if kind}
    _check_kind(alias, table, sql, kinds, {name for name, _, is_own, *_ in rows if is_own})
    found = {(name, trigger): tuple(described) for name, _, _, trigger, described in rows if trigger}
    wanted = {
        (name, trigger): (str(event.type), event.old, event.new, "A", None, sql.function, sql.source)
        for name, is_own in {(name, is_own) for name, kind, is_own, *_ in rows if kind}
        for trigger, event in sql.named(is_own).items()
    }
    if not found:
        return State.MISSING
    return State.INSTALLED if found == wanted else State.OUTDATED


def _check_kind(
    alias: str, table: AnnouncedTable, sql: TriggerSQL, kinds: dict[str, str], own: set[str]
) -> None:
    if not own:
        raise TableMissing(
            f"The database {alias!r} has no table {sql.table} for {table.label}. " + _how_to_create(table)
        )
    kind = _KINDS.get(kinds[own.pop()]) or ("foreign table" if "f" in kinds.values() else None)
    if kind is not None:
        raise NoTable(f"{sql.table} ({table.label})", kind)


def _how_to_create(table: AnnouncedTable) -> str:
    if table.model._meta.managed:
        return "Create it with `python manage.py migrate`."
    return (
        "Its model is not managed (`managed = False`), so `migrate` does not create it: create it as this "
        "project does, then run `manage.py coherence install` again."
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
        # To look for what is unused means to read all triggers, so not for each new one of a thousand tables.
        unused = [DROP_UNUSED] if before is State.OUTDATED else []
        execute(alias, table.label, [*TriggerSQL(table, connections[alias]).install(), *unused])
    return before


def uninstall(alias: str, table: AnnouncedTable) -> bool:
    """Remove a table's triggers, of whatever version, and whatever the table is by now.

    Returns:
        Whether there were any.

    Raises:
        NotPostgreSQL: the database has no ``NOTIFY``.
        TriggersRefused: this user may not, or the table stays locked.
    """
    check_postgresql(alias)
    sql = TriggerSQL(table, connections[alias])
    found = any(trigger for *_, trigger, _ in _read(alias, sql))
    if found:
        execute(alias, table.label, [*sql.uninstall(), DROP_UNUSED])
    return found


def _read(alias: str, sql: TriggerSQL) -> list[tuple[Any, ...]]:
    """The rows of ``_STATE``."""
    with connections[alias].cursor() as cursor:
        cursor.execute(_STATE.format(**sql.literals))
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
