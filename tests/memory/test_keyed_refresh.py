"""Refreshing by key: whatever has happened to those rows, the result is that of a full load."""

import asyncio
import datetime as dt
import gc
import sqlite3
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from asgiref.sync import sync_to_async
from django.db import OperationalError, connections, models
from django.db.backends.signals import connection_created
from django.db.models import Count, F, Q, Window
from django.db.models.functions import RowNumber
from django.db.models.lookups import LessThanOrEqual
from django.test.utils import isolate_apps, override_settings
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import AfterValidator, BaseModel
from rest_framework import serializers
from structlog.testing import capture_logs

from fastapi_django_orm import CachedRepository, run
from fastapi_django_orm.errors import InvalidKey, NotFound, RefreshFailed
from fastapi_django_orm.memory.key_index import KeyIndex
from tests.project.board.models import Code, CodeField, Desk, Entry, Everything, Page, Seat, Topic, Writer
from tests.support.comparing import assert_as_loaded_anew, beginning_keys, finish
from tests.support.databases import created, default_changed, until
from tests.support.gates import Gate, put_behind, started
from tests.support.repositories import declare, of

FIELDS = (
    "id",
    "number",
    "moment",
    "ratio",
    "price",
    "flag",
    "day",
    "word",
    "token",
    "shown",
    "writer_id",
)
INDEXES = ("number", "flag", "word", "writer_id")


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[Any]]:
    """What is logged, instead of the output."""
    with capture_logs() as entries:
        yield entries


# Any sequence of changes

BEGINNING = beginning_keys(range(-3000, 2**40, 7), 10)
POOL = [
    *BEGINNING,
    *(-(2**63), -1024, -256, -1, 0, 1, 2, 3, 256, 512, 1024, 2048, 2**32, 2**53 + 1, 2**63 - 1),
]

# Few values, so that many rows are equal but for their keys.
VALUES: dict[str, list[Any]] = {
    "number": [None, -(2**31), -1, 0, 1, 2**31 - 1],
    "moment": [
        None,
        dt.datetime(1999, 12, 31, 23, 59, 59, 999999, dt.UTC),
        dt.datetime(2000, 1, 1, tzinfo=dt.UTC),
        dt.datetime(2000, 1, 1, 0, 0, 0, 1, dt.UTC),
    ],
    "ratio": [None, -1.5, -0.0, 0.0, 1e-7, 1e300],
    "price": [None, Decimal("-0.001"), Decimal(0), Decimal("9.99"), Decimal("10.000")],
    "flag": [None, False, True],
    "day": [None, dt.date(1000, 1, 1), dt.date(2000, 2, 29)],
    "word": [None, "", "a", "B", "é", "題"],
    "token": [None, UUID(int=2**127), UUID("550e8400-e29b-41d4-a716-446655440000")],
    "shown": [True, True, True, False],
}

changes = st.fixed_dictionaries({}, optional={name: st.sampled_from(some) for name, some in VALUES.items()})
keys = st.sampled_from(POOL)

operations = st.one_of(
    st.tuples(st.just("save"), keys, changes),
    st.tuples(st.just("update"), keys, changes),
    st.tuples(st.just("delete"), keys, st.just({})),
    st.tuples(st.just("rename"), keys, keys),
    st.tuples(st.just("swap"), keys, keys),
    st.tuples(st.just("bulk"), st.lists(keys, min_size=2, max_size=6, unique=True), changes),
    st.tuples(st.just("clear"), st.lists(keys, min_size=2, max_size=9, unique=True), st.just({})),
)
steps = st.tuples(
    st.lists(operations, min_size=1, max_size=4),
    st.lists(keys, max_size=3),  # named though nothing was done to them
    st.sampled_from(["keys", "keys", "keys", "one by one", "at once", "all"]),
)


def perform(what: str, key: Any, more: Any) -> list[Any]:
    """Do it, and return the keys that it concerns."""
    rows = Entry.objects.filter(pk=key) if not isinstance(key, list) else Entry.objects.filter(pk__in=key)
    match what:
        case "save":
            Entry(pk=key, **more).save()
            return [key]
        case "update":
            if more:
                rows.update(**more)
            return [key]
        case "delete":
            rows.delete()
            return [key]
        case "rename":
            if not Entry.objects.filter(pk=more).exists():
                rows.update(id=more)
            return [key, more]
        case "swap":
            one, other = Entry.objects.filter(pk=key).first(), Entry.objects.filter(pk=more).first()
            if one is not None and other is not None:
                one.pk, other.pk = other.pk, one.pk
                Entry.objects.bulk_update([one, other], [*VALUES])
            return [key, more]
        case "bulk":
            Entry.objects.bulk_create([Entry(pk=one, **more) for one in key], ignore_conflicts=True)
            Entry.objects.filter(pk__in=key[:2]).update(**more or {"shown": True})
            return list(key)
        case "clear":
            rows.delete()
            return list(key)
    raise AssertionError(what)


async def refresh(kept: Any, concerned: Sequence[Any], others: Sequence[Any], how: str) -> None:
    match how:
        case "keys":
            await kept.refresh(*others, *concerned, *concerned)
        case "one by one":
            for key in [*concerned, *others]:
                await kept.refresh(key)
        case "at once":
            await asyncio.gather(*(kept.refresh(str(key)) for key in [*concerned, *others]))
        case "all":
            await kept.refresh()


