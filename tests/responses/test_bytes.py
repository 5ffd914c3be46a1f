"""Bytes and rows against the originals: what FastAPI sends, what `.values()`, `get()` and `filter()` give."""

import datetime as dt
import json
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from ipaddress import IPv4Address, IPv6Address
from typing import Annotated, Any
from uuid import UUID

import httpx
import pytest
from asgiref.sync import sync_to_async
from fastapi import Depends, FastAPI
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

from fastapi_django_orm import CachedRepository, DjangoORM, ORMSettings
from tests.project.board.models import Everything
from tests.support.serving import serving

TOKEN = {"Authorization": "Bearer t"}

# No database keeps half a character in a text, and PostgreSQL no NUL.
texts = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=20)
dates = st.dates(dt.date(1000, 1, 1))
moments = st.datetimes(dt.datetime(1000, 1, 2), dt.datetime(9999, 12, 30), timezones=st.just(dt.UTC))
uuids = st.uuids(version=4)  # MariaDB refuses some that are no real ones
longest = dt.timedelta(days=100_000)


def integers(bits: int) -> st.SearchStrategy[int]:
    return st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


json_values = st.recursive(
    st.none() | st.booleans() | integers(53) | st.floats(-(2.0**40), 2.0**40, width=32) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)

VALUES: dict[str, st.SearchStrategy[Any]] = {
    "key": uuids,
    "big": integers(64),
    "binary": texts.map(str.encode),  # other bytes have no JSON form
    "boolean": st.booleans(),
    "char": texts,
    "date": dates,
    "moment": moments,
    "decimal": st.decimals(-(10**13), 10**13, places=6),
    "duration": st.timedeltas(-longest, longest),
    "file": texts,
    "floating": st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False, width=32),
    "integer": integers(31),
    "ip": st.ip_addresses().map(str),
    "json": json_values,
    "slug": texts,
    "small": integers(16),
    "text": texts,
    "time": st.times(),
    "unique": uuids,
}

rows_of_everything = st.lists(
    st.fixed_dictionaries(
        {"key": VALUES["key"]}, optional={name: values for name, values in VALUES.items() if name != "key"}
    ).map(lambda values: Everything(**values)),
    max_size=4,
    unique_by=lambda row: row.key,
)

AWKWARD = [
    Everything(key=UUID(int=0)),
    Everything(
        key=UUID(int=2**128 - 1),
        big=-(2**63),
        binary=b"\x00\x7f\xc3\xa9",
        boolean=False,
        char='"\\/\b\f\n\r\t\x7f\u2028\ufeff',
        date=dt.date(1000, 1, 1),
        moment=dt.datetime(1999, 12, 31, 23, 59, 59, 1, dt.UTC),
        decimal=Decimal("-0.000001"),
        duration=dt.timedelta(days=-1, microseconds=1),
        file="日本.txt",
        floating=-0.0,
        integer=-(2**30),
        ip="::ffff:1.2.3.4",
        json={"": [], "ключ": {"a": [None, True, 1.0, 1e-7, -0.0, "\x1f"]}},
        text="題\U0001f600</script>",
        time=dt.time(23, 59, 59, 999999),
    ),
    Everything(key=UUID(int=1), duration=dt.timedelta(0), decimal=Decimal(10**13), floating=1e300, json=[]),
]


def name_of(file: Any) -> Any:
    return file if file is None or isinstance(file, str) else file.name


