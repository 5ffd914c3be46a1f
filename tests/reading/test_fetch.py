"""Reading one row now: calls that wait at the same moment share a query, and each gets its own answer."""

import asyncio
import gc
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Annotated, Any
from uuid import UUID

import httpx
import pytest
from asgiref.sync import async_to_sync
from django.db import DatabaseError, transaction
from django.db.models import CharField, Model, Window
from django.db.models.functions import Rank
from django.db.models.lookups import LessThanOrEqual
from django.test.utils import isolate_apps
from fastapi import Depends, FastAPI
from pydantic import AfterValidator, BaseModel, Field
from structlog.testing import capture_logs

from fastapi_django_orm import (
    CachedRepository,
    DjangoORM,
    InTransaction,
    ORMSettings,
    Repository,
    atomic,
    run,
)
from fastapi_django_orm.errors import (
    DatabaseBusy,
    DjangoORMError,
    InvalidKey,
    InvalidRepository,
    InvalidRow,
    NotFound,
    NotStarted,
    NotUnique,
)
from fastapi_django_orm.reading.batching import BATCHES_AT_ONCE, MOST_KEYS_OF_BATCH
from tests.project.board.models import Desk, Page, Seat, Writer
from tests.support.comparing import finish
from tests.support.databases import BOARD, DEADLINE, created, default_changed, on_every_thread
from tests.support.gates import Gate, put_behind, started
from tests.support.repositories import declare

pytestmark = pytest.mark.usefixtures("sqlite")

KINDS = [Repository, CachedRepository]
Text: Any = CharField  # generic to the type checker alone
RANK = Window(Rank(), order_by="title")


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[Any]]:
    """What is logged, instead of the output."""
    with capture_logs() as entries:
        yield entries


def live(base: type[Any] = Repository, model: Any = Page, **attributes: Any) -> type[Any]:
    """A repository, as a class statement with these attributes would make it."""
    return type("Pages", (base,), {"__module__": __name__, "model": model, **attributes})


def behind(gate: Gate, **attributes: Any) -> type[Any]:
    """A repository whose every query passes the gate when it has read."""

    class Pages(Repository):
        model = Page

        def prepare(self, here: Any) -> None:
            super().prepare(here)
            put_behind(gate, self)

        def queryset(self) -> Any:  # its own, so that it is read on threads
            return super().queryset().filter(slug__isnull=False)

    for name, value in attributes.items():
        setattr(Pages, name, value)
    return Pages


def add(*slugs: str, **more: Any) -> None:
    Page.objects.bulk_create([Page(slug=slug, address=f"at {slug}", title=slug, **more) for slug in slugs])


def ask(pages: Any, *keys: Any, **unique: Any) -> asyncio.Task[Any]:
    """Ask for a row in a task of its own."""
    return asyncio.ensure_future(pages.fetch(*keys, **unique))


async def asked() -> None:
    """Let the tasks that exist take their first steps."""
    for _ in range(3):
        await asyncio.sleep(0)


async def all_slots_taken(pages: Any, gate: Gate) -> list[asyncio.Task[Any]]:
    """As many batches on their way as there can be, held back behind the closed gate."""
    tasks = []
    for number in range(BATCHES_AT_ONCE):
        tasks.append(ask(pages, f"slot {number}"))
        await gate.load_begun()
    return tasks


# What a caller gets


@pytest.mark.parametrize("base", KINDS)
def test_the_row_as_the_database_has_it(database: str, base: type[Any]) -> None:
    """By key or by a unique field it is the row that `.values()` gives, though a cache has an older one."""
    add("a", "b", number=None)

    async def main() -> None:
        async with started(live(base)) as (pages,):
            await Page.objects.filter(slug="a").aupdate(
                title="new", number=5, token=UUID("550e8400-e29b-41d4-a716-446655440000")
            )
            expected = await Page.objects.values().aget(slug="a")
            assert await pages.fetch("a") == expected
            assert await pages.fetch(slug="a") == expected
            assert await pages.fetch(pk="a") == expected
            assert await pages.fetch(address="at a") == expected
            assert await pages.fetch(number=5) == expected
            assert await pages.fetch(number="5") == expected
            assert await pages.fetch(token="550e8400-e29b-41d4-a716-446655440000") == expected

    finish(main)


