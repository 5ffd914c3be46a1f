"""Managers, querysets, engines and callers that decide what a query gives: the answer is Django's."""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Annotated, Any

import httpx
import pytest
from asgiref.local import Local
from django.db import connection, connections, models
from django.db.backends.signals import connection_created
from django.db.models import F, Q, QuerySet
from django.db.models.query import ModelIterable, ValuesIterable
from django.db.models.sql import Query
from django.test.utils import isolate_apps
from fastapi import FastAPI
from pydantic import AfterValidator, BaseModel
from structlog.testing import capture_logs

from fastapi_django_orm import CachedRepository, DjangoORM, Repository, atomic, run
from fastapi_django_orm.database import lifecycle
from fastapi_django_orm.errors import NotFound
from tests.project import router
from tests.project.board.models import Entry, Page
from tests.support.comparing import finish, sent_by_fastapi, typed, values
from tests.support.databases import created, default_changed
from tests.support.gates import started


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[Any]]:
    """What is logged, instead of the output."""
    with capture_logs() as entries:
        yield entries


NAMES = ("id", "number", "word", "shown")


def repositories(queryset: Callable[[], Any], **attributes: Any) -> tuple[type[Any], type[Any]]:
    """One that is read live, and one that is kept, of what a query gives."""
    attributes = {
        "model": Entry,
        "fields": NAMES,
        "ordering": ("pk",),
        "queryset": lambda self: queryset(),
        **attributes,
    }
    return type("Live", (Repository,), dict(attributes)), type("Kept", (CachedRepository,), dict(attributes))


def fill() -> None:
    Entry.objects.bulk_create(
        [Entry(pk=number, number=number % 3, word=f"w{number}", shown=number != 2) for number in range(6)]
    )


async def assert_as_django_reads_it(live: Any, kept: Any, queryset: Callable[[], Any], *names: str) -> None:
    """Alone and together, a row, a part of the list and all: what `values()` and `filter(pk=…)` give."""

    def rows() -> list[Any]:
        return [{name: row[name] for name in names} for row in queryset().order_by("pk").values(*names)]

    def one(pk: int) -> Any:
        return next(iter(queryset().filter(pk=pk).values(*names)), None)

    async def fetched(pk: int) -> Any:
        try:
            return await live.fetch(pk)
        except NotFound:
            return None

    expected, ones = await run(rows), await run(lambda: [one(pk) for pk in range(7)])
    assert [await fetched(pk) for pk in range(7)] == ones
    assert await asyncio.gather(*map(fetched, range(7))) == ones
    assert (
        json.loads(await live.live.window(0, None))["live"]
        == json.loads(await sent_by_fastapi("live", expected))["live"]
    )
    await kept.refresh(1, 4)
    assert typed(kept.all()) == typed(expected)
    await kept.refresh()
    assert typed(kept.all()) == typed(expected)


# Querysets


class Values(QuerySet[Any, Any]):
    """Makes something else of what it selects, in an order of its own, as translations do."""

    def values(self, *fields: Any, **expressions: Any) -> Any:
        found = super().values(*dict.fromkeys(("shown", *reversed(fields))), **expressions)
        found._iterable_class = _Loud
        return found

    def values_list(self, *fields: Any, **options: Any) -> Any:
        return super().values_list(*reversed(fields), **options)

    def order_by(self, *fields: Any) -> Any:
        return super().order_by(*fields)


class _Loud(ValuesIterable):
    def __iter__(self) -> Iterator[Any]:
        for row in super().__iter__():
            yield {name: value.upper() if name == "word" else value for name, value in row.items()}


class Iterated(QuerySet[Any, Any]):
    """Changes rows when it has them all."""

    def _fetch_all(self) -> None:
        fresh = self._result_cache is None
        super()._fetch_all()
        for row in self._result_cache or () if fresh else ():
            if isinstance(row, dict) and "word" in row:
                row["word"] = f"({row['word']})"


class Filtered(QuerySet[Any, Any]):
    """Answers one key otherwise than several, as a soft delete may."""

    def filter(self, *conditions: Any, **lookups: Any) -> Any:
        if not {"pk", "id"} & lookups.keys():
            conditions = (*conditions, Q(shown=True))
        return super().filter(*conditions, **lookups)

    def values(self, *fields: Any, **expressions: Any) -> Any:
        return super().values(*fields, **expressions)


