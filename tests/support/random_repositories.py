"""Repositories of every declared kind, beside ``queryset().values()``, through random writes and migrations.

A program is made of a seed: what is declared (fields, order, queryset, manager, schema, engine), what is
written, how the table is changed. After each step all that it can be asked is held against Django.
"""

import asyncio
import datetime as dt
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from random import Random
from typing import Any

from django.conf import settings
from django.db import connection, connections, models
from django.db.models import Case, Count, ExpressionWrapper, F, Q, QuerySet, Value, When
from django.db.models.functions import Coalesce, Lower
from django.db.models.query import ModelIterable, ValuesIterable
from django.db.models.sql import Query
from django.test.utils import isolate_apps
from fastapi import FastAPI
from pydantic import BaseModel, TypeAdapter, create_model, field_validator, model_validator
from pydantic_core import to_json

from fastapi_django_orm import CachedRepository, DjangoORM, ORMSettings, Repository, run
from fastapi_django_orm.errors import NotFound
from tests.support.comparing import DEADLINE, plain, typed
from tests.support.databases import created, default_changed

COLUMNS = ("id", "number", "word", "moment", "price", "flag", "ratio", "code", "owner_id")

# What a project may put in Django's place


class Valued(QuerySet[Any, Any]):
    """Selects in another order, and makes something else of what it has read."""

    def values(self, *fields: Any, **expressions: Any) -> Any:
        found = super().values(*reversed(fields), **expressions)
        found._iterable_class = _Loud
        return found

    def values_list(self, *fields: Any, **options: Any) -> Any:
        return super().values_list(*reversed(fields), **options)


class _Loud(ValuesIterable):
    def __iter__(self) -> Iterator[Any]:
        for row in super().__iter__():
            yield {name: value.upper() if isinstance(value, str) else value for name, value in row.items()}


class Fetching(QuerySet[Any, Any]):
    """Changes rows when it has them all."""

    def _fetch_all(self) -> None:
        fresh = self._result_cache is None
        super()._fetch_all()
        for row in (self._result_cache or ()) if fresh else ():
            if isinstance(row, dict) and row.get("number") is not None:
                row["number"] += 1000


class Filtering(QuerySet[Any, Any]):
    """Answers one key otherwise than several."""

    def filter(self, *conditions: Any, **lookups: Any) -> Any:
        more = () if "pk" in lookups else (~Q(flag=False),)
        return super().filter(*conditions, *more, **lookups)


class Sorting(QuerySet[Any, Any]):
    """Sorts the other way round."""

    def order_by(self, *fields: Any) -> Any:
        return super().order_by(*fields).reverse()


class Writing(QuerySet[Any, Any]):
    """Writes in its own way and can do more, which has nothing to do with reading."""

    def update(self, **values: Any) -> int:
        return super().update(**values)

    def flagged(self) -> Any:
        return self.filter(flag=True)


class HidingQuery(Query):
    """Leaves rows out when it becomes SQL."""

    def get_compiler(self, *args: Any, **options: Any) -> Any:
        found = self.chain(Query)
        if not found.is_sliced and not found.combinator:
            found.add_q(~Q(number=1))
        return found.get_compiler(*args, **options)


class Made(ModelIterable):
    """Makes something else of instances."""

    def __iter__(self) -> Iterator[Any]:
        for instance in super().__iter__():
            instance.word = f"made {instance.word}"
            yield instance


def made(model: Any) -> Any:
    found = QuerySet(model)
    found._iterable_class = Made
    return found


BASES: list[Callable[[Any], Any]] = [
    *[lambda model: QuerySet(model)] * 6,
    Valued,
    Fetching,
    Filtering,
    Sorting,
    Writing,
    lambda model: QuerySet(model, query=HidingQuery(model)),
    made,
]
ANNOTATIONS: list[tuple[str, Callable[[], Any]]] = [
    ("halves", lambda: ExpressionWrapper(F("number") / 2.0, output_field=models.IntegerField())),
    (
        "thirds",
        lambda: ExpressionWrapper(
            F("price") / 3, output_field=models.DecimalField(max_digits=9, decimal_places=1)
        ),
    ),
    ("lower", lambda: Lower("word")),
    ("some", lambda: Coalesce("number", 5)),
    ("case", lambda: Case(When(flag=True, then=Value(2)), default=F("number"))),
    ("same", lambda: F("number")),
    ("owner_name", lambda: F("owner__name")),
    ("owned", lambda: Count("owner")),
]
NARROWINGS: list[Callable[[Any], Any]] = [
    *[lambda queryset: queryset.all()] * 3,
    lambda queryset: queryset.filter(Q(number__gte=0) | Q(number=None)),
    lambda queryset: queryset.exclude(word="b"),
    lambda queryset: queryset.filter(owner__name="ann"),
    lambda queryset: queryset.distinct(),
    lambda queryset: queryset.select_related("owner"),
]