ORDERINGS: dict[str, tuple[str, ...]] = {
    "key": ("pk",),
    "key down": ("-pk",),
    **{f"{name} up": (name,) for name in VALUES},
    **{f"{name} down": (f"-{name}", "-id") for name in VALUES},
    "two": ("flag", "-number"),
    "key first": ("id", "number"),
    "relation": ("writer__name",),
    "the model's own": (),
}


def entries(ordering: tuple[str, ...]) -> type[Any]:
    return declare(
        "Entries",
        Entry,
        fields=FIELDS,
        ordering=ordering,
        indexes=INDEXES,
        queryset=lambda self: Entry.objects.filter(shown=True),
    )


few = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))


@few
@given(
    ordering=st.sampled_from(sorted(ORDERINGS)),
    first=st.lists(st.tuples(keys, changes), max_size=20, unique_by=lambda item: item[0]),
    steps=st.lists(steps, min_size=1, max_size=4),
)
def test_after_any_changes_it_is_as_loaded_anew(
    database: str, ordering: str, first: list[Any], steps: list[Any]
) -> None:
    """Rows that come, go, move or change their keys leave what a full load would, in any order by columns."""
    Entry.objects.all().delete()
    Entry.objects.bulk_create([Entry(pk=key, **more) for key, more in first])
    repository = entries(ORDERINGS[ordering])

    async def main() -> None:
        async with started(repository) as (kept,):
            for done, others, how in steps:
                concerned = [key for one in done for key in await run(perform, *one)]
                await refresh(kept, concerned, others, how)
                await assert_as_loaded_anew(kept, expected=kept.ordered_queryset(), names=FIELDS)

    finish(main)


@settings(few, max_examples=25)
@given(first=st.sets(st.sampled_from(POOL)), second=st.sets(st.sampled_from(POOL)), down=st.booleans())
def test_pages_are_those_of_a_full_load(sqlite: str, first: set[int], second: set[int], down: bool) -> None:
    """Pages that lose their first row, or get a row that begins one, are cut as a full load cuts them."""
    Entry.objects.all().delete()
    Entry.objects.bulk_create([Entry(pk=key) for key in first])
    repository = entries(("-pk",) if down else ("pk",))

    async def main() -> None:
        async with started(repository) as (kept,):
            await Entry.objects.filter(pk__in=first - second).adelete()
            await Entry.objects.abulk_create([Entry(pk=key) for key in second - first])
            await kept.refresh(*first ^ second)
            await assert_as_loaded_anew(kept)

    finish(main)


@pytest.mark.parametrize(
    ("database", "ordering"),
    [("sqlite", "-pk"), ("sqlite", "moment"), ("postgresql", "-number"), ("mariadb", "-moment")],
    indirect=["database"],
)
def test_a_table_of_many_pages(database: str, ordering: str) -> None:
    """Sparse keys in several pages of ordinary size: ends, middle and a whole page's worth of rows change."""
    keys = [number * 1024 - 500_000 for number in range(1500)]
    moments = [None, *(dt.datetime(2000, 1, day, tzinfo=dt.UTC) for day in range(1, 20))]
    Entry.objects.bulk_create(
        [Entry(pk=key, number=n % 37, moment=moments[n % 20], word="w") for n, key in enumerate(keys)]
    )
    repository = entries((ordering,))

    async def change(kept: Any, wanted: list[int], **more: Any) -> None:
        await Entry.objects.filter(pk__in=wanted).aupdate(**more)
        await kept.refresh(*wanted)
        await assert_as_loaded_anew(kept, expected=kept.ordered_queryset(), names=FIELDS)

    async def main() -> None:
        async with started(repository) as (kept,):
            assert len(kept.snapshot.table.pages) > 3
            await change(kept, [keys[0], keys[750], keys[-1]], number=50)
            await change(kept, keys[100:190], number=-1, moment=None)
            await change(kept, keys[700:790], shown=False)
            await change(kept, keys[700:750], shown=True, number=None)
            begun = beginning_keys(keys, 20)
            await Entry.objects.filter(pk__in=begun).adelete()
            await kept.refresh(*begun)
            await assert_as_loaded_anew(kept, expected=kept.ordered_queryset(), names=FIELDS)
            await Entry.objects.filter(pk__in=keys[5:]).adelete()
            await kept.refresh(*keys[5:])  # more keys than are worth it
            await assert_as_loaded_anew(kept, expected=kept.ordered_queryset(), names=FIELDS)

    finish(main)


@contextmanager
def in_berlin(use_tz: bool) -> Iterator[None]:
    """Connections whose time zone has a summer time."""
    with override_settings(USE_TZ=use_tz, TIME_ZONE="Europe/Berlin"):
        if not use_tz:
            yield
        else:
            with default_changed(TIME_ZONE="Europe/Berlin"):
                yield


@pytest.mark.parametrize("use_tz", [False, True])
@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize("fields", [("id", "moment"), FIELDS], ids=["few fields", "all"])
def test_an_order_by_times_of_an_hour_that_comes_twice(
    default_database: str, use_tz: bool, down: bool, fields: tuple[str, ...]
) -> None:
    """When summer time ends, an hour's times are those of the hour after it as well, and sort before them."""
    moments = ["00:10", "00:20", "00:40", "00:50", "01:10", "01:20", "01:40", "01:50"]  # 2:10 to 2:50, twice
    with in_berlin(use_tz):
        Entry.objects.bulk_create(Entry(id=number) for number in range(10))
        for number, moment in enumerate(["2024-10-26 12:00", *(f"2024-10-27 {of}" for of in moments)]):
            set_moment(number, moment)

        async def main() -> None:
            ordering = ("-moment" if down else "moment",)
            async with started(declare("Entries", Entry, fields=fields, ordering=ordering)) as (kept,):
                for key, moment in [(9, "00:30"), (8, "00:45"), (1, "01:30"), (3, "01:40"), (2, "12:00")]:
                    await sync_to_async(set_moment)(key, f"2024-10-27 {moment}")
                    await kept.refresh(key)
                    await assert_as_loaded_anew(kept)

        finish(main)


