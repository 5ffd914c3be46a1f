"""JSON that SQLite makes: byte for byte what FastAPI makes of Django's values, or left to Python."""

import asyncio
import datetime as dt
import sqlite3
import tracemalloc
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.db import OperationalError, connections, models, transaction
from django.db.models.expressions import Col
from django.db.models.fields.json import KT
from django.db.models.functions import Lower
from django.test.utils import isolate_apps
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fastapi_django_orm.errors import RefreshFailed
from fastapi_django_orm.reading import loading
from fastapi_django_orm.reading.choosing import choose_reader
from fastapi_django_orm.reading.pacing import Pace
from fastapi_django_orm.reading.sql_json import NotExpressible
from tests.comparing import assert_as_loaded_anew, finish, typed, values
from tests.databases import created, default_changed
from tests.gates import started
from tests.playing import outside
from tests.project.board.models import Author, Everything, Page, Topic
from tests.projects import Project, events
from tests.repositories import declare
from tests.two_ways import same

pytestmark = pytest.mark.usefixtures("sqlite")

EVERY = "".join(map(chr, range(256)))
PLAIN = (
    "key",
    "big",
    "boolean",
    "char",
    "date",
    "moment",
    "file",
    "integer",
    "slug",
    "small",
    "text",
    "time",
)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "big": st.integers(-(2**63), 2**63 - 1),
                "boolean": st.booleans(),
                "char": texts,
                "date": st.dates(),
                "moment": st.datetimes(timezones=st.just(dt.UTC)),
                "file": texts,
                "integer": st.integers(-(2**31), 2**31 - 1),
                "small": st.integers(-(2**15), 2**15 - 1),
                "text": texts,
                "time": st.times(),
                "unique": st.uuids(),
            },
        ),
        max_size=4,
    )
)
def test_any_plain_values(rows: list[dict[str, Any]]) -> None:
    """Whatever Django has written: integers, truth, texts, dates, times, moments and UUIDs."""
    Everything.objects.all().delete()
    Everything.objects.bulk_create([Everything(**row) for row in rows])
    same(Everything.objects.all(), *PLAIN, "unique", "doubled")


@pytest.mark.parametrize(
    "text", [EVERY, '"\\/', "%s %% %(a)s", "\u2028\u2029\ufeff\x7f", "😀題", "{0}", "a\0b"]
)
def test_a_text(text: str) -> None:
    """Control characters, NUL among them, quotes, percent signs and any script are escaped alike."""
    Everything.objects.create(text=text)
    assert same(Everything.objects.filter(text=text), "text") == [{"text": text}]


# What others have written: SQLite keeps anything in any column

