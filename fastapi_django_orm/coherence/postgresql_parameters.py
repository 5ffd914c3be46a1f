"""How a listener or a publisher reaches the database that Django reads.

Its engine is asked whenever something connects, and nothing is taken from ``DATABASES``: passwords may be
tokens that expire (AWS IAM, Azure, Vault), made by the engine's ``get_connection_params()``.

psycopg is imported when it is needed, since what transports there are is decided without it, too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.db import connections

from ..database.engines import POSTGRESQL_PATIENCE
from ..errors import InvalidSettings, text_of
from .transport import TransportUnavailable

_SESSION = """
SELECT current_setting('role'),
    array_to_string(ARRAY(SELECT quote_ident(name) FROM unnest(current_schemas(false)) AS name), ', ')"""


@dataclass(frozen=True, slots=True)
class Way:
    """How to have a session that finds the tables which Django's own connections find.

    Attributes:
        parameters: libpq's, and among them a password.
        role: which Django's engine has set; None: the one that logs in.
        search_path: the schemas in which Django's connections look for tables.
    """

    parameters: Mapping[str, Any]
    role: str | None
    search_path: str


def read_dsn(dsn: str | None) -> dict[str, Any]:
    """The libpq parameters of a DSN.

    Raises:
        InvalidSettings: it cannot be read.
    """
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict

    try:
        return dict(conninfo_to_dict(dsn)) if dsn else {}
    except ProgrammingError:  # whose message may have the password
        raise InvalidSettings(
            "DJANGO_ORM_COHERENCE_DSN, or the postgresql:// in DJANGO_ORM_COHERENCE, cannot be read. Write "
            "it as for psql: host=db port=5432 dbname=site, or postgresql://user@db:5432/site."
        ) from None


def way_to(alias: str, direct: Mapping[str, Any]) -> Way:
    """The way to a database of Django's now. On a database thread: the engine may wait for a token.

    Args:
        alias: its key in ``DATABASES``.
        direct: libpq parameters that count instead of the engine's.

    Raises:
        TransportUnavailable: the engine does not say how to connect.
        DatabaseError: Django's own connection does not work.
    """
    connection: Any = connections[alias]
    with connection.cursor() as cursor:
        cursor.execute(_SESSION)
        role, search_path = cursor.fetchone()
    parameters = libpq_parameters(alias, direct)
    info = getattr(connection.connection, "info", None)  # psycopg's
    if "password" not in parameters and getattr(info, "password", None):
        parameters["password"] = _new_password(alias)
    # Somebody else who logs in need not be allowed to take the role.
    own_role = role != "none" and "user" not in direct
    return Way(parameters, role if own_role else None, search_path)


def _new_password(alias: str) -> str:
    """The password that an engine gives the driver only while it connects."""
    connection: Any = connections.create_connection(alias)
    try:
        connection.connect()
        return str(connection.connection.info.password)
    finally:
        connection.close()


def libpq_parameters(alias: str, direct: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """How the engine of a database connects now. On a thread that may wait.

    Args:
        alias: its key in ``DATABASES``.
        direct: libpq parameters that count instead of the engine's.

    Raises:
        TransportUnavailable: the engine does not say.
    """
    from psycopg import pq
    from psycopg.conninfo import conninfo_to_dict

    try:
        # An engine may keep what it was asked for, so it is not asked on a connection that is in use.
        given = dict(connections.create_connection(alias).get_connection_params())
        whole = conninfo_to_dict(given.pop("conninfo", None) or given.pop("dsn", None) or "")
    except Exception as error:  # whatever an engine, or a client of a vault that it uses, raises
        raise TransportUnavailable(
            f"postgresql:{alias}: the database's engine does not say how to connect: {text_of(error)}"
        ) from error
    # The rest is for Django's own driver and connections: cursor_factory, context, prepare_threshold.
    known = {option.keyword.decode() for option in pq.Conninfo.get_defaults()}
    given = {name: value for name, value in given.items() if name in known and value not in ("", None)}
    return {
        "application_name": "fastapi-django-orm",
        **POSTGRESQL_PATIENCE,
        **whole,
        **given,
        **(direct or {}),
    }