def set_moment(key: int, moment: str) -> None:
    """Set an entry's time, in UTC, behind the back of Django, which cannot say which of two it means."""
    connection = connections["default"]
    utc = dt.datetime.fromisoformat(f"{moment}+00:00")
    local = (
        utc
        if connection.vendor == "postgresql"
        else utc.astimezone(ZoneInfo("Europe/Berlin")).replace(tzinfo=None)
    )
    with connection.cursor() as cursor:
        cursor.execute("UPDATE board_entry SET moment = %s WHERE id = %s", [str(local), key])


# What others have stored, which sorts elsewhere than what Django reads; another value, as Django stores it.
FORMS: dict[str, tuple[list[Any], Any]] = {
    "a time with T": (["2020-01-01T00:00:00", "2020-01-01T06:00:00"], "2020-01-01 12:00:00"),
    "a time with its zone": (
        ["2020-01-01 03:00:00+03:00", "2020-01-01 09:00:00+00:00"],
        "2020-01-01 02:00:00",
    ),
    "a day without zeros": (["2020-1-2", "2020-02-01"], "2020-01-10"),
    "a number for a truth": ([2, 1], 0),
    "letters of another case": (["B" * 32, "F" * 32], "c" * 32),
}
COLUMNS = dict(zip(FORMS, ("moment", "moment", "day", "flag", "token"), strict=True))


def put(key: int, column: str, value: Any) -> None:
    """Store this in an entry, behind the back of Django."""
    with connections["default"].cursor() as cursor:
        cursor.execute(
            f"INSERT INTO board_entry (id, {column}, shown) VALUES (%s, %s, 1)"
            f" ON CONFLICT (id) DO UPDATE SET {column} = excluded.{column}",
            [key, value],
        )


@pytest.mark.parametrize("when", ["before", "later", "again"])
@pytest.mark.parametrize("in_sql", [True, False], ids=["in SQL", "in Python"])
@pytest.mark.parametrize("form", FORMS)
def test_an_order_by_what_others_have_stored_otherwise(
    sqlite: str, form: str, in_sql: bool, when: str
) -> None:
    """SQLite sorts what is stored, of which Django reads more forms than it writes."""
    (first, second), usual = FORMS[form]
    column = COLUMNS[form]
    repository = declare(
        "Entries", Entry, fields=("id", column, *(() if in_sql else ("price",))), ordering=(column,)
    )

    if when == "before":
        put(1, column, first)
        put(2, column, second)
    elif when == "again":  # the same value in the usual form, at first
        put(1, column, first)
        Entry.objects.update(**{column: Entry.objects.values_list(column, flat=True).get()})
    put(3, column, usual)

    async def main() -> None:
        async with started(repository) as (kept,):
            if when == "later":
                await run(put, 2, column, second)
                await kept.refresh(2)
                await assert_as_loaded_anew(kept)
            elif when == "again":
                await run(put, 1, column, first)
                await kept.refresh()
                await assert_as_loaded_anew(kept)
            for key in (4, 1, 3):
                await run(put, key, column, usual)
                await kept.refresh(key)
                await assert_as_loaded_anew(kept)

    finish(main)


@pytest.mark.parametrize("fields", [("small",), ("key", "small")], ids=str)
def test_an_order_by_keys_that_others_have_stored_otherwise(sqlite: str, fields: tuple[str, ...]) -> None:
    """Keys are sorted as they are stored as well, and need not be among the fields."""

    def put(key: str) -> None:
        with connections["default"].cursor() as cursor:
            cursor.execute("INSERT INTO board_everything (key, small) VALUES (%s, 1)", [key])

    put("B" * 32)

    async def main() -> None:
        async with started(declare("Everythings", Everything, fields=fields)) as (kept,):
            await run(put, "a" * 32)
            await kept.refresh(UUID("a" * 32))
            await assert_as_loaded_anew(kept)

    finish(main)


@pytest.mark.parametrize("column", ["number", "ratio"])
def test_an_order_by_numbers_needs_no_load_of_all(sqlite: str, column: str, logs: list[Any]) -> None:
    """SQLite keeps numbers in one form, so rows are placed by their keys alone."""
    Entry.objects.bulk_create([Entry(pk=key, **{column: key % 2}) for key in range(9)])

    async def main() -> None:
        repository = declare("Entries", Entry, fields=("id", column), ordering=(column,))
        async with started(repository) as (kept,):
            for key in (8, 9, 1):
                await Entry.objects.aupdate_or_create(pk=key, defaults={column: (key + 1) % 2})
                await kept.refresh(key)
                await assert_as_loaded_anew(kept)

    finish(main)
    assert [log["keys"] for log in logs if log["event"] == "repository_refreshed"] == [1, 1, 1]