DIGITS = "0123456789"
odd_times = st.sampled_from(
    [
        *("2026-02-31", "2026-02-28", "2024-02-29", "2023-02-29", "0000-01-01", "0001-01-01", "9999-12-31"),
        *("2026-1-2", "2026-01-02 ", " 2026-01-02", "2026-01-02T03:04:05", "-2026-01-02", "12026-01-02"),
        *("2026-01-02 03:04:05", "2026-01-02 03:04:05.5", "2026-01-02 03:04:05.000000", "now", "2460000.5"),
        *("2026-01-02 03:04:05.123456", "2026-01-02 03:04:05.999999", "2026-12-31 23:59:59.999999"),
        *("2026-01-02 03:04", "2026-01-02 24:00:00", "2026-01-02 23:59:60", "2026-01-02 03:04:05Z"),
        *("2026-01-02 03:04:05+01:00", "2026-01-02 03:04:05.12345Z", "2026-01-02 03:04:05.1+0100"),
        *("03:04:05", "24:00:00", "03:04:60", "03:04:05.000000", "03:04:05.000001", "3:04:05", "03:04"),
        *("03:04:05.1234567", "03:04:05.12345 ", "03:04:05,123456", "03:04:05.12345x", "infinity", ""),
        *(
            "550e8400e29b41d4a716446655440000",
            "550E8400E29B41D4A716446655440000",
            "550e8400e29b41d4a71644665544000g",
        ),
        *("550e8400-e29b-41d4-a716-446655440000", "{550e8400e29b41d4a716446655440000}", "١٢٣٤-٠١-٠١"),
    ]
)
with_a_nul = st.tuples(odd_times, st.integers(0, 40), texts).map(
    lambda parts: f"{parts[0][: parts[1]]}\0{parts[0][parts[1] :]}{parts[2]}"
)
raw = (
    st.none()
    | st.integers(-(2**63), 2**63 - 1)
    | st.sampled_from([0, 1, 2, 0.0, 1.0, 1.5, 1e300, 20260102])
    | st.floats(allow_nan=False)
    | st.binary(max_size=36)
    | texts
    | odd_times
    | with_a_nul
    | st.text(DIGITS + "-: .", min_size=8, max_size=26)
)


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from([*PLAIN[1:], "unique"]), raw)
@example("moment", "2026-01-02 03:04:05.000000")
@example("date", "2026-02-31")
@example("date", "0000-01-01")
@example("moment", "0000-01-01 00:00:00")
@example("moment", "2026-02-29 00:00:00.000001")
@example("moment", "2026-01-02 03:04:05.12345Z")
@example("boolean", 1.0)
@example("time", "24:00:00")
@example("moment", '2026-01-02 03:04:05\0x",')
@example("moment", "2026-01-02 03:04:05\0123456")
@example("moment", "2026-01-02 03:04:05.123456\0")
@example("moment", "2026-01-02 03:04:05\0.123456")
@example("date", "2026-01-02\0")
@example("time", "03:04:05\0x")
@example("time", "03:04:05.123456\0x")
@example("unique", "550e8400e29b41d4a716446655440000\0")
@example("unique", "550e8400e29b41d4a716446655440\0\0\0")
def test_anything_in_any_column(column: str, value: Any) -> None:
    """Either SQLite makes the JSON of what Django reads there, or it is left to Python and its errors."""
    Everything.objects.all().delete()
    with connections["default"].cursor() as cursor:
        cursor.execute(
            f'INSERT INTO board_everything (key, "{column}") VALUES (%s, %s)', [uuid.uuid4().hex, value]
        )
    queryset = Everything.objects.order_by("pk")
    reader: Any = choose_reader(declare("Rows", Everything, fields=(column,))(), queryset)
    try:
        in_sql = list(reader.read(queryset))
    except (NotExpressible, OperationalError):  # the latter of a text that is no UTF-8
        return
    in_python = [row for chunk in reader.read(queryset, in_python=True) for row in chunk.json]
    assert [row for chunk in in_sql for row in chunk.json] == in_python
    decoded = [chunk.codec.decode(row) for chunk in in_sql for row in chunk.json]
    assert typed(decoded) == typed(values(queryset, column))


def test_one_value_without_a_form_among_many() -> None:
    """It does not change what others look like, and when it has gone SQLite makes the JSON again."""
    Everything.objects.bulk_create(
        [Everything(moment=dt.datetime(2026, 1, n, tzinfo=dt.UTC)) for n in range(1, 9)]
    )
    with connections["default"].cursor() as cursor:
        cursor.execute("UPDATE board_everything SET moment = '2026-01-05 00:00:00.000000' WHERE rowid = 5")

    async def main() -> None:
        rows = declare("Rows", Everything, fields=("key", "moment"))
        async with started(rows) as (kept,):
            assert sorted(row["moment"].day for row in kept.all()) == [*range(1, 9)]
            await assert_as_loaded_anew(kept)

    finish(main)


# What is left to Python


@pytest.mark.parametrize("field", ["binary", "decimal", "duration", "floating", "ip", "json"])
def test_other_types_are_left_to_python(field: str) -> None:
    """Numbers with a fraction, bytes, durations, addresses and JSON."""
    some: dict[str, Any] = {
        "binary": b"\x00\x7f",
        "decimal": "1.500000",
        "duration": dt.timedelta(days=-1, microseconds=1),
        "floating": 0.1,
        "ip": "::1",
        "json": {"a": [1.5, None]},
    }
    Everything.objects.create(**{field: some[field]})
    assert same(Everything.objects.all(), "key", field, in_sql=False)


class Shouted(models.CharField):  # type: ignore[type-arg]
    """Makes something else of what is stored."""

    def from_db_value(self, value: Any, *_: Any) -> Any:
        return value and value.upper()


class Cry(models.Model):
    """Has such a column."""

    word = Shouted(max_length=20)

    class Meta:
        app_label = "postgresql_only"

    def __str__(self) -> str:
        return str(self.word)


def test_a_field_that_converts_is_left_to_python() -> None:
    """What it makes is what is served."""
    with created(Cry):
        Cry.objects.create(word="help")
        assert same(Cry.objects.all(), in_sql=False) == [{"id": 1, "word": "HELP"}]


class Loud(models.CharField):  # type: ignore[type-arg]
    """Is selected by way of a function."""

    def select_format(self, compiler: Any, sql: str, params: Any) -> tuple[str, Any]:
        return f"UPPER({sql})", params