class OwnQuery(Query):
    """Leaves rows out when it becomes SQL."""

    def get_compiler(self, *args: Any, **options: Any) -> Any:
        found = self.chain(Query)
        found.add_q(Q(shown=True))
        return found.get_compiler(*args, **options)


def of_own_query() -> Any:
    return QuerySet(Entry, query=OwnQuery(Entry))


def of_own_attribute() -> Any:
    """A queryset with a method that was put on it, as some packages wrap them."""
    found = Entry.objects.all()
    found.filter = lambda *args, **lookups: QuerySet(Entry).filter(*args, shown=True, **lookups)  # type: ignore[method-assign]
    return found


QUERYSETS: dict[str, tuple[Callable[[], Any], str]] = {
    "values": (lambda: Values(Entry), "overrides values"),
    "iteration": (lambda: Iterated(Entry), "overrides _fetch_all"),
    "filter": (lambda: Filtered(Entry), "overrides filter"),
    "query": (of_own_query, "the query is a OwnQuery"),
    "attribute": (of_own_attribute, "a queryset has its own filter"),
}


@pytest.mark.parametrize("kind", QUERYSETS)
def test_a_queryset_with_ways_of_its_own(database: str, kind: str) -> None:
    """Rows are those of `values()`, one row that of `filter(pk=…)`; the health report names the class."""
    queryset, reason = QUERYSETS[kind]
    fill()

    async def main() -> None:
        async with started(*repositories(queryset)) as (live, kept):
            await assert_as_django_reads_it(live, kept, queryset, *NAMES)
            await Entry.objects.filter(pk=4).aupdate(word="new", number=9)
            await assert_as_django_reads_it(live, kept, queryset, *NAMES)
            assert reason in live.reasons["several_keys"]
            # Django's own order_by() forgets what was put on a queryset.
            assert kind == "attribute" or reason in kept.reasons["refresh_by_keys"]

    finish(main)


class Harmless(QuerySet[Any, Any]):
    """Writes in its own way, and can do more."""

    def delete(self) -> Any:
        return self.update(shown=False)

    def create(self, **values: Any) -> Any:
        return super().create(**{"word": "new", **values})

    def count(self) -> int:
        return 5

    def visible(self) -> Any:
        return self.filter(shown=True)


def test_a_queryset_that_writes_otherwise_and_can_do_more(database: str, logs: list[Any]) -> None:
    """What has nothing to do with reading leaves the quick ways open."""
    fill()
    live_class, kept_class = repositories(lambda: Harmless(Entry).visible())

    async def main() -> None:
        async with started(live_class, kept_class) as (live, kept):
            await assert_as_django_reads_it(live, kept, lambda: Harmless(Entry).visible(), *NAMES)
            assert "several_keys" not in live.reasons
            assert "refresh_by_keys" not in kept.reasons
            assert ("json_by_database" in kept.reasons) == (connections[router.chosen].vendor != "postgresql")

    finish(main)
    assert [log.get("keys") for log in logs if log["event"] == "repository_refreshed"] == [2, None]


class Shouting(ModelIterable):
    """Gives instances of its own making, as models that know their children do."""

    def __iter__(self) -> Iterator[Any]:
        for instance in super().__iter__():
            instance.word = instance.word.upper()
            yield instance


class EntryOut(BaseModel):
    id: int
    word: str


def test_instances_that_are_made_otherwise(database: str) -> None:
    """A schema whose fields are columns is made of the instances that the queryset gives."""
    fill()

    def shouting() -> Any:
        found = Entry.objects.all()
        found._iterable_class = Shouting
        return found

    async def main() -> None:
        async with started(*repositories(shouting, schema=EntryOut, fields=None)) as (live, kept):
            assert [row.word for row in kept.all()] == [f"W{number}" for number in range(6)]
            assert (await live.fetch(3)).word == "W3"

    finish(main)


# Who asks


tenant: ContextVar[str | None] = ContextVar("tenant", default=None)
language = Local()


