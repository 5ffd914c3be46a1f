"""Rows whose JSON the database makes, so that a load of a million rows does little on our processor.

For columns of plain types only, and byte for byte what pydantic would have made of Django's own values.
Where a value has no such form in SQL (NaN, a date beyond Python's calendar) the row is NULL, and the load
is done by way of Python instead.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from itertools import islice
from typing import Any, TypeAlias

from django.core.exceptions import EmptyResultSet
from django.db import DatabaseError, connections
from django.db.models import CompositePrimaryKey, F, Field, Func, TextField
from django.db.models.expressions import Col
from django.db.models.query import ModelIterable
from pydantic_core import to_json

from ..rows.codec import RowCodec
from . import postgresql_json, sqlite_json
from .key_columns import AnyQuerySet, with_key
from .own_ways import not_djangos
from .postgresql_json import PostgreSQLForms
from .sqlite_json import SQLiteForms

Forms: TypeAlias = PostgreSQLForms | SQLiteForms

# Each part makes an expression two deeper, and SQLite takes none that is deeper than 1000. One chain is the
# quickest, since it grows in its place. Source: https://www.sqlite.org/limits.html#max_expr_depth
_MOST_IN_A_CHAIN = 200
_MEASURED = 1000  # rows: of more, those before these count less and less


class RowJSON(Func):
    """A row's JSON as one expression of its columns; an empty text where these are not what they were."""

    output_field = TextField()

    def __init__(self, names: Sequence[str], keys: Sequence[str], forms: Forms) -> None:
        """Make the expression of these columns.

        Args:
            names: the columns'.
            keys: those that make the row's key.
            forms: how the JSON of the columns is made.
        """
        super().__init__(*map(F, (*names, *keys)))
        self._names = names
        self._forms = forms

    def as_sql(self, compiler: Any, connection: Any, **context: Any) -> tuple[str, tuple[Any, ...]]:  # type: ignore[override]
        """Join ``{"name":`` and the values with ``||``, which is NULL if one of them is."""
        compiled = [compiler.compile(column) for column in self.source_expressions]
        assert not any(params for _, params in compiled), "a column has no parameters"
        columns = [sql for sql, _ in compiled]
        parts, before = [], "{"
        for name, form, sql in zip(self._names, self._forms.sql, columns, strict=False):  # then come the keys
            key = (before + to_json(name).decode() + ":").replace("'", "''").replace("%", "%%")
            parts.append(f"'{key}' || CASE WHEN {sql} IS NULL THEN 'null' ELSE {form.format(sql)} END")
            before = ","
        row = _joined([*parts, "'}'"])
        return f"CASE WHEN {self._forms.guard(columns)} THEN {row} ELSE '' END", ()


def _joined(parts: Sequence[str]) -> str:
    if len(parts) <= _MOST_IN_A_CHAIN:
        return " || ".join(parts)
    starts = range(0, len(parts), _MOST_IN_A_CHAIN)
    return _joined([f"({_joined(parts[start : start + _MOST_IN_A_CHAIN])})" for start in starts])


class NotExpressible(Exception):
    """A row has a value whose JSON form the database does not make."""


class Outdated(NotExpressible):
    """The columns are not what they were when it was found out how the database makes their JSON."""


