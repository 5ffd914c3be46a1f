"""What a database holds for equal, and Python does not: two spellings of one text, two forms of one value."""

from collections.abc import Collection, Hashable
from math import isfinite
from typing import Any

from django.db import connections
from django.db.models import CompositePrimaryKey, Field


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
    kind = field.db_type(connection) or ""
    is_text = kind.startswith(("varchar", "text", "citext", "longtext"))
    exact = connection.vendor in ("postgresql", "sqlite") and getattr(field, "db_collation", None) is None
    return is_text and (kind == "citext" or not exact)


def storable(values: Collection[Hashable], alias: str) -> list[Hashable]:
    """Those of these values that a query may ask for: drivers of MariaDB refuse infinite numbers, and NaN.

    Args:
        values: of one field.
        alias: the database.
    """
    if connections[alias].vendor != "mysql":
        return list(values)
    return [value for value in values if not isinstance(value, float) or isfinite(value)]
