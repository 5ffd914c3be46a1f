"""What SQLite can make the JSON of.

A column of SQLite may hold anything, so each value is looked at: it has to be just what Django writes there.
"""

from collections.abc import Sequence
from datetime import UTC, date, datetime, time
from typing import Any
from uuid import UUID

from django.conf import settings

from .sqlite_columns import SQLiteColumn, columns_of

_JSON_IS_BUILT_IN = (3, 38)

# A column of dates is numeric to SQLite, which would make a number of a text that it is compared with: so
# parts of columns are compared. Adding no days makes it calculate: the 31st of February becomes another day.
# Its functions take a text to end at a NUL, so it is the bytes that are counted.
_LENGTH = "length(CAST({0} AS BLOB))"


def _seconds(length: int) -> str:
    """The condition that a text has this length, or a fraction of a second after it as Django writes it."""
    fraction = f"substr({{0}}, {length + 1})"
    return (
        f"({_LENGTH} = {length} OR {_LENGTH} = {length + 7}"
        f" AND {fraction} GLOB '.[0-9][0-9][0-9][0-9][0-9][0-9]' AND {fraction} <> '.000000')"
    )


_DATETIME: tuple[type] = (datetime,)  # in a tuple: under a frozen clock the name would mean another class


def _moment(zone: str) -> tuple[type, str]:
    return _DATETIME[0], (
        "CASE WHEN typeof({0}) = 'text' AND substr({0}, 1, 4) >= '0001'"
        " AND datetime(substr({0}, 1, 19), '+0 days') = substr({0}, 1, 19)"
        f" AND {_seconds(19)} THEN '\"' || replace({{0}}, ' ', 'T') || '{zone}\"' END"
    )


_INTEGER = (int, "CASE typeof({0}) WHEN 'integer' THEN {0} END")
_TEXT = (str, "CASE typeof({0}) WHEN 'text' THEN json_quote({0}) END")
# What a function of JSON has made, json_quote() would not quote; a table forgets who has made a text.
# Source: https://www.sqlite.org/json1.html#the_json_quote_function
_CALCULATED_TEXT = (str, "CASE typeof({0}) WHEN 'text' THEN json_quote({0} || '') END")

# By the kind of field, as Django names it.
_FORMS: dict[str, tuple[type, str]] = {
    "AutoField": _INTEGER,
    "BigAutoField": _INTEGER,
    "SmallAutoField": _INTEGER,
    "IntegerField": _INTEGER,
    "BigIntegerField": _INTEGER,
    "SmallIntegerField": _INTEGER,
    "PositiveIntegerField": _INTEGER,
    "PositiveBigIntegerField": _INTEGER,
    "PositiveSmallIntegerField": _INTEGER,
    "CharField": _TEXT,
    "TextField": _TEXT,
    "SlugField": _TEXT,
    "FileField": _TEXT,
    "FilePathField": _TEXT,
    "BooleanField": (
        bool,
        "CASE WHEN typeof({0}) = 'integer' THEN CASE {0} WHEN 1 THEN 'true' WHEN 0 THEN 'false' END END",
    ),
    "UUIDField": (
        UUID,
        f"CASE WHEN typeof({{0}}) = 'text' AND length({{0}}) = 32 AND {_LENGTH} = 32"
        " AND {0} NOT GLOB '*[^0-9a-f]*' THEN '\"'"
        " || substr({0}, 1, 8) || '-' || substr({0}, 9, 4) || '-' || substr({0}, 13, 4)"
        " || '-' || substr({0}, 17, 4) || '-' || substr({0}, 21) || '\"' END",
    ),
    "DateField": (
        date,
        "CASE WHEN typeof({0}) = 'text' AND substr({0}, 1, 4) >= '0001' AND date({0}, '+0 days') = {0}"
        " THEN '\"' || {0} || '\"' END",
    ),
    "TimeField": (
        time,
        "CASE WHEN typeof({0}) = 'text' AND substr({0}, 1, 2) < '24'"
        f" AND time(substr({{0}}, 1, 8)) = substr({{0}}, 1, 8) AND {_seconds(8)}"
        " THEN '\"' || {0} || '\"' END",
    ),
}


class SQLiteForms:
    """How SQLite makes the JSON of some columns.

    Attributes:
        kinds: for each column what Django makes of its values.
        sql: for each column the JSON of a value that is not null; NULL if this value has none.
    """

    def __init__(self, forms: Sequence[tuple[type, str]], version: int) -> None:
        """Make JSON in these forms.

        Args:
            forms: for each column its type and the SQL of its JSON.
            version: of the schema in which they were found.
        """
        self.kinds = [kind for kind, _ in forms]
        self.sql = [sql for _, sql in forms]
        self._version = version

    def guard(self, columns: Sequence[str]) -> str:
        """The condition that no table has been changed: by its declared type a column's values are read.

        Source: https://www.sqlite.org/pragma.html#pragma_schema_version
        """
        return f"(SELECT schema_version FROM pragma_schema_version) = {self._version}"

    def why_not(self, connection: Any) -> str | None:
        """Why a connection, as it is now, does not give what Django would read; None if it does."""
        if connection.connection is None:  # on a thread, for the event loop is lent only open ones
            connection.ensure_connection()
        raw = connection.connection
        plain = raw.row_factory is None and raw.text_factory is str
        return None if plain else "a connection reads rows or texts in its own way"


def forms(connection: Any, query: Any, columns: Sequence[Any]) -> "SQLiteForms | str":
    """How the JSON of these columns is made, or why it is not.

    Args:
        connection: the database.
        query: what is read.
        columns: its columns.

    Raises:
        DatabaseError: as Django raises it.
    """
    from sqlite3 import sqlite_version_info

    if sqlite_version_info < _JSON_IS_BUILT_IN:
        return "SQLite is older than 3.38"
    with connection.cursor() as cursor:  # before the columns: if they change meanwhile, it is too old
        cursor.execute("SELECT schema_version FROM pragma_schema_version")
        (version,) = cursor.fetchone()
    tables = {column.alias: query.alias_map[column.alias].table_name for column in columns}
    known = {table: columns_of(connection, table) for table in set(tables.values())}
    found: list[tuple[type, str]] = []
    for column in columns:
        form = _form(connection, column, known[tables[column.alias]].get(column.target.column.lower()))
        if form is None:
            return f"{column.target.name} is converted in Python"
        found.append(form)
    return SQLiteForms(found, version)


def _form(connection: Any, column: Any, declared: SQLiteColumn | None) -> tuple[type, str] | None:
    field = column.output_field
    while field.is_relation:
        field = field.target_field
    if column.get_db_converters(connection) or field.get_db_converters(connection):
        return None  # a field that makes something else of what is stored
    kind = field.get_internal_type()
    if declared is None or not declared.is_read_as(kind):
        return None  # the driver makes something else of it
    if kind == "DateTimeField":
        if not settings.USE_TZ:
            return _moment("")
        return _moment("Z") if connection.timezone is UTC else None
    form = _FORMS.get(kind)
    return _CALCULATED_TEXT if form is _TEXT and not declared.is_stored else form
