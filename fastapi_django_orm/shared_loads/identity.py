"""Who may take whose rows: workers that would send the same SQL to the same database.

Rows are shared only where the database makes their JSON. No code has a part in them then but Django's, which
makes the SQL, and this package's: what a field, a helper or a setting of the project changes is in the SQL.
Of all other rows the next release may make something else, so each worker reads those for itself.
"""

import sys
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import django
from django.conf import settings
from django.db import connections
from django.db.backends.signals import connection_created

from ..reading.keys import AnyQuerySet
from ..reading.postgresql_json import DatabaseJSON
from .format import FORMAT

_NOT_THE_DATABASE = ("PASSWORD", "TEST")  # the first may be changed while workers run


def secret() -> bytes:
    """What the workers of one deployment know and others do not, made of Django's ``SECRET_KEY``."""
    return blake2b(str(settings.SECRET_KEY).encode(), digest_size=32, person=b"shared snapshot").digest()


def identity_of(in_sql: DatabaseJSON, queryset: AnyQuerySet) -> str | None:
    """What the rows of a query are called among all that share a server; None if code has a part in them.

    Args:
        in_sql: how the database makes their JSON.
        queryset: the query.

    Raises:
        EmptyResultSet: it can have no rows.
    """
    connection = connections[queryset.db]
    if not _is_plain(connection) or not _is_of_django(queryset.model._meta.pk):
        return None
    sql, params = in_sql.compiled(queryset)
    where = sorted(
        (name, repr(value))
        for name, value in connections.settings[queryset.db].items()
        if name not in _NOT_THE_DATABASE
    )
    versions = [FORMAT, _version(), sys.byteorder, sys.version_info[:2], django.VERSION]
    types = [kind.__name__ for kind in in_sql.kinds]
    what = repr([versions, where, types, sql, [(type(one), one) for one in params]])
    return blake2b(what.encode(errors="backslashreplace"), digest_size=16, key=secret()).hexdigest()


def _is_plain(connection: Any) -> bool:
    """Whether no code but Django's prepares a connection; what is around its queries was asked before."""
    signalled = connection_created._live_receivers(type(connection))
    code = [type(connection), *(receiver for kind in signalled for receiver in kind)]
    return all(getattr(each, "__module__", "").startswith("django.") for each in code)


def _is_of_django(key: Any) -> bool:
    """Whether a key's values are made by Django's own field: they come beside the JSON."""
    while key.is_relation:
        key = key.target_field
    return type(key).__module__.startswith("django.db.models.")


def _version() -> str:
    try:
        return version("fastapi-django-orm")
    except PackageNotFoundError:
        return ""