@pytest.mark.parametrize(
    ("ordering", "values"),
    [
        (("tags",), [10, 9, 1, 100, True, "x"]),
        (("-tags",), [10, 9, 1, 100, True, "x"]),
        (("tags__rank",), [{"rank": rank} for rank in (10, 9, 1, None, 100, True, False, "x")]),
        (("-tags__rank",), [{"rank": 10}, {"rank": 9}, {}, {"rank": None}]),
    ],
    ids=["JSON", "JSON down", "key of JSON", "key of JSON down"],
)
def test_an_order_by_json(database: str, ordering: tuple[str, ...], values: list[Any]) -> None:
    """JSON is sorted by each database in its own way, whatever its values are in Python."""
    name = ordering[0].lstrip("-")
    topics = [Topic.objects.create(comment="-", tags=value) for value in values]

    async def main() -> None:
        async with started(declare(fields=("id", name), ordering=ordering)) as (kept,):
            for topic in topics:
                for value in ({"rank": 11} if "rank" in name else 11, topic.tags):
                    await Topic.objects.filter(pk=topic.pk).aupdate(tags=value)
                    await kept.refresh(topic.pk)
                    await assert_as_loaded_anew(kept)

    finish(main)


def test_an_order_by_what_a_field_makes_something_else_of(sqlite: str) -> None:
    """A field that reads texts as numbers is sorted as the texts are."""

    class Figure(models.CharField):
        def from_db_value(self, value: str | None, *rest: Any) -> int | None:
            return None if value is None else int(value)

    with isolate_apps("tests.project.board"):

        class Measure(models.Model):
            figure = Figure(max_length=9)

            class Meta:
                app_label = "board"

            def __str__(self) -> str:
                return str(self.figure)

        with created(Measure):
            measures = [Measure.objects.create(figure=figure) for figure in (9, 10, 1)]

            async def main() -> None:
                async with started(declare(model=Measure, ordering=("figure",))) as (kept,):
                    await Measure.objects.filter(pk=measures[0].pk).aupdate(figure=2)
                    await kept.refresh(measures[0].pk)
                    await assert_as_loaded_anew(kept, expected=Measure.objects.order_by("figure"))

            finish(main)


def test_an_order_by_a_relations_relation(sqlite: str) -> None:
    """A related row's column that is a relation itself sorts as the model at its end does."""
    writers = [Writer.objects.create(name=name) for name in ("c", "a", "b")]
    desks = [Desk.objects.create(writer=writer) for writer in writers]
    with isolate_apps("tests.project.board"):

        class Lamp(models.Model):
            desk = models.ForeignKey(Desk, models.CASCADE)

            class Meta:
                app_label = "board"

            def __str__(self) -> str:
                return str(self.desk_id)

        with created(Lamp):
            lamps = [Lamp.objects.create(desk=desk) for desk in desks]

            async def main() -> None:
                names = ("id", "desk__writer")
                async with started(declare(model=Lamp, fields=names, ordering=names[1:])) as (kept,):
                    for lamp in lamps:
                        for desk in desks:
                            await Lamp.objects.filter(pk=lamp.pk).aupdate(desk=desk)
                            await kept.refresh(lamp.pk)
                            await assert_as_loaded_anew(kept)

            finish(main)


# Keys of other kinds


def test_a_key_that_is_a_relation(database: str) -> None:
    """Rows are refreshed by the key of the row that they belong to."""
    writers = [Writer.objects.create(name=name) for name in ("c", "a", "b")]
    for writer in writers[:2]:
        Desk.objects.create(writer=writer, number=1)

    async def main() -> None:
        async with started(declare("Desks", Desk, indexes=("number",))) as (desks,):
            await Desk.objects.acreate(writer=writers[2], number=1)
            await Desk.objects.filter(pk=writers[0].pk).aupdate(number=2)
            await desks.refresh(*(writer.pk for writer in writers))
            await assert_as_loaded_anew(desks, expected=Desk.objects.order_by("pk"))

    finish(main)


def test_an_order_by_a_key_that_is_a_relation(sqlite: str) -> None:
    """`ordering` by such a key's name sorts as its model is sorted, and a keyed refresh does the same."""
    writers = [Writer.objects.create(name=name) for name in ("c", "a", "b")]
    for writer in writers[:2]:
        Desk.objects.create(writer=writer)

    async def main() -> None:
        async with started(declare("Desks", Desk, ordering=("writer",))) as (desks,):
            await Desk.objects.acreate(writer=writers[2])
            await desks.refresh(writers[2].pk)
            await assert_as_loaded_anew(desks)

    finish(main)


def test_keys_that_are_texts(database: str) -> None:
    """Rows are refreshed by keys with quotes, percent signs, line feeds and letters of any script."""
    slugs = ["", "a", "%s", "'\"`\\", "\n\t", "題", "5", " 5", "{}", "é" * 100]
    Page.objects.bulk_create([Page(slug=slug, address=str(n)) for n, slug in enumerate(slugs[:6])])

    async def main() -> None:
        async with started(declare("Pages", Page, indexes=("title",))) as (pages,):
            for number, slug in enumerate(slugs):
                await Page.objects.aupdate_or_create(
                    slug=slug, defaults={"address": f"new {number}", "title": "new"}
                )
                await pages.refresh(slug)
                await assert_as_loaded_anew(pages, expected=Page.objects.order_by("pk"))
            await Page.objects.filter(slug__in=slugs[::2]).adelete()
            await pages.refresh(*slugs)
            await assert_as_loaded_anew(pages, expected=Page.objects.order_by("pk"))

    finish(main)


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_a_key_that_the_database_holds_for_equal(database: str) -> None:
    """Where a collation ignores case, a key may be named in either case."""
    Page.objects.create(slug="news", address="news", title="old")

    async def main() -> None:
        async with started(declare("Pages", Page, indexes=("title",))) as (pages,):
            await Page.objects.aupdate(title="new")
            await pages.refresh("NEWS")
            await assert_as_loaded_anew(pages)
            await Page.objects.all().adelete()
            await pages.refresh("NEWS")
            await assert_as_loaded_anew(pages)

    finish(main)


