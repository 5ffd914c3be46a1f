"""Whether a database answers and has the tables of models, and what to do where it does not.

The database's error is the same in a project that was not migrated yet, in one whose models have no
migration, and in an old worker while a new release is rolled out; and what helps is another thing each time.
Django's migrations tell which, without running any.
"""

import pkgutil
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
from typing import Any

from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS, DatabaseError, Error, connections
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.recorder import MigrationRecorder
from django.db.migrations.state import ProjectState
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
    """Say what to do where a query inside fails because a table or a column is missing.

    Raises:
        TableMissing: a table is not there, the model's or one that the query joins.
        ColumnMissing: one of them has not all of its model's columns.
    """
    try:
        yield
    except DatabaseError as error:
        concerned = _concerned(model, str(error))
        for each in _missing_tables(concerned, alias):
            raise TableMissing(
                f"The database {alias!r} has no table {each._meta.db_table!r} for {each._meta.label}. "
                f"{_what_helps(each, alias)}"
            ) from error
        for field in _missing_columns(concerned, alias, str(error)):
            raise ColumnMissing(
                f"The table {field.model._meta.db_table!r} of the database {alias!r} has no column "
                f"{field.column!r}, and {field.model._meta.label} has. "
                f"{_what_helps(field.model, alias, field.name)}"
            ) from error
        raise
    else:
        _read.add((alias, model))


def _concerned(model: type[Model], message: str) -> list[type[Model]]:
    """The model, its parents, and the models whose tables an error names."""
    named = [each for each in apps.get_models(include_auto_created=True) if each._meta.db_table in message]
    return list(dict.fromkeys([model, *model._meta.all_parents, *named]))


def _missing_tables(models: Iterable[type[Model]], alias: str) -> Iterator[type[Model]]:
    connection: Any = connections[alias]
    try:
        with connection.cursor() as cursor:
            there = set(connection.introspection.table_names(cursor, include_views=True))
    except DatabaseError:
        return  # the database is away altogether, which is another error
    yield from (model for model in models if model._meta.db_table not in there)


def _missing_columns(models: Iterable[type[Model]], alias: str, message: str) -> Iterator[Any]:
    """Fields whose columns are not in their models' tables.

    Args:
        models: whose fields to look at.
        alias: the database that was asked.
        message: of the error. Only columns are looked for that it names, in whatever language: to describe a
            table may mean to read it, and after another error, such as a lock's, that would fail as well.
    """
    fields: list[Any] = [field for model in models for field in model._meta.local_concrete_fields]
    named = [
        field for field in fields if re.search(rf"\b{re.escape(field.column)}\b", message, re.IGNORECASE)
    ]
    tables = {field.model._meta.db_table for field in named}
    there = {table: _columns(table, alias) for table in tables}
    for field in named:
        columns = there[field.model._meta.db_table]
        if columns and field.column.casefold() not in columns:
            yield field


def _columns(table: str, alias: str) -> set[str]:
    connection: Any = connections[alias]
    try:
        with connection.cursor() as cursor:
            described = connection.introspection.get_table_description(cursor, table)
    except DatabaseError:
        return set()
    return {column.name.casefold() for column in described}


# What this process has read, and so what was there in full.
_read: set[tuple[str, type[Model]]] = set()


def _what_helps(model: type[Model], alias: str, field: str | None = None) -> str:
    """The end of a message about a model whose table, or the column of one of whose fields, is missing."""
    if isinstance(model._meta.auto_created, type):  # for a many-to-many relation, which is that model's field
        model = model._meta.auto_created
    if any(known == alias and issubclass(each, model) for known, each in tuple(_read)):
        return (
            "This worker has read it before, so the database has been changed since then, as a newer release "
            "does: restart the worker with the new code."
        )
    label = model._meta.app_label
    if not model._meta.managed:
        return (
            f"{model.__name__} has `managed = False`, and no migration makes it: create it in the database."
        )
    written, applied = _written(label), _applied(label, alias)
    if applied and applied[-1] not in written:
        return (
            f"A newer release has migrated the database ({label}.{applied[-1]}), and this worker does not "
            "have its code: restart it with the new code."
        )
    migrate = "`python manage.py migrate" + ("`" if alias == DEFAULT_DB_ALIAS else f" --database {alias}`")
    if not _is_in_migrations(model, field):
        # Without a label Django passes over apps that have no migrations at all.
        return (
            f"Create it with `python manage.py makemigrations{'' if written else f' {label}'}` and {migrate}."
        )
    if set(written) <= set(applied):
        return "Its migrations are applied, so somebody has changed the database by hand: change it back."
    return f"Create it with {migrate}."


@cache
def _migrated() -> ProjectState | None:
    """All models as the migrations make them: they are read once, and nothing of them is run."""
    with suppress(Exception):  # what a migration module raises; `migrate` will say so
        return MigrationLoader(None, ignore_no_migrations=True).project_state()
    return None


def _is_in_migrations(model: type[Model], field: str | None) -> bool:
    state = _migrated()
    if state is None:
        return False
    made: Any = state.models.get((model._meta.app_label, model._meta.model_name or ""))
    return made is not None and (field is None or field in made.fields)


def _written(label: str) -> Sequence[str]:
    """The names of an app's migrations, as they are on disk now."""
    name, _ = MigrationLoader.migrations_module(label)
    try:
        path = import_module(name).__path__ if name else ()
    except (ImportError, AttributeError):
        return ()
    return [module.name for module in pkgutil.iter_modules(path) if module.name[0] not in "_~"]


def _applied(label: str, alias: str) -> Sequence[str]:
    """The names of an app's migrations that the database has, in the order in which they were applied."""
    recorder = MigrationRecorder(connections[alias])
    try:
        if not recorder.has_table():
            return ()
        return list(recorder.migration_qs.filter(app=label).order_by("id").values_list("name", flat=True))
    except DatabaseError:
        return ()