class Declared:
    """What a program declares.

    Attributes:
        names: the fields of its rows.
        schema: what they become.
        attributes: of the classes.
    """

    def __init__(self, random: Random, model: Any) -> None:
        base, narrow = random.choice(BASES), random.choice(NARROWINGS)
        annotation = random.choice(ANNOTATIONS) if random.random() < 0.3 else None
        self.ends_in_values = random.random() < 0.1
        self.names = tuple(random.sample(COLUMNS, random.randint(1, len(COLUMNS))))
        if random.random() < 0.3:
            self.names += ("owner__name",)
        if annotation is not None:
            self.names += (annotation[0],)
        self.schema = None if self.ends_in_values else self._schema(random)
        by = [name for name in self.names if name != "id"]
        self.ordering = tuple(
            random.choice(["", "-"]) + name for name in random.sample(by, min(len(by), random.randint(0, 2)))
        )
        if random.random() < 0.7 or self.ends_in_values:  # to these no key is added
            self.ordering += (random.choice(["pk", "-pk"]),)

        def queryset(_: Any = None) -> Any:
            found = narrow(base(model))
            if annotation is not None:
                found = found.annotate(**{annotation[0]: annotation[1]()})
            return found.values(*dict.fromkeys(("id", *self.names))) if self.ends_in_values else found

        self.queryset = queryset
        fields = None if self.schema is not None or self.ends_in_values else self.names
        self.attributes = {"model": model, "fields": fields, "ordering": self.ordering, "schema": self.schema}
        if (
            not (
                base is BASES[0]
                and narrow is NARROWINGS[0]
                and annotation is None
                and not self.ends_in_values
            )
            or random.random() < 0.5
        ):
            self.attributes["queryset"] = queryset
        if self.ends_in_values:
            self.names = tuple(dict.fromkeys(("id", *self.names)))

    def _schema(self, random: Random) -> type[BaseModel] | None:
        if random.random() > 0.3:
            return None
        names = [name for name in self.names if "__" not in name]
        validators: dict[str, Any] = {}
        if random.random() < 0.3:
            validators["loud"] = model_validator(mode="before")(classmethod(_taken))
        if "word" in names and random.random() < 0.5:
            validators["cut"] = field_validator("word", mode=random.choice(["before", "after"]))(
                classmethod(_cut)
            )
        fields: dict[str, Any] = dict.fromkeys(names, (Any, None))
        return create_model("Out", __validators__=validators, **fields)


def _taken(cls: Any, row: Any) -> Any:
    """As people write it who expect an instance."""
    return {name: getattr(row, name, None) for name in cls.model_fields}


def _cut(cls: Any, word: Any) -> Any:
    return word and word[:2]


# What happens

WORDS = [None, "", "a", "b", "B", "é", '"\\', '7,"x":1']
MOMENTS = [None, dt.datetime(2000, 1, 1, tzinfo=dt.UTC), dt.datetime(2024, 2, 29, 12, 0, 0, 5, dt.UTC)]
KINDS: dict[str, Sequence[tuple[str, Sequence[str]]]] = {
    "postgresql": [
        ("integer", ("7", "NULL", "-1")),
        ("bigint", ("7", "9007199254740993")),
        ("varchar(40)", ("'7'", "'7,\"x\":1'")),
        ("text", ("'2020-01-01'", "'A'")),
        ("boolean", ("true", "NULL")),
        ("numeric", ("'NaN'", "1.50", "NULL")),
        ("double precision", ("'NaN'", "0.1", "'Infinity'")),
        ("jsonb", ("'[1]'", "'7'")),
        ("date", ("'2020-01-01'", "NULL")),
        ("timestamptz", ("'2020-01-01 00:00+00'",)),
        ("interval", ("'1 day'",)),
        ("integer[]", ("'{1,2}'",)),
        ("character(4)", ("'ab'",)),
    ],
    "sqlite": [
        ("integer", ("7", "NULL", "-1", "'x'")),
        ("varchar(40)", ("'7'", "'7,\"x\":1'")),
        ("bool", ("1", "0")),
        ("real", ("0.5", "1e300")),
        ("date", ("'2020-01-01'",)),
        ("text", ("'2020-01-01'",)),
        ("blob", ("x'41'",)),
    ],
    "mysql": [
        ("integer", ("7", "NULL", "-1")),
        ("varchar(40)", ("'7'", "'7,\"x\":1'")),
        ("bigint", ("7",)),
        ("double", ("0.5", "1e300")),
        ("float", ("0.1", "16777217")),
        ("date", ("'2020-01-01'",)),
        ("decimal(9,3)", ("1.5",)),
        ("datetime(6)", ("'2020-01-01 00:00:00.5'",)),
    ],
}