class EverythingOut(BaseModel):
    """Every field with its own type."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    key: UUID
    big: int | None
    binary: bytes | None
    boolean: bool | None
    char: str | None
    date: dt.date | None
    moment: dt.datetime | None
    decimal: Decimal | None
    duration: dt.timedelta | None
    file: Annotated[str | None, BeforeValidator(name_of)]  # of an instance it is no text
    floating: float | None
    integer: int | None
    ip: IPv4Address | IPv6Address | None
    json_: Any = Field(validation_alias="json", serialization_alias="json")
    slug: str | None
    small: int | None
    text: str | None
    time: dt.time | None
    unique: UUID | None
    doubled: int | None


class Rows(CachedRepository):
    model = "board.Everything"
    indexes = ("integer", "boolean", "date")


class Typed(CachedRepository[EverythingOut]):
    model = "board.Everything"
    schema = EverythingOut


Row = dict[str, Any]


def plain_values() -> list[Row]:
    """Django's own rows, with psycopg2's views of binary columns as the bytes that they show."""
    return [
        {name: bytes(value) if isinstance(value, memoryview) else value for name, value in row.items()}
        for row in Everything.objects.order_by("pk").values()
    ]


def an_application(held: dict[str, Any]) -> FastAPI:
    app = FastAPI(lifespan=DjangoORM(ORMSettings(refresh_token="t"), repositories=[Rows, Typed]).lifespan)

    @app.get("/rows")
    async def rows(rows: Annotated[Rows, Depends(Rows.current)]) -> Any:
        held["rows"] = rows
        return rows.response()

    @app.get("/typed")
    async def typed(typed: Annotated[Typed, Depends(Typed.current)]) -> Any:
        return typed.response()

    @app.get("/fastapi/rows")
    async def fastapi_rows() -> dict[str, list[Row]]:
        return {"rows": await sync_to_async(plain_values)()}

    @app.get("/fastapi/typed", response_model=dict[str, list[EverythingOut]])
    async def fastapi_typed() -> Any:
        return {"typed": await sync_to_async(plain_values)()}

    return app


@dataclass
class Served:
    """A running application and the repository in it."""

    client: httpx.Client
    held: dict[str, Any]

    def load(self, rows: list[Everything]) -> Any:
        """Write these rows and no others, and give the repository that has loaded them."""
        Everything.objects.all().delete()
        for row in rows:
            row.save(force_insert=True)
        assert self.client.post("/refresh/", headers=TOKEN).status_code == 200
        self.client.get("/rows")
        return self.held["rows"]


@pytest.fixture
def served(database: str) -> Iterator[Served]:
    held: dict[str, Any] = {}
    with serving(an_application(held)) as client:
        yield Served(client, held)


# One application for all examples: each of them says which rows there are.
several = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


@several
@given(rows=rows_of_everything)
@example(rows=AWKWARD)
@example(rows=[])
def test_bytes_and_rows_are_those_of_fastapi_and_django(served: Served, rows: list[Everything]) -> None:
    """The response is FastAPI's under a response model byte for byte, and `rows` are Django's `.values()`."""
    repository = served.load(rows)
    client = served.client
    assert client.get("/rows").content == client.get("/fastapi/rows").content
    assert client.get("/typed").content == client.get("/fastapi/typed").content
    assert repository.snapshot.json == client.get("/rows").content
    assert repository.response().body == repository.snapshot.json
    expected = plain_values()
    assert list(repository.snapshot.rows) == expected
    assert [list(map(type, row.values()))[:9] for row in repository.snapshot.rows] == [
        list(map(type, row.values()))[:9] for row in expected
    ]


@several
@given(rows=rows_of_everything, integer=integers(31), date=dates)
def test_lookups_are_those_of_django(
    served: Served, rows: list[Everything], integer: int, date: dt.date
) -> None:
    """`get()` finds what Django's `get()` finds, and `find()` what its `filter()` finds."""
    if rows:
        rows[0].integer, rows[0].date = integer, date
    repository = served.load(rows)
    for row in rows:
        expected = Everything.objects.values("key", "char", "json").get(pk=row.pk)
        assert {name: repository.get(row.pk)[name] for name in expected} == expected
    queries: list[Row] = [
        {"integer": integer},
        {"date": date},
        {"boolean": True},
        {"integer": integer, "date": date},
    ]
    for query in queries:
        expected_keys = list(Everything.objects.filter(**query).order_by("pk").values_list("pk", flat=True))
        assert [row["key"] for row in repository.find(**query)] == expected_keys
    keys = set(Everything.objects.values_list("pk", flat=True))
    assert {key for key in [UUID(int=7), *keys] if key in repository} == keys


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_what_json_has_no_number_for_is_null(served: Served) -> None:
    """NaN and the infinities, which PostgreSQL stores, are null as FastAPI sends them."""
    values = [float("nan"), float("inf"), -float("inf"), 1.5]
    served.load([Everything(key=UUID(int=number), floating=value) for number, value in enumerate(values)])
    for name in ("rows", "typed"):
        body = served.client.get(f"/{name}").content
        assert body == served.client.get(f"/fastapi/{name}").content
        assert [row["floating"] for row in json.loads(body)[name]] == [None, None, None, 1.5]