def test_a_key_that_a_field_makes_something_else_of(database: str) -> None:
    """Rows whose keys are objects of the project's own are found changed, gone and new."""
    with isolate_apps("tests.project.board"):

        class Coded(models.Model):
            id = CodeField(primary_key=True)
            name = models.CharField(max_length=10)

            class Meta:
                app_label = "board"

            def __str__(self) -> str:
                return self.name

        with created(Coded):
            for number in range(4):
                Coded.objects.create(id=Code(number), name=f"old {number}")

            async def main() -> None:
                repository = declare("Coded", Coded, fields=("name",), indexes=("name",))
                async with started(repository) as (kept,):
                    await Coded.objects.filter(pk=Code(1)).aupdate(name="new")
                    await kept.refresh(Code(1))
                    await assert_as_loaded_anew(kept, expected=Coded.objects.order_by("pk"), names=("name",))
                    await Coded.objects.filter(pk=Code(2)).adelete()
                    await kept.refresh(Code(2))
                    await assert_as_loaded_anew(kept, expected=Coded.objects.order_by("pk"), names=("name",))
                    await Coded.objects.acreate(id=Code(2), name="again")
                    await kept.refresh(2, "3")
                    await assert_as_loaded_anew(kept, expected=Coded.objects.order_by("pk"), names=("name",))

            finish(main)


def test_keys_of_several_columns(sqlite: str) -> None:
    """A composite key is named as a tuple, in whatever form each part has."""
    Seat.objects.bulk_create([Seat(row=row, number=2, guest="-") for row in range(5)])

    async def main() -> None:
        async with started(declare("Seats", Seat)) as (seats,):
            await Seat.objects.filter(row=3).aupdate(guest="A")
            await seats.refresh((3, 2))
            await assert_as_loaded_anew(seats)
            await Seat.objects.filter(row=2).adelete()
            await seats.refresh((2, 2), (9, 9))
            await assert_as_loaded_anew(seats)
            await Seat.objects.filter(row=1).adelete()
            await seats.refresh(["1", "2"])
            await assert_as_loaded_anew(seats)
            with pytest.raises(ValueError, match="no row with the key"):
                await seats.refresh((1,))

    finish(main)


# Keys that no row has


@pytest.mark.parametrize("key", [2**63, -(2**200), 0, -1], ids=["2**63", "-(2**200)", "0", "-1"])
def test_a_number_that_is_no_key_changes_nothing(database: str, key: int) -> None:
    """A key beyond the column's range is the key of no row, and no reason for the refresh to fail."""
    Entry.objects.create(id=1, number=1)

    async def main() -> None:
        async with started(declare("Entries", Entry)) as (kept,):
            await Entry.objects.aupdate(number=2)
            await kept.refresh(key, 1)
            assert kept.get(1)["number"] == 2
            await assert_as_loaded_anew(kept)

    finish(main)


def test_a_text_that_is_no_key_changes_nothing(database: str) -> None:
    """A key with NUL in it, which PostgreSQL does not take, is the key of no row."""
    Page.objects.create(slug="a", address="a", title="old")

    async def main() -> None:
        async with started(declare("Pages", Page)) as (pages,):
            await Page.objects.aupdate(title="new")
            await pages.refresh("\x00", "a")
            assert pages.get("a")["title"] == "new"

    finish(main)


@pytest.mark.parametrize("key", ["inf", "-inf", "nan"])
def test_a_number_without_end_changes_nothing(database: str, key: str) -> None:
    """An infinite key, which MariaDB does not take, is the key of no row."""
    with isolate_apps("tests.project.board"):

        class Measure(models.Model):
            id = models.FloatField(primary_key=True)
            name = models.CharField(max_length=10)

            class Meta:
                app_label = "board"

            def __str__(self) -> str:
                return self.name

        with created(Measure):
            Measure.objects.create(id=1.5, name="old")

            async def main() -> None:
                async with started(declare("Measures", Measure)) as (kept,):
                    await Measure.objects.aupdate(name="new")
                    await kept.refresh(float(key), 1.5)
                    assert kept.get(1.5)["name"] == "new"

            finish(main)


def test_what_cannot_be_a_key_is_refused_at_once(sqlite: str) -> None:
    """A key that no row can have is a 404, and no load is lost or failed for it."""
    Entry.objects.create(id=1)

    async def main() -> None:
        async with started(declare("Entries", Entry)) as (kept,):
            for key in ("one", None, [1], {}, float("nan"), object()):
                with pytest.raises(InvalidKey) as caught:
                    await kept.refresh(key)
                assert caught.value.status_code == 404
            assert kept.snapshot.version == 1
            await kept.refresh("1")
            assert kept.snapshot.version == 2

    finish(main)


# Repositories of which a part alone says nothing


class EntryOut(BaseModel):
    id: int
    number: int | None
    word: Annotated[str | None, AfterValidator(lambda word: word and word.upper())]


class EntrySerializer(serializers.ModelSerializer[Entry]):
    class Meta:
        model = Entry
        fields = ("id", "number", "word")


