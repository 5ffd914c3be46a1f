"""JSON that PostgreSQL makes: byte for byte what FastAPI makes of Django's values, or left to Python."""

import datetime as dt
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.conf import settings as django_settings
from django.contrib.postgres import fields as postgres
from django.db import DataError, connections, models, transaction
from django.db.backends.postgresql import psycopg_any
from django.db.backends.signals import connection_created
from django.db.models import F, QuerySet, Value
from django.db.models.functions import Lower
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.adapt import Buffer, Loader
from psycopg.types.datetime import TimestamptzLoader
from psycopg.types.numeric import FloatLoader

from fastapi_django_orm import CachedRepository, Repository, atomic, run
from fastapi_django_orm.reading.postgresql_json import DatabaseJSON
from fastapi_django_orm.reading.reader_factory import choose_reader
from tests.conftest import add_database
from tests.project import router
from tests.project.board.models import Author, Entry, Everything, Poem, Seat, Topic
from tests.support.comparing import assert_as_loaded_anew, finish, sent_by_fastapi, values
from tests.support.databases import created
from tests.support.gates import started
from tests.support.projects import Project, events
from tests.support.repositories import declare
from tests.support.repositories import read as loaded
from tests.support.servers import PostgreSQL
from tests.support.two_ways import Ways, same


@pytest.fixture(params=["postgresql"])
def database(request: pytest.FixtureRequest, _databases: Any) -> Iterator[str]:
    """PostgreSQL with empty tables. Its alias."""
    alias = _databases(request.param)
    router.choose(alias)
    for model in (Entry, Everything, Topic, Author, Poem, Seat):
        model._default_manager.using(alias).all().delete()
    yield alias
    connections.close_all()
    router.choose("default")


pytestmark = pytest.mark.usefixtures("database")


def execute(sql: str, *params: Any) -> None:
    """Write what Django would not."""
    with connections[router.chosen].cursor() as cursor:
        cursor.execute(sql, params or None)


# Values of the types that it does

EVERY = "".join(map(chr, range(1, 256)))
texts = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=30)
floats = st.floats(allow_nan=False, allow_infinity=False)
decimals = st.decimals(-(10**8), 10**8, places=3)
moments = st.datetimes(timezones=st.just(dt.UTC))

PLAIN = ("id", "number", "moment", "ratio", "price", "flag", "day", "word", "token", "shown", "writer_id")


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "number": st.integers(-(2**31), 2**31 - 1),
                "moment": moments,
                "ratio": floats,
                "price": decimals,
                "flag": st.booleans(),
                "day": st.dates(),
                "word": texts,
                "token": st.uuids(),
            },
        ),
        max_size=4,
    )
)
def test_any_plain_values(rows: list[dict[str, Any]]) -> None:
    """Integers, moments, floats, decimals, truth, dates, texts and UUIDs are the same in both ways."""
    Entry.objects.all().delete()
    Entry.objects.bulk_create([Entry(pk=number, **row) for number, row in enumerate(rows)])
    ways = Ways(Entry.objects.all())
    finish(ways.check_bytes)


FLOATS = [
    *(0.0, -0.0, 1.0, -1.5, 0.1, 1 / 3, 123456789.125, 1e14, 999999999999999.9),
    *(0.0001, 0.00011, -0.0001, 5e-05),
    *(1e15, 1e16, 1e-5, 1e22, 1e300, 5e-324, 2.2250738585072014e-308, 1.7976931348623157e308),
    *(float("inf"), -float("inf"), float("nan"), 9007199254740993.0),
]


@pytest.mark.parametrize("value", FLOATS, ids=repr)
def test_a_float(value: float) -> None:
    """Each float is written as pydantic writes it; the shapes that PostgreSQL writes otherwise by Python."""
    Entry.objects.create(pk=1, ratio=value)
    plain = value == 0 or 1e-4 <= abs(value) < 1e15
    ways = Ways(Entry.objects.all())
    finish(ways.check_bytes)
    assert ways.in_sql is plain


