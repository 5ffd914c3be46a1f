"""Where a listener or a publisher finds the database that Django's settings name.

psycopg is imported when it is needed, since what transports there are is decided without it, too.
"""

from typing import Any

from django.db import connections

from ..database.network import POSTGRESQL_PATIENCE
from ..errors import InvalidSettings


def libpq_parameters(alias: str, dsn: str | None = None) -> dict[str, Any]:
    """How to connect to a database of Django's with libpq.

    Args:
        alias: its key in ``DATABASES``.
        dsn: what overrides them.

    Raises:
        InvalidSettings: the DSN cannot be read.
    """
    from psycopg import ProgrammingError, pq
    from psycopg.conninfo import conninfo_to_dict

    settings = connections.settings[alias]
    own = {
        "dbname": settings["NAME"],
        "user": settings["USER"],
        "password": settings["PASSWORD"],
        "host": settings["HOST"],
        "port": settings["PORT"],
    }
    known = {option.keyword.decode() for option in pq.Conninfo.get_defaults()}
    options = {name: value for name, value in settings["OPTIONS"].items() if name in known}
    given = {name: value for name, value in own.items() if value not in ("", None)}
    try:
        direct = conninfo_to_dict(dsn) if dsn else {}
    except ProgrammingError:  # whose message may have the password
        raise InvalidSettings(
            "DJANGO_ORM_COHERENCE_DSN, or the postgresql:// in DJANGO_ORM_COHERENCE, cannot be read. Write "
            "it as for psql: host=db port=5432 dbname=site, or postgresql://user@db:5432/site."
        ) from None
    return {
        "application_name": "fastapi-django-orm",
        **POSTGRESQL_PATIENCE,
        **options,
        **given,
        **direct,
    }
