"""Migrations and triggers: PostgreSQL does not change the type of a column that a trigger names.

One of each table's triggers names the column of its key, since that alone makes it cheap. A migration from
``AutoField`` to ``BigAutoField`` would fail for it. So while ``migrate`` runs, that trigger makes way for
each such statement. It goes and comes back in the transaction of the statement, so that nobody ever sees it
away, even if ``migrate`` fails later. What is lost in other ways, as with a column that is dropped,
``migrate`` brings back at its end.
"""

import logging
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
from . import triggers
from .tables import table_of
from .trigger_sql import rekey_trigger

logger = logging.getLogger("fastapi_django_orm")

# As Django's schema editor writes it.
_NEW_TYPE = re.compile(r'ALTER TABLE ("[^;]+?"|\S+) ALTER COLUMN .* TYPE ', re.IGNORECASE | re.DOTALL)
_UID = "fastapi_django_orm"

_IN_THE_WAY = """
SELECT quote_ident(a.attname), t.tgfoid::regproc::text
FROM pg_trigger t JOIN pg_attribute a ON a.attrelid = t.tgrelid AND a.attnum = t.tgattr[0]
WHERE t.tgrelid = to_regclass(%s) AND t.tgname = %s"""

# Of these tables, those that have lost it.
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
        found, connection = _NEW_TYPE.match(str(sql)), context["connection"]
        if found is None or (create := _in_the_way(connection, found[1])) is None:
            return execute(sql, params, many, context)
        self.tables.add(found[1])
        with transaction.atomic(using=connection.alias, savepoint=False), connection.cursor() as cursor:
            cursor.execute(f"DROP TRIGGER {REKEY} ON {found[1]}")
            result = execute(sql, params, many, context)
            _create(connection, create, found[1])
        return result


def _in_the_way(connection: BaseDatabaseWrapper, table: str) -> str | None:
    """The statement that creates the table's trigger, if it has one."""
    with connection.cursor() as cursor:
        cursor.execute(_IN_THE_WAY, [table, REKEY])
        found = cursor.fetchone()
    return None if found is None else rekey_trigger(table, *found)


def _create(connection: BaseDatabaseWrapper, statement: str, table: str) -> None:
    """Have the trigger again; no migration fails for that."""
    try:
        with transaction.atomic(using=connection.alias), connection.cursor() as cursor:
            cursor.execute(statement)
    except DatabaseError as error:
        logger.warning("The trigger %s of %s is away until the end of migrate: %s", REKEY, table, error)


def _begin(using: str, **kwargs: Any) -> None:
    """Look on. Django sends this once for each app."""
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