def test_keys_in_every_form_that_django_takes(database: str) -> None:
    """A key may be a text of a number; relations and composite keys are keys too."""
    writer = Writer.objects.create(name="w")
    Desk.objects.create(writer=writer, number=5)
    Seat.objects.create(row=1, number=2, guest="A")

    async def main() -> None:
        desks_class, seats_class = live(model=Desk, name="desks"), live(model=Seat, name="seats")
        async with started(desks_class, seats_class) as (desks, seats):
            for found in await asyncio.gather(
                desks.fetch(writer.pk),
                desks.fetch(str(writer.pk)),
                desks.fetch(writer=writer.pk),
                desks.fetch(writer_id=writer.pk),
            ):
                assert found["number"] == 5
            assert (await seats.fetch((1, 2)))["guest"] == "A"
            rows = await asyncio.gather(seats.fetch((1, 2)), seats.fetch((9, 9)), return_exceptions=True)
            assert rows[0] == await seats.fetch((1, 2))
            assert isinstance(rows[1], NotFound)

    finish(main)


@pytest.mark.parametrize(
    "unique", [{"title": "a"}, {"nothing": 1}, {"shown": True}, {"address__in": ["a"]}], ids=str
)
def test_a_field_that_is_not_unique_is_refused(unique: dict[str, Any]) -> None:
    """Only a unique field can say which row is meant; the error names those that can."""

    async def main() -> None:
        async with started(live()) as (pages,):
            with pytest.raises(NotUnique, match=r"Did you mean|There is"):
                await pages.fetch(**unique)

    finish(main)


UNFILTERED: list[Any] = [
    (lambda: Page.objects.order_by("slug")[:5], "is sliced"),
    (lambda: Page.objects.union(Page.objects.all()), "is a union()"),
    (lambda: Page.objects.annotate(rank=RANK), "has window functions"),
    (lambda: Page.objects.filter(LessThanOrEqual(RANK, 1)), "has window functions"),
]
DISTINCT = (Repository, lambda: Page.objects.distinct("title"), "has distinct() on fields")  # SQLite has none


@pytest.mark.parametrize(
    ("base", "cut", "kind"),
    [DISTINCT, *((base, *each) for base in KINDS for each in UNFILTERED)],
    ids=map(str, range(9)),
)
def test_a_query_that_django_cannot_filter_is_named(base: type[Any], cut: Any, kind: str) -> None:
    """The error says what the repository's query is and what to do, for each of those who ask at once."""
    add("a", "b")

    async def main() -> None:
        async with started(live(base, queryset=lambda self: cut())) as (pages,):
            asking = (pages.fetch("a"), pages.fetch("b"), pages.fetch(address="at a"))
            for error in await asyncio.gather(*asking, return_exceptions=True):
                assert isinstance(error, InvalidRepository)
                assert str(error).startswith(f"Pages.fetch(): its queryset() {kind}, ")
                assert "Declare a repository" in str(error)

    finish(main)


@pytest.mark.parametrize(
    "arguments", [((), {}), (("a",), {"number": 1}), ((), {"number": 1, "address": "a"})]
)
def test_one_key_or_one_field(arguments: Any) -> None:
    """Neither nothing nor two things can be asked for at once."""

    async def main() -> None:
        async with started(live()) as (pages,):
            with pytest.raises(TypeError, match="one unique field"):
                await pages.fetch(*arguments[0], **arguments[1])

    finish(main)


def test_null_is_nobodys_value(database: str) -> None:
    """Any number of rows may have null in a unique column, so it finds none of them, alone or in company."""
    Page.objects.bulk_create([Page(slug=slug, address=slug) for slug in "ab"])
    Page.objects.create(slug="c", address="c", number=5)

    async def main() -> None:
        async with started(live()) as (pages,):
            with pytest.raises(NotFound, match="number None"):
                await pages.fetch(number=None)
            missing, row = await asyncio.gather(
                pages.fetch(number=None), pages.fetch(number=5), return_exceptions=True
            )
            assert isinstance(missing, NotFound)
            assert row["slug"] == "c"

    finish(main)


def test_rows_outside_of_the_query_are_not_found() -> None:
    """What `queryset()` leaves out cannot be fetched, alone or in company."""
    add("seen")
    add("hidden", shown=False)

    async def main() -> None:
        async with started(live(queryset=lambda self: Page.objects.filter(shown=True))) as (pages,):
            with pytest.raises(NotFound, match="hidden"):
                await pages.fetch("hidden")
            results = await asyncio.gather(
                *(pages.fetch(key) for key in ("seen", "hidden")),
                pages.fetch(address="at hidden"),
                pages.fetch(address="at seen"),
                return_exceptions=True,
            )
            assert [type(result) is NotFound for result in results] == [False, True, True, False]

    finish(main)