async def as_tenant(pages: Any, name: str, slug: str) -> Any:
    tenant.set(name)
    try:
        return (await pages.fetch(slug))["title"]
    except NotFound:
        return None


def of_tenant() -> Any:
    current = tenant.get()
    return Page.objects.all() if current is None else Page.objects.filter(title=current)


def add_pages() -> None:
    Page.objects.bulk_create(
        [Page(slug=f"{name}{n}", address=f"{name}{n}", title=name) for name in "ab" for n in range(3)]
    )


def test_a_manager_that_looks_at_the_caller(database: str) -> None:
    """Each of those who ask at once gets what its own query gives: another tenant's row is not there."""
    add_pages()
    pages_class = type("Pages", (Repository,), {"model": Page, "queryset": lambda self: of_tenant()})

    async def main() -> None:
        async with started(pages_class) as (pages,):
            asked = [(name, slug) for name in "ab" for slug in ("a0", "b0", "a1", "b1")] * 3
            found = await asyncio.gather(*(as_tenant(pages, *each) for each in asked))
            assert found == [name if slug.startswith(name) else None for name, slug in asked]
            assert await pages.fetch("b0")  # who belongs to no tenant sees all
            async with atomic():
                assert await as_tenant(pages, "a", "b0") is None

    finish(main)


def test_callers_with_the_same_query_share_it(sqlite: str) -> None:
    """What is read together is what is one query for the database; two tenants make two of it."""
    add_pages()
    pages_class = type("Pages", (Repository,), {"model": Page, "queryset": lambda self: of_tenant()})
    read: list[int] = []

    async def main() -> None:
        async with started(pages_class) as (pages,):
            take = pages._reader.read

            def counted(*args: Any, **options: Any) -> Any:
                read.append(1)
                return take(*args, **options)

            pages._reader.read = counted
            asked = [(name, f"{name}{n % 3}") for name in "ab" for n in range(20)]
            await asyncio.gather(*(as_tenant(pages, *each) for each in asked))
            assert len(read) == 2

    finish(main)


