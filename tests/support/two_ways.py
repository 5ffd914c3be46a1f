"""Rows whose JSON the database makes, held against the same rows read in Python."""

from typing import Any

from django.db.models import QuerySet

from fastapi_django_orm.reading.postgresql_json import NotExpressible
from fastapi_django_orm.reading.reader_factory import choose_reader
from tests.support.comparing import finish, sent_by_fastapi, typed, values
from tests.support.repositories import declare


class Ways:
    """A query read in both ways.

    Attributes:
        in_sql: whether the database has made the JSON.
        json: the rows' JSON.
        rows: the rows as a repository has them.
    """

    def __init__(self, queryset: QuerySet[Any, Any], *names: str) -> None:
        repository = declare("Rows", queryset.model, fields=names or None)()
        queryset = queryset.order_by("pk")
        read: list[Any] = []
        for in_python in (False, True):
            reader: Any = choose_reader(repository, queryset)
            try:
                chunks, in_sql = list(reader.read(queryset, in_python=in_python)), bool(reader.in_sql)
            except NotExpressible:
                chunks, in_sql = list(reader.read(queryset, in_python=True)), False
            rows = [
                chunk.codec.decode(data) if row is None else row
                for chunk in chunks
                for data, row in zip(chunk.json, chunk.objects, strict=True)
            ]
            keys = [key for chunk in chunks for key in chunk.keys]
            read.append((keys, [data for chunk in chunks for data in chunk.json], typed(rows), rows))
            if not in_python:
                self.in_sql = in_sql and "json_by_database" not in reader.reasons
        assert read[0][:3] == read[1][:3], "the two ways differ"
        _, self.json, _, self.rows = read[0]
        self._expected = values(queryset, *(names or reader.names))
        assert typed(self.rows) == typed(self._expected)

    async def check_bytes(self) -> None:
        body = b'{"rows":[' + b",".join(self.json) + b"]}"
        assert body == await sent_by_fastapi("rows", self._expected)


def same(queryset: QuerySet[Any, Any], *names: str, in_sql: bool = True) -> list[Any]:
    """The rows, which are Django's and FastAPI's whichever way they were read; and it was this way."""
    ways = Ways(queryset, *names)
    finish(ways.check_bytes)
    assert ways.in_sql is in_sql
    return ways.rows
