"""The triggers in a database: their state, how they are installed, and how they are removed.

In PostgreSQL they send NOTIFY, or write into a table of hints. Elsewhere they only do the latter, and
``row_triggers`` knows how.

Triggers outlive what they were installed for: a repository that is gone, a ``depends_on``, a model, the
application. So those that are no longer needed are found by their names.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Any

from django.db import DatabaseError, connections, transaction

from ..coherence.hints import CHANNEL
from ..coherence.planned import labels_of
from ..coherence.table import TABLE
from ..errors import ConfigurationError, DjangoORMError, TableMissing
from . import row_triggers
from .table_sql import RowTriggers
from .tables import AnnouncedTable
from .trigger_sql import DROP_ALL, DROP_UNUSED, FAMILY, FOR_RELATIVE, OF_TABLE, OURS, TriggerSQL

# Other writers queue behind a session that waits for a table's lock.
LOCK_TIMEOUT = "5s"

# SQLSTATE codes: https://www.postgresql.org/docs/current/errcodes-appendix.html
_REASONS = {
    "42501": "This user may not create triggers there: only the table's owner may. Run the command as the "
    "owner, or add --sql and give what it prints to a role that may.",
    "55P03": f"Another transaction kept the table for more than {LOCK_TIMEOUT}. Try again when it has ended.",
    "40P01": "Another transaction wanted the same tables in another order. Try again.",
    # MariaDB's and MySQL's numbers of errors.
    1142: "This user may not create triggers there: it needs the privileges TRIGGER and CREATE. Run the "
    "command as another user, or add --sql and give what it prints to a role that may.",
    1419: "With a binary log, the server lets only administrators create triggers. Set "
    "log_bin_trust_function_creators = 1, or add --sql and give what it prints to an administrator.",
}

# The table of hints that is there, or the one that would be created.
_HINTS = f"""
SELECT COALESCE((
    SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = to_regclass('{TABLE}')
), quote_ident(current_schema()) || '.{TABLE}')"""

# Of the table, its parents and its children: what they are, and each trigger that is there for the table.
_STATE = f"""\
{FAMILY}, ours AS (
    SELECT t.*, p.proname, p.prosrc FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid WHERE {OF_TABLE}
)
SELECT c.oid::regclass::text, c.relkind::text, c.oid = to_regclass({{table}}), t.tgname::text,
    ARRAY[t.tgtype, t.tgoldtable, t.tgnewtable, t.tgenabled, t.tgqual, t.proname, t.prosrc]::text[]
FROM family JOIN pg_class c ON c.oid = family.relation FULL JOIN ours t ON t.tgrelid = c.oid"""

_TABLES = f"""
SELECT DISTINCT t.tgrelid::bigint, t.tgrelid::regclass::text
FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
WHERE {OURS} AND NOT {FOR_RELATIVE} ORDER BY 2"""

# Those that only parents and children of a table call have lost the table.
_UNUSED = f"""
SELECT p.oid::regprocedure::text FROM pg_proc p
WHERE starts_with(p.proname::text, '{CHANNEL}_') AND p.prorettype = 'trigger'::regtype
    AND NOT EXISTS (SELECT FROM pg_trigger t WHERE t.tgfoid = p.oid AND NOT {FOR_RELATIVE})
ORDER BY 1"""

# What has a table's name, fires no triggers that announce rows, and how its rows are kept current.
_ADVICE = {
    "view": "the triggers belong on the tables that it reads. Name the models of those, or no model, since "
    "`coherence install` finds them for the repositories of an application.",
    "materialized view": "it needs no triggers. Workers that listen to this database look once a second "
    "whether it was refreshed.",
    "virtual table": "triggers cannot be on it. Each commit to the file refreshes it.",
    "foreign table": "its rows change in another database, which announces nothing here. Give the repository "
    "a `max_age`, or run `manage.py refresh` after each change.",
}
_KINDS = {"v": "view", "m": "materialized view", "f": "foreign table"}


class NotPostgreSQL(ConfigurationError):
    """Triggers that send ``NOTIFY`` were asked for in a database that has none."""


class TriggersRefused(DjangoORMError, DatabaseError):
    """This user may not change the triggers, or the table stays locked; the message says what to do."""


class NoTable(TriggersRefused):
    """What has the table's name fires no triggers that announce rows; ``kind`` is ``"view"``, for example."""

    def __init__(self, table: str, kind: str) -> None:
        self.kind = kind
        super().__init__(f"{table} is a {kind}: {_ADVICE[kind]}")