def test_a_language_that_belongs_to_the_caller(database: str) -> None:
    """Asgiref's locals, in which Django keeps the language, are the caller's in managers and schemas."""
    add_pages()

    def in_language() -> Any:
        return Page.objects.filter(title="a" if getattr(language, "code", "") == "de" else "b")

    class Out(BaseModel):
        slug: Annotated[str, AfterValidator(lambda slug: f"{getattr(language, 'code', '')} {slug}")]
        title: str

    rows_class = type("Rows", (Repository,), {"model": Page, "queryset": lambda self: in_language()})
    out_class = type("Out", (Repository,), {"model": Page, "schema": Out})

    async def ask(code: str, rows: Any, out: Any) -> Any:
        language.code = code
        found = await asyncio.gather(rows.fetch("a0"), rows.fetch("b0"), return_exceptions=True)
        return [isinstance(each, NotFound) for each in found], (await out.fetch("a0")).slug

    async def main() -> None:
        async with started(rows_class, out_class) as (rows, out):
            codes = ["de", "en"] * 5
            found = await asyncio.gather(*(ask(code, rows, out) for code in codes))
            assert found == [([code == "en", code == "de"], f"{code} a0") for code in codes]

    finish(main)


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_router_that_looks_at_the_caller(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks at once is answered by the database that the router gives for each."""
    aliases = {"a": "default", "b": database}
    for name, alias in aliases.items():
        Page.objects.using(alias).all().delete()
        Page.objects.using(alias).create(slug="x", address="x", title=name)
    connections.close_all()
    monkeypatch.setattr(router.ChosenDatabase, "db_for_read", lambda *_, **__: aliases[tenant.get() or "a"])
    pages_class = type("Pages", (Repository,), {"model": Page})

    async def main() -> None:
        async with started(pages_class) as (pages,):
            for _ in range(3):
                found = await asyncio.gather(*(as_tenant(pages, name, "x") for name in "abbaab"))
                assert found == list("abbaab")

    finish(main)
    Page.objects.using(aliases["b"]).all().delete()


def test_what_is_published_is_read_for_nobody(sqlite: str) -> None:
    """A published row and list are the same for all, whatever a middleware has set for the request."""
    add_pages()
    attributes = {"model": Page, "fields": ("slug", "title"), "publish": "/pages/"}
    pages_class = type("Pages", (Repository,), {**attributes, "queryset": lambda self: of_tenant()})
    app = FastAPI()

    class AsTenant:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            tenant.set(dict(scope.get("headers", ())).get(b"x-tenant", b"").decode() or None)
            await self.app(scope, receive, send)

    app.add_middleware(AsTenant)

    async def main() -> None:
        async with (
            DjangoORM(repositories=[pages_class]).lifespan(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
        ):
            answers = [
                (await client.get(path, headers={"x-tenant": name})).json()
                for path in ("/pages/", "/pages/b0")
                for name in ("a", "b", "")
            ]
            assert len(answers[0]["pages"]) == 6
            assert answers[0] == answers[1] == answers[2]
            assert answers[3] == answers[4] == answers[5] == {"slug": "b0", "title": "b"}

    finish(main)


# Engines and connections


def test_statements_that_a_wrapper_changes(default_database: str) -> None:
    """What the project puts around each connection's statements decides what is read, from then on."""
    fill()

    def hide(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        assert context["cursor"] is not None
        return execute(sql.replace("board_entry", "hidden_entry"), params, many, context)

    def close_idle() -> None:  # as when the server has ended their sessions
        for pool in lifecycle._process.pools():
            for idle in pool._free:
                idle.close()

    def put_around(connection: Any, **_: Any) -> None:
        if hide not in connection.execute_wrappers:
            connection.execute_wrappers.append(hide)

    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE hidden_entry AS SELECT * FROM board_entry WHERE id = 1")
    live_class, kept_class = repositories(Entry.objects.all)

    async def main() -> None:
        async with started(live_class, kept_class, threads=1) as (live, kept):
            await assert_as_django_reads_it(live, kept, Entry.objects.all, *NAMES)
            connection_created.connect(put_around)
            try:
                await run(close_idle)
                await kept.refresh()
                assert [row["id"] for row in kept.all()] == [1]
                kept_reason = kept.reasons["json_by_database"]
                assert len(json.loads(await live.live.window(0, None))["live"]) == 1
                with pytest.raises(NotFound):
                    await live.fetch(3)
                assert default_database == "mariadb" or "execute_wrapper" in kept_reason
            finally:
                connection_created.disconnect(put_around)

    try:
        finish(main)
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP TABLE hidden_entry")


@pytest.mark.parametrize("default_database", ["postgresql"], indirect=True)
def test_a_connection_whose_time_zone_was_changed(default_database: str) -> None:
    """Moments are what Django makes of what this connection gives, which is not what they are."""
    Entry.objects.bulk_create([Entry(pk=1, moment="2020-01-01 00:00+00:00"), Entry(pk=2)])

    def change(zone: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"SET TIME ZONE '{zone}'")

    names = ("id", "moment")
    live_class, kept_class = repositories(Entry.objects.all, fields=names)

    async def main() -> None:
        async with started(live_class, kept_class, threads=1) as (live, kept):
            for zone in ("Asia/Tokyo", "UTC"):
                await run(change, zone)
                rows = await run(values, Entry.objects.order_by("pk"), *names)
                await kept.refresh()
                assert typed(kept.all()) == typed(rows)
                assert typed([await live.fetch(1)]) == typed(rows[:1])
                assert await live.live.window(0, 2) == await sent_by_fastapi("live", rows)

    with default_changed(CONN_MAX_AGE=None):
        finish(main)


# Keys

Char: Any = models.CharField  # generic to the type checker alone


class Folded(Char):
    """A text that one key finds in any case."""


@Folded.register_lookup
class FoldedExact(models.lookups.Exact):
    def as_sql(self, compiler: Any, connection: Any) -> Any:
        column, params = self.process_lhs(compiler, connection)
        return f"lower({column}) = %s", [*params, self.rhs.lower()]


def test_keys_that_are_looked_for_in_a_way_of_their_own(database: str) -> None:
    """What one key finds, it finds beside others, though Django's lookup of several would not."""
    with isolate_apps("tests.project.board"):

        class Label(models.Model):
            slug = Folded(max_length=10, primary_key=True)
            name = models.CharField(max_length=10)

            class Meta:
                app_label = "board"

            def __str__(self) -> str:
                return self.name

        with created(Label):
            Label.objects.bulk_create([Label(slug=slug, name=slug) for slug in ("a", "b")])

            async def main() -> None:
                async with started(type("Labels", (Repository,), {"model": Label})) as (labels,):
                    assert (await labels.fetch("A"))["name"] == "a"
                    found = await asyncio.gather(*map(labels.fetch, ("A", "b", "B", "a")))
                    assert [row["name"] for row in found] == ["a", "b", "b", "a"]

            finish(main)


# Orders

Integer: Any = models.IntegerField  # generic to the type checker alone


class Negative(Integer):
    """A number that is shown with the other sign."""

    def from_db_value(self, value: Any, expression: Any, connection: Any) -> Any:
        return None if value is None else -value

    def get_prep_value(self, value: Any) -> Any:
        return None if value is None else -int(value)


def test_an_order_by_keys_that_are_shown_otherwise(database: str) -> None:
    """The database sorts what it has: a refresh of some keys leaves the order of a full load."""
    with isolate_apps("tests.project.board"):

        class Debt(models.Model):
            id = Negative(primary_key=True)
            name = models.CharField(max_length=10)

            class Meta:
                app_label = "board"

            def __str__(self) -> str:
                return self.name

        with created(Debt):
            Debt.objects.bulk_create([Debt(id=number, name="a") for number in (1, 2, 4)])

            async def main() -> None:
                kept_class = type("Debts", (CachedRepository,), {"model": Debt, "ordering": ("pk",)})
                async with started(kept_class) as (kept,):
                    await run(Debt.objects.create, id=3, name="b")
                    await kept.refresh(3)
                    assert [row["id"] for row in kept.all()] == [4, 3, 2, 1]
                    # The wrapper that notes a load's statements is not the project's.
                    assert "execute_wrapper" not in kept.reasons["json_by_database"]

            finish(main)


ANNOTATIONS: dict[str, Any] = {
    "halves": models.ExpressionWrapper(F("number") / 2.0, output_field=models.IntegerField()),
    "text": models.functions.Cast("number", models.CharField(max_length=9)),
    "case": models.Case(models.When(number=1, then=models.Value(9)), default=F("number") % 2),
    "coalesced": models.functions.Coalesce("number", 7),
    "rounded": models.functions.Round(F("ratio") * 1.0),
    "decimal": models.ExpressionWrapper(
        F("price") / 3, output_field=models.DecimalField(max_digits=5, decimal_places=1)
    ),
    "day": models.functions.TruncDate("moment"),
    "count": models.Count("pk"),
    "truth": models.ExpressionWrapper(Q(number__gt=1), output_field=models.BooleanField()),
    "plain": F("number"),
}


@pytest.mark.parametrize("down", ["", "-"], ids=["up", "down"])
@pytest.mark.parametrize("kind", ANNOTATIONS)
def test_an_order_by_an_annotation(database: str, kind: str, down: str) -> None:
    """However an annotation's value is shown, a refresh of some keys leaves the order of a full load."""
    Entry.objects.bulk_create(
        [Entry(pk=n, number=(3, 5, 3, 2, None)[n], ratio=n / 3, price=n) for n in range(5)]
    )

    def annotated() -> Any:
        return Entry.objects.annotate(score=ANNOTATIONS[kind])

    _, kept_class = repositories(annotated, fields=("id", "score"), ordering=(f"{down}score", "pk"))

    async def main() -> None:
        async with started(kept_class) as (kept,):
            for key, more in ((7, {"number": 2, "price": 1}), (1, {"number": 4}), (3, {"ratio": 0.5})):
                await Entry.objects.aupdate_or_create(pk=key, defaults=more)
                await kept.refresh(key)
                expected = await run(lambda: list(kept.ordered_queryset().values("id", "score")))
                assert typed(kept.all()) == typed(expected)

    finish(main)
