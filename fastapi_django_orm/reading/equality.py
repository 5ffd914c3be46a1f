"""Values that are equal to a database, not to Python: two spellings of one text, two forms of one value."""

from collections.abc import Collection, Hashable
from math import isfinite
from typing import Any

from django.db import connections
from django.db.models import CompositePrimaryKey, Field

# How types begin whose equal values have one form, or are equal in Python, too.
_PLAIN = (
    "big",
    "blob",
    "bool",
    "bytea",
    "date",
    "decimal",
    "double",
    "float",
    "inet",
    "int",  # and interval
    "numeric",
    "real",
    "serial",
    "small",
    "time",
    "tinyint",
    "uuid",
)
_EXACT = {"postgresql": ("varchar", "text"), "sqlite": ("varchar", "text", "char")}


def is_loose(field: "Field[Any, Any]", alias: str) -> bool:
    """Whether values that differ may be equal for the database: by a collation, or as the field stores them.

    Args:
        field: whose values.
        alias: the database.
    """
    if isinstance(field, CompositePrimaryKey):
        parts: Any = field.fields
        return any(is_loose(part, alias) for part in parts)
    while field.is_relation:
        field = field.target_field  # type: ignore[attr-defined]
    connection = connections[alias]
    if field.get_db_converters(connection):
        return True
    kind = (field.db_type(connection) or "").lower()
    if kind.startswith(_PLAIN):
        return False
    # A text that Django has made is compared byte by byte, where the database does so by default. What the
    # project has made, or a type of its own, may have any collation, or pad with spaces as char(n) does.
    default = field.model._meta.managed and getattr(field, "db_collation", None) is None
    return not (default and kind.startswith(_EXACT.get(connection.vendor, ())))


def storable(values: Collection[Hashable], alias: str) -> list[Hashable]:
    """Those of these values that a query may ask for: drivers of MariaDB refuse infinite numbers, and NaN.

    Args:
        values: of one field.
        alias: the database.
    """
    if connections[alias].vendor != "mysql":
        return list(values)
    return [value for value in values if not isinstance(value, float) or isfinite(value)]
