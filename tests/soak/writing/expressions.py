"""Seals in Django's expressions, for what is updated without being read."""

from typing import Any

from django.db.models import CharField, Expression, F, Func, Value

from tests.soak.seals import SEALED, seal_sql


class Seal(Func):
    """The seal that an item has when these columns are changed."""

    def __init__(self, **changed: Any) -> None:
        columns = [changed.get(name, F(name)) for name in SEALED["stock_item"]]
        super().__init__(
            *(column if isinstance(column, Expression | F) else Value(column) for column in columns),
            output_field=CharField(),
        )

    def as_sql(self, compiler: Any, connection: Any, **context: Any) -> Any:
        """In the database's own words."""
        written, parameters = [], []
        for expression in self.get_source_expressions():
            sql, values = compiler.compile(expression)
            written.append(sql)
            parameters += values
        names = SEALED["stock_item"]
        return seal_sql(connection.vendor, "stock_item", **dict(zip(names, written, strict=True))), parameters


def resealed(**changed: Any) -> dict[str, Any]:
    """What to update: these columns, and before them the seal."""
    return {"seal": Seal(**changed), **changed}
