"""Rows whose JSON PostgreSQL makes, so that a load of a million rows does little on our processor.

For columns of plain types only, and byte for byte what pydantic would have made of Django's own values.
Where a value has no such form in SQL (NaN, a date beyond Python's calendar) the row is NULL, and the load
is done by way of Python instead. Other databases' rows always are.
"""

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from datetime import UTC, date, datetime, time
from decimal import Decimal
from functools import cache
from itertools import islice
from typing import Any
from uuid import UUID
from weakref import WeakSet

from django.core.exceptions import EmptyResultSet
from django.db import DatabaseError, connections
from django.db.models import CompositePrimaryKey, F, Field, Func, TextField
from django.db.models.expressions import Col
from django.db.models.query import ModelIterable
from pydantic_core import to_json

from .codec import RowCodec
from .keys import AnyQuerySet, with_key
from .own_ways import not_djangos

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

# What a connection reports, by which psycopg reads, and the server reads our literals.
_SESSION = {b"TimeZone": b"UTC", b"client_encoding": b"UTF8", b"standard_conforming_strings": b"on"}

# Each column makes an expression deeper, and a server's stack has an end. One chain is the quickest, since it
# grows in its place. Source: https://www.postgresql.org/docs/current/runtime-config-resource.html#GUC-MAX-STACK-DEPTH
_MOST_IN_A_CHAIN = 200
_MEASURED = 1000  # rows: of more, those before these count less and less


class NotExpressible(Exception):
    """A row has a value whose JSON form the database does not make."""


class Outdated(NotExpressible):
    """The columns are not what they were when it was found out how the database makes their JSON."""


class RowJSON(Func):
    """A row's JSON as one expression of its columns; an empty text where their types are no longer these."""

    output_field = TextField()

    def __init__(self, names: Sequence[str], keys: Sequence[str], oids: Sequence[int]) -> None:
        """Make the expression of these columns, and of those of the row's key, which have these types."""
        super().__init__(*map(F, (*names, *keys)))
        self._names = names
        self._oids = oids

    def as_sql(self, compiler: Any, connection: Any, **context: Any) -> tuple[str, tuple[Any, ...]]:  # type: ignore[override]
        """Join ``{"name":`` and the values with ``||``, which is NULL if one of them is."""
        compiled = [compiler.compile(column) for column in self.source_expressions]
        assert not any(params for _, params in compiled), "a column has no parameters"
        columns = [sql for sql, _ in compiled]
        parts, before = [], "{"
        for name, oid, sql in zip(self._names, self._oids, columns, strict=False):  # then come the keys
            key = (before + to_json(name).decode() + ":").replace("'", "''").replace("%", "%%")
            form = _FORMS[oid][1].format(sql)
            parts.append(f"'{key}' || CASE WHEN {sql} IS NULL THEN 'null' ELSE {form} END")
            before = ","
        # A migration may change a type while we run. In the same statement as the values it cannot come
        # between, and the condition costs a hundredth of a microsecond for each column.
        types = [f"pg_typeof({sql}) = '{oid}'" for sql, oid in zip(columns, self._oids, strict=True)]
        row = _joined([*parts, "'}'"])
        return f"CASE WHEN {' AND '.join(types)} THEN {row} ELSE '' END", ()


def _joined(parts: Sequence[str]) -> str:
    if len(parts) <= _MOST_IN_A_CHAIN:
        return " || ".join(parts)
    starts = range(0, len(parts), _MOST_IN_A_CHAIN)
    return _joined([f"({_joined(parts[start : start + _MOST_IN_A_CHAIN])})" for start in starts])