class DatabaseJSON:
    """How to read one repository's columns as JSON that the database makes.

    Attributes:
        kinds: what Django makes of each column's values.
        codec: reads the JSON.
        row_size: the length of a row's JSON in bytes, on average over the rows that were read last.
    """

    def __init__(self, names: Sequence[str], keys: Sequence[str], forms: Forms, vendor: str) -> None:
        """Read these columns.

        Args:
            names: the columns'.
            keys: those that make the row's key.
            forms: how their JSON is made.
            vendor: whose SQL that is.
        """
        self._expression = RowJSON(names, keys, forms)
        self._forms = forms
        self._vendor = vendor
        self.kinds = forms.kinds
        self.codec = RowCodec(names, forms.kinds)
        self.row_size = 0.0
        self._measured = 0  # rows that it is the average of

    @classmethod
    def of(cls, queryset: AnyQuerySet, names: Sequence[str]) -> "DatabaseJSON | str":
        """How to read these columns of the query, or why that cannot be done in SQL.

        Args:
            queryset: the query, of which ``not_in_sql()`` has said that it may be.
            names: its columns.

        Raises:
            EmptyResultSet: the query can have no rows, so it does not tell its columns.
            DatabaseError: as Django raises it.
        """
        connection = connections[queryset.db]
        if isinstance(queryset.model._meta.pk, CompositePrimaryKey):
            return "the key has several columns"
        keyed, _ = with_key(queryset, names)
        compiler = keyed.query.get_compiler(using=queryset.db)
        sql, params = compiler.as_sql()
        columns = [expression for expression, _, _ in compiler.select or ()]
        for column in columns:  # a transform, or a field that is selected in a way of its own
            if not _is_plain_column(column):
                return f"{column} is not a plain column"
        forms: Forms | str
        if connection.vendor == "sqlite":
            forms = sqlite_json.forms(connection, compiler.query, columns[: len(names)])
        else:
            forms = postgresql_json.forms(connection, columns, len(names), sql, params)
        keys = ["pk"] * (len(columns) - len(names))
        return forms if isinstance(forms, str) else cls(names, keys, forms, connection.vendor)

    def why_not(self, connection: Any) -> str | None:
        """Why this connection, as it is now, does not give what Django would read; None if it does."""
        if connection.vendor != self._vendor:  # the settings have changed under an alias
            return "another database was described"
        return self._forms.why_not(connection)

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
            Outdated: a column is not what it was.
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
        try:
            yield from postgresql_json.stream(connections[queryset.db], sql, params, size)
        except DatabaseError as error:
            # A form may not be written for what a column is now. If it is not that, it comes again in Python.
            if is_of_the_statement(error):
                raise Outdated from error
            raise

    def _query(self, queryset: AnyQuerySet) -> AnyQuerySet:
        return queryset.values_list(self._expression, "pk")

    def taken(self, rows: Sequence[tuple[str | None, Any]]) -> tuple[list[Any], list[bytes]]:
        """The keys and the JSON of rows, at least one, that were read by such a query.

        Raises:
            Outdated: a column is not what it was.
            NotExpressible: one of them has no JSON form in SQL.
        """
        texts, keys = zip(*rows, strict=True)
        if not all(texts):
            raise Outdated if "" in texts else NotExpressible
        json = [text.encode() for text in texts]
        self._measure(json)
        return list(keys), json

    def _measure(self, json: Sequence[bytes]) -> None:
        # Threads may do this at the same time; an average that misses a few rows is as good.
        number = len(json)
        self._measured = measured = max(number, min(_MEASURED, self._measured + number))
        self.row_size += (sum(map(len, json)) / number - self.row_size) * number / measured


def is_of_the_statement(error: DatabaseError) -> bool:
    """Whether PostgreSQL refuses what was written: a literal (22), a name or a type (42), a plan (0A)."""
    state: str | None = getattr(error.__cause__, "sqlstate", None)
    return state is not None and state.startswith(("22", "42", "0A"))


def _is_plain_column(column: Any) -> bool:
    """Whether the query selects it by nothing but its name."""
    if type(column) is not Col:
        return False
    select_format = column.output_field.select_format
    return getattr(select_format, "__func__", None) is Field.select_format


def not_in_sql(queryset: AnyQuerySet, connection: Any) -> str | None:
    """Why a query is not one of columns alone, in Django's own way; None if it is.

    Args:
        queryset: the query.
        connection: the one to read it with.
    """
    query = queryset.query
    if reason := not_djangos(queryset, connection):
        return reason
    if connection.vendor not in ("postgresql", "sqlite"):
        return f"{connection.display_name} does not make JSON as FastAPI does"
    if queryset._iterable_class is not ModelIterable:
        return "the query gives no instances"
    for what in ("annotations", "extra", "distinct", "combinator"):
        if getattr(query, what):
            return f"the query has {what}"
    return "the query has no rows" if query.is_empty() else None