class Starred(Col):
    """A column with a parameter."""

    def as_sql(self, compiler: Any, connection: Any) -> tuple[str, list[Any]]:
        sql, params = super().as_sql(compiler, connection)
        return f"replace({sql}, %s, '*')", [*params, "e"]


class Masked(models.TextField):  # type: ignore[type-arg]
    """Is selected as such."""

    def get_col(self, alias: str, output_field: Any = None) -> Starred:
        return Starred(alias, self, output_field or self)


class Call(models.Model):
    """Has columns that are selected in ways of their own."""

    loud = Loud(max_length=20)
    masked = Masked()

    class Meta:
        app_label = "postgresql_only"

    def __str__(self) -> str:
        return str(self.loud)


def test_a_field_that_is_selected_in_a_way_of_its_own_is_left_to_python() -> None:
    """What the database makes of it is what is served."""
    with created(Call):
        Call.objects.create(loud="help", masked="here")
        assert same(Call.objects.all(), "id", "loud", in_sql=False) == [{"id": 1, "loud": "HELP"}]
        assert same(Call.objects.all(), "id", "masked", in_sql=False) == [{"id": 1, "masked": "h*r*"}]
        assert same(Call.objects.all(), "id") == [{"id": 1}]


class Made(models.Model):
    """Has texts that SQLite's functions of JSON make."""

    data = models.JSONField()
    tags = models.GeneratedField(
        expression=KT("data__tags"), output_field=models.TextField(), db_persist=False
    )
    kept = models.GeneratedField(
        expression=KT("data__tags"), output_field=models.TextField(), db_persist=True
    )
    array = models.GeneratedField(
        expression=models.Func(models.F("data"), function="json_array"),
        output_field=models.CharField(max_length=90),
        db_persist=False,
    )

    class Meta:
        app_label = "postgresql_only"

    def __str__(self) -> str:
        return str(self.tags)


def test_a_text_that_is_made_of_json() -> None:
    """It is a text all the same, whether it is stored or made when it is read."""
    with created(Made):
        for data in ({"tags": ["a"]}, {"tags": "x"}, {"tags": {'a"': None}}, {}):
            Made.objects.create(data=data)
        rows = same(Made.objects.all(), "id", "tags", "kept")
        assert [row["tags"] for row in rows] == ['["a"]', "x", '{"a\\"":null}', None]
        same(Made.objects.all(), "id", "tags", "array")


class Foreign(models.Model):
    """A table that others have made."""

    number = models.IntegerField(null=True)
    text = models.TextField(null=True)
    char = models.CharField(max_length=20, null=True)
    boolean = models.BooleanField(null=True)
    date = models.DateField(null=True)
    moment = models.DateTimeField(null=True)
    time = models.TimeField(null=True)

    class Meta:
        app_label = "postgresql_only"
        managed = False

    def __str__(self) -> str:
        return str(self.pk)


@contextmanager
def foreign(field: str, declared: str, value: Any) -> Iterator[None]:
    """It, with a row of this value in a column of this type."""
    table, names = Foreign._meta.db_table, [each.column for each in Foreign._meta.concrete_fields]
    columns = [f'"{name}" {declared}' if name == field else f'"{name.upper()}"' for name in names]
    with connections["default"].cursor() as cursor:
        cursor.execute(f"CREATE TABLE {table} ({', '.join(columns)})")
        try:
            cursor.execute(f"INSERT INTO {table} (id, {field}) VALUES (1, %s)", [value])
            yield
        finally:
            cursor.execute(f"DROP TABLE {table}")


AT = "2026-01-02 03:04:05"


@pytest.mark.parametrize(
    ("field", "declared", "value", "in_sql"),
    [
        ("number", "bool", 1, False),
        ("text", "datetime", AT, False),
        ("char", "DATE", "2026-01-02", False),
        ("char", "time", "03:04:05", False),
        ("date", "datetime", "2026-01-02", False),
        ("moment", "time", "2026-01-02 03:04:05", False),
        ("text", "Timestamp(6) NOT NULL", AT, False),
        ("number", "", 5, True),
        ("number", "INTEGER UNSIGNED", 5, True),
        ("text", "varchar(20)", "a", True),
        ("boolean", "boolean", 1, True),
        ("boolean", "Bool NOT NULL", 1, True),
        ("date", "text", "2026-01-02", True),
        ("moment", "TIMESTAMP", AT, True),
        ("moment", "char(30)", AT, True),
        ("time", "Time", "03:04:05", True),
    ],
)
def test_what_a_column_was_declared_as(field: str, declared: str, value: Any, in_sql: bool) -> None:
    """Django's values go by it, and not by the field."""
    with foreign(field, declared, value):
        same(Foreign.objects.all(), "id", field, in_sql=in_sql)


