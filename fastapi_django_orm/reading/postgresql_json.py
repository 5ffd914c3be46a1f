"""What PostgreSQL can make the JSON of, and how its rows come as they are made."""

from collections.abc import Callable, Generator, Sequence
from datetime import UTC, date, datetime, time
from decimal import Decimal
from functools import cache, partial
from typing import Any
from uuid import UUID

# For each type of PostgreSQL's (by its number in pg_type.dat) what psycopg makes of it, and the JSON of a
# value that is not null. The types and not Django's fields decide, since they are what psycopg goes by.
_INTEGER = (int, "{0}::text")
_TEXT = (str, "to_json({0})::text")
_TEXT_OID = 25
_MOMENT_OID = 1184
_FORMS: dict[int, tuple[type, str]] = {
    20: _INTEGER,  # bigint
    21: _INTEGER,  # smallint
    23: _INTEGER,  # integer
    16: (bool, "{0}::text"),
    _TEXT_OID: _TEXT,
    1043: _TEXT,  # varchar
    2950: (UUID, "to_json({0})::text"),
    # From its exponents on PostgreSQL writes other digits than Python does.
    701: (
        float,
        "CASE WHEN abs({0}) < 1e15 AND strpos({0}::text, 'e') = 0"
        " THEN {0}::text || CASE WHEN strpos({0}::text, '.') = 0 THEN '.0' ELSE '' END END",
    ),
    # Python writes small ones with an exponent.
    1700: (
        Decimal,
        "CASE WHEN abs({0}) >= 0.000001 OR {0} = 0 AND scale({0}) <= 6 THEN '\"' || {0}::text || '\"' END",
    ),
    1082: (date, "CASE WHEN {0} BETWEEN '0001-01-01' AND '9999-12-31' THEN to_json({0})::text END"),
    1083: (
        time,
        """CASE WHEN {0} < '24:00' THEN"""
        """ '"' || replace(to_char({0}, 'HH24:MI:SS.US') || '"', '.000000"', '"') END""",
    ),
    # to_json() takes half as long as to_char(), but cuts zeros off the end of a fraction.
    _MOMENT_OID: (
        datetime,
        """CASE WHEN {0} >= '0001-01-01 00:00+00' AND {0} < '10000-01-01 00:00+00' THEN"""
        """ CASE WHEN mod(date_part('microseconds', {0})::int, 10) <> 0"""
        """ OR mod(date_part('microseconds', {0})::int, 1000000) = 0"""
        """ THEN left(to_json({0} AT TIME ZONE 'UTC')::text, -1) || 'Z"'"""
        """ ELSE '"' || to_char({0} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') || '"' END END""",
    ),
}


_CURSORS = ("cursor", "_cursor", "create_cursor", "chunked_cursor", "ensure_connection")


def forms(connection: Any, columns: Sequence[Any], sql: str, params: Any) -> list[tuple[type, str]] | None:
    """For each column its type and the SQL of its JSON, or None if one of them has none.

    Args:
        connection: the database.
        columns: the query's.
        sql: the query.
        params: its parameters.
    """
    converted = any(
        connection.ops.get_db_converters(column) + column.get_db_converters(connection) for column in columns
    )
    if converted or not _streams(connection):  # a field that makes something else of what is stored
        return None
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT * FROM ({sql}) AS described LIMIT 0", params)
        oids = [column.type_code for column in cursor.description]
        # What Django reads with, and what stream() does.
        adapters = cursor.adapters, connection.connection.adapters
    if not _FORMS.keys() >= set(oids):
        return None
    own = any(not _is_stock(each, oid) for each in adapters for oid in {*oids, _TEXT_OID})
    return None if own else [_FORMS[oid] for oid in oids]


def _is_stock(adapters: Any, oid: int) -> bool:
    """Whether a connection makes of this type's values what psycopg and Django make of them by themselves."""
    from django.db.backends.postgresql import psycopg_any
    from psycopg.pq import Format

    loader, stock = adapters.get_loader(oid, Format.TEXT), _stock_adapters().get_loader(oid, Format.TEXT)
    if oid != _MOMENT_OID:
        return loader is stock
    # Django makes a class of it for each zone, a newer one around that which it has found with psycopg.
    django, found = psycopg_any.BaseTzLoader, getattr(psycopg_any, "orig_tz_loader_cls", stock)
    plain = issubclass(loader, django) and loader.load is django.load
    return plain and loader.timezone is UTC and found is stock


@cache
def _stock_adapters() -> Any:
    """As psycopg has them before a project registers some of its own."""
    from psycopg.adapt import AdaptersMap
    from psycopg.postgres import register_default_adapters, types

    stock = AdaptersMap(types=types)
    register_default_adapters(stock)
    return stock


def _streams(connection: Any) -> bool:
    """Whether rows come as they are made, in UTC: psycopg 3 with libpq 17, and Django's own engine."""
    if connection.timezone is not UTC:
        return False
    from django.db.backends.postgresql.base import DatabaseWrapper

    # An engine may have something to do before each query, such as to choose a tenant's schema.
    if any(getattr(type(connection), name) is not getattr(DatabaseWrapper, name) for name in _CURSORS):
        return False
    try:
        from psycopg import capabilities
    except ImportError:
        return False
    return bool(capabilities.has_stream_chunked())


def stream(connection: Any, sql: str, params: Any, size: int) -> Generator[Any, None, None]:
    """The rows of a query, as the server makes them.

    Args:
        connection: the database.
        sql: the query.
        params: its parameters.
        size: how many rows come at a time.

    Raises:
        DatabaseError: as Django raises it.
    """
    # A named cursor, which Django's iterator() has, makes the server wait while we work, and the other
    # way round.
    from psycopg import ClientCursor, Cursor

    connection.ensure_connection()
    with connection.wrap_database_errors, Cursor(connection.connection) as cursor:
        # Django leaves parameters to the client, too: types that a server would guess wrong are written out.
        query = ClientCursor(connection.connection).mogrify(sql, params)
        yield from _wrapped(connection, partial(cursor.stream, size=size), query)


def _wrapped(connection: Any, stream: Callable[[str], Any], sql: str) -> Any:
    """Run the query through what ``connection.execute_wrapper()`` has put around queries."""

    def execute(sql: str, params: Any, many: bool, context: Any) -> Any:
        return stream(sql)

    for wrapper in reversed(connection.execute_wrappers):
        execute = partial(wrapper, execute)
    return execute(sql, None, False, {"connection": connection, "cursor": None})
