"""What a column of SQLite was declared as, by which the driver chooses how to read it.

Django has the driver look at that, and the type need not be the one of the field: a table that others have
made may call a column of numbers ``bool``, and then Django's values are True and False.
"""

import re
import sqlite3
from typing import Any, NamedTuple

# By the kind of field, the declared types for which Django has registered how the field's values are read.
_OWN = {
    "BooleanField": ("BOOL",),
    "DateField": ("DATE",),
    "TimeField": ("TIME",),
    "DateTimeField": ("DATETIME", "TIMESTAMP"),
}


class SQLiteColumn(NamedTuple):
    """A column of a table or of a view.

    Attributes:
        name: the column's.
        declared: its type, as it was written.
        is_stored: whether its values come from a table, and are not calculated.
    """

    name: str
    declared: str
    is_stored: bool

    def is_read_as(self, kind: str) -> bool:
        """Whether the driver makes of its values what Django expects of this kind of field.

        Args:
            kind: the field's, as Django names it.

        Source: https://docs.python.org/3/library/sqlite3.html#sqlite3.PARSE_DECLTYPES
        """
        if "[" in self.name:  # a type in brackets goes before the declared one
            return False
        name = re.split("[ (]", self.declared)[0].upper()
        converter = sqlite3.converters.get(name)
        return converter is None or (name in _OWN.get(kind, ()) and _is_djangos(converter))


def columns_of(connection: Any, table: str) -> dict[str, SQLiteColumn]:
    """A table's columns, by their names in lower case; none if it is not there.

    Args:
        connection: the database.
        table: its name.

    Raises:
        DatabaseError: as Django raises it.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT name, type, hidden IN (0, 3)"  # and not a virtual table's hidden one, nor a generated one
            " AND NOT EXISTS (SELECT 1 FROM pragma_table_list(%s) AS found WHERE found.type <> 'table')"
            " FROM pragma_table_xinfo(%s)",
            [table, table],
        )
        found = [SQLiteColumn(name, declared, bool(stored)) for name, declared, stored in cursor]
    return {column.name.lower(): column for column in found}


def _is_djangos(converter: Any) -> bool:
    from django.db.backends.sqlite3.base import DatabaseWrapper

    of_truth = getattr(converter, "__self__", None) == b"1" and converter.__name__ == "__eq__"
    return of_truth or getattr(converter, "__module__", None) == DatabaseWrapper.__module__