def _execute(statement: str, *params: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement, params or None)


def _row(random: Random) -> dict[str, Any]:
    return {
        "number": random.choice([None, -1, 0, 1, 2, 3]),
        "word": random.choice(WORDS),
        "moment": random.choice(MOMENTS),
        "price": random.choice([None, Decimal("1.500"), Decimal(0), Decimal("-2.250")]),
        "flag": random.choice([None, True, False]),
        "ratio": random.choice([None, 0.0, 0.5, -1.25, 1e20]),
        "owner_id": random.choice([None, 1, 2]),
    }


def write(random: Random, model: Any) -> list[int]:
    """Write something, and return the keys of the rows that it concerns."""
    rows = QuerySet(model)
    keys = random.sample(range(1, 12), random.randint(1, 3))
    match random.choice(["save", "save", "update", "delete", "bulk"]):
        case "save":
            for key in keys:
                rows.update_or_create(pk=key, defaults=_row(random))
        case "update":
            rows.filter(pk__in=keys).update(**dict(random.sample(sorted(_row(random).items()), 3)))
        case "delete":
            rows.filter(pk__in=keys).delete()
        case "bulk":
            rows.bulk_create([model(pk=key, **_row(random)) for key in keys], ignore_conflicts=True)
    return keys


def migrate(random: Random) -> None:
    """Make something else of the column ``code``, in place or by dropping it first."""
    kind, literals = random.choice(KINDS[connection.vendor])
    if connection.vendor == "postgresql" and random.random() < 0.5:
        _execute(f"ALTER TABLE random_thing ALTER COLUMN code TYPE {kind} USING NULL")
    else:
        _execute("ALTER TABLE random_thing DROP COLUMN code")
        _execute(f"ALTER TABLE random_thing ADD COLUMN code {kind}")
    for key in range(1, 12):
        literal = random.choice(literals).replace("%", "%%")
        _execute(f"UPDATE random_thing SET code = {literal} WHERE id = {key}")


# What must be so


class Held:
    """A program on its way."""

    def __init__(self, declared: Declared, live: Any, kept: Any) -> None:
        self._declared = declared
        self._live = live
        self._kept = kept

    async def check(self) -> None:
        """Ask for everything, and compare."""
        expected, one_by_one = await run(self._expected)
        shown = [self._shown(row) for row in self._kept.all()]
        wrong = [pair for pair in zip(shown, expected[0], strict=False) if pair[0] != pair[1]]
        assert shown == expected[0], f"list: {wrong} of {len(shown)} and {len(expected[0])}"
        assert json.loads(self._kept.snapshot.json)["kept"] == json.loads(expected[1])
        found = await self._window()
        assert found == json.loads(expected[2]), f"part: {found} instead of {expected[2]!r}"
        for way in (self._fetched, self._fetched_together):
            rows = await way(list(one_by_one))
            assert rows == list(one_by_one.values()), f"{way.__name__}: {rows} instead of {one_by_one}"

    async def _window(self) -> Any:
        return json.loads(await self._live.live.window(0, 100))["live"]

    async def _fetched(self, keys: Sequence[int]) -> list[Any]:
        return [await self._fetch(key) for key in keys]

    async def _fetched_together(self, keys: Sequence[int]) -> list[Any]:
        return await asyncio.gather(*map(self._fetch, keys))

    async def _fetch(self, key: int) -> Any:
        try:
            return self._shown(await self._live.fetch(key))
        except NotFound:
            return None

    def _shown(self, row: Any) -> Any:
        return row.model_dump_json() if isinstance(row, BaseModel) else typed([dict(sorted(row.items()))])

    # Django's, on a thread

    def _expected(self) -> tuple[tuple[list[Any], bytes, bytes], dict[int, Any]]:
        rows = self._of(self._kept.ordered_queryset())
        part = self._of(self._kept.ordered_queryset()[0:100])
        keys = range(1, 13)
        found = {key: self._of(self._live.queryset().filter(pk=key))[:1] for key in keys}
        return (
            ([self._shown(row) for row in rows], self._sent(rows), self._sent(part)),
            {key: self._shown(row[0]) if row else None for key, row in found.items()},
        )

    def _of(self, queryset: Any) -> list[Any]:
        schema = self._declared.schema
        if schema is not None:
            return TypeAdapter(list[schema]).validate_python(list(queryset), from_attributes=True)  # type: ignore[valid-type]
        rows = list(queryset if self._declared.ends_in_values else queryset.values(*self._declared.names))
        return [{name: plain(row[name]) for name in self._declared.names} for row in rows]

    def _sent(self, rows: Any) -> bytes:
        return TypeAdapter(list[Any]).dump_json(rows, by_alias=True) if rows else to_json(rows)