def several_kinds() -> dict[str, type[Any]]:
    objects = Entry.objects
    ones, twos = (objects.order_by().filter(number=number) for number in (1, 2))
    rank = Window(RowNumber(), order_by=[F("number").asc(), "pk"])
    return {
        "sliced": of(lambda: objects.order_by("-number", "pk")[:3]),
        "sliced later": of(lambda: objects.order_by("-number", "pk")[1:4]),
        "distinct": of(lambda: objects.distinct(), ordering=("pk",)),
        "distinct values": of(lambda: objects.order_by("number").values("number").distinct()),
        "window": declare(queryset=lambda self: objects.annotate(rank=rank), model=Entry, ordering=("-pk",)),
        "window in a filter": of(lambda: objects.filter(LessThanOrEqual(rank, 3)), fields=("number", "word")),
        "window in an exclude": of(
            lambda: objects.exclude(Q(LessThanOrEqual(rank, 3)) & Q(number__gte=0)), fields=("number", "word")
        ),
        "joined": declare(
            model=Writer,
            queryset=lambda self: Writer.objects.filter(
                Q(entry__number__gte=0) | Q(entry__number__isnull=True)
            ),
            ordering=("pk",),
        ),
        "counted": declare(
            model=Writer,
            queryset=lambda self: Writer.objects.annotate(entries=Count("entry")),
            ordering=("-entries",),
            indexes=("entries",),
        ),
        "union": of(lambda: ones.union(twos).order_by("id")),
        "schema": declare(model=Entry, schema=EntryOut, ordering=("-pk",), indexes=("number", "word")),
        "schema by a column": declare(model=Entry, schema=EntryOut, ordering=("number",)),
        "serializer": declare(model=Entry, schema=EntrySerializer, ordering=("-pk",), indexes=("word",)),
        "values": of(
            lambda: objects.order_by("-number").values("id", "number", upper=F("word")), indexes=("number",)
        ),
        "values without a key": of(lambda: objects.order_by("-number", "pk").values("number")),
        "grouped values": of(lambda: objects.order_by("number").values("number").annotate(n=Count("pk"))),
        "random": declare(model=Entry, ordering=("?",), fields=("id", "number")),
        "reversed": of(lambda: objects.order_by("number", "pk").reverse(), model=Entry),
        "expression": declare(model=Entry, ordering=(F("number").desc(nulls_last=True), "pk")),
        "without its key": declare(model=Entry, fields=("number", "word"), ordering=("-number",)),
    }