@pytest.mark.parametrize(
    "text", [EVERY, '"\\/', "%s %% %(a)s", "\u2028\u2029\ufeff\x7f", "😀題", "</a>", "{0}"]
)
def test_a_text(text: str) -> None:
    """Control characters, quotes, backslashes, percent signs and any script are escaped alike."""
    Entry.objects.create(pk=1, word=text[:100])
    Entry.objects.create(pk=2, word=text[100:200])
    Entry.objects.create(pk=3, word=text[200:])
    same(Entry.objects.all())
    assert same(Entry.objects.filter(word=text[:100]), "word")[0] == {"word": text[:100]}


MOMENTS = [
    "0001-01-01 00:00+00",
    "0999-12-31 23:59:59.999999+00",
    "1883-11-18 12:03:57.5+00",
    "2000-01-01 00:00:00.000001+00",
    "2000-01-01 00:00:00.100000+00",
    "2024-02-29 23:59:59+14:59",
    "9999-12-31 23:59:59.999999+00",
    *(f"2026-01-02 03:04:05.{'123456'[:digits]}+00" for digits in range(1, 7)),
    *("2026-01-02 03:04:10+00", "2026-01-02 03:04:10.00001+00", "1969-12-31 23:59:59.9+00"),
]


def test_a_moment() -> None:
    """Moments of every year that Python has, with and without parts of a second."""
    for number, text in enumerate(MOMENTS):
        execute("INSERT INTO board_entry (id, moment, shown) VALUES (%s, %s, true)", number, text)
    same(Entry.objects.all(), "moment")


@pytest.mark.parametrize("column", ["moment", "day"])
@pytest.mark.parametrize("text", ["infinity", "-infinity", "10000-01-01", "0044-03-15 BC"])
def test_a_time_beyond_pythons_calendar(column: str, text: str) -> None:
    """A moment that Django itself cannot read is the same error from a repository, and not a wrong row."""
    execute(f"INSERT INTO board_entry (id, {column}, shown) VALUES (1, %s, true)", text)
    try:
        list(Entry.objects.values())
    except Exception as error:
        raised = type(error)
    else:
        pytest.fail("Django reads it")
    with pytest.raises(raised):
        loaded(declare("Entries", Entry), lambda entries: entries.all())


def test_a_time_of_day() -> None:
    """A time is written with the parts of a second that it has."""
    for text in ("00:00", "12:00:00.5", "23:59:59.999999", "00:00:00.000001", "09:08:07.100000"):
        execute("INSERT INTO board_everything (key, time) VALUES (gen_random_uuid(), %s)", text)
    same(Everything.objects.all(), "key", "time")


def test_a_time_at_midnights_other_end() -> None:
    """24:00, which PostgreSQL keeps and Python has not, is Django's error and not a wrong row."""
    execute("INSERT INTO board_everything (key, time) VALUES (gen_random_uuid(), '24:00')")
    with pytest.raises(DataError):
        list(Everything.objects.values("time"))
    with pytest.raises(DataError):
        loaded(declare("All", Everything, fields=("time",)), lambda rows: rows.all())


def test_whole_numbers() -> None:
    """The ends of each size of integer, generated ones too."""
    for number, (big, integer, small) in enumerate(
        [
            (2**63 - 1, 2**30 - 1, 2**15 - 1),
            (-(2**63), -(2**30), -(2**15)),
            (2**53 + 1, 0, 0),
            (None, None, None),
        ]
    ):
        Everything.objects.create(char=str(number), big=big, integer=integer, small=small)
    rows = same(Everything.objects.all(), "key", "big", "integer", "small", "doubled")
    assert {type(row["big"]) for row in rows} == {int, type(None)}


class Number(models.Model):
    """Numbers of many digits, in a table that only PostgreSQL gets."""

    small = models.DecimalField(max_digits=40, decimal_places=20, null=True)
    zero = models.DecimalField(max_digits=10, decimal_places=0, null=True)

    class Meta:
        app_label = "postgresql_only"

    def __str__(self) -> str:
        return str(self.small)


DECIMALS = [
    ("0", True),
    ("1", True),
    ("-1.5", True),
    ("0.000001", True),
    ("1234567890.12345678901234567890", True),
    ("0.0000009", False),
    ("-0.00000000000000000001", False),
    ("NaN", True),
]


