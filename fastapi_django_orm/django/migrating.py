"""Migrations and triggers: PostgreSQL does not change the type of a column that a trigger names.

One of each table's triggers names the column of its key, since that alone makes it cheap. A migration from
``AutoField`` to ``BigAutoField`` would fail for it. So while ``migrate`` runs, that trigger is dropped right
before such a statement, in the same transaction, and made anew at the end.
"""

import logging
import re
from collections.abc import Callable
from typing import Any

from django.apps import apps
from django.db import DatabaseError, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.signals import post_migrate, pre_migrate

from ..errors import DjangoORMError
from . import triggers
from .tables import table_of
from .trigger_sql import REKEY

logger = logging.getLogger("fastapi_django_orm")

# As Django's schema editor writes it.
_NEW_TYPE = re.compile(r'ALTER TABLE ("[^;]+?"|\S+) ALTER COLUMN .* TYPE ', re.IGNORECASE | re.DOTALL)
_UID = "fastapi_django_orm"


def connect() -> None:
    """Connect the signals."""
    pre_migrate.connect(_begin, dispatch_uid=_UID)
    post_migrate.connect(_end, dispatch_uid=_UID)


class _MakingWay:
    """Sees what is executed on a connection, and drops the trigger where it is in the way."""

    def __init__(self) -> None:
        self.tables: set[str] = set()

    def __call__(self, execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: Any) -> Any:
        if found := _NEW_TYPE.match(str(sql)):
            execute(f"DROP TRIGGER IF EXISTS {REKEY} ON {found[1]}", None, False, context)
            self.tables.add(found[1])
        return execute(sql, params, many, context)


def _begin(using: str, **kwargs: Any) -> None:
    """Look on. Django sends this once for each app."""
    connection = connections[using]
    if connection.vendor == "postgresql" and not _ours(connection):
        connection.execute_wrappers.append(_MakingWay())


def _end(using: str, **kwargs: Any) -> None:
    """Put the triggers back, at the first of Django's signals."""
    connection = connections[using]
    for ours in _ours(connection):
        connection.execute_wrappers.remove(ours)
        for model in apps.get_models(include_auto_created=True):
            if connection.ops.quote_name(model._meta.db_table) in ours.tables and not model._meta.proxy:
                _restore(using, model)


def _restore(using: str, model: Any) -> None:
    table = table_of(model)
    try:
        if triggers.state(using, table) is triggers.State.OUTDATED:  # others are there, so this one was
            triggers.install(using, table)
    except (DjangoORMError, DatabaseError) as error:
        logger.warning("Run manage.py coherence install %s, which now fails: %s", table.label, error)


def _ours(connection: BaseDatabaseWrapper) -> list[_MakingWay]:
    return [wrapper for wrapper in connection.execute_wrappers if isinstance(wrapper, _MakingWay)]
