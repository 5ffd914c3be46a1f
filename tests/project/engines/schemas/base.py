"""The engine: as those are made that have a schema for each tenant."""

from typing import Any

from django.db.backends.postgresql import base


class DatabaseWrapper(base.DatabaseWrapper):
    """Looks into the schema that is chosen when a cursor is made.

    Attributes:
        schema: the one that is chosen.
    """

    schema = "public"

    def _cursor(self, name: str | None = None) -> Any:
        with super()._cursor() as cursor:
            cursor.execute(f"SET search_path = {self.schema}")
        return super()._cursor(name)