@pytest.mark.parametrize(("text", "in_sql"), DECIMALS)
def test_a_decimal(text: str, in_sql: bool) -> None:
    """A decimal has all its places, an exponent where Python gives it one, and NaN its name."""
    with created(Number):
        execute("ALTER TABLE postgresql_only_number ALTER small TYPE numeric")
        execute("INSERT INTO postgresql_only_number (small, zero) VALUES (%s, 1.5)", text)
        same(Number.objects.all(), "id", "small", in_sql=in_sql)
        same(Number.objects.all(), "id", "zero")


@pytest.mark.parametrize("text", ["0.0000000", "0.000000", "1e30", "Infinity", "-Infinity", "100e-7"])
def test_a_decimal_of_any_scale(text: str) -> None:
    """A numeric column without a scale keeps zeros, huge numbers and infinities as Python writes them."""
    with created(Number):
        execute("ALTER TABLE postgresql_only_number ALTER small TYPE numeric")
        execute("INSERT INTO postgresql_only_number (small) VALUES (%s)", text)
        ways = Ways(Number.objects.all(), "id", "small")
        finish(ways.check_bytes)


# Types that are left to Python


@pytest.mark.parametrize("field", ["binary", "duration", "ip", "json"])
def test_what_postgresql_would_write_otherwise_is_left_to_python(field: str) -> None:
    """Bytes, durations, addresses and JSON are read by Django and encoded by pydantic."""
    some: dict[str, Any] = {
        "binary": b"\x00\x7f\xc3\xa9",
        "duration": dt.timedelta(days=-1, microseconds=1),
        "ip": "::ffff:1.2.3.4",
        "json": {"b": 1, "a": [1.5, 1e-30, None, "\x7f"]},
    }
    Everything.objects.create(**{field: some[field]})
    Everything.objects.create()
    rows = same(Everything.objects.all(), "key", field, in_sql=False)
    assert some[field] in [row[field] for row in rows]


class Special(models.Model):
    """Types of PostgreSQL's own."""

    numbers = postgres.ArrayField(postgres.ArrayField(models.IntegerField()), null=True)
    words = postgres.ArrayField(models.TextField(), null=True)
    pairs = postgres.HStoreField(null=True)
    fixed = models.TextField(null=True)
    loose = models.TextField(null=True)
    real = models.FloatField(null=True)
    naive = models.DateTimeField(null=True)

    class Meta:
        app_label = "postgresql_only"

    def __str__(self) -> str:
        return str(self.pk)


@pytest.mark.parametrize("field", ["numbers", "words", "pairs", "fixed", "loose", "real"])
def test_types_of_postgresqls_own_are_left_to_python(field: str) -> None:
    """Arrays, hstore, char(n), citext and real are read as Django reads them."""
    execute("CREATE EXTENSION IF NOT EXISTS hstore")
    execute("CREATE EXTENSION IF NOT EXISTS citext")
    connections[router.chosen].close()  # the next one knows the types
    with created(Special):
        for column, kind in (("fixed", "char(5)"), ("loose", "citext"), ("real", "real")):
            execute(f"ALTER TABLE postgresql_only_special ALTER {column} TYPE {kind}")
        some = {
            "numbers": [[1, 2], [3, 4]],
            "words": ['a"b', "é,{}", "NULL"],
            "fixed": "ab",
            "loose": "Ab",
            "real": 0.1,
        }
        if field == "pairs":  # which Django writes only where its app for PostgreSQL is installed
            execute("INSERT INTO postgresql_only_special (pairs) VALUES ('a=>NULL, b=>1')")
        else:
            Special.objects.create(**{field: some[field]})
        Special.objects.create()
        same(Special.objects.all(), "id", field, in_sql=False)


def test_ranges_are_as_fastapi_takes_them() -> None:
    """A range, which pydantic has no JSON for, is an error that says so, or bytes that FastAPI would send."""

    class Span(models.Model):
        span = postgres.IntegerRangeField()

        class Meta:
            app_label = "postgresql_only"

        def __str__(self) -> str:
            return str(self.span)

    with created(Span):
        Span.objects.create(span=(1, 5))
        with pytest.raises(ValueError, match="cannot be sent as JSON"):
            loaded(declare("Spans", Span), lambda spans: spans.snapshot.json)


# Columns and names


