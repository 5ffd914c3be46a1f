"""Rows whose JSON PostgreSQL makes, so that a load of a million rows does little on our processor.

For columns of plain types only, and byte for byte what pydantic would have made of Django's own values.
Where a value has no such form in SQL (NaN, a date beyond Python's calendar) the row is NULL, and the load
is done by way of Python instead.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from datetime import UTC, date, datetime, time
from decimal import Decimal
from functools import partial
from itertools import islice
from typing import Any
from uuid import UUID

from django.core.exceptions import EmptyResultSet
from django.db import connections
from django.db.models import F, Func, QuerySet, TextField
from django.db.models.expressions import Col
from django.db.models.query import ModelIterable
from pydantic_core import to_json

AnyQuerySet = QuerySet[Any, Any]

# For each type of PostgreSQL's (by its number in pg_type.dat) what psycopg makes of it, and the JSON of a
# value that is not null. The types and not Django's fields decide, since they are what psycopg goes by.
_INTEGER = (int, "{0}::text")
_TEXT = (str, "to_json({0})::text")
_FORMS: dict[int, tuple[type, str]] = {
    20: _INTEGER,  # bigint
    21: _INTEGER,  # smallint
    23: _INTEGER,  # integer
    16: (bool, "{0}::text"),
    25: _TEXT,
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
    1184: (
        datetime,
        """CASE WHEN {0} >= '0001-01-01 00:00+00' AND {0} < '10000-01-01 00:00+00' THEN"""
        """ CASE WHEN mod(date_part('microseconds', {0})::int, 10) <> 0"""
        """ OR mod(date_part('microseconds', {0})::int, 1000000) = 0"""
        """ THEN left(to_json({0} AT TIME ZONE 'UTC')::text, -1) || 'Z"'"""
        """ ELSE '"' || to_char({0} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') || '"' END END""",
    ),
}


_CURSORS = ("cursor", "_cursor", "create_cursor", "chunked_cursor", "ensure_connection")


class RowJSON(Func):
    """A row's JSON as one expression of its columns."""

    output_field = TextField()

    def __init__(self, names: Sequence[str], forms: Sequence[str]) -> None:
        """Make it of these columns.

        Args:
            names: the columns'.
            forms: for each the SQL of its JSON.
        """
        super().__init__(*map(F, names))
        self._names = names
        self._forms = forms

    def as_sql(self, compiler: Any, connection: Any, **context: Any) -> tuple[str, tuple[Any, ...]]:  # type: ignore[override]
        """Join ``{"name":`` and the values with ``||``, which is NULL if one of them is."""
        parts, before = [], "{"
        for name, form, column in zip(self._names, self._forms, self.source_expressions, strict=True):
            sql, params = compiler.compile(column)
            assert not params, "a column has no parameters"
            key = (before + to_json(name).decode() + ":").replace("'", "''").replace("%", "%%")
            value = form.format(sql)
            parts.append(f"'{key}' || CASE WHEN {sql} IS NULL THEN 'null' ELSE {value} END")
            before = ","
        return " || ".join(parts) + " || '}'", ()


class NotExpressible(Exception):
    """A row has a value whose JSON form PostgreSQL does not make."""


