"""The digest that every row has of its own columns, made and checked in Python, in SQL and by Django."""

import hashlib
from collections.abc import Mapping
from typing import Any

SEALED = {
    "stock_shelf": ("id", "name"),
    "stock_item": ("id", "number", "title", "is_open", "shelf_id"),
    "stock_account": ("id", "balance"),
}
_SLASH = " || '/' || "


def seal(table: str, row: Mapping[str, Any]) -> str:
    """The seal of a row with these values."""
    values = (row[name] for name in SEALED[table])
    text = "/".join(str(int(value) if isinstance(value, bool) else value) for value in values)
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def seal_sql(vendor: str, table: str, **changed: str) -> str:
    """The same as SQL, for a statement that changes columns to these expressions.

    It must come first in a SET: MariaDB lets an assignment see what those before it have assigned.
    """
    columns = {name: f"({changed.get(name, name)})" for name in SEALED[table]}
    if vendor == "sqlite":
        return f"md5({_SLASH.join(columns.values())})"
    if vendor == "postgresql" and "is_open" in columns:
        columns["is_open"] += "::int"  # a number in the other databases
    return f"md5(concat_ws('/', {', '.join(columns.values())}))"