class Größe(models.Model):
    """Columns whose names SQL has to quote."""

    höhe = models.IntegerField(db_column="he'ight {}")
    select = models.TextField(db_column="sel'ect {0} \\ ;--", default="x")

    class Meta:
        app_label = "postgresql_only"
        db_table = "gr'öße {1}"

    def __str__(self) -> str:
        return self.select


def test_names_that_need_quotes() -> None:
    """Tables and columns with quotes, braces and backslashes in their names, fields in any script."""
    with created(Größe):
        Größe.objects.create(höhe=5)
        assert same(Größe.objects.all()) == [{"id": 1, "höhe": 5, "select": "x"}]


def test_relations_columns() -> None:
    """Columns of a related row come along, null where there is none."""
    author = Author.objects.create(name='A"')
    Topic.objects.create(comment="by A", author=author)
    Topic.objects.create(comment="by nobody")
    rows = same(Topic.objects.all(), "id", "author__name", "author", "comment")
    assert [row["author__name"] for row in rows] == ['A"', None]


@pytest.mark.parametrize("name", ["moment__year", "day__month", "moment__date", "writer__name", "pk"])
def test_a_part_of_a_column(name: str) -> None:
    """What `.values()` takes for a name (a date's year, the key as pk) is a field as well."""
    Entry.objects.create(pk=1, moment=dt.datetime(2020, 1, 2, tzinfo=dt.UTC), day=dt.date(2020, 1, 2))
    ways = Ways(Entry.objects.all(), "id", name)
    finish(ways.check_bytes)


def test_nothing_but_null() -> None:
    """Rows of nulls."""
    Entry.objects.create(pk=1)
    assert same(Entry.objects.all(), "number", "moment", "word") == [
        dict.fromkeys(["number", "moment", "word"])
    ]


def test_no_rows() -> None:
    """A table without rows, and a query that can have none."""
    assert same(Entry.objects.all()) == []
    assert loaded(declare("E", Entry, queryset=lambda self: Entry.objects.none()), lambda e: e.all()) == ()
    assert loaded(declare("F", Entry, queryset=lambda self: Entry.objects.filter(pk__in=[])), len) == 0


def test_filters_with_parameters() -> None:
    """A query's own parameters, percent signs in them too, reach the database."""
    Entry.objects.create(pk=1, word="100 % 's")
    Entry.objects.create(pk=2, word="100")
    assert [row["id"] for row in same(Entry.objects.filter(word__contains="% '"))] == [1]
    assert [row["id"] for row in same(Entry.objects.filter(pk__in=[2], moment=None))] == [2]


def test_other_queries_are_left_to_python() -> None:
    """Annotations, own ways of iterating, fields that convert, extra columns and composite keys."""
    Entry.objects.create(pk=1, word="W")
    Seat.objects.create(row=1, number=2, guest="A")
    Poem.objects.create(words=["to", "be"])

    class Own(QuerySet[Any, Any]):
        def iterator(self, *args: Any, **options: Any) -> Iterator[Any]:
            return super().iterator(*args, **options)

    left: Sequence[QuerySet[Any, Any]] = (
        Entry.objects.annotate(lower=Lower("word")),
        Entry.objects.annotate(double=F("number") * 2),
        Entry.objects.annotate(one=Value(1)),
        Entry.objects.distinct(),
        Own(Entry),
        Poem.objects.all(),
        Seat.objects.all(),
    )
    for queryset in left:
        same(queryset, in_sql=False)


def test_two_repositories_of_one_model_do_not_share_what_they_know() -> None:
    """Fields and filters of one repository do not show in another's rows."""
    Entry.objects.bulk_create([Entry(pk=n, number=n) for n in range(3)])
    assert same(Entry.objects.filter(number=1), "number") == [{"number": 1}]
    assert same(Entry.objects.filter(number=2), "id") == [{"id": 2}]


# A value that cannot be expressed, among thousands that can


def test_one_value_without_a_form_among_many() -> None:
    """Wherever in a long list such a value stands, the whole list is read again by way of Python."""
    Entry.objects.bulk_create([Entry(pk=n, ratio=1.5) for n in range(1200)])
    for place in (0, 600, 1199):
        Entry.objects.update(ratio=1.5)
        Entry.objects.filter(pk=place).update(ratio=1e-7)
        rows = loaded(declare("Entries", Entry), lambda entries: entries.all())
        assert [row["ratio"] for row in rows] == [1e-7 if n == place else 1.5 for n in range(1200)]


