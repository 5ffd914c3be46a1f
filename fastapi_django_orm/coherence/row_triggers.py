"""Whether the triggers for each row are as they were installed, in SQLite, MariaDB and MySQL.

A trigger's name ends with the digest of what it does, and of what that depends on. So workers, which do not
know how triggers are written, see whether one was replaced, or no longer fits its table.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from typing import Any, NamedTuple, TypeAlias

from .hints import CHANNEL

EVENTS = ("insert", "update", "delete")
BEFORE = ("before_insert", "before_update")

Query: TypeAlias = Callable[[str], Iterable[Sequence[Any]]]  # executes SQL, and returns its rows


class Trigger(NamedTuple):
    """A trigger of this package that is there, of whatever version."""

    table: str
    name: str
    body: str
    since: str = ""  # when it was made, where the database says so

    @property
    def event(self) -> str:
        """What it fires on."""
        return self.name.removeprefix(f"{CHANNEL}_").rpartition("_")[0]


def trigger_name(event: str, table: str, body: str, schema: str = "") -> str:
    """The name of a trigger.

    Args:
        event: one of ``EVENTS`` or ``BEFORE``.
        table: the table's name, in any case.
        body: its statements, without what the database adds.
        schema: what decides which statements it needs.
    """
    digest = sha256("\n".join((table.casefold(), schema, body.strip())).encode()).hexdigest()
    return f"{CHANNEL}_{event}_{digest[:12]}"


def is_complete(
    label: str, table: str, triggers: Iterable[Trigger], schema: str = "", events: Iterable[str] = EVENTS
) -> bool:
    """Whether some of these triggers announce these events of a table under a model's label."""
    found = {
        each.event
        for each in triggers
        if each.table.casefold() == table.casefold()
        and json.dumps(label) in each.body
        and each.name == trigger_name(each.event, table, each.body, schema)
    }
    return found.issuperset(events)


# SQLite


def sqlite_triggers(query: Query) -> list[Trigger]:
    """The triggers of a file."""
    rows = query(
        f"SELECT tbl_name, name, sql FROM sqlite_master WHERE type = 'trigger' AND name GLOB '{CHANNEL}_*'"
    )
    return [Trigger(table, name, _between(sql)) for table, name, sql in rows]


def sqlite_schemas(query: Query, tables: Iterable[str]) -> dict[str, str]:
    """Of each ordinary table that is there, its statement and those of its indexes."""
    found: dict[str, str] = {}
    rows = query(
        "SELECT lower(tbl_name), type, sql FROM sqlite_master "
        "WHERE type IN ('table', 'index') AND sql IS NOT NULL ORDER BY type DESC, name"
    )
    for name, kind, sql in rows:
        if kind == "table" and not sql.upper().startswith("CREATE VIRTUAL"):
            found[name] = sql
        elif kind == "index" and name in found:
            found[name] += f"\n{sql}"
    wanted = {table.casefold(): table for table in tables}
    return {wanted[name]: schema for name, schema in found.items() if name in wanted}


def sqlite_unique(query: Query, table: str) -> list[list[tuple[str, str]]]:
    """The columns of each unique index and their collations; an empty list if it has an expression."""
    name = table.replace("'", "''")
    found: list[list[tuple[str, str]]] = []
    for (index,) in list(query(f"SELECT name FROM pragma_index_list('{name}') WHERE \"unique\"")):
        index = index.replace("'", "''")
        columns = [(column, coll) for column, coll in query(
            f"SELECT name, coll FROM pragma_index_xinfo('{index}') WHERE key"
        )]  # fmt: skip
        found.append([] if any(column is None for column, _ in columns) else columns)
    return found


def _between(sql: str) -> str:
    """A trigger's statements."""
    return sql.partition("\nBEGIN")[2].removesuffix("END")


# MariaDB and MySQL


def mysql_triggers(query: Query) -> list[Trigger]:
    """The triggers of the current database."""
    rows = query(
        "SELECT EVENT_OBJECT_TABLE, TRIGGER_NAME, ACTION_STATEMENT, CONCAT(CREATED) "
        "FROM information_schema.TRIGGERS "
        f"WHERE TRIGGER_SCHEMA = DATABASE() AND LEFT(TRIGGER_NAME, {len(CHANNEL) + 1}) = '{CHANNEL}_'"
    )
    return [Trigger(*map(_text, row)) for row in rows]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
