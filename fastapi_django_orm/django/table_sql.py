"""The SQL of triggers that write hints into a table, for SQLite, MariaDB and MySQL.

Their triggers fire for each row. Those of SQLite also keep the table short, since SQLite has one writer at a
time and any process may be the one; elsewhere that would make writers wait for each other, and workers remove
what is old.

Not every change fires a trigger. In SQLite, ``INSERT OR REPLACE`` silently removes the rows that have the
same value in a unique column, so another trigger looks for them before. In MariaDB and MySQL, neither
TRUNCATE nor the cascades of a foreign key fire any; workers notice the first, and say which tables have the
second.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, TypeAlias

from ..coherence.hints import VERSION
from ..coherence.row_triggers import trigger_name
from ..coherence.table import TABLE
from .tables import AnnouncedTable

MOST_ROWS = 10_000  # of SQLite's table; a reader for which that was not enough reads everything again

Unique: TypeAlias = Sequence[tuple[str, str]]  # as ``sqlite_unique()`` gives them

INTEGERS = frozenset(
    {"AutoField", "BigAutoField", "SmallAutoField"}
    | {"IntegerField", "BigIntegerField", "SmallIntegerField"}
    | {"PositiveIntegerField", "PositiveBigIntegerField", "PositiveSmallIntegerField"}
)


class RowTriggers:
    """The triggers of one table.

    Attributes:
        table: the table's name.
        named: each trigger's statement, by its name.
        before: statements that create the table of hints, if it is not there.
    """

    table: str
    named: dict[str, str]
    before: ClassVar[Sequence[str]]

    def install(self) -> list[str]:
        """What creates the table of hints and the triggers."""
        return [*self.before, *self.named.values()]


class SQLiteTriggers(RowTriggers):
    """Those of a table in SQLite."""

    before = (
        "SELECT json_quote('')",  # which an old SQLite may not have, and then every write would fail
        # The mark distinguishes a row from one with the same number in a backup.
        f'CREATE TABLE IF NOT EXISTS "{TABLE}" '
        "(id INTEGER PRIMARY KEY, mark INTEGER NOT NULL DEFAULT (random()), hint TEXT NOT NULL)",
    )

    def __init__(self, table: AnnouncedTable, schema: str, unique: Iterable[Unique]) -> None:
        """Write the triggers for a table with this schema and these unique indexes."""
        self.table = table.model._meta.db_table
        is_integer = _is_integer(table)

        def key(prefix: str) -> str:
            column = f'{prefix}"{table.key}"'
            if is_integer:
                return f"coalesce({column}, 'null')"
            # Of a blob, JSON can hold nothing. Null stands for all rows.
            return (
                f"CASE WHEN typeof({column}) IN ('text', 'integer') THEN json_quote({column}) ELSE 'null' END"
            )

        both = f"""CASE WHEN OLD."{table.key}" IS NEW."{table.key}" THEN {key("NEW.")} """
        both += f"ELSE {key('OLD.')} || ',' || {key('NEW.')} END"
        bodies = {
            ("insert", "AFTER INSERT"): _insert(table, key("NEW.")),
            ("update", "AFTER UPDATE"): _insert(table, both),
            ("delete", "AFTER DELETE"): _insert(table, key("OLD.")),
        }
        for event in ("insert", "update"):
            if before := "".join(_replaced(table, each, key(""), event) for each in unique):
                bodies[f"before_{event}", f"BEFORE {event.upper()}"] = before
        self.named = {}
        for (event, when), statements in bodies.items():
            body = f"\n{statements}"
            if not event.startswith("before"):
                body += f'    DELETE FROM "{TABLE}" WHERE id <= last_insert_rowid() - {MOST_ROWS};\n'
            name = trigger_name(event, self.table, body, schema)
            self.named[name] = (
                f'CREATE TRIGGER IF NOT EXISTS "{name}" {when} ON "{self.table}"\nBEGIN{body}END'
            )


class MySQLTriggers(RowTriggers):
    """Those of a table in MariaDB or MySQL."""

    before = (
        f"""\
CREATE TABLE IF NOT EXISTS `{TABLE}` (
    id BIGINT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
    written DATETIME(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6),
    hint MEDIUMTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL
) ENGINE = InnoDB""",
    )

    def __init__(self, table: AnnouncedTable) -> None:
        """Write the triggers."""
        self.table = table.model._meta.db_table
        is_integer = _is_integer(table)

        def key(prefix: str) -> str:
            column = f"{prefix}`{table.key}`"
            return column if is_integer else f"JSON_QUOTE(CAST({column} AS CHAR CHARACTER SET utf8mb4))"

        both = f"""IF(OLD.`{table.key}` <=> NEW.`{table.key}`, {key("NEW.")}, """
        both += f"CONCAT({key('OLD.')}, ',', {key('NEW.')}))"
        self.named = {}
        for event, keys in (("insert", key("NEW.")), ("update", both), ("delete", key("OLD."))):
            rows = ", ".join(
                # Of a key that has no form in JSON, the result is null: then all rows may have changed.
                [f"""(COALESCE(CONCAT({_hint(label)},"k":[', {keys}, ']}}'), {_hint(label)}}}'))"""
                 for label in table.keyed] + [f"({_hint(label)}}}')" for label in table.unkeyed]
            )  # fmt: skip
            # A write must not fail if the table was removed (1146): workers notice that.
            body = (
                "BEGIN DECLARE CONTINUE HANDLER FOR 1146 BEGIN END; "
                f"INSERT INTO `{TABLE}` (hint) VALUES {rows}; END"
            )
            name = trigger_name(event, self.table, body)
            self.named[name] = (
                f"CREATE TRIGGER `{name}` AFTER {event.upper()} ON `{self.table}` FOR EACH ROW {body}"
            )


def _is_integer(table: AnnouncedTable) -> bool:
    field: Any = table.model._meta.pk
    while field.remote_field is not None:
        field = field.target_field
    return field.get_internal_type() in INTEGERS


def _insert(table: AnnouncedTable, keys: str, source: str = "") -> str:
    """SQLite's statements that write a hint for each label, with the keys of the row."""
    hints = [f"""{_hint(label)},"k":[' || {keys} || ']}}'""" for label in table.keyed]
    hints += [f"{_hint(label)}}}'" for label in table.unkeyed]
    return "".join(f'    INSERT INTO "{TABLE}" (hint) SELECT {hint}{source};\n' for hint in hints)


def _replaced(table: AnnouncedTable, unique: Unique, key: str, event: str) -> str:
    """SQLite's statements for the rows that a new one would replace; all rows if they cannot be found."""
    same = [f'"{column}" = NEW."{column}" COLLATE "{collation}"' for column, collation in unique]
    if not same:
        keyless = [f"{_hint(label)}}}'" for label in table.keyed + table.unkeyed]
        return "".join(f'    INSERT INTO "{TABLE}" (hint) SELECT {hint};\n' for hint in keyless)
    if event == "update" and table.keyed:
        same.append(f'"{table.key}" IS NOT OLD."{table.key}"')
    name = table.model._meta.db_table
    return _insert(table, key, f' FROM "{name}" WHERE {" AND ".join(same)}')


def _hint(label: str) -> str:
    """The beginning of a hint as `hints.encode` writes it, and of a text constant in SQL."""
    return f"""'{{"v":{VERSION},"m":{json.dumps(label)}"""
