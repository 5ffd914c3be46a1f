"""The triggers for each row in SQLite, MariaDB and MySQL: their state, how they come and how they go.

As ``triggers`` for PostgreSQL. New ones are made before old ones are dropped, so that no write is missed in
between where each statement is a transaction of its own.
"""

from collections.abc import Iterable
from typing import Any

from django.apps import apps
from django.db import connections, transaction

from ..coherence.row_triggers import (
    Trigger,
    mysql_triggers,
    sqlite_schemas,
    sqlite_triggers,
    sqlite_unique,
)
from ..coherence.table import TABLE
from .table_sql import MySQLTriggers, RowTriggers, SQLiteTriggers
from .tables import AnnouncedTable


def found(alias: str) -> list[Trigger]:
    """The triggers that are in a database, of whatever version."""
    is_sqlite = connections[alias].vendor == "sqlite"
    return (sqlite_triggers if is_sqlite else mysql_triggers)(lambda sql: _rows(alias, sql))


def wanted(alias: str, table: AnnouncedTable) -> RowTriggers | None:
    """The triggers that a table should have; None if it cannot have any."""
    if connections[alias].vendor != "sqlite":
        return MySQLTriggers(table)
    name = table.model._meta.db_table
    schemas = sqlite_schemas(lambda sql: _rows(alias, sql), [name])
    if name not in schemas:
        return None
    return SQLiteTriggers(table, schemas[name], sqlite_unique(lambda sql: _rows(alias, sql), name))


def kind(alias: str, table: AnnouncedTable) -> str | None:
    """What has a table's name: ``"table"``, ``"view"``, ``"virtual table"``; None: nothing."""
    name = table.model._meta.db_table
    with connections[alias].cursor() as cursor:
        if connections[alias].vendor == "sqlite":
            cursor.execute(
                "SELECT CASE WHEN upper(sql) LIKE 'CREATE VIRTUAL%%' THEN 'virtual table' ELSE type END"
                " FROM sqlite_master WHERE type IN ('table', 'view') AND lower(name) = lower(%s)",
                [name],
            )
        else:
            cursor.execute(
                "SELECT IF(TABLE_TYPE LIKE '%%VIEW', 'view', 'table') FROM information_schema.TABLES"
                " WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = %s",
                [name],
            )
        row: Any = cursor.fetchone()
    return None if row is None else str(row[0])


def is_there(alias: str) -> bool:
    """Whether a database has the table of hints."""
    with connections[alias].cursor() as cursor:
        return TABLE in connections[alias].introspection.table_names(cursor)


def install(alias: str, triggers: RowTriggers) -> None:
    """Create the table of hints and a table's triggers, and drop those of other versions."""
    old = [each.name for each in _of(alias, triggers.table)]
    missing = [statement for name, statement in triggers.named.items() if name not in old]
    execute(alias, [*triggers.before, *missing, *_drop(alias, set(old) - triggers.named.keys())])


def uninstall(alias: str, table: AnnouncedTable) -> bool:
    """Drop a table's triggers, and the table of hints with the last ones; return whether there were any."""
    statements = uninstall_sql(alias, table)
    execute(alias, statements)
    return bool(statements)


def uninstall_sql(alias: str, table: AnnouncedTable) -> list[str]:
    """What drops a table's triggers that are there, and the table of hints if no others use it."""
    ours = _of(alias, table.model._meta.db_table)
    statements = _drop(alias, [each.name for each in ours])
    return statements if len(ours) < len(found(alias)) else [*statements, *_drop_table(alias)]


def tables_with_triggers(alias: str) -> dict[str, list[str]]:
    """Every table with triggers of this package, of any version, and the labels of its models, if any."""
    models = apps.get_models(include_auto_created=True)
    labels: dict[str, list[str]] = {each.table.casefold(): [] for each in found(alias)}
    for model in models:
        if not model._meta.proxy and (name := model._meta.db_table.casefold()) in labels:
            labels[name].append(model._meta.label)
    return {each.table: labels[each.table.casefold()] for each in found(alias)}


def uninstall_all_sql(alias: str) -> list[str]:
    """What drops all triggers of this package that are there, and the table of hints."""
    return [*_drop(alias, [each.name for each in found(alias)]), *_drop_table(alias)]


def execute(alias: str, statements: Iterable[str]) -> None:
    """Execute statements, in one transaction where the database can."""
    with transaction.atomic(using=alias), connections[alias].cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


def _drop_table(alias: str) -> list[str]:
    return [f"DROP TABLE {connections[alias].ops.quote_name(TABLE)}"] if is_there(alias) else []


def _of(alias: str, table: str) -> list[Trigger]:
    return [each for each in found(alias) if each.table.casefold() == table.casefold()]


def _drop(alias: str, names: Iterable[str]) -> list[str]:
    quote = connections[alias].ops.quote_name
    return [f"DROP TRIGGER IF EXISTS {quote(name)}" for name in names]


def _rows(alias: str, query: str) -> list[tuple[Any, ...]]:
    with connections[alias].cursor() as cursor:
        cursor.execute(query)
        return list(cursor.fetchall())