ENGINES = {
    "postgresql": ["tests.project.engines.schemas", "tests.project.engines.sorting"],
    "sqlite": ["tests.project.engines.sorting_sqlite"],
    "mysql": [],
}


@contextmanager
def _engine(random: Random) -> Iterator[None]:
    own = ENGINES[connection.vendor]
    name = random.choice(own) if own and random.random() < 0.25 else settings.DATABASES["default"]["ENGINE"]
    with default_changed(**{**settings.DATABASES["default"], "ENGINE": name}):
        yield


def play(seed: int) -> None:
    """Play the program of this seed on the database that is Django's ``default``.

    Raises:
        AssertionError: something differs from Django.
    """
    random = Random(seed)
    with _engine(random), isolate_apps("tests.project.board"):

        class Owner(models.Model):
            name = models.CharField(max_length=10)

            class Meta:
                app_label = "board"
                db_table = "random_owner"

            def __str__(self) -> str:
                return self.name

        class Thing(models.Model):
            id = models.IntegerField(primary_key=True)
            number = models.IntegerField(null=True)
            word = models.CharField(max_length=20, null=True)
            moment = models.DateTimeField(null=True)
            price = models.DecimalField(max_digits=9, decimal_places=3, null=True)
            flag = models.BooleanField(null=True)
            ratio = models.FloatField(null=True)
            code = models.IntegerField(null=True)
            owner = models.ForeignKey(Owner, models.CASCADE, null=True, db_constraint=False)

            class Meta:
                app_label = "board"
                db_table = "random_thing"
                ordering = random.choice([(), ("-number",), ("word", "id")])

            def __str__(self) -> str:
                return str(self.pk)

        class Written(models.Model):
            """The same table without the column that migrations change."""

            id = models.IntegerField(primary_key=True)
            number = models.IntegerField(null=True)
            word = models.CharField(max_length=20, null=True)
            moment = models.DateTimeField(null=True)
            price = models.DecimalField(max_digits=9, decimal_places=3, null=True)
            flag = models.BooleanField(null=True)
            ratio = models.FloatField(null=True)
            owner_id = models.IntegerField(null=True)

            class Meta:
                app_label = "board"
                db_table = "random_thing"
                managed = False

            def __str__(self) -> str:
                return str(self.pk)

        with created(Owner, Thing):
            Owner.objects.bulk_create([Owner(pk=1, name="ann"), Owner(pk=2, name="bob")])
            Thing.objects.bulk_create(
                [Thing(pk=key, **_row(random)) for key in range(1, random.randint(1, 9))]
            )
            connections.close_all()
            asyncio.run(_played(random, Thing, Written))
            connections.close_all()


async def _played(random: Random, model: Any, written: Any) -> None:
    declared = Declared(random, model)
    live_class = type("Live", (Repository,), dict(declared.attributes))
    kept_class = type("Kept", (CachedRepository,), dict(declared.attributes))
    if "RANDOM_REPOSITORIES_SHOW" in os.environ:
        print(declared.attributes, declared.names, declared.queryset().query)
    async with asyncio.timeout(DEADLINE):
        async with DjangoORM(ORMSettings(coherence="off"), repositories=[live_class, kept_class]).lifespan(
            FastAPI()
        ):
            held = Held(declared, await live_class.current(), await kept_class.current())
            await held.check()
            for _ in range(random.randint(1, 5)):
                if random.random() < 0.3:
                    await run(migrate, random)
                    await held._kept.refresh()
                else:
                    keys = await run(write, random, written)
                    await held._kept.refresh(*(() if random.random() < 0.2 else keys))
                await held.check()


def play_for(seconds: float, seed: int, report: Callable[[int], None]) -> int:
    """Play programs until the time is over; the number of them.

    Raises:
        AssertionError: something differs; it names the seed.
    """
    end, number = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        try:
            play(seed + number)
        except Exception as error:
            raise AssertionError(f"the program of seed {seed + number}") from error
        report(seed + number)
        number += 1
    return number
