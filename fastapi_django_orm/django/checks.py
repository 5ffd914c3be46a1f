"""System checks: what would leave FastAPI's workers with old data.

They look at the FastAPI application's repositories, so they import it. Therefore none runs with every
command: W001 with ``manage.py check --database default`` and ``migrate``, the others with
``manage.py check --deploy``.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from django.core import checks
from django.db import DatabaseError, models, router
from django.db.models import Model

from ..cached import CachedRepository, declared_cached
from ..coherence import choice
from ..coherence.concerns import Concern, concern_of
from ..coherence.transport import Publisher, TransportUnavailable
from ..database.engines import kind_of, name_of
from ..errors import DjangoORMError
from ..reading.resolve import model_named
from ..settings import ORMSettings, read_settings
from . import notify_lock, selection, triggers
from .tables import AnnouncedTable

Messages = Iterator[checks.CheckMessage]
Read = list[tuple[type[CachedRepository[Any]], Concern]]  # repositories, and what they read

# Since Django 6.1. The database follows these by itself, and Django sends no signal.
_BY_DATABASE = [
    getattr(models, name) for name in ("DB_CASCADE", "DB_SET_NULL", "DB_SET_DEFAULT") if hasattr(models, name)
]


def register() -> None:
    """Register the checks with Django."""
    checks.register(check_triggers, checks.Tags.database)
    checks.register(check_settings, deploy=True)
    checks.register(check_repositories, deploy=True)


def check_triggers(databases: Iterable[str] | None = None, **kwargs: Any) -> list[checks.CheckMessage]:
    """W001: a table that a repository reads has no triggers, or old ones. W005: commits wait for NOTIFY."""
    settings = _settings()
    ways = {alias: settings and choice.transport_of(settings, alias) for alias in databases or ()}
    # SQLite needs no triggers.
    ways = {alias: way for alias, way in ways.items() if way in ("postgresql", "table")}
    if not ways:
        return []
    try:
        models = selection.read_by_repositories(None).models  # through views as well: the database is asked
    except Exception:  # an application that cannot be imported shows its own errors
        return []
    found = selection.by_database(models, None)
    return [
        message
        for alias, way in ways.items()
        for message in (*_without_triggers(alias, found.get(alias, []), way == "table"), *_waiting(alias))
    ]


def check_settings(**kwargs: Any) -> list[checks.CheckMessage]:
    """E001: the settings cannot be read or used, so this process sends no hints."""
    try:
        choice.check_databases(settings := read_settings())
        choice.publishers(settings)
    except DjangoORMError as error:
        return [checks.Error(str(error), id="fastapi_django_orm.E001")]
    return []


def check_repositories(**kwargs: Any) -> list[checks.CheckMessage]:
    """W002: a transport does not answer. W003: a repository is without any. W004, I001: what it misses."""
    settings = _settings()
    if settings is None:
        return []
    try:
        selection.import_application()
        read: Read = [(cls, concern_of(cls())) for cls in declared_cached()]
    except Exception:  # an application that cannot be imported shows its own errors
        read = []
    found = [*_many_to_many(read), *_relations(settings, read)]
    if "off" not in settings.coherence:
        publishers = choice.publishers(settings)
        found += [*_unreachable(publishers), *([] if publishers else _without_transport(settings, read))]
    return found


def _relations(settings: ORMSettings, read: Read) -> Messages:
    """W004: the database changes rows by itself, and only signals would announce it."""
    for model in map(model_named, sorted({each for _, concern in read for each in concern.tables.values()})):
        alias = router.db_for_write(model)
        if choice.announces(settings, alias) and kind_of(alias) != "mysql":  # where cascades fire no triggers
            continue
        for field in model._meta.concrete_fields:
            if getattr(field.remote_field, "on_delete", None) in _BY_DATABASE:
                yield checks.Warning(
                    f"{model._meta.label}.{field.name} has the database change rows by itself, of which "
                    "Django sends no signal: FastAPI's workers do not see it.",
                    hint="Use Django's own CASCADE or SET_NULL, or give the repository a `max_age`.",
                    obj=model,
                    id="fastapi_django_orm.W004",
                )


def _many_to_many(read: Read) -> Messages:
    """I001: a repository with a schema does not follow a many-to-many relation of its model."""
    for cls, concern in read:
        if cls.schema is None or concern.related is None:
            continue
        model = cls().model_class
        for field in model._meta.many_to_many:
            if _through(field)._meta.db_table not in concern.tables:
                yield checks.Info(
                    f"{_name(cls)} is not refreshed when {field.name} of a {model._meta.label} changes: "
                    "that is stored in another table.",
                    hint=f"If its rows show it, write depends_on = ({_through(field)._meta.label!r},).",
                    obj=cls,
                    id="fastapi_django_orm.I001",
                )


def _through(field: Any) -> type[Model]:
    return field.remote_field.through  # type: ignore[no-any-return]


def _settings() -> ORMSettings | None:
    try:
        return read_settings()
    except DjangoORMError:
        return None  # which E001 reports


def _name(cls: type[Any]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _waiting(alias: str) -> Messages:
    try:
        advice = notify_lock.advice(alias)
    except DatabaseError:
        return
    if advice:
        yield checks.Warning(f"Database {alias}: {advice}", id="fastapi_django_orm.W005")


def _without_triggers(alias: str, tables: Iterable[AnnouncedTable], into_table: bool) -> Messages:
    option = "--table " if into_table else ""
    for table in tables:
        try:
            state = triggers.state(alias, table, into_table)
        except (DjangoORMError, DatabaseError):
            continue  # no table yet, or none that can have triggers
        if state is not triggers.State.INSTALLED:
            yield checks.Warning(
                f"The triggers of {table.model._meta.db_table} are {state}: not all writes to {table.label} "
                "are announced to FastAPI's workers.",
                hint=f"Run `manage.py coherence install {option}{table.label} --database {alias}`.",
                obj=table.model,
                id="fastapi_django_orm.W001",
            )


def _unreachable(publishers: Iterable[Publisher]) -> Messages:
    for publisher in publishers:
        try:
            publisher.check()
        except TransportUnavailable as error:
            yield checks.Warning(
                f"FastAPI's workers cannot be told of writes: {error}",
                hint="Start it, or correct DJANGO_ORM_COHERENCE.",
                id="fastapi_django_orm.W002",
            )
        finally:
            publisher.close()


def _is_announced(settings: ORMSettings, alias: str) -> bool:
    if not choice.announces(settings, alias):
        return False
    try:
        return kind_of(alias) != "mysql" or triggers.has_hints(alias)
    except DatabaseError:
        return True  # which other checks report


def _without_transport(settings: ORMSettings, read: Read) -> Messages:
    for cls, concern in read:
        if cls.max_age is None and not _is_announced(settings, concern.alias):
            yield checks.Warning(
                f"{_name(cls)} does not hear of writes by other processes: nothing carries them from the "
                f"database {concern.alias!r} ({name_of(concern.alias)}).",
                hint="Run `manage.py coherence install --table`; or let DJANGO_ORM_COHERENCE name a Redis or "
                "Valkey, redis://host, here and for FastAPI; or give the repository a `max_age`.",
                obj=cls,
                id="fastapi_django_orm.W003",
            )
