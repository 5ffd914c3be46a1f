"""Whatever a client sends for a filter, it gets rows or a 422."""

import json
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from ipaddress import IPv4Address
from typing import Annotated, Any
from urllib.parse import quote
from uuid import UUID

import pytest
from fastapi import Depends, FastAPI, Query

from fastapi_django_orm import CachedRepository, DjangoORM, Filter, ORMSettings, Repository
from fastapi_django_orm.errors import InvalidParameter
from tests.project.board.models import Everything
from tests.support.comparing import finish
from tests.support.gates import started


class AnyFilter(
    Filter,
    model="board.Everything",
    search=("char", "integer", "text__iregex"),
    ordering=("key", "text"),
    max_offset=None,
):
    big: int | None = None
    big__in: list[int] | None = None
    char: str | None = None
    char__in: list[str] | None = None
    char__regex: str | None = None
    date: Any = None
    date__year: int | None = None
    date__year__gte: int | None = None
    decimal: Decimal | None = None
    decimal__in: list[Decimal] | None = None
    decimal__range: tuple[Decimal, Decimal] | None = None
    duration: timedelta | None = None
    duration__gte: timedelta | None = None
    floating: float | None = None
    floating__in: list[float] | None = None
    integer: int | None = None
    integer__gt: int | None = None
    ip: str | None = None
    ip__in: list[IPv4Address] | None = None
    json__a: str | None = None
    key: UUID | None = None
    moment__date: Any = None
    moment__gte: datetime | None = None
    moment__iso_year: int | None = None
    moment__month: int | None = None
    moment__year: int | None = None
    moment__year__lt: int | None = None
    small: int | None = None
    text: str | None = None
    time__gte: time | None = None
    time__hour: int | None = None


class Kept(CachedRepository):
    model = "board.Everything"
    fields = ("integer",)


class Now(Repository):
    model = "board.Everything"
    fields = ("integer",)


HUGE = 10**30
LONG = "a" * 60_000
FRACTIONS = ("decimal", "decimal__in", "floating", "floating__in")
VALUES: dict[tuple[str, ...], tuple[Any, ...]] = {
    (
        *FRACTIONS,
        *("big", "big__in", "date__year", "date__year__gte", "integer", "integer__gt", "moment__iso_year"),
        *("moment__month", "moment__year", "moment__year__lt", "small", "time__hour"),
    ): (0, -1, 10_000, 2**31, -(2**63) - 1, HUGE, -HUGE),
    FRACTIONS: (
        "1e400",
        "1e-400",
        "nan",
        "inf",
        "-inf",
        "0.00000000001",
        "12345678901234567890.1234567",
        "-0",
    ),
    ("char", "char__in", "char__regex", "ip", "json__a", "text", "search"): (
        *("", "\0", "a\0b", "\U0001f600", "[", "(", "*", "(?<", "a{1000}{1000}", "\\", "%", "_", "'", '"'),
        *("\n", "::::", LONG, " ".join("a" * 99)),
    ),
    ("date", "moment__date"): ("x", "0001-01-01", "9999-12-31", "2026-02-30"),
    ("moment__gte",): (
        "0001-01-01T00:00:00",
        "9999-12-31T23:59:59-12:00",
        "0001-01-01T00:00:00+12:00",
        "1e30",
    ),
    ("duration", "duration__gte"): ("P999999999D", "-P999999999D", "1e12", "P1Y"),
    ("time__gte",): ("23:59:59.999999", "00:00:00+12:00"),
    ("key", "ip__in"): ("x", UUID(int=0), "1.1.1.1"),
    ("after",): ("", "x", "\0", "a:b", LONG, "\U0001f600"),
    ("limit",): (0, -1, 501, HUGE),
    ("offset",): (-1, HUGE, 2**63 - 1, 2**64),
    ("ordering",): ("", "-", "--key", "key,key", "key,key,key", "pk", "\0"),
}
QUERIES = [
    *(f"{name}={quote(str(each))}" for names, values in VALUES.items() for name in names for each in values),
    *("char=%ff", "search=%ed%a0%80"),  # not UTF-8
    *("&".join(["decimal__range=1"] * number) for number in (1, 2, 3)),
    *("&".join(f"{name}={each}" for each in range(10_000)) for name in ("big__in", "char__in")),
    "&".join(f"floating__in={each}" for each in range(40_000)),
]


async def get(app: FastAPI, path: str, query: str) -> tuple[int, bytes]:
    """What an application answers; a client would refuse to send so much."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": path, "query_string": query.encode(), "headers": []}
    await app({**scope, "asgi": {"version": "3.0"}, "client": ("127.0.0.1", 1)}, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


def test_whatever_a_client_sends(database: str) -> None:
    """Numbers, texts, dates, lists, cursors and windows of any size give rows or a 422 that says why."""
    Everything.objects.create()
    Everything.objects.create(
        char="a",
        date=date(2026, 1, 1),
        decimal=1,
        duration=timedelta(1),
        floating=1,
        integer=1,
        ip="1.1.1.1",
        json={"a": "b"},
        moment=datetime.fromisoformat("2026-01-01T00:00:00Z"),
        text="a",
        time=time(1),
    )
    app = FastAPI()

    def add(path: str, repository: Any) -> None:
        @app.get(path)
        async def rows(
            rows: Annotated[Any, Depends(repository.current)], where: Annotated[AnyFilter, Query()]
        ) -> Any:
            return rows.response(where)

    add("/kept", Kept)
    add("/now", Now)

    async def main() -> None:
        async with DjangoORM(ORMSettings(), repositories=[Kept, Now]).lifespan(app):
            for path in ("/kept", "/now"):
                for query in QUERIES:
                    status, body = await get(app, path, query)
                    assert status in (200, 422), (path, query[:100])
                    assert status == 200 or json.loads(body)["detail"][0]["msg"]
                assert (await get(app, path, "decimal__range=0&decimal__range=2"))[0] == 200
                assert b'"total":1' in (await get(app, path, "ip__in=1.1.1.1"))[1]

    finish(main)


def test_a_pattern_that_is_wrong_is_named(sqlite: str) -> None:
    """A regular expression that cannot be read is the client's mistake, and not one of the database."""

    async def main() -> None:
        async with started(Kept) as (kept,):
            with pytest.raises(InvalidParameter) as refused:
                await kept.select(AnyFilter(char__regex="("))
            assert refused.value.detail[0]["loc"] == ["query", "char__regex"]

    finish(main)