def test_one_value_without_a_form_inside_a_transaction() -> None:
    """Reading such a list inside of a transaction leaves the transaction in order."""
    Entry.objects.bulk_create([Entry(pk=n, ratio=1.5, word="w" * 90) for n in range(20_000)])
    Entry.objects.filter(pk=0).update(ratio=1e-7)

    class Entries(Repository):
        model = Entry
        ordering = ("pk",)

    async def main() -> None:
        async with started(Entries) as (entries,), atomic(using=router.chosen):
            body = json.loads(await entries.live.window(0, None))
            assert len(body["entries"]) == 20_000
            assert (await entries.fetch(0))["ratio"] == 1e-7

    finish(main)


def test_a_row_that_gets_such_a_value_and_loses_it_again() -> None:
    """Refreshed by key or whole, the rows are right before, with and after it."""
    Entry.objects.bulk_create([Entry(pk=n, ratio=1.5) for n in range(5)])

    async def main() -> None:
        async with started(declare("Entries", Entry, indexes=("ratio",))) as (entries,):
            for number, ratio in enumerate([1e-7, 2.5, float("inf"), None, 3.0, 1e300]):
                await Entry.objects.filter(pk=3).aupdate(ratio=ratio)
                await entries.refresh(*([3] if number % 3 else []))
                assert entries.get(3)["ratio"] == ratio
                await assert_as_loaded_anew(entries, expected=Entry.objects.order_by("pk"))

    finish(main)


# Settings of the server, the connection and the project


@pytest.fixture(scope="module")
def _apart(postgresql: PostgreSQL) -> None:
    add_database("apart", postgresql.create_database("apart"))
    router.choose("default")


@contextmanager
def apart(setting: str = "", **options: Any) -> Iterator[None]:
    """A database of its own, with this setting and these options, as what Django uses."""
    before, router.chosen = router.chosen, "apart"
    config = django_settings.DATABASES["apart"]
    try:
        if setting:
            execute(f"ALTER DATABASE apart SET {setting}")
        use("apart", {**config, **options})
        Entry.objects.create(
            pk=1,
            moment=dt.datetime(2020, 2, 3, 4, 5, 6, 7, dt.UTC),
            day=dt.date(2020, 2, 3),
            ratio=1 / 3,
            price=1,
            word="é\\'",
            flag=True,
        )
        Entry.objects.create(pk=2, ratio=3.00000000001, moment=dt.datetime(2020, 8, 3, tzinfo=dt.UTC))
        yield
    finally:
        use("apart", config)
        Entry.objects.all().delete()
        execute("ALTER DATABASE apart RESET ALL")
        connections["apart"].close()
        router.choose(before)


def use(alias: str, config: dict[str, Any]) -> None:
    """Let the alias have these settings from now on."""
    connections[alias].close()
    del connections[alias]
    django_settings.DATABASES[alias] = config
    connections.__dict__.pop("settings", None)  # a cached property; Django's own tests do the same
    connections._settings = None  # type: ignore[attr-defined]


SERVER_SETTINGS = [
    "DateStyle = 'ISO, DMY'",  # psycopg itself reads no other style than ISO
    "IntervalStyle = 'sql_standard'",
    "TimeZone = 'Asia/Tokyo'",
    "standard_conforming_strings = off",
    "bytea_output = 'escape'",
    "extra_float_digits = 0",
    "extra_float_digits = 3",
    "extra_float_digits = -10",
    "client_encoding = 'LATIN1'",
    "quote_all_identifiers = on",
]


@pytest.mark.parametrize("setting", SERVER_SETTINGS)
@pytest.mark.usefixtures("_apart")
def test_settings_of_the_database(setting: str) -> None:
    """How a database is told to write dates and floats does not show in the JSON."""
    with apart(setting):
        ways = Ways(Entry.objects.all())
        finish(ways.check_bytes)