class PageOut(BaseModel):
    slug: str
    title: str
    words: list[str] = Field(default_factory=list)


def test_rows_of_a_schema_are_ones_own() -> None:
    """Where a row could be changed, each of two callers that share a query has a copy."""
    add("a")

    async def main() -> None:
        async with started(live(schema=PageOut)) as (pages,):
            one, other = await asyncio.gather(pages.fetch("a"), pages.fetch("a"))
            one.words.append("mine")
            assert other.words == (await pages.fetch("a")).words == []
            assert one.title == other.title == "a"

    finish(main)


def test_a_schema_may_change_the_field_that_is_asked_for() -> None:
    """Rows are told apart by what the database has, whatever the schema makes of it."""
    add("A", "a", "B", "b")

    class Lower(BaseModel):
        address: Annotated[str, AfterValidator(str.lower)]
        title: str

    class Swapped(BaseModel):
        address: str = Field(validation_alias="title")
        title: str = Field(validation_alias="address")

    Page.objects.create(slug="x", address="y", title="one")
    Page.objects.create(slug="y", address="one", title="y")

    async def main() -> None:
        repositories = live(schema=Lower, name="lower"), live(schema=Swapped, name="swapped")
        async with started(*repositories) as (lower, swapped):
            for wanted in (["A", "a"], ["a", "A"], ["A", "a", "B", "b"], ["A", "b"]):
                rows = await asyncio.gather(*(lower.fetch(address=f"at {slug}") for slug in wanted))
                assert [row.title for row in rows] == wanted
            rows = await asyncio.gather(*(swapped.fetch(address=address) for address in ("y", "one")))
            assert [row.title for row in rows] == ["y", "one"]

    finish(main)


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_what_the_database_holds_for_equal_is_found(database: str) -> None:
    """Where a collation ignores case and spaces at the end, any spelling finds the row in any company."""
    add("news", "other")

    async def main() -> None:
        async with started(live()) as (pages,):
            for wanted in (["NEWS"], ["NEWS", "news"], ["NEWS", "News", "other"], ["NEWS", "none"]):
                for by in ("slug", "address"):
                    keys = wanted if by == "slug" else [f"at {slug}" for slug in wanted]
                    found = await asyncio.gather(
                        *(pages.fetch(**{by: key}) for key in keys), return_exceptions=True
                    )
                    titles = [None if isinstance(row, NotFound) else row["title"] for row in found]
                    assert titles == [{"none": None}.get(one, one.lower()) for one in wanted]

    finish(main)


class Padded(Text):
    """A text that some databases fill up with spaces, and compare without these."""

    def db_type(self, connection: Any) -> str:
        return "char(5)"


def test_a_key_is_found_in_any_company(database: str) -> None:
    """What one key alone finds, it finds among others: of a column whose values are not what was written."""

    async def main(model: type[Any]) -> None:
        async with started(live(model=model, fields=("name",), publish="/words/")) as (words,):

            async def ask_for(*keys: str) -> list[Any]:
                found = await asyncio.gather(*map(words.fetch, keys), return_exceptions=True)
                return [row["name"] if isinstance(row, dict) else type(row) for row in found]

            keys = ("de", "de   ", "fr", "usa", "usa  ", "none")
            alone = [(await ask_for(key))[0] for key in keys]
            assert alone.count(NotFound) < len(keys)
            assert await ask_for(*keys) == alone
            assert await ask_for(*keys[::2]) == alone[::2]

    with isolate_apps("tests.project.board"):

        class Word(Model):
            code = Padded(max_length=5, primary_key=True)
            name = CharField(max_length=5)

            class Meta:
                app_label = "board"

            def __str__(self) -> str:
                return self.name

        with created(Word):
            for code in ("de", "fr", "usa"):
                Word.objects.create(code=code, name=code)
            finish(lambda: main(Word))


# Errors


