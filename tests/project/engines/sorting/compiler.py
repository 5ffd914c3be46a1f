"""How queries become SQL in that engine."""

from typing import Any

from django.db.models.sql import compiler
from django.db.models.sql.compiler import (
    SQLAggregateCompiler,
    SQLDeleteCompiler,
    SQLInsertCompiler,
    SQLUpdateCompiler,
)

__all__ = [
    "SQLAggregateCompiler",
    "SQLCompiler",
    "SQLDeleteCompiler",
    "SQLInsertCompiler",
    "SQLUpdateCompiler",
]


class SQLCompiler(compiler.SQLCompiler):
    """Sorts nulls last, up and down."""

    def get_order_by(self) -> list[Any]:
        return [
            (expression, (f"{sql} NULLS LAST", params, is_reference))
            for expression, (sql, params, is_reference) in super().get_order_by()
        ]
