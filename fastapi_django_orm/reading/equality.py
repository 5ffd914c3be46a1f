"""What a database holds for equal, and Python does not: two spellings of one text, two forms of one value."""

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
    exact = connection.vendor in ("postgresql", "sqlite") and getattr(field, "db_collation", None) is None
    return kind.startswith(("varchar", "text", "citext", "longtext")) and not (exact and kind != "citext")