def test_over_http() -> None:
    """A handler that lets the error pass answers 404 for no row, in FastAPI's form."""
    add("a")
    pages_class = live()
    app = FastAPI()

    @app.get("/{slug}")
    async def show(slug: str, pages: Annotated[Any, Depends(pages_class.current)]) -> Any:
        return await pages.fetch(slug)

    async def main() -> None:
        async with (
            DjangoORM(repositories=[pages_class]).lifespan(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
        ):
            answers = await asyncio.gather(*(client.get(f"/{slug}") for slug in ("a", "b", "a")))
            assert [answer.status_code for answer in answers] == [200, 404, 200]
            assert answers[0].json()["title"] == "a"
            assert answers[1].json() == {"detail": "pages has no row with the key 'b'."}

    finish(main)


BAD: list[dict[str, Any]] = [
    {"number": 2**70},
    {"number": -(2**63) - 1},
    {"address": "\x00"},
    {"address": "x" * 5000},
]


@pytest.mark.parametrize("bad", BAD, ids=["huge", "huge negative", "NUL", "long"])
def test_a_bad_value_among_good_ones(database: str, bad: dict[str, Any]) -> None:
    """A value that no column can hold is the trouble of its caller alone."""
    Page.objects.bulk_create([Page(slug=str(n), address=str(n), number=n) for n in range(5)])
    (name,) = bad

    async def main() -> None:
        async with started(live()) as (pages,):
            good = [pages.fetch(**{name: n if name == "number" else str(n)}) for n in range(5)]
            *rows, error = await asyncio.gather(*good, pages.fetch(**bad), return_exceptions=True)
            assert [row["slug"] for row in rows] == list("01234")
            assert isinstance(error, NotFound | ValueError | DatabaseError)
            with pytest.raises(type(error)):  # alone it is the same
                await pages.fetch(**bad)

    finish(main)


@pytest.mark.parametrize(
    "bad", [{"number": "five"}, {"number": []}, {"token": "no"}, {"number": {}}], ids=str
)
def test_a_wrong_type_is_not_found_at_once(bad: dict[str, Any]) -> None:
    """What the field cannot make a value of is a 404, costs no query, and nobody else an error."""
    add("a")
    gate = Gate()

    async def main() -> None:
        async with started(behind(gate)) as (pages,):
            row, error = await asyncio.gather(pages.fetch("a"), pages.fetch(**bad), return_exceptions=True)
            assert row["slug"] == "a"
            assert isinstance(error, InvalidKey)
            assert isinstance(error, NotFound)
            assert error.status_code == 404
            assert gate.loads == 1

    finish(main)


def test_a_row_that_the_schema_refuses_among_good_ones() -> None:
    """The row that cannot be read is the error of whoever asked for it."""
    add("a", "long title")

    def short(title: str) -> str:
        if len(title) > 3:
            raise ValueError("too long")
        return title

    class Short(BaseModel):
        title: Annotated[str, AfterValidator(short)]

    async def main() -> None:
        async with started(live(schema=Short)) as (pages,):
            row, error, missing = await asyncio.gather(
                pages.fetch("a"), pages.fetch("long title"), pages.fetch("none"), return_exceptions=True
            )
            assert row.title == "a"
            assert isinstance(error, InvalidRow)
            assert str(error).startswith("pages: A row does not fit Short: title: ")
            assert "long title" not in str(error)
            assert error.key == "long title"
            assert isinstance(missing, NotFound)

    finish(main)


class Unreadable(Exception):
    """What a field of the project's own may raise."""


class Sealed(Text):
    """A text that cannot always be read."""

    def from_db_value(self, value: str, expression: Any, connection: Any) -> str:
        if value == "broken":
            raise Unreadable(value)
        return {"a": "read a", "b": "read b"}[value]


def test_a_row_that_a_field_refuses_among_good_ones(database: str) -> None:
    """Whatever a field raises is the error of whoever asked for the row, and never a row that is absent."""

    async def main(model: type[Any]) -> None:
        async with started(live(model=model)) as (notes,):
            asking = [notes.fetch(key) for key in range(1, 6)]
            a, broken, unknown, b, none = await asyncio.gather(*asking, return_exceptions=True)
            assert [a["text"], b["text"]] == ["read a", "read b"]
            assert (type(broken), str(broken)) == (Unreadable, "broken")
            assert type(unknown) is KeyError
            assert isinstance(none, NotFound)

    with isolate_apps("tests.project.board"):

        class Note(Model):
            text = Sealed(max_length=10)

            class Meta:
                app_label = "board"

            def __str__(self) -> str:
                return self.text

        with created(Note):
            for pk, text in enumerate(("a", "broken", "unknown", "b"), 1):
                Note.objects.create(pk=pk, text=text)
            finish(lambda: main(Note))


class Explained(Exception):
    """Makes its message of what it is given."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} is not allowed")


def test_an_error_of_a_class_of_its_own_is_told_as_it_is() -> None:
    """A class whose arguments are not its message is not called again for each caller."""
    gate = Gate()
    gate.error = Explained("bob")

    async def main() -> None:
        async with started(behind(gate)) as (pages,):
            errors = await asyncio.gather(*(pages.fetch("a") for _ in range(2)), return_exceptions=True)
            assert [(type(error), str(error)) for error in errors] == [(Explained, "bob is not allowed")] * 2

    finish(main)


def test_an_error_of_the_query_is_not_a_row_that_is_absent() -> None:
    """A KeyError in `queryset()` is the handler's error, and of what is published a 500 and no 404."""
    asked = iter([Page.objects.all()] * 20)

    def queryset(self: Any) -> Any:
        return next(asked) if not broken else {}["tenant"]

    broken: list[bool] = []

    async def main() -> None:
        pages = live(queryset=queryset, fields=("slug",), publish="/pages/")
        app = FastAPI(lifespan=DjangoORM(repositories=[pages]).lifespan)
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            broken.append(True)
            repository = await pages.current()
            asking = (repository.fetch("a"), repository.fetch("b"))
            for error in await asyncio.gather(*asking, return_exceptions=True):
                assert type(error) is KeyError
            for path in ("/pages/", "/pages/a"):
                assert (await client.get(path)).status_code == 500

    finish(main)


def test_each_caller_has_an_error_of_its_own() -> None:
    """Callers that share a query that failed do not share the exception, which each of them raises."""
    gate = Gate()
    gate.error = DatabaseError("broken")

    async def main() -> None:
        async with started(behind(gate)) as (pages,):
            errors = await asyncio.gather(*(pages.fetch("a") for _ in range(3)), return_exceptions=True)
            assert {str(error) for error in errors} == {"broken"}
            assert {type(error) for error in errors} == {DatabaseError}
            assert len(set(map(id, errors))) == 3
            gate.error = None
            with pytest.raises(NotFound):
                await pages.fetch("a")

    finish(main)


def test_an_error_is_freed_with_its_caller() -> None:
    """A row that is not there leaves nothing for the garbage collector."""
    add("a")

    async def main() -> None:
        async with started(live()) as (pages,):
            gc.collect()
            gc.disable()
            gc.set_debug(gc.DEBUG_SAVEALL)
            try:
                for slug in ("none", "a"):  # of the last call the thread remembers something
                    with suppress(NotFound):
                        await pages.fetch(slug)
                gc.collect()
                assert not [left for left in gc.garbage if isinstance(left, LookupError)]
            finally:
                gc.set_debug(0)
                gc.garbage.clear()
                gc.enable()

    finish(main)


def test_a_database_that_is_down_and_comes_back(mortal: Any) -> None:
    """While the server is away every caller gets the database's error, and rows again when it is back."""
    add("a")

    async def main() -> None:
        async with started(live()) as (pages,):
            assert (await pages.fetch("a"))["slug"] == "a"
            await asyncio.to_thread(mortal.kill)
            errors = await asyncio.gather(
                *(pages.fetch(key) for key in ("a", "a", "b")), return_exceptions=True
            )
            assert all(isinstance(error, DatabaseError) for error in errors), errors
            await asyncio.to_thread(mortal.start)
            for _ in range(100):  # connections that are lost may be noticed one by one
                found = await asyncio.gather(pages.fetch("a"), pages.fetch("b"), return_exceptions=True)
                if isinstance(found[0], dict):
                    break
            assert found[0]["slug"] == "a"
            assert isinstance(found[1], NotFound)

    finish(main)


def test_what_is_published_says_that_the_database_is_down(mortal: Any, logs: list[Any]) -> None:
    """A list and a row that cannot be read are a 503 which says when to come again, and one line of log."""
    add("a")

    async def main() -> None:
        app = FastAPI(lifespan=DjangoORM(repositories=[live(fields=("slug",), publish="/pages/")]).lifespan)
        transport = httpx.ASGITransport(app=app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            assert (await client.get("/pages/a")).status_code == 200
            await asyncio.to_thread(mortal.kill)
            for path in ("/pages/", "/pages/a", "/pages/?limit=1"):
                answer = await client.get(path)
                assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
                assert answer.json() == {"detail": "pages cannot be read now."}
            failed = [entry for entry in logs if entry["event"] == "live_read_failed"]
            assert [entry["repository"] for entry in failed] == ["pages"] * 3
            await asyncio.to_thread(mortal.start)

    finish(main)


# Batches


def test_calls_that_wait_at_once_are_one_query(database: str) -> None:
    """Callers of one moment share a query, duplicates included, and each has its own row."""
    slugs = [str(n) for n in range(50)]
    add(*slugs)
    gate = Gate()

    async def main() -> None:
        async with started(behind(gate)) as (pages,):
            gate.reset()
            rows = await asyncio.gather(*(pages.fetch(slug) for slug in slugs * 3))
            assert [row["title"] for row in rows] == slugs * 3
            assert gate.loads == 1
            gate.reset()
            rows = await asyncio.gather(*(pages.fetch(address=f"at {slug}") for slug in slugs))
            assert [row["title"] for row in rows] == slugs
            assert gate.loads == 1

    finish(main)


def test_a_batch_waits_for_nobody() -> None:
    """A single call is on its way at once, and a second one does not wait for the first."""
    add("a", "b")
    gate = Gate()

    async def main() -> None:
        async with started(behind(gate)) as (pages,):
            gate.reset()
            gate.close()
            first = ask(pages, "a")
            await gate.load_begun()
            second = ask(pages, "b")
            await gate.load_begun()
            gate.open()
            assert [(await task)["slug"] for task in (first, second)] == ["a", "b"]
            assert gate.loads == 2

    finish(main)


def test_what_comes_while_others_are_on_their_way_goes_together() -> None:
    """Any number of calls that arrive while the database works cost one query more."""
    add("a", "b")
    gate = Gate()

    async def main() -> None:
        async with started(behind(gate)) as (pages,):
            gate.reset()
            gate.close()
            early = await all_slots_taken(pages, gate)
            late = [ask(pages, key) for key in ["a", "b", "none"] * 30]
            await asked()
            gate.open()
            found = await asyncio.gather(*late, return_exceptions=True)
            await asyncio.gather(*early, return_exceptions=True)
            assert [isinstance(row, NotFound) for row in found] == [False, False, True] * 30
            assert gate.loads == BATCHES_AT_ONCE + 1

    finish(main)


def test_a_call_never_joins_a_query_that_has_left() -> None:
    """A call that begins after a commit sees it, although an older query for the same row is on its way."""
    add("a")
    gate = Gate()

    async def main() -> None:
        async with started(behind(gate)) as (pages,):
            gate.reset()
            gate.close()
            early = ask(pages, "a")
            await gate.load_begun()
            async with atomic():
                await Page.objects.filter(slug="a").aupdate(title="new")
            late = ask(pages, "a")
            await gate.load_begun()
            gate.open()
            assert (await early)["title"] == "a"
            assert (await late)["title"] == "new"

    finish(main)


def test_more_keys_than_a_query_takes(database: str) -> None:
    """Callers beyond what one query takes get their rows from the next ones."""
    slugs = [str(n) for n in range(2 * MOST_KEYS_OF_BATCH + 100)]
    add(*slugs)
    gate = Gate()

    async def main() -> None:
        async with started(behind(gate)) as (pages,):
            gate.reset()
            rows = await asyncio.gather(*(pages.fetch(slug) for slug in slugs))
            assert [row["title"] for row in rows] == slugs
            assert gate.loads == 3

    finish(main)


# Who gives up


def test_a_caller_that_gives_up_leaves_the_others_alone() -> None:
    """Cancelling callers before, in and after their query takes nothing from those who share it."""
    add("a")
    gate = Gate()

    async def main() -> None:
        async with started(behind(gate)) as (pages,):
            gate.reset()
            gate.close()
            early = await all_slots_taken(pages, gate)
            waiting, gone = [ask(pages, "a") for _ in range(3)], [ask(pages, "a") for _ in range(3)]
            await asked()
            for task in (*gone, early[0]):
                task.cancel()
            gate.open()
            assert [row["slug"] for row in await asyncio.gather(*waiting)] == ["a"] * 3
            results = await asyncio.gather(*gone, *early, return_exceptions=True)
            assert [type(result) for result in results[:4]] == [asyncio.CancelledError] * 4
            assert isinstance(results[4], NotFound)

    finish(main)


def test_a_query_that_nobody_waits_for_is_not_made() -> None:
    """Keys of callers who have all given up are left out."""
    gate = Gate()

    async def main() -> None:
        async with started(behind(gate)) as (pages,):
            gate.reset()
            gate.close()
            early = await all_slots_taken(pages, gate)
            gone = [ask(pages, str(n)) for n in range(5)]
            await asked()
            for task in gone:
                task.cancel()
            gate.open()
            await asyncio.gather(*early, *gone, return_exceptions=True)
            with pytest.raises(NotFound):
                await pages.fetch("a")
            assert gate.loads == BATCHES_AT_ONCE + 1

    finish(main)


def test_many_who_give_up_at_once_do_not_leave_the_rest_waiting() -> None:
    """When all callers of what would be a whole query have gone, those behind them still get their rows."""
    add("a")

    async def main() -> None:
        async with started(live()) as (pages,):
            gone = [ask(pages, f"gone {n}") for n in range(MOST_KEYS_OF_BATCH)]
            last = ask(pages, "a")

            def leave() -> None:
                for task in gone:
                    task.cancel()

            # After the tasks' first steps, in the same turn of the loop, before the query is made.
            asyncio.get_running_loop().call_soon(leave)
            assert (await asyncio.wait_for(last, DEADLINE))["slug"] == "a"

    finish(main)


# Transactions


def test_a_transactions_reads_are_its_own(default_database: str) -> None:
    """Inside atomic() a row that is not committed is seen; outside, at the same moment, it is not."""

    async def main() -> None:
        async with started(live()) as (pages,):
            outside = await asyncio.create_task(self_check(pages))
            assert outside is None
            written, look = asyncio.Event(), asyncio.Event()

            async def write() -> Any:
                async with atomic():
                    await Page.objects.acreate(slug="new", address="new")
                    written.set()
                    await look.wait()
                    rows = await asyncio.gather(pages.fetch("new"), pages.fetch(address="new"))
                    with pytest.raises(NotFound):
                        await pages.fetch("none")
                    transaction_rows = [row["slug"] for row in rows]
                    raise Undone(transaction_rows)

            writer = asyncio.create_task(write())
            await written.wait()
            if default_database != "sqlite":
                assert await self_check(pages) is None
            look.set()
            with pytest.raises(Undone) as caught:
                await writer
            assert caught.value.args == (["new", "new"],)
            assert await self_check(pages) is None

    class Undone(Exception):
        pass

    async def self_check(pages: Any) -> Any:
        try:
            return await pages.fetch("new")
        except NotFound:
            return None

    finish(main)


def test_requests_in_transactions() -> None:
    """Under InTransaction a handler sees what it has written, and other requests do not share its query."""
    add("a")
    pages_class = live()
    app = FastAPI()

    @app.get("/write")
    async def write(_: InTransaction, pages: Annotated[Any, Depends(pages_class.current)]) -> Any:
        await Page.objects.filter(slug="a").aupdate(title="written")
        return await pages.fetch("a")

    @app.get("/sync")
    def in_thread(pages: Annotated[Any, Depends(pages_class.current)]) -> Any:
        with transaction.atomic():
            Page.objects.filter(slug="a").update(title="in a thread")
            row = async_to_sync(pages.fetch)("a")
            transaction.set_rollback(True)
        return row

    @app.get("/read")
    async def read(pages: Annotated[Any, Depends(pages_class.current)]) -> Any:
        return await pages.fetch("a")

    async def titles(client: httpx.AsyncClient, *paths: str) -> list[str]:
        answers = [await client.get(path) for path in paths]
        assert [answer.status_code for answer in answers] == [200] * len(paths)
        return [answer.json()["title"] for answer in answers]

    async def main() -> None:
        transport = httpx.ASGITransport(app)
        async with (
            DjangoORM(repositories=[pages_class]).lifespan(app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            assert await titles(client, "/read", "/sync", "/read") == ["a", "in a thread", "a"]
            assert await titles(client, "/write", "/read") == ["written", "written"]

    finish(main)


def test_atomic_requests(default_database: str) -> None:
    """Under ATOMIC_REQUESTS a handler's fetch is part of its transaction."""
    add("a")
    pages_class = live()
    app = FastAPI()

    @app.get("/")
    async def fails(pages: Annotated[Any, Depends(pages_class.current)]) -> Any:
        await Page.objects.filter(slug="a").aupdate(title="written")
        seen.append((await pages.fetch("a"))["title"])
        raise RuntimeError

    seen: list[str] = []

    async def main() -> None:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            DjangoORM(repositories=[pages_class]).lifespan(app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            assert (await client.get("/")).status_code == 500
            assert seen == ["written"]
            assert (await (await pages_class.current()).fetch("a"))["title"] == "a"

    with default_changed(ATOMIC_REQUESTS=True):
        finish(main)


# Threads, loops, the end


def test_many_callers_use_few_connections(mortal: Any) -> None:
    """500 callers at once, with keys and without company, use at most as many connections as threads."""
    slugs = [str(n) for n in range(500)]
    add(*slugs)

    async def main() -> None:
        async with started(live(), threads=3) as (pages,):
            most, done = 0, asyncio.Event()

            async def watch() -> None:
                nonlocal most
                while not done.is_set():
                    most = max(most, await asyncio.to_thread(mortal.connections, BOARD))

            async def one(slug: str) -> str:
                by_key = await pages.fetch(slug)
                return str((await pages.fetch(address=by_key["address"]))["title"])

            watching = asyncio.create_task(watch())
            try:
                assert await asyncio.gather(*map(one, slugs)) == slugs
            finally:
                done.set()
                await watching
            assert 1 <= most <= 3

    finish(main)


def test_from_a_second_event_loop() -> None:
    """Code on another event loop of the process reads as well, while the first one is busy with its own."""
    add("a", "b")

    async def main() -> None:
        async with started(live()) as (pages,):
            assert (await pages.fetch("a"))["slug"] == "a"
            elsewhere = asyncio.to_thread(asyncio.run, pages.fetch("b"))
            rows = await asyncio.gather(elsewhere, *(pages.fetch("a") for _ in range(5)))
            assert [row["slug"] for row in rows] == ["b", *"aaaaa"]

    finish(main)


def test_from_a_second_event_loop_first() -> None:
    """That the first call came from a loop that is gone does not matter to the application's own."""
    add("a")

    async def main() -> None:
        async with started(live()) as (pages,):
            assert (await asyncio.to_thread(asyncio.run, pages.fetch("a")))["slug"] == "a"
            rows = await asyncio.gather(*(pages.fetch("a") for _ in range(5)))
            assert [row["slug"] for row in rows] == ["a"] * 5
            assert (await asyncio.to_thread(asyncio.run, pages.fetch(address="at a")))["slug"] == "a"

    finish(main)


def test_under_async_to_sync() -> None:
    """A synchronous function that waits with async_to_sync gets its row, on any of the threads."""
    add("a")

    async def main() -> None:
        async with started(live(), threads=1) as (pages,):

            def wait() -> Any:
                threads.add(threading.get_ident())
                return async_to_sync(pages.fetch)("a")

            threads: set[int] = set()
            rows = await asyncio.gather(run(wait), run(wait), pages.fetch("a"))
            assert [row["slug"] for row in rows] == ["a"] * 3

    finish(main)


def test_after_the_end() -> None:
    """A repository of an application that has shut down says so, and does not wait."""
    add("a")

    async def main() -> None:
        async with started(live()) as (pages,):
            await pages.fetch("a")
        for _ in range(2):
            with pytest.raises((DjangoORMError, RuntimeError)):
                await asyncio.wait_for(pages.fetch("a"), DEADLINE)
        with pytest.raises(NotStarted):
            await live()().fetch("a")

    finish(main)


def test_callers_that_wait_at_the_end_are_answered() -> None:
    """A shutdown while calls wait leaves none of them waiting."""
    add("a")
    gate = Gate()

    async def main() -> None:
        async with started(behind(gate), gate=gate) as (pages,):
            gate.close()
            early = await all_slots_taken(pages, gate)
            late = [ask(pages, "a") for _ in range(3)]
            await asked()
            # The block's end opens the gate and shuts down.
        results = await asyncio.wait_for(asyncio.gather(*early, *late, return_exceptions=True), DEADLINE)
        assert len(results) == len(early) + 3

    finish(main)


def test_all_threads_taken() -> None:
    """Callers for which no thread becomes available get DatabaseBusy, and the next ones their rows."""
    add("a")
    release = threading.Event()

    async def main() -> None:
        async with started(live(), threads=1, thread_timeout=0.2) as (pages,):
            begun = threading.Semaphore(0)

            def hold() -> None:
                begun.release()
                release.wait(DEADLINE)

            holding = on_every_thread(hold, 1)
            for _ in holding:
                assert await asyncio.to_thread(begun.acquire, timeout=DEADLINE)
            errors = await asyncio.gather(pages.fetch("a"), pages.fetch("b"), return_exceptions=True)
            assert [type(error) for error in errors] == [DatabaseBusy, DatabaseBusy]
            release.set()
            await asyncio.gather(*holding)
            assert (await pages.fetch("a"))["slug"] == "a"

    try:
        finish(main)
    finally:
        release.set()


def test_two_applications_of_one_class_do_not_share_batches() -> None:
    """Each application's repository reads by its own threads, and goes on when the other has ended."""
    add("a")
    repository = declare("Pages", Page)

    async def main() -> None:
        async with started(repository) as (one,):
            async with DjangoORM(ORMSettings(), repositories=[repository]).lifespan(FastAPI()):
                other = await repository.current()
                rows = await asyncio.gather(other.fetch("a"), other.fetch("a"))
                assert one is not other
            rows += await asyncio.gather(one.fetch("a"), one.fetch("a"))
            assert [row["slug"] for row in rows] == ["a"] * 4

    finish(main)