@pytest.mark.parametrize(
    ("options", "in_sql"),
    [
        ({"OPTIONS": {"server_side_binding": True}}, True),
        ({"DISABLE_SERVER_SIDE_CURSORS": True}, True),
        ({"TIME_ZONE": "Asia/Tokyo"}, False),
        ({"TIME_ZONE": "UTC"}, False),
    ],
    ids=str,
)
@pytest.mark.usefixtures("_apart")
def test_settings_of_the_connection(options: dict[str, Any], in_sql: bool) -> None:
    """Server-side binding changes nothing; moments in another zone than UTC are left to Python."""
    with apart(**options):
        rows = same(Entry.objects.filter(word__contains="\\"), in_sql=in_sql)
        assert rows[0]["moment"] == dt.datetime(2020, 2, 3, 4, 5, 6, 7, dt.UTC)


class Cut(Loader):
    """Reads texts, and shows a part of them."""

    def load(self, data: Buffer) -> str:
        return bytes(data).decode()[:1]


@pytest.mark.parametrize(
    ("kind", "loader", "fields", "others"),
    [
        ("numeric", FloatLoader, ("price",), ("ratio", "word")),
        ("varchar", Cut, ("word",), ("price", "moment")),
        ("text", Cut, ("price",), ()),  # the JSON itself is one
    ],
)
@pytest.mark.usefixtures("_apart")
def test_loaders_of_the_project(
    kind: str, loader: type[Loader], fields: tuple[str, ...], others: tuple[str, ...]
) -> None:
    """What the project has psycopg make of a type is what is served; other types stay in SQL."""

    def register(connection: Any, **_: Any) -> None:
        connection.connection.adapters.register_loader(kind, loader)

    connection_created.connect(register)
    try:
        with apart():
            same(Entry.objects.all(), "id", *fields, in_sql=False)
            if others:
                same(Entry.objects.all(), "id", *others)
    finally:
        connection_created.disconnect(register)


@pytest.mark.usefixtures("_apart")
def test_a_loader_of_moments_of_the_project() -> None:
    """Django's own loader of moments may have been replaced by one that says something else."""

    class Whole(psycopg_any.BaseTzLoader):
        timezone = dt.UTC

        def load(self, data: Buffer) -> Any:
            return super().load(data).replace(microsecond=0)

    def register(connection: Any, **_: Any) -> None:
        connection.connection.adapters.register_loader("timestamptz", Whole)

    connection_created.connect(register)
    try:
        with apart():
            rows = same(Entry.objects.all(), "id", "moment", in_sql=False)
            assert rows[0]["moment"] == dt.datetime(2020, 2, 3, 4, 5, 6, 0, dt.UTC)
    finally:
        connection_created.disconnect(register)


def test_a_loader_of_moments_that_django_has_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Newer Djangos build on what a project had registered with psycopg before."""

    class Whole(TimestamptzLoader):
        def load(self, data: Buffer) -> dt.datetime:
            return super().load(data).replace(microsecond=0)

    Entry.objects.create(pk=1, moment=dt.datetime(2020, 2, 3, 4, 5, 6, 7, dt.UTC))
    monkeypatch.setattr(psycopg_any, "orig_tz_loader_cls", Whole, raising=False)
    same(Entry.objects.all(), "id", "moment", in_sql=False)


@pytest.mark.usefixtures("_apart")
def test_a_router_that_chooses_another_database_later(database: str) -> None:
    """In each the JSON is what Django's values there are, whichever was read first."""
    Entry.objects.create(pk=1, moment=dt.datetime(2020, 1, 1, tzinfo=dt.UTC))

    class Entries(Repository):
        model = Entry
        fields = ("id", "moment")

    class Kept(CachedRepository):
        model = Entry
        fields = ("id", "moment")

    async def main() -> None:
        async with started(Entries, Kept) as (entries, kept):
            for alias in (database, "apart", database, "apart"):
                router.chosen = alias
                (expected,) = await run(values, Entry.objects.filter(pk=1), "id", "moment")
                sent = await sent_by_fastapi("entries", [expected])
                for _ in range(2):
                    assert b'{"entries":[' + await entries.live.row_json(1) + b"]}" == sent
                    assert await entries.live.window(0, 1) == sent
                assert await entries.fetch(1) == expected
                await kept.refresh()
                await assert_as_loaded_anew(
                    kept, expected=Entry.objects.order_by("pk"), names=("id", "moment")
                )

    with apart(TIME_ZONE="Asia/Tokyo"):
        try:
            finish(main)
        finally:
            router.chosen = "apart"