class DatabaseJSON:
    """How to read one repository's columns as JSON that PostgreSQL makes."""

    def __init__(self, names: Sequence[str], oids: Sequence[int]) -> None:
        """Read these columns.

        Args:
            names: the columns'.
            oids: their types.
        """
        self._expression = RowJSON(names, [_FORMS[oid][1] for oid in oids])
        self.types = [_FORMS[oid][0] for oid in oids]

    @classmethod
    def of(cls, queryset: AnyQuerySet, names: Sequence[str]) -> "DatabaseJSON | None":
        """How to read these columns of the query, or None if that cannot be done in SQL.

        Raises:
            EmptyResultSet: the query can have no rows, and nothing tells what others would be.
        """
        connection = connections[queryset.db]
        if not _is_plain(queryset) or not _streams(connection):
            return None
        compiler = queryset.values_list(*names, "pk").query.get_compiler(using=queryset.db)
        sql, params = compiler.as_sql()
        columns = [expression for expression, _, _ in compiler.select or ()]
        if not all(isinstance(column, Col) for column in columns) or compiler.get_converters(columns):
            return None  # a transform; a field that makes something else of what is stored
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT * FROM ({sql}) AS described LIMIT 0", params)
            oids = [column.type_code for column in cursor.description]
        if not _FORMS.keys() >= set(oids):
            return None  # a type without a form
        return cls(names, oids[:-1])

    def fits(self, queryset: AnyQuerySet) -> bool:
        """Whether this query of the same model can be read so as well."""
        # In a transaction it could not be broken off half-way without ending the transaction.
        return _is_plain(queryset) and not connections[queryset.db].in_atomic_block

    def compiled(self, queryset: AnyQuerySet) -> tuple[str, Sequence[Any]]:
        """The SQL that gives each row's JSON and its key, and its parameters.

        Raises:
            EmptyResultSet: no row can be like this.
        """
        query = queryset.values_list(self._expression, "pk").query
        sql, params = query.get_compiler(using=queryset.db).as_sql()
        return sql, params

    def read(self, queryset: AnyQuerySet, size: int) -> Iterator[tuple[list[Any], list[bytes]]]:
        """The rows' keys and their JSON, in lists of up to this size.

        Raises:
            NotExpressible: one of them has no JSON form in SQL.
            DatabaseError: as Django raises it.
        """
        try:
            sql, params = self.compiled(queryset)
        except EmptyResultSet:  # no row can be like this, so Django would not ask
            return
        # Closed here and not by the collector: an open stream keeps the connection from any other query.
        with closing(_stream(connections[queryset.db], sql, params, size)) as rows:
            while chunk := list(islice(rows, size)):
                yield taken(chunk)


def taken(rows: Sequence[tuple[str | None, Any]]) -> tuple[list[Any], list[bytes]]:
    """The keys and the JSON of rows, at least one, that were read by such a query.

    Raises:
        NotExpressible: one of them has no JSON form in SQL.
    """
    texts, keys = zip(*rows, strict=True)
    if None in texts:
        raise NotExpressible
    return list(keys), [text.encode() for text in texts]


def _is_plain(queryset: AnyQuerySet) -> bool:
    """Whether the query selects columns alone, in Django's own way."""
    query = queryset.query
    own_ways = type(queryset).iterator is not QuerySet.iterator or not issubclass(
        queryset._iterable_class, ModelIterable
    )
    complicated = query.annotations or query.extra or query.distinct or query.combinator
    return not own_ways and not complicated and not query.is_empty()


def _streams(connection: Any) -> bool:
    """Whether rows come as they are made, in UTC: psycopg 3 with libpq 17, and Django's own engine."""
    if connection.vendor != "postgresql" or connection.timezone is not UTC:
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


def _stream(connection: Any, sql: str, params: Any, size: int) -> Generator[Any, None, None]:
    # A named cursor, which Django's iterator() has, makes the server wait while we work, and the other
    # way round.
    from psycopg import ClientCursor, Cursor

    connection.ensure_connection()
    with connection.wrap_database_errors, Cursor(connection.connection) as cursor:
        # Django leaves parameters to the client, too: types that a server would guess wrong are written out.
        query = ClientCursor(connection.connection).mogrify(sql, params)
        yield from _wrapped(connection, partial(cursor.stream, size=size), query)


def _wrapped(connection: Any, stream: Callable[[str], Any], sql: str) -> Any:
    """Run it through what ``connection.execute_wrapper()`` has put around queries."""

    def execute(sql: str, params: Any, many: bool, context: Any) -> Any:
        return stream(sql)

    for wrapper in reversed(connection.execute_wrappers):
        execute = partial(wrapper, execute)
    return execute(sql, None, False, {"connection": connection, "cursor": None})
