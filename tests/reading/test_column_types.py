"""Columns whose types change while the application runs, as in a deployment where old workers still serve."""

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import pytest
from django.db import connection, connections, models
from django.test.utils import isolate_apps
from structlog.testing import capture_logs

from fastapi_django_orm import CachedRepository, Repository, run
from fastapi_django_orm.errors import ColumnMissing, InvalidRow, RefreshFailed
from fastapi_django_orm.reading import readers
from tests.support.comparing import finish, sent_by_fastapi, typed, values
from tests.support.databases import default_changed
from tests.support.gates import started


@pytest.fixture(autouse=True)
def _logs() -> Iterator[None]:
    with capture_logs():
        yield


def sql(statement: str) -> None:
    with connections["default"].cursor() as cursor:
        cursor.execute(statement)


@contextmanager
def things(**declared: str) -> Iterator[type[Any]]:
    """A table `thing` with the columns that are declared, and a model to whom `code` is a number."""
    with isolate_apps("tests.project.board"):

        class Thing(models.Model):
            name = models.CharField(max_length=50, null=True)
            code = models.IntegerField(null=True)

            class Meta:
                app_label = "board"
                db_table = "thing"

            def __str__(self) -> str:
                return str(self.pk)

        columns = {"id": "integer PRIMARY KEY", "name": "varchar(50)", "code": "integer", **declared}
        sql(f"CREATE TABLE thing ({', '.join(f'{name} {kind}' for name, kind in columns.items())})")
        sql("INSERT INTO thing VALUES (1, 'chair', 7), (2, NULL, NULL)")
        connections.close_all()
        try:
            yield Thing
        finally:
            sql(
                "DROP TABLE IF EXISTS thing CASCADE"
                if connection.vendor == "postgresql"
                else "DROP TABLE thing"
            )


def repositories(thing: type[Any], **attributes: Any) -> tuple[type[Any], type[Any]]:
    """One that is read live, and one that is kept."""
    attributes = {"model": thing, "fields": ("id", "name", "code"), **attributes}
    return type("Live", (Repository,), attributes), type("Kept", (CachedRepository,), attributes)


async def assert_as_django_reads_it(live: Any, kept: Any, thing: type[Any], how: int = 0) -> None:
    """Whatever is asked gives the rows that Django reads now, or fails as Django does."""
    queryset = thing.objects.order_by("pk")
    rows = await run(values, queryset, "id", "name", "code")
    try:
        body = await sent_by_fastapi("live", rows)
    except Exception:  # FastAPI cannot send it
        with pytest.raises(InvalidRow):
            await live.live.window(0, 10)
        return
    async with asyncio.timeout(20):
        (one, *_) = await asyncio.gather(*(live.fetch(row["id"]) for row in rows))
        assert typed([one, await live.fetch(rows[1]["id"])]) == typed(rows[:2])
        assert await live.live.window(0, 10) == body
        assert json.loads(await live.live.row_json(rows[0]["id"])) == json.loads(body)["live"][0]
        await (kept.refresh(rows[0]["id"]) if how else kept.refresh())
        assert typed(kept.all()) == typed(rows)
        assert kept.snapshot.json == body.replace(b"live", b"kept", 1)
        for row in rows:
            assert typed([kept.get(row["id"])]) == typed([row])


# What columns may be, and what they may hold.
KINDS: dict[str, Sequence[str]] = {
    "integer": ("7", "NULL"),
    "varchar(40)": ("'A-17'", """'7,"admin":true'"""),
    "boolean": ("true", "false"),
    "numeric": ("'NaN'", "1.50"),
    "double precision": ("'NaN'", "0.1"),
    "jsonb": ("""'{"a": [1]}'""", "'7'"),
    "bigint": ("9007199254740993", "-1"),
    "timestamptz": ("'2020-01-01 00:00:00.5+00'", "'1970-01-01 00:00+00'"),
    "date": ("'2020-02-29'", "NULL"),
    "text": ("'2020-02-29'", "'\"\\'"),
    "uuid": ("'550e8400-e29b-41d4-a716-446655440000'", "NULL"),
    "character(5)": ("'ab'", "'550e8'"),
    "integer[]": ("'{1,2}'", "'{}'"),
    "bytea": ("'\\x00ff'", "'\\x41'"),
    "interval": ("'1 day'", "'-1 s'"),
    "time": ("'12:00'", "'23:59:59.000001'"),
    "code_domain": ("5", "NULL"),
    "mood": ("'sad'", "'ok'"),
}
NAMES = list(KINDS)
# Each kind becomes three others, so that integers become texts, truths become texts, and so on.
WALKS = [NAMES, NAMES[::2] + NAMES[1::2], list(reversed(NAMES))]