def test_a_router_that_chooses_another_database_each_time(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reading is done by one database, whether that makes the JSON or not."""
    moments = {
        database: dt.datetime(2020, 1, 1, tzinfo=dt.UTC),
        "default": dt.datetime(2021, 1, 1, tzinfo=dt.UTC),
    }
    for alias, moment in moments.items():
        Entry.objects.using(alias).all().delete()
        Entry.objects.using(alias).create(pk=1, moment=moment)
    reader: Any = choose_reader(declare("Rows", Entry, fields=("moment",))(), Entry.objects.all())
    aliases = cycle(moments)
    monkeypatch.setattr(router.ChosenDatabase, "db_for_read", lambda *_, **__: next(aliases))
    read = set()
    for _ in range(4):
        (chunk,) = reader.read(Entry.objects.all())
        read.update(chunk.json)
    assert read == {b'{"moment":"2020-01-01T00:00:00Z"}', b'{"moment":"2021-01-01T00:00:00Z"}'}
    assert set(reader.in_sql) == {database}


def test_inside_a_transaction() -> None:
    """Inside of atomic() the rows that the transaction has written are read, by the same connection."""
    with transaction.atomic(using=router.chosen):
        Entry.objects.create(pk=1, number=1)
        rows = same(Entry.objects.all(), "id", "number", in_sql=False)  # to break a stream off would end it
        assert rows == [{"id": 1, "number": 1}]
        transaction.set_rollback(True, using=router.chosen)
    assert same(Entry.objects.all()) == []


def test_a_project_without_time_zones(project: Project, postgresql: PostgreSQL) -> None:
    """Under USE_TZ = False moments are naive, in the project's zone, as Django gives them."""
    project.use_server(postgresql.create_database("naive"))
    project.append("config/settings.py", "USE_TZ = False\nTIME_ZONE = 'Asia/Tokyo'\n")
    project.write(
        "bbs/models.py",
        """
        from django.db import models


        class Topic(models.Model):
            comment = models.CharField(max_length=2000)
            at = models.DateTimeField(null=True)
        """,
    )
    output = project.python(
        """
        import asyncio, datetime as dt, json, os
        os.environ["DJANGO_SETTINGS_MODULE"] = "config.settings"
        import django
        django.setup()
        from django.db import connection
        from fastapi import FastAPI
        from fastapi_django_orm import CachedRepository, DjangoORM
        from bbs.models import Topic

        class Topics(CachedRepository):
            model = "bbs.Topic"

        with connection.schema_editor() as editor:
            editor.create_model(Topic)
        for hour in range(24):
            Topic.objects.create(comment="a", at=dt.datetime(2020, 1, 1, hour, 0, 0, hour))
        expected = list(Topic.objects.values())
        connection.close()

        async def main():
            async with DjangoORM(repositories=[Topics]).lifespan(FastAPI()):
                topics = await Topics.current()
                assert list(topics.all()) == expected
                assert json.loads(topics.snapshot.json)["topics"][1]["at"] == "2020-01-01T01:00:00.000001"

        asyncio.run(main())
        print(json.dumps({"rows": len(expected)}))
        """
    )
    assert events(output)[-1] == {"rows": 24}


def test_it_is_used_by_repositories() -> None:
    """A repository of plain columns loads in SQL, in one query for the rows."""
    Entry.objects.bulk_create([Entry(pk=n, number=n) for n in range(3)])
    made: list[Any] = []
    original = DatabaseJSON.read

    def counted(self: Any, *args: Any) -> Any:
        made.append(args)
        return original(self, *args)

    DatabaseJSON.read = counted  # type: ignore[method-assign]
    try:
        loaded(declare("Entries", Entry), lambda entries: entries.all())
    finally:
        DatabaseJSON.read = original  # type: ignore[method-assign]
    assert len(made) == 1


def test_readers_on_other_loops_and_threads_see_the_same() -> None:
    """A handler that is not asynchronous reads the same row from the database."""
    Entry.objects.create(pk=1, ratio=0.1)

    class Entries(Repository):
        model = Entry

    async def main() -> None:
        async with started(Entries) as (entries,):
            assert (await entries.fetch(1))["ratio"] == 0.1

    async_to_sync(main)()
