"""Migrations and triggers: PostgreSQL does not change or drop a column that a trigger names.

One of each table's triggers names the column of its key, since that alone makes it cheap. A migration from
``AutoField`` to ``BigAutoField`` would fail because of it. So while ``migrate`` runs, that trigger makes way
for each such statement. It goes and comes back in the transaction of the statement, so that nobody ever sees
it away, even if ``migrate`` fails later. One that was lost with its column is made for the key's next column
at the end of ``migrate``; until then the function finds no key, and tells of all rows.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any

from django.apps import apps
from django.db import DatabaseError, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Model
from django.db.models.signals import post_migrate, pre_migrate

from ..coherence.hints import REKEY
from ..errors import DjangoORMError
from ..events import django_logger as logger
from . import triggers
from .tables import table_of
from .trigger_sql import rekey_trigger

# As Django's schema editor writes them. Django 6.1 drops columns without CASCADE.
_STATEMENT = re.compile(
    r'ALTER TABLE (?P<table>"[^;]+?"|\S+) (?:ALTER COLUMN .* TYPE |DROP COLUMN (?P<dropped>"[^"]+"|\S+))',
    re.IGNORECASE | re.DOTALL,
)
_UID = "fastapi_django_orm"

# The column that a table's trigger names, and the function that it calls.
_TRIGGER = """
SELECT a.attname::text, t.tgfoid::regproc::text
FROM pg_trigger t JOIN pg_attribute a ON a.attrelid = t.tgrelid AND a.attnum = t.tgattr[0]
WHERE t.tgrelid = to_regclass(%s) AND t.tgname = %s"""

# Those of these tables that have lost the trigger.
_LOST = """
SELECT wanted.name FROM unnest(%s::text[]) AS wanted (name)
WHERE EXISTS (
    SELECT FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
    WHERE t.tgrelid = to_regclass(wanted.name) AND strpos(p.prosrc, %s) > 0
) AND NOT EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = to_regclass(wanted.name) AND t.tgname = %s)"""


def connect() -> None:
    """Connect the signals."""
    pre_migrate.connect(_begin, dispatch_uid=_UID)
    post_migrate.connect(_end, dispatch_uid=_UID)


class _MakingWay:
    """Sees what is executed on a connection, and takes the trigger away for what it would stop."""

    def __init__(self) -> None:
        self.tables: set[str] = set()  # whose trigger was in the way

    def __call__(self, execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: Any) -> Any:
        statement, connection = _STATEMENT.match(str(sql)), context["connection"]
        trigger = None if statement is None else _trigger(connection, statement["table"])
        if statement is None or trigger is None or statement["dropped"] not in (None, trigger[0]):
            return execute(sql, params, many, context)
        table, is_dropped = statement["table"], statement["dropped"] is not None
        self.tables.add(table)
        with transaction.atomic(using=connection.alias, savepoint=False), connection.cursor() as cursor:
            cursor.execute(f"DROP TRIGGER {REKEY} ON {table}")
            result = execute(sql, params, many, context)
            if not is_dropped:
                _create(connection, table, *trigger)
        return result


def _trigger(connection: BaseDatabaseWrapper, table: str) -> tuple[str, str] | None:
    """The column that the table's trigger names, and the function that it calls; None if there is none."""
    with connection.cursor() as cursor:
        cursor.execute(_TRIGGER, [table, REKEY])
        found = cursor.fetchone()
    return None if found is None else (connection.ops.quote_name(found[0]), found[1])


def _create(connection: BaseDatabaseWrapper, table: str, key: str, function: str) -> None:
    """Create the trigger again; a failure does not end the migration."""
    try:
        with transaction.atomic(using=connection.alias), connection.cursor() as cursor:
            cursor.execute(rekey_trigger(table, key, function))
    except DatabaseError as error:
        logger.warning("The trigger %s of %s is away until the end of migrate: %s", REKEY, table, error)


def _begin(using: str, **kwargs: Any) -> None:
    """Begin to watch what is executed. Django sends this signal once for each app."""
    connection = connections[using]
    if connection.vendor == "postgresql" and not _ours(connection):
        connection.execute_wrappers.append(_MakingWay())


def _end(using: str, **kwargs: Any) -> None:
    """Bring up to date what the migrations have spoilt, at the first of Django's signals."""
    connection = connections[using]
    for ours in _ours(connection):
        connection.execute_wrappers.remove(ours)
        models = {
            connection.ops.quote_name(model._meta.db_table): model
            for model in apps.get_models(include_auto_created=True)
            if not model._meta.proxy
        }
        for name in models.keys() & (ours.tables | _lost(connection, models)):
            _restore(using, models[name])


def _lost(connection: BaseDatabaseWrapper, tables: Iterable[str]) -> set[str]:
    try:
        with connection.cursor() as cursor:
            cursor.execute(_LOST, [list(tables), REKEY, REKEY])
            return {name for (name,) in cursor.fetchall()}
    except DatabaseError as error:
        logger.warning("Run manage.py coherence status, since triggers cannot be looked at: %s", error)
        return set()


def _restore(using: str, model: type[Model]) -> None:
    table = table_of(model)
    try:
        if triggers.state(using, table) is triggers.State.OUTDATED:  # others are there, so this one was
            triggers.install(using, table)
    except (DjangoORMError, DatabaseError) as error:
        logger.warning("Run manage.py coherence install %s, which now fails: %s", table.label, error)


def _ours(connection: BaseDatabaseWrapper) -> list[_MakingWay]:
    return [wrapper for wrapper in connection.execute_wrappers if isinstance(wrapper, _MakingWay)]
