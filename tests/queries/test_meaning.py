"""A filter means what Django makes of it, on every database."""

import asyncio
from contextlib import AsyncExitStack
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from django.contrib.admin import AdminSite, ModelAdmin
from django.db.models import Manager, Q, QuerySet
from django.utils.text import smart_split, unescape_string_literal
from hypothesis import given, settings
from hypothesis import strategies as st

from fastapi_django_orm import CachedRepository, Filter, Repository, run
from tests.project.board.models import Author, Entry, Topic, Writer
from tests.support.comparing import finish
from tests.support.gates import started

DEADLINE = 20.0  # seconds

MOMENT = datetime(2026, 1, 1, 23, 30, tzinfo=UTC)
WORDS = ["a", "A", "ab", "a%", "b_c", "é", "", " a", "'"]
# Few values, so that there are ties and NULLs.
COLUMNS: dict[str, Any] = {
    "number": st.sampled_from([None, -1, 0, 1, 2**31 - 1]),
    "moment": st.sampled_from(
        [None, MOMENT, MOMENT + timedelta(microseconds=1), MOMENT + timedelta(days=40)]
    ),
    "ratio": st.sampled_from([None, -0.5, 0.1, 1e20]),
    "price": st.sampled_from([None, Decimal("1.100"), Decimal(-3), Decimal("0.001")]),
    "flag": st.sampled_from([None, True, False]),
    "day": st.sampled_from([None, date(2026, 1, 2), date(1999, 12, 31)]),
    "word": st.sampled_from([None, *WORDS]),
    "token": st.sampled_from([None, UUID(int=1), UUID(int=2**127)]),
    "writer": st.sampled_from([None, 1, 2, 3]),
}
NAMES = (*COLUMNS, "writer__name", "writer_id")


class EntryFilter(Filter, model="board.Entry", search=("word", "writer__name"), ordering=NAMES, limit=3):
    number: int | None = None
    number__lte: int | None = None
    number__in: list[int] | None = None
    number__isnull: bool | None = None
    moment__gte: datetime | None = None
    moment__date: date | None = None
    moment__month: int | None = None
    ratio__gt: float | None = None
    price: Decimal | None = None
    price__range: tuple[Decimal, Decimal] | None = None
    flag: bool | None = None
    day__lt: date | None = None
    word: str | None = None
    word__icontains: str | None = None
    word__startswith: str | None = None
    token__in: list[UUID] | None = None
    writer: int | None = None
    writer__name: str | None = None
    writer__desk__number: int | None = None
    writer__isnull: bool | None = None


class Entries(CachedRepository):
    model = "board.Entry"
    ordering = ("-number", "word")


class LiveEntries(Repository):
    model = "board.Entry"  # in the model's own order


WORD = st.sampled_from(WORDS)
VALUES: dict[str, Any] = {
    "number": st.integers(-1, 1),
    "number__lte": st.integers(-2, 2**41),
    "number__in": st.lists(st.sampled_from([-1, 0, 1, 2**40]), min_size=1),
    "number__isnull": st.booleans(),
    "moment__gte": st.sampled_from([MOMENT, MOMENT + timedelta(microseconds=1)]),
    "moment__date": st.sampled_from([date(2026, 1, 1), date(2026, 1, 2), date(2026, 2, 10)]),
    "moment__month": st.integers(1, 2),
    "ratio__gt": st.sampled_from([-1.0, 0.1]),
    "price": st.sampled_from([Decimal("1.1"), Decimal(-3)]),
    "price__range": st.just((Decimal(0), Decimal(2))),
    "flag": st.booleans(),
    "day__lt": st.just(date(2020, 1, 1)),
    "word": WORD,
    "word__icontains": WORD,
    "word__startswith": WORD,
    "token__in": st.lists(st.sampled_from([UUID(int=1), UUID(int=2**127)]), min_size=1, max_size=2),
    "writer": st.integers(1, 4),
    "writer__name": st.sampled_from(["Ann", "Bob", "nobody"]),
    "writer__desk__number": st.integers(1, 2),
    "writer__isnull": st.booleans(),
}
LOOKUPS = st.fixed_dictionaries({}, optional=VALUES)
PARTS = st.fixed_dictionaries(
    {},
    optional={
        "search": st.lists(WORD, max_size=2).map(" ".join),
        "ordering": st.lists(
            st.tuples(st.sampled_from(["", "-"]), st.sampled_from(NAMES)).map("".join), max_size=3
        ),
        "limit": st.integers(1, 20),
        "offset": st.integers(0, 5),
    },
)
ROWS = st.lists(st.fixed_dictionaries(COLUMNS), max_size=12)


def write(rows: list[dict[str, Any]]) -> None:
    """Replace all entries."""
    Entry.objects.all().delete()
    writers: dict[Any, Writer] = {}
    for number, name in ((1, "Ann"), (2, "Bob"), (3, "Ann")):
        writers[number], _ = Writer.objects.get_or_create(id=number, name=name)
    Entry.objects.bulk_create(
        Entry(id=number, **{**row, "writer": writers.get(row["writer"])}) for number, row in enumerate(rows)
    )