class DatabaseJSON:
    """How to read one repository's columns as JSON that the database makes.

    Attributes:
        kinds: what Django makes of each column's values.
        codec: reads the JSON.
        row_size: the length of a row's JSON in bytes, on average over the rows that were read last.
    """

    def __init__(self, names: Sequence[str], keys: Sequence[str], oids: Sequence[int]) -> None:
        self._expression = RowJSON(names, keys, oids)
        self._oids = frozenset({*oids, _TEXT_OID})
        self.kinds = [_FORMS[oid][0] for oid in oids[: len(names)]]
        self.codec = RowCodec(names, self.kinds)
        self.row_size = 0.0
        self._measured = 0  # rows that it is the average of
        self._stock: WeakSet[Any] = WeakSet()  # connections that were found to read as psycopg and Django do

    @classmethod
    def of(cls, queryset: AnyQuerySet, names: Sequence[str]) -> "DatabaseJSON | str":
        """Return how to read these columns of the query, or why that cannot be done in SQL.

        Raises:
            EmptyResultSet: the query can have no rows, so its columns cannot be described.
            DatabaseError: as Django raises it.
        """
        connection: Any = connections[queryset.db]
        if isinstance(queryset.model._meta.pk, CompositePrimaryKey):
            return "the key has several columns"
        keyed, _ = with_key(queryset, names)
        compiler = keyed.query.get_compiler(using=queryset.db)
        sql, params = compiler.as_sql()
        columns: list[Any] = [expression for expression, _, _ in compiler.select or ()]
        for column in columns:  # a transform, or a field that is selected in a way of its own
            if not _is_plain_column(column):
                return f"{column} is not a plain column"
            if connection.ops.get_db_converters(column) + column.get_db_converters(connection):
                return f"{column.target.name} is converted in Python"
        with connection.cursor() as cursor:
            # The types that expressions have: a domain, which the description of a result would hide.
            described = [f"c{position}" for position in range(len(columns))]
            types = ", ".join(f"pg_typeof({name})::oid" for name in described)
            one = f"FROM (VALUES (1)) AS one LEFT JOIN ({sql}) AS described ({', '.join(described)}) ON false"
            cursor.execute(f"SELECT {types} {one}", params)
            oids = cursor.fetchone()
        for column, oid in zip(columns, oids, strict=True):
            if oid not in _FORMS:
                return f"{column.target.name} has a type that Python reads"
        return cls(names, ["pk"] * (len(columns) - len(names)), oids)

    def why_not(self, connection: Any) -> str | None:
        """Return why this connection, as it is now, does not give what Django would read; None if it does."""
        if connection.vendor != "postgresql":  # the settings have changed under an alias
            return "another database was described"
        if connection.timezone is not UTC:
            return "times are not in UTC"
        if not _can_stream():
            return "the driver is not psycopg 3 with libpq 17"
        if connection.connection is None:  # on a thread, for the event loop acquires only open ones
            connection.ensure_connection()
        raw = connection.connection
        for name, value in _SESSION.items():
            if raw.pgconn.parameter_status(name) != value:
                return f"a connection has another {name.decode()} than {value.decode()}"
        if raw not in self._stock:
            if not _reads_as_psycopg(raw, self._oids):
                return "a connection reads a type in another way than psycopg and Django do"
            self._stock.add(raw)
        return None

    def compiled(self, queryset: AnyQuerySet) -> tuple[str, Sequence[Any]]:
        """Return the SQL that gives each row's JSON and its key, and its parameters.

        Raises:
            EmptyResultSet: no row can be like this.
        """
        query = queryset.values_list(self._expression, "pk").query
        sql, params = query.get_compiler(using=queryset.db).as_sql()
        return sql, params

    def read(self, queryset: AnyQuerySet, size: int) -> Iterator[tuple[list[Any], list[bytes]]]:
        """Yield the rows' keys and their JSON, in lists of up to this size.

        Raises:
            Outdated: a column is not what it was.
            NotExpressible: one of them has no JSON form in SQL.
            DatabaseError: as Django raises it.
        """
        # Closed here and not by the collector: an open stream keeps the connection from any other query.
        with closing(self._rows(queryset, size)) as rows:
            while chunk := list(islice(rows, size)):
                yield self.taken(chunk)

    def _rows(self, queryset: AnyQuerySet, size: int) -> Generator[Any, None, None]:
        # A named cursor, which Django's iterator() has, makes the server wait while we work, and the other
        # way round; a stream does not.
        from psycopg import ClientCursor, Cursor

        try:
            sql, params = self.compiled(queryset)
        except EmptyResultSet:  # no row can be like this, so Django would not ask
            return
        connection: Any = connections[queryset.db]
        raw = connection.connection
        try:
            with connection.wrap_database_errors, Cursor(raw) as cursor:
                # Django leaves parameters to the client, too: types that a server would guess wrong are
                # written out.
                yield from cursor.stream(ClientCursor(raw).mogrify(sql, params), size=size)
        except DatabaseError as error:
            # A form may not be written for what a column is now. If that is not the reason, the error comes
            # again in Python.
            if _is_of_the_statement(error):
                raise Outdated from error
            raise

    def taken(self, rows: Sequence[tuple[str | None, Any]]) -> tuple[list[Any], list[bytes]]:
        """Return the keys and the JSON of rows, at least one, that were read by such a query.

        Raises:
            Outdated: a column is not what it was.
            NotExpressible: one of them has no JSON form in SQL.
        """
        texts, keys = zip(*rows, strict=True)
        if not all(texts):
            raise Outdated if "" in texts else NotExpressible
        json = [text.encode() for text in texts]
        # Threads may do this at the same time; an average that misses a few rows is as good.
        number = len(json)
        self._measured = measured = max(number, min(_MEASURED, self._measured + number))
        self.row_size += (sum(map(len, json)) / number - self.row_size) * number / measured
        return list(keys), json


def not_in_sql(queryset: AnyQuerySet, connection: Any) -> str | None:
    """Return why a query is not one of columns alone, read in Django's own way; None if it is."""
    query = queryset.query
    if reason := not_djangos(queryset, connection):
        return reason
    if connection.vendor != "postgresql":
        return f"{connection.display_name} does not make JSON as FastAPI does"
    if queryset._iterable_class is not ModelIterable:
        return "the query gives no instances"
    for what in ("annotations", "extra", "distinct", "combinator"):
        if getattr(query, what):
            return f"the query has {what}"
    return "the query has no rows" if query.is_empty() else None


def _is_of_the_statement(error: DatabaseError) -> bool:
    """Whether PostgreSQL refuses what was written: a literal (22), a name or a type (42), a plan (0A)."""
    state: str | None = getattr(error.__cause__, "sqlstate", None)
    return state is not None and state.startswith(("22", "42", "0A"))


def _is_plain_column(column: Any) -> bool:
    """Whether the query selects it by nothing but its name."""
    if type(column) is not Col:
        return False
    select_format = column.output_field.select_format
    return getattr(select_format, "__func__", None) is Field.select_format


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
    return own and all(_is_stock(raw.adapters, oid) for oid in oids)


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
