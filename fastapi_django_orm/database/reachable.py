"""Whether a database answers, and what to do when it does not."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, Error, connections
from django.db.models import Model

from ..errors import ColumnMissing, DatabaseUnreachable, PrivateDatabase, TableMissing
from .engines import kind_of, name_of


def check_reachable(alias: str, *, starting: bool = True) -> None:
    """Ask a database for an answer, on a database thread.

    Args:
        alias: the key in ``DATABASES``.
        starting: whether an application asks, which could wait for the database.

    Raises:
        DatabaseUnreachable: it gives none.
    """
    try:
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT 1")
            cursor.fetchone()
    except (Error, ImproperlyConfigured) as error:
        retry = " With DJANGO_ORM_STARTUP=retry the application starts without it and waits."
        # The driver's traceback is long and says no more than its message.
        raise DatabaseUnreachable(
            f"The database {alias!r} ({_place(alias)}) does not answer: {str(error).strip()}\n"
            f"Start it, or correct DATABASES[{alias!r}] in Django's settings." + (retry if starting else "")
        ) from None


def _place(alias: str) -> str:
    settings = connections.settings[alias]
    host = settings["HOST"] and f" at {settings['HOST']}:{settings['PORT'] or 'its default port'}"
    service = settings["OPTIONS"].get("service")
    name = f"service {service!r}" if service and not settings["NAME"] else repr(str(settings["NAME"]))
    return f"{name_of(alias)} {name}{host}"


def check_shareable(alias: str) -> None:
    """Refuse a database in memory, of which each connection would have one of its own.

    Raises:
        PrivateDatabase: it is SQLite's ``:memory:``.
    """
    settings = connections.settings[alias]
    name = str(settings["NAME"])
    in_memory = ":memory:" in name or "mode=memory" in name
    private = not name or (in_memory and "cache=shared" not in name)
    if kind_of(alias) == "sqlite" and private:
        raise PrivateDatabase(
            f"DATABASES[{alias!r}] is SQLite's {name or 'temporary file'!r}, and every connection would see "
            "an empty database of its own. Give it a file's name, or in tests "
            "'file:memory?mode=memory&cache=shared'."
        )


@contextmanager
def table_explained(model: type[Model], alias: str) -> Iterator[None]:
    """Say ``manage.py migrate`` where a query inside fails for want of the model's table, or of a column.

    Raises:
        TableMissing: the table is not there.
        ColumnMissing: it has not all of the model's columns.
    """
    try:
        yield
    except DatabaseError as error:
        if _is_missing(model._meta.db_table, alias):
            raise TableMissing(
                f"The database {alias!r} has no table {model._meta.db_table!r} for {model._meta.label}. "
                "Create it with `python manage.py migrate`."
            ) from error
        for table, column in _missing_columns(model, alias, str(error)):
            raise ColumnMissing(
                f"The table {table!r} of the database {alias!r} has no column {column!r}, and "
                f"{model._meta.label} has. Create it with `python manage.py makemigrations` and "
                "`python manage.py migrate`."
            ) from error
        raise


def _is_missing(table: str, alias: str) -> bool:
    connection: Any = connections[alias]
    try:
        with connection.cursor() as cursor:
            return table not in connection.introspection.table_names(cursor, include_views=True)
    except DatabaseError:
        return False  # the database is away altogether, which is another error


def _missing_columns(model: type[Model], alias: str, message: str) -> Iterator[tuple[str, str]]:
    """Columns of a model that its tables lack, with the table's name.

    Args:
        model: the model.
        alias: the database that was asked.
        message: of the error. Only columns are looked for that it names, in whatever language: to describe a
            table may mean to read it, and after another error, such as a lock's, that would fail as well.
    """
    columns = [(field.model._meta.db_table, str(field.column)) for field in model._meta.concrete_fields]
    named = [
        (table, column)
        for table, column in columns
        if re.search(rf"\b{re.escape(column)}\b", message, re.IGNORECASE)
    ]
    for table in dict.fromkeys(table for table, _ in named):
        there = _columns(table, alias)
        missing = (column for of, column in named if of == table and column.casefold() not in there)
        yield from ((table, column) for column in missing if there)


def _columns(table: str, alias: str) -> set[str]:
    connection: Any = connections[alias]
    try:
        with connection.cursor() as cursor:
            described = connection.introspection.get_table_description(cursor, table)
    except DatabaseError:
        return set()
    return {column.name.casefold() for column in described}
