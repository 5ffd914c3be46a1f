"""Whether a database answers, and what to do when it does not."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, Error, connections
from django.db.models import Model

from ..errors import DatabaseUnreachable, PrivateDatabase, TableMissing
from .engines import kind_of


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
    kind = settings["ENGINE"].rsplit(".", 1)[-1]
    host = settings["HOST"] and f" at {settings['HOST']}:{settings['PORT'] or 'its default port'}"
    return f"{kind} {str(settings['NAME'])!r}{host}"


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
    """Say ``manage.py migrate`` where a query inside fails because the model's table is not there.

    Raises:
        TableMissing: the table is not there.
    """
    try:
        yield
    except DatabaseError as error:
        if not _is_missing(model._meta.db_table, alias):
            raise
        raise TableMissing(
            f"The database {alias!r} has no table {model._meta.db_table!r} for {model._meta.label}. "
            "Create it with `python manage.py migrate`."
        ) from error


def _is_missing(table: str, alias: str) -> bool:
    connection: Any = connections[alias]
    try:
        with connection.cursor() as cursor:
            return table not in connection.introspection.table_names(cursor, include_views=True)
    except DatabaseError:
        return False  # the database is away altogether, which is another error