class State(StrEnum):
    """The state of a table's triggers."""

    INSTALLED = "installed"
    OUTDATED = "outdated"
    MISSING = "missing"


def check_database(alias: str, into_table: bool) -> None:
    """Raise NotPostgreSQL for a database that cannot have triggers of this kind."""
    connection = connections[alias]
    if connection.vendor == "postgresql" or (into_table and connection.vendor in ("sqlite", "mysql")):
        return
    advice = {
        "sqlite": "Workers notice changes in SQLite without them (DJANGO_ORM_COHERENCE=auto). With --table, "
        "a change costs them only the rows that it is about.",
        "mysql": "Add --table for triggers that write into a table, which workers read; or let "
        "DJANGO_ORM_COHERENCE name a Redis or Valkey, redis://host.",
    }.get(connection.vendor, "Let DJANGO_ORM_COHERENCE name a Redis or Valkey, redis://host.")
    raise NotPostgreSQL(
        f"The database {alias!r} is {connection.display_name}, and triggers that send NOTIFY need "
        f"PostgreSQL. {advice}"
    )


def hints_of(alias: str) -> str:
    """The name in SQL of the table into which triggers of a PostgreSQL database write hints."""
    return str(_rows(alias, _HINTS)[0][0])


def has_hints(alias: str) -> bool:
    """Whether a database has the table of hints."""
    if connections[alias].vendor != "postgresql":
        return row_triggers.is_there(alias)
    return bool(_rows(alias, f"SELECT WHERE to_regclass('{TABLE}') IS NOT NULL"))


def install_sql(alias: str, table: AnnouncedTable, into_table: bool, answers: bool) -> list[str]:
    """What installs a table's triggers. Only for PostgreSQL need the database not answer."""
    if connections[alias].vendor != "postgresql":
        triggers = row_triggers.wanted(alias, table)
        return [] if triggers is None else triggers.install()
    hints = None
    if into_table:
        hints = hints_of(alias) if answers else f"public.{TABLE}"
    return TriggerSQL(table, connections[alias], hints).install()


def uninstall_sql(alias: str, table: AnnouncedTable) -> list[str]:
    """What removes a table's triggers; ``unused_sql()`` removes the rest."""
    if connections[alias].vendor != "postgresql":
        return row_triggers.uninstall_sql(alias, table)
    return TriggerSQL(table, connections[alias]).uninstall()


def uninstall_all_sql(alias: str) -> list[str]:
    """What removes all triggers and functions of this package, of any version, and the table of hints."""
    if connections[alias].vendor != "postgresql":
        return row_triggers.uninstall_all_sql(alias)
    return [DROP_ALL, DROP_UNUSED]


def state(alias: str, table: AnnouncedTable, into_table: bool = False) -> State:
    """The state of a table's triggers, what they do included; or TableMissing, or NoTable.

    ``OUTDATED`` are also those that send NOTIFY if others should write into a table, and the reverse.
    """
    check_database(alias, into_table)
    if connections[alias].vendor != "postgresql":
        return _row_state(alias, table)
    sql = TriggerSQL(table, connections[alias], hints_of(alias) if into_table else None)
    rows = _rows(alias, _STATE.format(**sql.literals))
    kinds = {name: (kind, is_own) for name, kind, is_own, *_ in rows if kind}
    own = [kind for kind, is_own in kinds.values() if is_own]
    if not own:
        raise _missing(alias, table, sql.table)
    if own[0] in _KINDS or any(kind == "f" for kind, _ in kinds.values()):
        raise NoTable(f"{sql.table} ({table.label})", _KINDS.get(own[0], "foreign table"))
    found = {(name, trigger): tuple(described) for name, _, _, trigger, described in rows if trigger}
    wanted = {
        (name, trigger): (str(event.type), event.old, event.new, "A", None, sql.function, sql.source)
        for name, (_, is_own) in kinds.items()
        for trigger, event in sql.named(is_own).items()
    }
    if (
        into_table
        and found == wanted
        and not _rows(alias, f"SELECT FROM pg_class WHERE oid = to_regclass('{TABLE}')")
    ):
        return State.OUTDATED
    return _compared(found, wanted)


