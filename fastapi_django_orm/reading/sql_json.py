"""Rows whose JSON the database makes, so that a load of a million rows does little on our processor.

For columns of plain types only, and byte for byte what pydantic would have made of Django's own values.
Where a value has no such form in SQL (NaN, a date beyond Python's calendar) the row is NULL, and the load
is done by way of Python instead.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from itertools import islice
from typing import Any

from django.core.exceptions import EmptyResultSet
from django.db import connections
from django.db.models import CompositePrimaryKey, F, Field, Func, QuerySet, TextField
from django.db.models.expressions import Col
from django.db.models.query import ModelIterable
from pydantic_core import to_json

from . import postgresql_json, sqlite_json
from .key_columns import AnyQuerySet, with_key

# Each part makes an expression two deeper, and SQLite takes none that is deeper than 1000. One chain is the
# quickest, since it grows in its place. Source: https://www.sqlite.org/limits.html#max_expr_depth
_MOST_IN_A_CHAIN = 200
_MEASURED = 1000  # rows: of more, those before these count less and less


class RowJSON(Func):
    """A row's JSON as one expression of its columns."""

    output_field = TextField()

    def __init__(self, names: Sequence[str], forms: Sequence[str]) -> None:
        """Make the expression of these columns.

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
        return _joined([*parts, "'}'"]), ()


def _joined(parts: Sequence[str]) -> str:
    if len(parts) <= _MOST_IN_A_CHAIN:
        return " || ".join(parts)
    starts = range(0, len(parts), _MOST_IN_A_CHAIN)
    return _joined([f"({_joined(parts[start : start + _MOST_IN_A_CHAIN])})" for start in starts])


class NotExpressible(Exception):
    """A row has a value whose JSON form the database does not make."""


class DatabaseJSON:
    """How to read one repository's columns as JSON that the database makes.

    Attributes:
        types: what Django makes of each column's values.
        row_size: the length of a row's JSON in bytes, on average over the rows that were read last.
    """

    def __init__(self, names: Sequence[str], forms: Sequence[tuple[type, str]], vendor: str) -> None:
        """Read these columns.

        Args:
            names: the columns'.
            forms: for each its type and the SQL of its JSON.
            vendor: whose SQL that is.
        """
        self._expression = RowJSON(names, [form for _, form in forms])
        self._vendor = vendor
        self.types = [kind for kind, _ in forms]
        self.row_size = 0.0
        self._measured = 0  # rows that it is the average of

    @classmethod
    def of(cls, queryset: AnyQuerySet, names: Sequence[str]) -> "DatabaseJSON | None":
        """How to read these columns of the query, or None if that cannot be done in SQL.

        Raises:
            EmptyResultSet: the query can have no rows, so it does not tell its columns.
            DatabaseError: as Django raises it.
        """
        connection = connections[queryset.db]
        if not _is_plain(queryset) or connection.vendor not in ("postgresql", "sqlite"):
            return None
        if isinstance(queryset.model._meta.pk, CompositePrimaryKey):
            return None
        keyed, _ = with_key(queryset, names)
        compiler = keyed.query.get_compiler(using=queryset.db)
        sql, params = compiler.as_sql()
        columns = [expression for expression, _, _ in compiler.select or ()]
        if not all(map(_is_plain_column, columns)):
            return None  # a transform, or a field that is selected in a way of its own
        if connection.vendor == "sqlite":
            forms = sqlite_json.forms(connection, compiler.query, columns[: len(names)])
        else:
            forms = postgresql_json.forms(connection, columns, sql, params)
        return None if forms is None else cls(names, forms[: len(names)], connection.vendor)

    def fits(self, queryset: AnyQuerySet) -> bool:
        """Whether this query of the same model and database can be read so as well."""
        connection = connections[queryset.db]
        # In a transaction it could not be broken off half-way without ending the transaction.
        return _is_plain(queryset) and connection.vendor == self._vendor and not connection.in_atomic_block

    def compiled(self, queryset: AnyQuerySet) -> tuple[str, Sequence[Any]]:
        """The SQL that gives each row's JSON and its key, and its parameters.

        Raises:
            EmptyResultSet: no row can be like this.
        """
        sql, params = self._query(queryset).query.get_compiler(using=queryset.db).as_sql()
        return sql, params

    def read(self, queryset: AnyQuerySet, size: int) -> Iterator[tuple[list[Any], list[bytes]]]:
        """The rows' keys and their JSON, in lists of up to this size.

        Raises:
            NotExpressible: one of them has no JSON form in SQL.
            DatabaseError: as Django raises it.
        """
        # Closed here and not by the collector: an open stream keeps the connection from any other query.
        with closing(self._rows(queryset, size)) as rows:
            while chunk := list(islice(rows, size)):
                yield self.taken(chunk)

    def _rows(self, queryset: AnyQuerySet, size: int) -> Generator[Any, None, None]:
        if self._vendor == "sqlite":
            yield from self._query(queryset).iterator(size)
            return
        try:
            sql, params = self.compiled(queryset)
        except EmptyResultSet:  # no row can be like this, so Django would not ask
            return
        yield from postgresql_json.stream(connections[queryset.db], sql, params, size)

    def _query(self, queryset: AnyQuerySet) -> AnyQuerySet:
        return queryset.values_list(self._expression, "pk")

    def taken(self, rows: Sequence[tuple[str | None, Any]]) -> tuple[list[Any], list[bytes]]:
        """The keys and the JSON of rows, at least one, that were read by such a query.

        Raises:
            NotExpressible: one of them has no JSON form in SQL.
        """
        texts, keys = zip(*rows, strict=True)
        if None in texts:
            raise NotExpressible
        json = [text.encode() for text in texts]
        self._measure(json)
        return list(keys), json

    def _measure(self, json: Sequence[bytes]) -> None:
        # Threads may do this at the same time; an average that misses a few rows is as good.
        number = len(json)
        self._measured = measured = max(number, min(_MEASURED, self._measured + number))
        self.row_size += (sum(map(len, json)) / number - self.row_size) * number / measured


def _is_plain(queryset: AnyQuerySet) -> bool:
    """Whether the query selects columns alone, in Django's own way."""
    query = queryset.query
    own_ways = type(queryset).iterator is not QuerySet.iterator or not issubclass(
        queryset._iterable_class, ModelIterable
    )
    complicated = query.annotations or query.extra or query.distinct or query.combinator
    return not own_ways and not complicated and not query.is_empty()


def _is_plain_column(column: Any) -> bool:
    """Whether the query selects it by nothing but its name."""
    if type(column) is not Col:
        return False
    select_format = column.output_field.select_format
    return getattr(select_format, "__func__", None) is Field.select_format