def searched(words: str) -> Q:
    """What the admin's search makes of words, whose quotation marks group them."""
    found = Q()
    for word in smart_split(words):
        if word.startswith(('"', "'")) and word[0] == word[-1]:
            word = unescape_string_literal(word)
        found &= Q(word__icontains=word) | Q(writer__name__icontains=word)
    return found


def expected(lookups: dict[str, Any], parts: dict[str, Any], own: tuple[str, ...]) -> tuple[list[Any], int]:
    """Django's own answer: the rows of the page, and the number of all."""
    found = Entry.objects.filter(searched(parts.get("search", "")), **lookups)
    offset = parts.get("offset", 0)
    page = found.order_by(*(parts.get("ordering") or own), "pk")[offset : offset + parts.get("limit", 3)]
    return list(page.values()), found.count()


@pytest.mark.timeout(120)
def test_random_filters(database: str) -> None:
    """Random rows, lookups, words, orders and windows give Django's rows, from memory and read now."""
    with asyncio.Runner() as runner:

        @settings(max_examples=40)
        @given(
            rows=ROWS,
            asked=st.lists(st.tuples(LOOKUPS, PARTS), min_size=1, max_size=4),
        )
        def check(rows: list[Any], asked: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
            runner.run(compare(rows, asked))

        async def compare(rows: list[Any], asked: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
            async with asyncio.timeout(DEADLINE):
                await run(write, rows)
                await kept.refresh()
                for lookups, parts in asked:
                    where = EntryFilter(**lookups, **parts)
                    for repository, own in ((kept, ("-number", "word")), (live, ("-number",))):
                        page, total = await run(expected, lookups, parts, own)
                        assert await repository.select(where) == page
                        sent = await answer(repository.response(where))
                        assert b'"total":%d,' % total in sent

        stack = AsyncExitStack()
        kept, live = runner.run(stack.enter_async_context(started(Entries, LiveEntries)))
        try:
            check()
        finally:
            runner.run(stack.aclose())


async def answer(response: Any) -> bytes:
    """The body that a response sends."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await response({"type": "http", "method": "GET", "headers": []}, None, send)
    return b"".join(message.get("body", b"") for message in sent)


class AuthorFilter(Filter, model="board.Author", search=("topic__comment",)):
    topic__comment__icontains: str | None = None
    topic__created_at__lte: datetime | None = None


class Authors(CachedRepository):
    model = "board.Author"


def test_a_row_that_is_joined_to_several_is_listed_once(database: str) -> None:
    """A lookup through a to-many relation selects each row once, and counts it once."""
    ann, bob = (Author.objects.create(name=name) for name in ("Ann", "Bob"))
    for author, comment in ((ann, "one"), (ann, "one more"), (bob, "two"), (bob, "one")):
        Topic.objects.create(author=author, comment=comment)

    async def main() -> None:
        async with started(Authors) as (authors,):
            for where in (AuthorFilter(topic__comment__icontains="ONE"), AuthorFilter(search="one")):
                assert [row["name"] for row in await authors.select(where)] == ["Ann", "Bob"]
                assert b'"total":2,"next":null' in await answer(authors.response(where))

    finish(main)


def test_the_base_manager_does_not_select(sqlite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the repository's own query decides which rows there are, also where a row is joined to several."""
    author = Author.objects.create(name="Ann")
    Topic.objects.create(author=author, comment="one")

    class Hiding(Manager[Author]):
        def get_queryset(self) -> QuerySet[Author]:
            return super().get_queryset().none()

    hiding = Hiding()
    hiding.model = Author
    monkeypatch.setattr(Author._meta, "base_manager", hiding)

    async def main() -> None:
        async with started(Authors) as (authors,):
            rows = await authors.select(AuthorFilter(topic__comment__icontains="one"))
            assert [row["name"] for row in rows] == ["Ann"]

    finish(main)


SEARCHED = ("word", "^writer__name", "=token", "number", "writer__name__endswith")


class AdminFilter(Filter, model="board.Entry", search=SEARCHED):
    pass


class EntryAdmin(ModelAdmin):  # type: ignore[type-arg]  # it takes an argument for mypy alone
    search_fields = SEARCHED


def test_search_is_that_of_the_admin(database: str) -> None:
    """Words, quotes, prefixes and lookups select the rows that the admin's search box selects."""
    words = ["a b", "b a", "ab", "A  b", "a%", "1", "it's", '"', "\\", None]
    write([{**dict.fromkeys(COLUMNS), "word": word, "number": 10} for word in words])
    Entry.objects.filter(pk__lt=3).update(writer_id=1, token=UUID(int=7))
    asked = [
        "a b",
        '"a b"',
        "'a b'",
        '"a b" a',
        "ann",
        "nn",
        "An B",
        str(UUID(int=7)),
        "0",
        '"',
        "it's",
        "\\",
        " ",
    ]

    def found(search: str) -> list[Any]:
        queryset, _ = admin.get_search_results(None, Entry.objects.order_by("pk"), search)
        return list(queryset.values_list("pk", flat=True))

    async def main() -> None:
        async with started(AdminEntries) as (entries,):
            for search in asked:
                rows = await entries.select(AdminFilter(search=search))
                assert [row["id"] for row in rows] == await run(found, search), search

    admin: Any = EntryAdmin(Entry, AdminSite())
    finish(main)


class AdminEntries(CachedRepository):
    model = "board.Entry"
    ordering = ("pk",)
