"""What PostgreSQL can make the JSON of, and how its rows come as they are made."""

from collections.abc import Generator, Iterable, Sequence
from datetime import UTC, date, datetime, time
from decimal import Decimal
from functools import cache
from typing import Any
from uuid import UUID
from weakref import WeakSet

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

# What a connection says of itself, by which psycopg reads, and the server reads our literals.
_SESSION = {b"TimeZone": b"UTC", b"client_encoding": b"UTF8", b"standard_conforming_strings": b"on"}


class PostgreSQLForms:
    """How PostgreSQL makes the JSON of some columns.

    Attributes:
        kinds: for each column what psycopg makes of its values.
        sql: for each column the JSON of a value that is not null; NULL if this value has none.
    """

    def __init__(self, oids: Sequence[int], number: int) -> None:
        """Make the JSON of these types.

        Args:
            oids: the columns' types, and those of the keys.
            number: how many there are without the keys.
        """
        self._oids = tuple(oids)
        self.kinds = [_FORMS[oid][0] for oid in oids[:number]]
        self.sql = [_FORMS[oid][1] for oid in oids[:number]]
        self._stock: WeakSet[Any] = WeakSet()

    def guard(self, columns: Sequence[str]) -> str:
        """The condition that the columns still have these types.

        A migration may change one while we run. In the same statement as the values it cannot come between,
        and it costs a hundredth of a microsecond for each.

        Args:
            columns: their SQL, and that of the keys.
        """
        return " AND ".join(
            f"pg_typeof({column}) = '{oid}'" for column, oid in zip(columns, self._oids, strict=True)
        )

    def why_not(self, connection: Any) -> str | None:
        """Why a connection, as it is now, does not give what Django would read; None if it does."""
        if connection.timezone is not UTC:
            return "times are not in UTC"
        if not _can_stream():
            return "the driver is not psycopg 3 with libpq 17"
        if connection.connection is None:  # on a thread, for the event loop is lent only open ones
            connection.ensure_connection()
        raw = connection.connection
        status = raw.pgconn.parameter_status
        for name, value in _SESSION.items():
            if status(name) != value:
                return f"a connection has another {name.decode()} than {value.decode()}"
        if raw not in self._stock:
            if not _reads_as_psycopg(raw, self._oids):
                return "a connection reads a type in another way than psycopg and Django do"
            self._stock.add(raw)
        return None


def forms(
    connection: Any, columns: Sequence[Any], number: int, sql: str, params: Any
) -> "PostgreSQLForms | str":
    """How the JSON of a query's columns is made, or why it is not.

    Args:
        connection: the database.
        columns: the query's.
        number: how many of them are in the JSON; the others are the key.
        sql: the query.
        params: its parameters.
    """
    for column in columns:
        if connection.ops.get_db_converters(column) + column.get_db_converters(connection):
            return f"{column.target.name} is converted in Python"
    with connection.cursor() as cursor:
        # What the expression has: a domain, which the description of a result would hide.
        names = [f"c{position}" for position in range(len(columns))]
        types = ", ".join(f"pg_typeof({name})::oid" for name in names)
        one = f"FROM (VALUES (1)) AS one LEFT JOIN ({sql}) AS described ({', '.join(names)}) ON false"
        cursor.execute(f"SELECT {types} {one}", params)
        oids = cursor.fetchone()
    for column, oid in zip(columns, oids, strict=True):
        if oid not in _FORMS:
            return f"{column.target.name} has a type that Python reads"
    return PostgreSQLForms(oids, number)


@cache
def _can_stream() -> bool:
    try:
        from psycopg import capabilities
    except ImportError:
        return False
    return bool(capabilities.has_stream_chunked())


def _reads_as_psycopg(raw: Any, oids: Iterable[int]) -> bool:
    """Whether a connection of the driver gives for these types what psycopg and Django make of them."""
    from psycopg import Connection
    from psycopg.rows import tuple_row

    # A tracer's, for one, may be something else that behaves like one.
    own = type(raw) is Connection and raw.row_factory is tuple_row
    own = own and raw.cursor_factory.__module__.startswith("django.")
    return own and all(_is_stock(raw.adapters, oid) for oid in {*oids, _TEXT_OID})


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

    with connection.wrap_database_errors, Cursor(connection.connection) as cursor:
        # Django leaves parameters to the client, too: types that a server would guess wrong are written out.
        yield from cursor.stream(ClientCursor(connection.connection).mogrify(sql, params), size=size)
