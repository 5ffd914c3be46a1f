"""What helps where a table or a column is missing: by what Django's migrations say, without running any.

The database's error is the same in a project that nobody has migrated yet, in one whose models have no
migration, and in an old worker while a new release is rolled out; and what helps is another thing each time.
"""

import pkgutil
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from typing import Any

from django.db import DEFAULT_DB_ALIAS, DatabaseError, connections
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.recorder import MigrationRecorder
from django.db.migrations.state import ProjectState
from django.db.models import Model

_read: set[tuple[str, type[Model]]] = set()


def note_read(model: type[Model], alias: str) -> None:
    """Remember that this process has read the model, and so that all of it was there."""
    _read.add((alias, model))


def what_helps(model: type[Model], alias: str, field: str | None = None) -> str:
    """The end of a message about a model whose table, or one of whose columns, is missing.

    Args:
        model: the model.
        alias: the database that was asked.
        field: the name of the field whose column is missing; None: the table is.
    """
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
