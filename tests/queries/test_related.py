"""Filters of rows of several tables: nested schemas, many-to-many relations, inherited models."""

from typing import Any

from django.db.models import Q
from pydantic_core import from_json

from fastapi_django_orm import CachedRepository, Filter, ModelSchema, Repository, run
from tests.project.library.models import Book, Novel, Shelf, Subject
from tests.queries.test_meaning import answer
from tests.support.comparing import finish
from tests.support.gates import started

WORDS = ("sea", "sand", "snow")


class SubjectOut(ModelSchema, model="library.Subject", fields=("word",)): ...


class ShelfOut(ModelSchema, model="library.Shelf", fields=("name",)): ...


class NovelOut(ModelSchema, model="library.Novel", fields=("id", "title", "hero", "place")):
    shelf: ShelfOut | None
    subjects: list[SubjectOut]


class NovelFilter(
    Filter,
    model="library.Novel",
    search=("title", "subjects__word", "shelf__inside__name"),
    ordering=("title", "hero", "shelf__name", "shelf__inside__name", "place"),
    limit=5,
):
    title: str | None = None
    hero__startswith: str | None = None
    subjects: int | None = None
    subjects__isnull: bool | None = None
    subjects__word__in: list[str] | None = None
    shelf__inside: int | None = None
    book_ptr__shelf__isnull: bool | None = None


class Kept(CachedRepository[NovelOut]):
    model = "library.Novel"
    schema = NovelOut
    ordering = ("shelf", "-title")


class Now(Repository[NovelOut]):
    model = "library.Novel"
    schema = NovelOut
    ordering = ("shelf", "-title")


def write() -> dict[str, int]:
    """Twelve novels on two levels of shelves and on none, with none to three subjects."""
    for model in (Book, Shelf, Subject):
        model.objects.all().delete()
    room = Shelf.objects.create(name="room")
    shelves = [room, *(Shelf.objects.create(name=name, inside=room) for name in ("low", "high")), None]
    subjects = [Subject.objects.create(word=word) for word in WORDS]
    for number in range(12):
        novel = Novel.objects.create(
            title=f"novel {number}",
            hero=f"hero {number % 3}",
            shelf=shelves[number % 4],
            place=number if number % 5 else None,
        )
        novel.subjects.set(subjects[: number % 4])
    return {"sea": subjects[0].pk, "room": room.pk}


def everywhere(word: str) -> Q:
    names = ("title", "subjects__word", "shelf__inside__name")
    return Q(*((f"{name}__icontains", word) for name in names), _connector=Q.OR)


def expected(condition: Q, order: tuple[str, ...]) -> list[int]:
    """Django's own answer, each row once."""
    keys = Novel.objects.filter(condition).values("pk")
    return list(Novel.objects.filter(pk__in=keys).order_by(*order, "pk").values_list("pk", flat=True))


async def pages(repository: Any, **values: Any) -> tuple[list[NovelOut], int]:
    """The rows of all pages, and the total."""
    rows: list[NovelOut] = []
    after = None
    while True:
        where = NovelFilter(**values, after=after)
        page = await repository.select(where)
        sent = from_json(await answer(repository.response(where)))
        assert sent[repository.name] == [row.model_dump(mode="json") for row in page]
        rows, after = rows + page, sent["next"]
        if after is None:
            return rows, sent["total"]


def test_rows_of_several_tables(database: str) -> None:
    """Filters and orders through relations give Django's rows, nested as the schema says, on all pages."""
    known = write()
    asked: list[tuple[dict[str, Any], Q]] = [
        ({}, Q()),
        ({"title": "novel 3", "hero__startswith": "h"}, Q(title="novel 3", hero__startswith="h")),
        ({"subjects": known["sea"]}, Q(subjects=known["sea"])),
        ({"subjects__isnull": True}, Q(subjects__isnull=True)),
        ({"subjects__word__in": ["sea", "snow"]}, Q(subjects__word__in=["sea", "snow"])),
        ({"shelf__inside": known["room"]}, Q(shelf__inside=known["room"])),
        ({"book_ptr__shelf__isnull": True}, Q(book_ptr__shelf__isnull=True)),
        ({"search": "s room"}, everywhere("s") & everywhere("room")),
    ]
    orders = [
        (),
        ("title",),
        ("shelf__name", "-title"),
        ("-shelf__inside__name", "place"),
        ("-place", "hero"),
    ]

    async def main() -> None:
        async with started(Kept, Now) as repositories:
            for repository in repositories:
                for values, condition in asked:
                    for order in orders:
                        rows, total = await pages(repository, **values, ordering=list(order))
                        keys = [row.id for row in rows]
                        assert keys == await run(expected, condition, order or ("shelf", "-title"))
                        assert total == len(keys)
                        for row in rows:
                            number = int(row.title.split()[1]) % 4
                            assert [each.word for each in row.subjects] == [*WORDS[:number]]

    finish(main)


def test_a_nested_row_that_memory_does_not_have_yet(database: str) -> None:
    """A row that was inserted before its hint has come is read with what the schema nests."""
    known = write()

    async def main() -> None:
        async with started(Kept) as (novels,):
            new = await Novel.objects.acreate(title="new", hero="x")
            await new.subjects.aset([known["sea"]])
            (row,), total = await pages(novels, title="new")
            assert (row.shelf, row.subjects, total) == (None, [SubjectOut(word="sea")], 1)

    finish(main)