def install(alias: str, table: AnnouncedTable, into_table: bool = False) -> State:
    """Bring a table's triggers to this version, unless they have it, and return what was there before."""
    before = state(alias, table, into_table)
    if before is State.INSTALLED:
        return before
    if (triggers := _row_triggers(alias, table)) is not None:
        with _explained(table.label):
            row_triggers.install(alias, triggers)
        return before
    # Looking for what is unused means reading all triggers, so not for each new one of a thousand tables.
    unused = [DROP_UNUSED] if before is State.OUTDATED else []
    hints = hints_of(alias) if into_table else None
    _execute(alias, table.label, [*TriggerSQL(table, connections[alias], hints).install(), *unused])
    return before


def uninstall(alias: str, table: AnnouncedTable) -> bool:
    """Remove a table's triggers, of whatever version, and return whether there were any."""
    check_database(alias, into_table=True)
    if connections[alias].vendor != "postgresql":
        return row_triggers.uninstall(alias, table)
    sql = TriggerSQL(table, connections[alias])
    found = any(trigger for *_, trigger, _ in _rows(alias, _STATE.format(**sql.literals)))
    if found:
        _execute(alias, table.label, [*sql.uninstall(), DROP_UNUSED])
    return found


def _row_triggers(alias: str, table: AnnouncedTable) -> RowTriggers | None:
    return None if connections[alias].vendor == "postgresql" else row_triggers.wanted(alias, table)


def _row_state(alias: str, table: AnnouncedTable) -> State:
    name = table.model._meta.db_table
    if (kind := row_triggers.kind(alias, table)) is None:
        raise _missing(alias, table, name)
    if kind != "table" or (triggers := row_triggers.wanted(alias, table)) is None:
        raise NoTable(f"{name} ({table.label})", kind)
    found = {each.name for each in row_triggers.found(alias) if each.table.casefold() == name.casefold()}
    if not row_triggers.is_there(alias) and found:
        return State.OUTDATED
    return _compared(found, triggers.named.keys())


def _compared(found: Any, wanted: Any) -> State:
    if not found:
        return State.MISSING
    return State.INSTALLED if found == wanted else State.OUTDATED


def _missing(alias: str, table: AnnouncedTable, name: str) -> TableMissing:
    advice = "Create it with `python manage.py migrate`."
    if not table.model._meta.managed:
        advice = (
            "Its model is not managed (`managed = False`), so `migrate` does not create it: create it as "
            "this project does, then run `manage.py coherence install` again."
        )
    return TableMissing(f"The database {alias!r} has no table {name} for {table.label}. {advice}")


def tables_with_triggers(alias: str) -> dict[str, list[str]]:
    """Every table with triggers of this package, of any version, and the labels of its models, if any."""
    if connections[alias].vendor != "postgresql":
        return row_triggers.tables_with_triggers(alias)
    labels = labels_of(connections[alias])
    return {name: labels.get(number, []) for number, name in _rows(alias, _TABLES)}


def unused_functions(alias: str) -> list[str]:
    """The functions of this package that no trigger calls, as those of a table that was dropped."""
    if connections[alias].vendor != "postgresql":
        return []
    return [name for (name,) in _rows(alias, _UNUSED)]


def uninstall_all(alias: str) -> None:
    """Remove all triggers and functions of this package, of whatever version, and the table of hints."""
    if connections[alias].vendor != "postgresql":
        row_triggers.execute(alias, row_triggers.uninstall_all_sql(alias))
        return
    _execute(alias, f"Database {alias}", uninstall_all_sql(alias))
    if kept := unused_functions(alias):
        raise TriggersRefused(
            f"{', '.join(kept)}: this user may not remove them, only their owner may. Run the command as the "
            "owner, or add --sql and give what it prints to a role that may."
        )


def _rows(alias: str, query: str) -> list[tuple[Any, ...]]:
    with connections[alias].cursor() as cursor:
        cursor.execute(query)
        return list(cursor.fetchall())


def _execute(alias: str, what: str, statements: Iterable[str]) -> None:
    """Execute statements in one transaction, which waits for no lock for long, or raise TriggersRefused."""
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
        number = error.args[0] if error.args else None
        reason = _REASONS.get(getattr(error.__cause__, "sqlstate", None) or number)
        if reason is None:
            raise
        raise TriggersRefused(f"{what}: {str(error).strip()}\n{reason}") from error