@pytest.mark.parametrize(
    ("field", "name", "value", "expected"),
    [
        ("char", "varchar", "a", "A"),
        ("date", "date", "2026-01-02", dt.date(2027, 1, 2)),
        ("boolean", "bool", 1, False),
    ],
)
def test_a_type_that_the_project_has_the_driver_read(
    monkeypatch: pytest.MonkeyPatch, field: str, name: str, value: Any, expected: Any
) -> None:
    """What it makes of it is what is served, Django's own way of reading replaced too."""
    monkeypatch.setitem(sqlite3.converters, name.upper(), lambda data: expected)
    with foreign(field, f"{name}(20)", value):
        assert same(Foreign.objects.all(), "id", field, in_sql=False) == [{"id": 1, field: expected}]


def test_a_view() -> None:
    """Its columns are those of its tables, or nothing is said of them."""
    table = Foreign._meta.db_table
    with connections["default"].cursor() as cursor:
        cursor.execute("CREATE TABLE below (id integer, flag bool, number integer, at datetime)")
        cursor.execute(
            f"CREATE VIEW {table} AS SELECT id, flag AS number, at AS text, number + 1 AS boolean,"
            " at AS moment, json_array(number) AS char FROM below"
        )
        try:
            cursor.execute("INSERT INTO below VALUES (1, 1, 0, %s)", [AT])
            same(Foreign.objects.all(), "id", "moment", "boolean")
            for field in ("number", "text"):
                same(Foreign.objects.all(), "id", field, in_sql=False)
            assert same(Foreign.objects.all(), "id", "char") == [{"id": 1, "char": "[0]"}]
        finally:
            cursor.execute(f"DROP VIEW {table}")
            cursor.execute("DROP TABLE below")


def test_other_queries_are_left_to_python() -> None:
    """Annotations and distinct rows are; filters, joins and parts of the list are not."""
    author = Author.objects.create(name='A"')
    Topic.objects.create(comment="by A", author=author)
    Topic.objects.create(comment="by nobody")
    rows = same(Topic.objects.all(), "id", "author__name", "author", "comment")
    assert [row["author__name"] for row in rows] == ['A"', None]
    same(Topic.objects.filter(comment__contains="%"), "id")
    same(Topic.objects.annotate(low=Lower("comment")), "id", "low", in_sql=False)
    same(Topic.objects.distinct(), "id", in_sql=False)


@pytest.mark.parametrize("kind", [models.IntegerField, models.DateTimeField])
def test_a_table_of_many_columns(kind: Any) -> None:
    """As many as SQLite takes."""
    fields = {f"f{number}": kind(null=True) for number in range(1990)}
    meta = type("Meta", (), {"app_label": "postgresql_only"})
    with isolate_apps("tests"):
        wide: Any = type("Wide", (models.Model,), {"__module__": __name__, "Meta": meta, **fields})
    some = 5 if kind is models.IntegerField else dt.datetime(2026, 1, 2, 3, 4, 5, 6, dt.UTC)
    with created(wide):
        wide.objects.create(f7=some, f1989=some)
        (row,) = same(wide.objects.all())
    assert [name for name, value in row.items() if value == some] == ["f7", "f1989"]


def test_keys_of_every_kind() -> None:
    """SQLite makes the JSON of keys as Django has them: a text, a UUID, a number."""
    Page.objects.create(slug='it"s', address="here")
    Author.objects.create(name="a")
    Everything.objects.create()
    for model, key in ((Page, "slug"), (Author, "id"), (Everything, "key")):
        (row,) = same(model._default_manager.all(), key)
        assert row[key] == model._default_manager.get().pk


def test_inside_a_transaction() -> None:
    """Python reads it there, as with other databases."""
    Topic.objects.create(comment="a")
    with transaction.atomic():
        same(Topic.objects.all(), "id", "comment", in_sql=False)