KINDS = [
    *("sliced", "sliced later", "distinct", "distinct values", "window", "joined", "counted", "union"),
    *("window in a filter", "window in an exclude"),
    *("schema", "schema by a column", "serializer", "values", "values without a key", "grouped values"),
    *("random", "reversed", "expression", "without its key"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_right_for_every_kind_of_repository(database: str, kind: str) -> None:
    """Where rows depend on each other, or only the database can sort them, the result is right as well."""
    writers = [Writer.objects.create(name=name) for name in "ab"]
    Entry.objects.bulk_create(
        [Entry(pk=n, number=n % 3, word=f"w{n}", writer=writers[n % 2]) for n in range(8)]
    )
    repository = several_kinds()[kind]

    async def check(kept: Any, *keys: int) -> None:
        await kept.refresh(*keys)
        if kind == "random":
            assert sorted(kept.all(), key=lambda row: row["id"]) == [
                row async for row in Entry.objects.order_by("pk").values("id", "number")
            ]
        else:
            await assert_as_loaded_anew(kept)

    async def main() -> None:
        async with started(repository) as (kept,):
            both = [writer.pk for writer in writers]
            await Entry.objects.filter(pk=3).aupdate(number=9, word="changed")
            await check(kept, 3, *both)
            await Entry.objects.acreate(pk=100, number=2, word="w", writer=writers[0])
            await check(kept, 100, *both)
            await Entry.objects.filter(pk__in=[0, 3]).adelete()
            await check(kept, 0, 3, *both)
            await Entry.objects.filter(writer=writers[1]).adelete()
            await Entry.objects.filter(number=2).aupdate(number=None)
            await check(kept, *range(8), 100, *both)

    finish(main)


@pytest.mark.parametrize("how", ["all", "keys"])
def test_rows_that_look_the_same_are_told_apart(database: str, how: str) -> None:
    """Where the fields leave the key out, a row that takes another's place has its own key."""
    Entry.objects.bulk_create([Entry(pk=n, word="same") for n in (1, 2, 3)])

    async def main() -> None:
        async with started(declare("Entries", Entry, fields=("word",), ordering=("pk",))) as (kept,):
            await Entry.objects.filter(pk=2).adelete()
            await Entry.objects.acreate(pk=9, word="same")
            await kept.refresh(*([2, 9] if how == "keys" else []))
            assert 9 in kept
            assert 2 not in kept
            await assert_as_loaded_anew(kept)

    finish(main)


def test_rows_that_a_join_doubles_later(sqlite: str) -> None:
    """When a join begins to give a row twice, in another page too, all other rows are still found."""
    first, *others = beginning_keys(range(1, 100_000), 4)
    for key in (first, first + 1, *others):
        writer = Writer.objects.create(pk=key, name=str(key))
        Entry.objects.create(pk=key, writer=writer)

    async def main() -> None:
        repository = declare(
            model=Writer,
            queryset=lambda self: Writer.objects.filter(entry__shown=True),
            ordering=("pk",),
            indexes=("name",),
        )
        async with started(repository) as (kept,):
            await Entry.objects.acreate(pk=5, writer_id=first)
            await kept.refresh()
            await assert_as_loaded_anew(kept)

    finish(main)


def test_a_load_takes_over_the_keys_of_rows_that_have_changed(sqlite: str) -> None:
    """Else a load in which every row is another would need the memory of two tables' keys."""
    Entry.objects.bulk_create([Entry(pk=key, word="-") for key in range(1, 2_000)])

    async def main() -> None:
        async with started(declare("Entries", Entry)) as (kept,):
            before = kept.snapshot.table
            await Entry.objects.aupdate(word="+")
            await kept.refresh()
            after = kept.snapshot.table
            assert after.where is before.where
            assert all(page.keys is before.page(page.start).keys for page in after.pages)
            await assert_as_loaded_anew(kept)

    finish(main)


def test_an_index_that_has_grown_out_of_its_shards_is_made_anew() -> None:
    """Or a table that grows a little with each load would have the few large shards of its beginning."""
    small = KeyIndex.of(1, [((0,), "page")])
    assert small.fits
    assert not small.changed(dict.fromkeys(range(10_000), "page")).fits
    assert KeyIndex.of(10_000, [(range(10_000), "page")]).fits


def test_a_row_that_a_join_doubles_in_an_earlier_page(sqlite: str) -> None:
    """Its key gives the same one of the two rows as in a worker that has started since."""
    keys = range(1, 20_001)
    Writer.objects.bulk_create([Writer(pk=key, name="-") for key in keys])
    Entry.objects.bulk_create([Entry(pk=key, writer_id=key, number=key // 10_000) for key in keys])

    async def main() -> None:
        repository = declare(
            model=Writer,
            queryset=lambda self: Writer.objects.annotate(number=F("entry__number")),
            ordering=("number", "pk"),
        )
        async with started(repository) as (kept,):
            await Entry.objects.acreate(pk=30_000, writer_id=19_990, number=0)
            await kept.refresh()
            await assert_as_loaded_anew(kept)
            assert kept.get(19_990)["number"] == 1

    finish(main)


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
@pytest.mark.parametrize("column", ["price", "ratio"])
def test_what_is_not_a_number_has_its_place(database: str, column: str) -> None:
    """NaN, which PostgreSQL sorts above all numbers, does not stop a keyed refresh."""
    Entry.objects.bulk_create([Entry(pk=n, price=n, ratio=n) for n in range(4)])

    async def main() -> None:
        async with started(declare("Entries", Entry, fields=("id", column), ordering=(column,))) as (kept,):

            def execute(sql: str) -> None:
                with connections[database].cursor() as cursor:
                    cursor.execute(sql)

            await run(execute, f"UPDATE board_entry SET {column} = 'NaN' WHERE id IN (1, 2)")
            await kept.refresh(1, 2)
            await run(execute, f"UPDATE board_entry SET {column} = 7 WHERE id = 1")
            await run(execute, f"UPDATE board_entry SET {column} = 'NaN' WHERE id = 3")
            await kept.refresh(1, 3)
            assert [row["id"] for row in kept.all()] == [0, 1, 2, 3]

    finish(main)


# What it costs, and when it is done


def test_only_the_named_rows_are_read(database: str, logs: list[Any]) -> None:
    """One query for the named keys, whose number is in the log; the other rows are not read."""
    Entry.objects.bulk_create([Entry(pk=n, number=n) for n in range(300)])
    read: list[int] = []

    def count(reader: Any) -> None:
        take = reader.read

        def counted(*args: Any, **options: Any) -> Iterator[Any]:
            chunks = list(take(*args, **options))
            read.append(sum(map(len, chunks)))
            yield from chunks

        reader.read = counted

    # With a queryset() of its own it is read on threads.
    repository = declare("Entries", Entry, queryset=lambda self: Entry.objects.all(), ordering=("-number",))

    async def main() -> None:
        async with started(repository) as (kept,):
            count(kept._reader)
            await Entry.objects.filter(pk__in=[5, 6]).aupdate(number=1000)
            await kept.refresh(5, 6, 7, 5, 12345)
            assert read == [3]
            assert [row["id"] for row in kept.all()[:2]] == [5, 6]
            await asyncio.gather(*(kept.refresh(key) for key in range(20)))
            assert read == [3, 20]
            await asyncio.gather(kept.refresh(1), kept.refresh(), kept.refresh(2))
            assert read == [3, 20, 300]

    finish(main)
    counts = [entry.get("keys") for entry in logs if entry["event"] == "repository_refreshed"]
    assert counts == [4, 20, None]


@pytest.mark.parametrize("most", [90, 250])
def test_more_keys_than_the_database_takes_in_a_query(sqlite: str, most: int, logs: list[Any]) -> None:
    """Then everything is read, in one query as well."""
    Entry.objects.bulk_create([Entry(pk=n, number=n) for n in range(300)])
    connections.close_all()

    def limit(connection: Any, **_: Any) -> None:
        connection.connection.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, most)

    async def main() -> None:
        async with started(entries(("pk",))) as (kept,):
            await Entry.objects.aupdate(number=-1)
            await kept.refresh(*range(100))
            assert kept.get(99)["number"] == -1
            assert kept.get(100)["number"] == (-1 if most == 90 else 100)

    connection_created.connect(limit)
    try:
        finish(main)
    finally:
        connection_created.disconnect(limit)
    (refreshed,) = (entry for entry in logs if entry["event"] == "repository_refreshed")
    assert refreshed.get("keys") == (None if most == 90 else 100)


def test_many_keys_of_several_columns(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them than fit into one condition, where they become one that has another in it, and so on."""
    monkeypatch.setattr("fastapi_django_orm.memory.refreshing.SHARE_OF_KEYS", 1)
    Seat.objects.bulk_create([Seat(row=row, number=2, guest="-") for row in range(1500)])

    async def main() -> None:
        async with started(declare("Seats", Seat)) as (seats,):
            await Seat.objects.aupdate(guest="A")
            await seats.refresh(*((row, 2) for row in range(1200)))
            assert seats.get((1199, 2))["guest"] == "A"

    finish(main)


def test_pages_that_nothing_has_happened_to_are_shared(sqlite: str) -> None:
    """The snapshot after a keyed refresh has the other pages of the one before, and that one is unchanged."""
    Entry.objects.bulk_create([Entry(pk=n * 1024, number=n) for n in range(1500)])

    async def main() -> None:
        async with started(declare("Entries", Entry, ordering=("pk",))) as (kept,):
            before = kept.snapshot
            json, pages = before.json, list(before.table.pages)
            await Entry.objects.filter(pk=700 * 1024).aupdate(number=-1)
            after = await kept.refresh(700 * 1024)
            shared = sum(page in pages for page in after.table.pages)
            assert shared == len(pages) - 1
            assert before.json == json
            assert before.row(700 * 1024)["number"] == 700
            assert after.etag != before.etag

    finish(main)


def entries_behind(gate: Gate) -> type[Any]:
    class Entries(CachedRepository):
        model = Entry
        ordering = ("pk",)

        def prepare(self, here: Any) -> None:
            super().prepare(here)
            put_behind(gate, self)

    return Entries


@pytest.mark.parametrize("first", [(), (1,)], ids=["all", "keys"])
def test_keys_named_while_a_load_runs_are_read_after_it(sqlite: str, first: tuple[int, ...]) -> None:
    """A load that has read already does not answer for a row that was written since."""
    Entry.objects.bulk_create([Entry(pk=n, number=0) for n in range(3)])
    gate = Gate()

    async def main() -> None:
        async with started(entries_behind(gate), gate=gate) as (kept,):
            gate.close()
            running = asyncio.create_task(kept.refresh(*first))
            await gate.load_begun()
            await Entry.objects.filter(pk=2).aupdate(number=1)
            waiting = [asyncio.create_task(kept.refresh(key)) for key in (2, 0, 2)]
            await asyncio.sleep(0)
            gate.open()
            assert (await running).row(2)["number"] == 0
            snapshots = await asyncio.gather(*waiting)
            assert {snapshot.row(2)["number"] for snapshot in snapshots} == {1}
            assert gate.loads == 2
            await assert_as_loaded_anew(kept)

    finish(main)


def test_after_a_failure_everything_is_read(sqlite: str, logs: list[Any]) -> None:
    """The keys of a failed refresh are not lost, though nobody names them again."""
    Entry.objects.bulk_create([Entry(pk=n, number=0) for n in range(3)])
    gate = Gate()

    async def main() -> None:
        async with started(entries_behind(gate), gate=gate) as (kept,):
            await Entry.objects.filter(pk=1).aupdate(number=1)
            gate.error = OperationalError("gone")
            with pytest.raises(RefreshFailed):
                await kept.refresh(1)
            assert kept.get(1)["number"] == 0
            gate.error = None
            await kept.refresh(2)
            assert kept.get(1)["number"] == 1
            await assert_as_loaded_anew(kept)

    finish(main)
    refreshed = [entry for entry in logs if entry["event"] == "repository_refreshed"]
    assert "keys" not in refreshed[0]


def test_every_version_has_its_number_and_date(sqlite: str) -> None:
    """A keyed refresh counts as a version; where nothing has changed the date of change stays."""
    Entry.objects.bulk_create([Entry(pk=n) for n in range(3)])

    async def main() -> None:
        async with started(declare("Entries", Entry)) as (kept,):
            before = kept.snapshot
            same = await kept.refresh(1, 77)
            assert (same.version, same.etag) == (2, before.etag)
            assert same.modified_at == before.modified_at
            await Entry.objects.filter(pk=1).adelete()
            after = await kept.refresh(1)
            assert after.version == 3
            assert after.modified_at > before.modified_at
            assert after.etag != before.etag

    finish(main)


@pytest.mark.parametrize("more", [{}, {"ordering": ("-number",)}, {"schema": EntryOut}], ids=str)
def test_what_was_replaced_is_freed_at_once(sqlite: str, more: dict[str, Any]) -> None:
    """Whatever was read of a snapshot, nothing holds it when a refresh has replaced it, the collector off."""
    Entry.objects.bulk_create([Entry(pk=number, number=number % 9) for number in range(1000)])
    attributes = {"fields": ("id", "number", "word"), "indexes": ("number",), **more}
    if "schema" in attributes:
        del attributes["fields"]

    async def main() -> None:
        async with started(declare("Entries", Entry, **attributes)) as (kept,):
            gc.collect()
            gc.disable()
            try:
                for number, keys in enumerate([(3,), (5000,), (), (3, 4), ()]):
                    assert len(kept.all()) == len(kept) == len(kept.snapshot.by_key)
                    assert kept.find(number=5) == kept.snapshot.indexes["number"][5]
                    assert kept.get(7) in kept
                    assert 7 in kept
                    assert 5001 not in kept
                    with pytest.raises(NotFound):
                        kept.response(pk=5001)
                    kept.response(pk=7)
                    kept.response(offset=5, limit=5)
                    old = weakref.ref(kept.snapshot)
                    await Entry.objects.filter(pk=3).aupdate(word=f"new {number}")
                    await kept.refresh(*keys)
                    # The thread that has read may be about to leave its function.
                    await until(lambda old=old: old() is None, "the old snapshot has gone")
            finally:
                gc.enable()

    finish(main)