@pytest.mark.parametrize("default_database", ["postgresql"], indirect=True)
def test_every_kind_becomes_others(default_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON is JSON and holds what Django reads, whatever a column was before and is now."""
    monkeypatch.setattr(readers, "ASK_AGAIN", 0)
    sql("DROP DOMAIN IF EXISTS code_domain")
    sql("DROP TYPE IF EXISTS mood")
    sql("CREATE DOMAIN code_domain AS integer")
    sql("CREATE TYPE mood AS ENUM ('sad', 'ok')")

    def change(kind: str) -> None:
        sql(f"ALTER TABLE thing ALTER COLUMN code TYPE {kind} USING NULL")
        for number, value in enumerate(KINDS[kind], 1):
            sql(f"UPDATE thing SET code = {value} WHERE id = {number}")

    async def main(thing: type[Any]) -> None:
        async with started(*repositories(thing)) as (live, kept):
            await assert_as_django_reads_it(live, kept, thing)
            for how, kind in enumerate(chain(*WALKS)):
                await run(change, kind)
                await assert_as_django_reads_it(live, kept, thing, how % 2)
            await run(change, "integer")  # and at last the server makes the JSON again
            await assert_as_django_reads_it(live, kept, thing)
            assert live.reasons == kept.reasons == {}

    with things() as thing:
        finish(lambda: main(thing))


@pytest.mark.parametrize("default_database", ["postgresql"], indirect=True)
def test_a_column_that_goes_and_comes_back(default_database: str) -> None:
    """While it is away reading fails as Django does; then it is read as what it is now."""

    async def main(thing: type[Any]) -> None:
        async with started(*repositories(thing)) as (live, kept):
            await assert_as_django_reads_it(live, kept, thing)
            await run(sql, "ALTER TABLE thing DROP COLUMN code")
            for reading in (live.fetch(1), live.live.window(0, 2), live.live.row_json(1)):
                with pytest.raises(ColumnMissing):
                    await reading
            with pytest.raises(RefreshFailed):
                await kept.refresh()
            assert kept.get(1)["code"] == 7
            await run(sql, "ALTER TABLE thing ADD COLUMN code text DEFAULT '\"x'")
            await assert_as_django_reads_it(live, kept, thing)

    with things() as thing:
        finish(lambda: main(thing))


@pytest.mark.parametrize("default_database", ["postgresql"], indirect=True)
@pytest.mark.parametrize("materialized", ["", "MATERIALIZED"])
def test_a_view_that_is_replaced(default_database: str, materialized: str) -> None:
    """A view of the same name whose columns are of other types is read as what it is now."""

    def replace(code: str) -> None:
        sql(f"DROP {materialized} VIEW IF EXISTS seen")
        sql(f"CREATE {materialized} VIEW seen AS SELECT id, name, {code} AS code FROM thing")

    async def main(thing: type[Any]) -> None:
        async with started(*repositories(thing)) as (live, kept):
            await assert_as_django_reads_it(live, kept, thing)
            for code in ("name", "code::numeric / 0.3", "to_jsonb(name)", "code = 7", "code"):
                await run(replace, code)
                await assert_as_django_reads_it(live, kept, thing)

    with things() as thing:
        replace("code")
        connections.close_all()
        thing._meta.db_table = "seen"
        finish(lambda: main(thing))


@pytest.mark.parametrize("default_database", ["postgresql"], indirect=True)
@pytest.mark.parametrize("options", [{"DISABLE_SERVER_SIDE_CURSORS": True}, {}], ids=str)
def test_what_the_driver_has_prepared(default_database: str, options: dict[str, Any]) -> None:
    """Statements that psycopg has prepared do not fail when a column is of another type than then."""
    options = {"OPTIONS": {"prepare_threshold": 0}, **options}

    async def main(thing: type[Any]) -> None:
        # With texts in upper case Python makes the JSON, by statements that are prepared.
        live_class, kept_class = repositories(
            thing, queryset=lambda self: thing.objects.annotate(one=models.F("id"))
        )
        async with started(live_class, kept_class, threads=1) as (live, kept):
            for kind in ("integer", "text", "jsonb", "boolean"):
                await run(sql, f"ALTER TABLE thing ALTER COLUMN code TYPE {kind} USING NULL")
                await assert_as_django_reads_it(live, kept, thing)
                await assert_as_django_reads_it(live, kept, thing, 1)

    with default_changed(**options), things() as thing:
        finish(lambda: main(thing))


# SQLite, where a column may hold anything and is read by the type that it was declared with

REBUILT: list[tuple[str, str]] = [
    ("bool", "1"),
    ("integer", "1"),
    ("date", "'2020-02-29'"),
    ("varchar(40)", "'2020-02-29'"),
    ("timestamp", "'2020-02-29 00:00:00'"),
    ("text", "'7,\"admin\":true'"),
    ("real", "0.5"),
    ("blob", "x'00ff'"),
    ("integer", "7"),
]


def test_a_table_of_sqlite_that_is_rebuilt(sqlite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver reads a column by the type that it was declared with, and that may be another one now."""
    monkeypatch.setattr(readers, "ASK_AGAIN", 0)

    def rebuild(kind: str, value: str) -> None:
        sql("DROP TABLE thing")
        sql(f"CREATE TABLE thing (id integer PRIMARY KEY, name varchar(50), code {kind})")
        sql(f"INSERT INTO thing VALUES (1, 'chair', {value}), (2, NULL, NULL)")

    async def main(thing: type[Any]) -> None:
        async with started(*repositories(thing)) as (live, kept):
            for kind, value in REBUILT:
                await run(rebuild, kind, value)
                await assert_as_django_reads_it(live, kept, thing)
                await assert_as_django_reads_it(live, kept, thing, 1)
            assert set(kept.reasons) == {"json_by_database"}

    with things() as thing:
        finish(lambda: main(thing))


FACTORIES: dict[str, Callable[[Any], None]] = {
    "texts": lambda raw: setattr(raw, "text_factory", lambda data: data.decode().upper()),
}


@pytest.mark.parametrize("factory", FACTORIES)
def test_a_connection_of_sqlite_that_reads_in_its_own_way(sqlite: str, factory: str) -> None:
    """What a project has the driver make of texts is what is served."""

    def register() -> None:
        connection.ensure_connection()
        FACTORIES[factory](connection.connection)

    async def main(thing: type[Any]) -> None:
        async with started(*repositories(thing), threads=1) as (live, kept):
            await assert_as_django_reads_it(live, kept, thing)
            await run(register)
            await assert_as_django_reads_it(live, kept, thing)
            assert (await live.fetch(1))["name"] == "CHAIR"

    with default_changed(CONN_MAX_AGE=None), things() as thing:
        finish(lambda: main(thing))