@pytest.mark.parametrize(
    ("more", "sent", "in_sql"),
    [
        ("USE_TZ = True", "2020-01-01T01:00:00.000001Z", True),
        ("USE_TZ = False", "2020-01-01T01:00:00.000001", True),
        ("USE_TZ = False\nTIME_ZONE = 'Asia/Tokyo'", "2020-01-01T01:00:00.000001", True),
        (
            "USE_TZ = True\nDATABASES['default']['TIME_ZONE'] = 'Asia/Tokyo'",
            "2020-01-01T10:00:00.000001+09:00",
            False,
        ),
    ],
)
def test_time_zones(project: Project, more: str, sent: str, in_sql: bool) -> None:
    """Moments have a zone where the project has them, and Python reads what is stored in another zone."""
    project.append("config/settings.py", f"{more}\n")
    project.write(
        "bbs/models.py",
        """
        from django.db import models


        class Moment(models.Model):
            at = models.DateTimeField(null=True)
        """,
    )
    output = project.python(
        """
        import asyncio, datetime as dt, json, os
        os.environ["DJANGO_SETTINGS_MODULE"] = "config.settings"
        import django
        django.setup()
        from django.conf import settings
        from django.db import connection
        from fastapi import FastAPI
        from fastapi_django_orm import CachedRepository, DjangoORM
        from bbs.models import Moment

        class Moments(CachedRepository):
            model = "bbs.Moment"

        with connection.schema_editor() as editor:
            editor.create_model(Moment)
        zone = dt.UTC if settings.USE_TZ else None
        for hour in range(24):
            Moment.objects.create(at=dt.datetime(2020, 1, 1, hour, 0, 0, hour, tzinfo=zone))
        expected = list(Moment.objects.values())
        connection.close()

        async def main():
            async with DjangoORM(repositories=[Moments]).lifespan(FastAPI()):
                moments = await Moments.current()
                assert list(moments.all()) == expected
                sent = json.loads(moments.snapshot.json)["moments"][1]["at"]
                print(json.dumps({"sent": sent, "in_sql": bool(moments._reader.in_sql)}))

        asyncio.run(main())
        """
    )
    found = [event for event in events(output) if "sent" in event]
    assert found == [{"sent": sent, "in_sql": in_sql}]


# How the rows come


def add_many(rows: int) -> None:
    with connections["default"].cursor() as cursor:  # as instances they would take longer than all the rest
        cursor.execute(
            "INSERT INTO board_topic (comment, tags, created_at)"
            " WITH RECURSIVE counter(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM counter WHERE n < %s)"
            " SELECT 'a topic of some length, as people write them: ' || n, '[]', '2026-01-01 00:00:00'"
            " FROM counter",
            [rows],
        )


def test_a_load_holds_few_rows_at_a_time() -> None:
    """At its most it takes little more memory than the snapshot that it leaves."""

    async def main() -> float:
        async with started(declare(fields=("id", "comment"))) as (topics,):
            await outside(lambda: add_many(20_000))
            tracemalloc.start()
            try:
                await topics.refresh()
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            return peak / topics.snapshot.size

    assert asyncio.run(main()) < 2.5  # all rows at once: 4.3


@pytest.mark.parametrize("field", ["comment", "tags"], ids=["by SQLite", "by Python"])
def test_a_load_that_rests_keeps_no_writer_waiting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, field: str
) -> None:
    """Without WAL nobody can commit while rows are being read, so a load does not rest before it has them."""
    file = tmp_path / "rests.sqlite3"
    rests = 0

    def rest(pace: Pace) -> None:
        nonlocal rests
        with closing(sqlite3.connect(file, timeout=0)) as writer:
            writer.execute("BEGIN EXCLUSIVE")  # "database is locked" if anybody reads
        rests += 1

    async def main() -> None:
        async with started(declare(fields=("id", field))) as (topics,):
            await outside(lambda: add_many(3000))
            monkeypatch.setattr(Pace, "rest", rest)
            await topics.refresh()
            assert len(topics) == 3000

    with default_changed(migrate=True, NAME=file, OPTIONS={"transaction_mode": "IMMEDIATE"}):
        asyncio.run(main())
    assert rests


def test_a_load_that_fails_half_way_leaves_no_rows_open(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Others can write at once, though somebody still holds the error."""
    file = tmp_path / "fails.sqlite3"

    def broken(page: Any, known: Any) -> Any:
        raise ValueError("of the first page")

    async def main() -> None:
        async with started(declare(fields=("id", "comment"))) as (topics,):
            await outside(lambda: add_many(3000))
            monkeypatch.setattr(loading, "known_page", broken)
            with pytest.raises(RefreshFailed) as error:
                await topics.refresh()
            with closing(sqlite3.connect(file, timeout=0)) as writer:
                writer.execute("BEGIN EXCLUSIVE")
            assert "first page" in str(error.value.__cause__)

    with default_changed(migrate=True, NAME=file, OPTIONS={"transaction_mode": "IMMEDIATE"}):
        asyncio.run(main())
