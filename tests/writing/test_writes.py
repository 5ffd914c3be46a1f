"""create(), update() and delete(): Django validates and saves, and this worker serves what was written."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from io import BytesIO
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.core.exceptions import ValidationError
from django.core.files.storage import FileSystemStorage
from django.db import IntegrityError, transaction
from django.db.models import Count, OuterRef, ProtectedError, Subquery
from django.db.models.functions import Coalesce
from django.db.models.signals import pre_save
from django.test.utils import override_settings
from pydantic import BaseModel
from starlette.datastructures import Headers, UploadFile

from fastapi_django_orm import CachedRepository, Repository, atomic, on_commit, run
from fastapi_django_orm.errors import InvalidKey, NotFound, PreconditionFailed, UnknownField
from tests.project.library.models import Book, Novel, Shelf, Subject
from tests.project.router import ChosenDatabase
from tests.support.databases import until
from tests.writing.shelves import DEADLINE, FIELDS, KINDS, books, opened

both = pytest.mark.parametrize("base", KINDS)


def play(main: Any) -> None:
    """Run a test's coroutine, which must end in time."""

    async def within() -> None:
        async with asyncio.timeout(DEADLINE):
            await main()

    asyncio.run(within())


class BookIn(BaseModel):
    title: str
    shelf: int | None = None
    place: int | None = None
    language: str | None = None
    last: int = 9


class BookPatch(BaseModel):
    title: str | None = None
    last: int | None = None
    place: int | None = None


# What is written, and what comes back


@both
def test_a_row_is_created_as_django_would(database: str, base: type[Any]) -> None:
    """Defaults, a custom save() and auto_now work, and the row that comes back is the one that is served."""

    async def main() -> None:
        async with opened(books(base)) as (library,):
            row = await library.create(BookIn(title=" Kokoro "), first=3)
            book = await Book.objects.aget(pk=row["id"])
            assert (book.title, book.first, book.last, book.language) == ("Kokoro", 3, 9, "en")
            assert book.changed_at is not None
            assert row == await library.fetch(book.pk)
            if base is CachedRepository:
                assert library.get(book.pk) == row

    play(main)


def test_what_is_not_set_is_left_alone(sqlite: str) -> None:
    """An update changes the fields that the client has set, to null as well, and no other."""

    async def main() -> None:
        async with opened(books()) as (library,):
            pk = (await library.create(title="a", place=4, last=8))["id"]
            assert (await library.update(pk, BookPatch(last=9)))["place"] == 4
            row = await library.update(pk, BookPatch(place=None), title="b")
            assert (row["title"], row["last"], row["place"]) == ("b", 9, None)

    play(main)


def test_dicts_enumerations_and_properties(sqlite: str) -> None:
    """A member of an enumeration is written as its value, and a property with a setter is a name as well."""

    class Language(Enum):
        JAPANESE = "ja"

    async def main() -> None:
        async with opened(books()) as (library,):
            row = await library.create({"title": "a", "language": Language.JAPANESE, "pages": 12})
            assert (row["language"], row["last"]) == ("ja", 12)

    play(main)


def test_an_unknown_name(sqlite: str) -> None:
    """The error has the nearest names, nothing is written, and what is no data at all is refused."""

    async def main() -> None:
        async with opened(books()) as (library,):
            with pytest.raises(UnknownField, match=r"Books\.create\(\): library\.Book .*'titel'.*'title'"):
                await library.create({"titel": "a"})
            with pytest.raises(UnknownField, match=r"'subjcts'.*'subjects'"):
                await library.create(title="a", subjcts=[])
            with pytest.raises(TypeError, match="a pydantic model or a dict, not a list"):
                await library.create(["a"])
            assert len(library) == await Book.objects.acount() == 0

    play(main)


@both
def test_a_row_that_is_refused(database: str, base: type[Any]) -> None:
    """full_clean() names each field, rows that are there count, and nothing is written."""

    async def main() -> None:
        async with opened(books(base)) as (library,):
            first = await library.create(title="a", place=1, shelf=await Shelf.objects.acreate(name="s"))
            shelf = first["shelf_id"]
            refused: list[tuple[dict[str, Any], str]] = [
                ({"title": "x" * 51}, "title"),
                ({}, "title"),
                ({"title": "b", "language": "xx"}, "language"),
                ({"title": "b", "shelf": 10**6}, "shelf"),
                ({"title": "b", "subjects": [10**6]}, "subjects"),
                ({"title": "b", "subjects": ["x"]}, "subjects"),
                ({"title": "b", "place": 1, "shelf": shelf}, "__all__"),
                ({"title": "A"}, "__all__"),
                ({"title": "b", "first": 5, "last": 4}, "__all__"),
                ({"title": "forbidden"}, "__all__"),
            ]
            for values, name in refused:
                with pytest.raises(ValidationError) as caught:
                    await library.create(values)
                assert list(caught.value.error_dict) == [name], values
            with pytest.raises(ValidationError):
                await library.update(first["id"], title="forbidden")
            assert await Book.objects.acount() == 1

    play(main)


def test_what_was_left_empty_is_not_refused(sqlite: str) -> None:
    """Null and an empty list are defaults that Django's create() leaves, though a form may not send them."""

    async def main() -> None:
        async with opened(books()) as (library,):
            row = await library.create(title="a")
            await Book.objects.filter(pk=row["id"]).aupdate(title="")
            assert (await library.update(row["id"], last=4))["title"] == ""
            with pytest.raises(ValidationError):
                await library.update(row["id"], title="")

    play(main)


# Relations, files, inheritance


@both
def test_relations(database: str, base: type[Any]) -> None:
    """A relation is given by its key, by the key's name or by an instance; many by a list of either."""

    async def main() -> None:
        async with opened(books(base)) as (library,):
            shelf = await Shelf.objects.acreate(name="s")
            one, two = [await Subject.objects.acreate(word=word) for word in "ab"]
            for number, relation in enumerate(
                ({"shelf": shelf.pk}, {"shelf": shelf}, {"shelf_id": shelf.pk})
            ):
                row = await library.create({"title": str(number), **relation})
                assert row["shelf_id"] == shelf.pk
            # A keyword wins, whatever each of them calls the relation.
            row = await library.create(
                {"title": "x", "shelf_id": shelf.pk, "subjects": [one.pk, two]}, shelf=None
            )
            assert row["shelf_id"] is None

            async def words() -> list[str]:
                book = await Book.objects.aget(pk=row["id"])
                return [subject.word async for subject in book.subjects.order_by("word")]

            assert await words() == ["a", "b"]
            await library.update(row["id"], subjects=[str(two.pk)])
            assert await words() == ["b"]
            await library.update(row["id"], {"subjects": []})
            assert await words() == []

    play(main)


def test_a_schema_with_relations_has_what_was_written(sqlite: str) -> None:
    """Many-to-many relations are written before the row is read again, and so the served row has them."""

    class SubjectOut(BaseModel, from_attributes=True):
        word: str

    class BookOut(BaseModel, from_attributes=True):
        id: int
        words: list[str]

    class Books(CachedRepository[BookOut]):
        model = "library.Book"
        schema = BookOut

        def queryset(self) -> Any:
            return super().queryset().prefetch_related("subjects")

    def words(book: Book) -> list[str]:
        return [subject.word for subject in book.subjects.all()]

    async def main() -> None:
        async with opened(Books) as (library,):
            subject = await Subject.objects.acreate(word="sea")
            row = await library.create(title="a", subjects=[subject.pk])
            assert row.words == library.get(row.id).words == ["sea"]

    Book.words = property(words)  # type: ignore[attr-defined]
    try:
        play(main)
    finally:
        del Book.words  # type: ignore[attr-defined]


def test_files_go_through_the_storage(sqlite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upload is stored by the field's storage, on a database thread."""
    threads = []
    save = FileSystemStorage._save  # type: ignore[attr-defined]

    def noted(*args: Any) -> Any:
        threads.append(current_thread())
        return save(*args)

    monkeypatch.setattr(FileSystemStorage, "_save", noted)

    async def main() -> None:
        async with opened(books(fields=("id", "cover"))) as (library,):
            headers = Headers({"content-type": "image/png"})
            upload = UploadFile(BytesIO(b"png"), filename="../sea.png", size=3, headers=headers)
            row = await library.create(title="a", cover=upload)
            assert row["cover"] == "covers/sea.png"
            assert (tmp_path / row["cover"]).read_bytes() == b"png"
            row = await library.update(row["id"], cover=UploadFile(BytesIO(b"2"), filename="two.png"))
            assert (tmp_path / row["cover"]).read_bytes() == b"2"
            assert (await library.update(row["id"], cover=""))["cover"] == ""
            assert len(threads) == 2
            assert main_thread() not in threads

    with override_settings(MEDIA_ROOT=tmp_path):
        play(main)


def test_a_proxy(database: str) -> None:
    """Its rows are those of the model that has the table."""
    Louds = type(
        "Louds",
        (CachedRepository,),
        {"__module__": __name__, "model": "board.LoudTopic", "fields": ("id", "comment")},
    )

    async def main() -> None:
        async with opened(Louds) as (louds,):
            pk = (await louds.create(comment="a"))["id"]
            assert await louds.update(pk, comment="b") == {"id": pk, "comment": "b"}
            await louds.delete(pk)
            assert len(louds) == 0

    play(main)


def test_texts_that_the_database_cannot_store(database: str) -> None:
    """PostgreSQL has no NUL in texts. That is an error of the field, as in Django's forms."""

    async def main() -> None:
        async with opened(books()) as (library,):
            if database != "postgresql":
                assert (await library.create(title="a\0b"))["title"] == "a\0b"
                return
            with pytest.raises(ValidationError) as caught:
                await library.create(title="a\0b")
            assert caught.value.error_dict["title"][0].code == "null_characters_not_allowed"

    play(main)


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_reads_from_another_database(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row is returned as the database has it that was written, also if reads go to one that lags behind."""
    monkeypatch.setattr(ChosenDatabase, "db_for_read", lambda self, model, **hints: "default")

    async def main() -> None:
        async with opened(books(Repository)) as (library,):
            await run(lambda: Book.objects.using("default").all().delete())
            pk = (await library.create(title="new"))["id"]
            await run(lambda: Book(pk=pk, title="old").save(using="default"))
            assert (await library.fetch(pk))["title"] == "old"
            assert (await library.update(pk, last=5))["title"] == "new"
            async with atomic(database):
                assert (await library.update(pk, last=6))["last"] == 6
            await run(lambda: Book.objects.using("default").all().delete())

    play(main)


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_queryset_that_names_its_database(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows are validated, written and deleted there, whatever a router chooses."""

    class Books(Repository[Any]):
        model = "library.Book"
        fields = FIELDS

        def queryset(self) -> Any:
            return super().queryset().using(database)

    async def main() -> None:
        async with opened(Books) as (library,):
            shelf = (await Shelf.objects.acreate(name="there")).pk
            with monkeypatch.context() as patched:  # as without a router
                for name in ("db_for_read", "db_for_write"):
                    patched.setattr(ChosenDatabase, name, lambda self, model, **hints: None)
                pk = (await library.create(title="a", shelf=shelf))["id"]
            monkeypatch.setattr(ChosenDatabase, "db_for_write", lambda self, model, **hints: "default")
            assert (await library.update(pk, shelf=None, title="b"))["title"] == "b"
            await library.delete(pk)
            for alias in ("default", database):
                assert not await Book.objects.using(alias).filter(pk=pk).aexists()

    play(main)


@both
def test_inheritance(database: str, base: type[Any]) -> None:
    """A row of several tables is written to all of them, also through a repository of the child."""

    async def main() -> None:
        novels = books(base, "Novels", model="library.Novel", fields=("id", "title", "hero"))
        async with opened(novels, books(base)) as (novel, library):
            row = await novel.create(title="a", hero="h")
            assert await novel.update(row["id"], title="b", hero="i") == {**row, "title": "b", "hero": "i"}
            assert (await Book.objects.aget(pk=row["id"])).title == "b"
            with pytest.raises(ValidationError):
                await novel.update(row["id"], id=99)
            await novel.delete(row["id"])
            assert await Novel.objects.acount() == await Book.objects.acount() == 0
            with pytest.raises(NotFound):
                await library.delete(row["id"])

    play(main)


# Several rows, and deletions


@both
def test_many_rows_all_or_none(database: str, base: type[Any]) -> None:
    """They are created together, and the error of one says which."""

    async def main() -> None:
        async with opened(books(base)) as (library,):
            rows = await library.create_many([BookIn(title="a"), {"title": "b"}], language="ja")
            assert [(row["title"], row["language"]) for row in rows] == [("a", "ja"), ("b", "ja")]
            with pytest.raises(ValidationError) as caught:
                await library.create_many([{"title": "c"}, {"title": "A"}])
            assert caught.value.position == 1  # type: ignore[attr-defined]
            assert await library.create_many([]) == []
            assert await Book.objects.acount() == 2

    play(main)


@both
def test_a_row_is_deleted_as_django_would(database: str, base: type[Any]) -> None:
    """With what depends on it, unless something protects it."""
    shelves = books(base, "Shelves", model="library.Shelf", fields=("id", "name"))

    async def main() -> None:
        async with opened(shelves, books(base)) as (shelf, library):
            outer = await shelf.create(name="outer")
            inner = await shelf.create(name="inner", inside=outer["id"])
            book = await library.create(title="a", shelf=inner["id"])
            with pytest.raises(ProtectedError):
                await shelf.delete(outer["id"])
            await library.delete(book["id"])
            await shelf.delete(outer["id"])
            assert await Shelf.objects.acount() == 0
            if base is CachedRepository:  # also what the cascade has deleted
                assert len(shelf) == len(library) == 0

    play(main)


# Keys, and rows that are not in the repository


@both
def test_rows_outside_of_the_repository(database: str, base: type[Any]) -> None:
    """What queryset() leaves out cannot be written; a row that leaves it is still written and returned."""

    def queryset(self: Any) -> Any:
        return Repository.queryset(self).filter(shown=True)

    async def main() -> None:
        async with opened(books(base, queryset=queryset)) as (library,):
            hidden = await Book.objects.acreate(title="hidden", shown=False)
            for write in (
                library.update(hidden.pk, title="b"),
                library.delete(hidden.pk),
                library.delete(10**6),
            ):
                with pytest.raises(NotFound):
                    await write
            with pytest.raises(InvalidKey):
                await library.delete("x")
            row = await library.create(title="a")
            gone = await library.update(row["id"], shown=False)
            assert gone == {**row, "shown": False}
            assert (await library.create(title="draft", shown=False))["title"] == "draft"
            if base is CachedRepository:
                assert len(library) == 0
            assert await Book.objects.acount() == 3

    play(main)


def test_a_key_cannot_be_changed(sqlite: str) -> None:
    """save() would write another row. The same key, in any form, is no change."""

    async def main() -> None:
        async with opened(books()) as (library,):
            row = await library.create(title="a")
            for name in ("id", "pk"):
                with pytest.raises(ValidationError) as caught:
                    await library.update(row["id"], {name: row["id"] + 1})
                assert caught.value.error_dict["id"][0].code == "immutable"
            assert (await library.update(row["id"], {"id": str(row["id"]), "title": "b"}))["title"] == "b"
            assert await Book.objects.acount() == 1

    play(main)


def test_a_subclass_may_override(sqlite: str) -> None:
    """Each method calls no other one of them, and an override may: a deletion that only hides the row."""

    class Books(CachedRepository):
        model = "library.Book"
        fields = ("id", "title", "shown")

        def queryset(self) -> Any:
            return super().queryset().filter(shown=True)

        async def create(self, data: Any = None, /, **values: Any) -> Any:
            return await super().create(data, title="mine", **values)

        async def delete(self, pk: Any, *, if_match: str | None = None) -> None:
            await self.update(pk, shown=False, if_match=if_match)

    async def main() -> None:
        async with opened(Books) as (library,):
            row = await library.create({"title": "a"})
            assert row["title"] == "mine"
            await library.delete(row["id"])
            assert len(library) == 0
            assert await Book.objects.acount() == 1

    play(main)


def test_rows_that_depend_on_the_written_one(sqlite: str) -> None:
    """A row that shows others of its table is read again with them."""
    others = Book.objects.filter(shelf=OuterRef("shelf")).values("shelf").annotate(number=Count("pk"))

    def queryset(self: Any) -> Any:
        beside = Coalesce(Subquery(others.values("number")), 0)
        return Repository.queryset(self).annotate(beside=beside)

    async def main() -> None:
        async with opened(books(fields=("id", "beside"), queryset=queryset)) as (library,):
            shelf = await Shelf.objects.acreate(name="s")
            for title in "abc":
                await library.create(title=title, shelf=shelf)
            assert [row["beside"] for row in library.all()] == [3, 3, 3]
            await library.delete(library.all()[0]["id"])
            assert [row["beside"] for row in library.all()] == [2, 2]

    play(main)


# If-Match


def tag_of(library: Any, pk: int) -> str:
    """The tag that a client gets with the row."""
    headers = dict(library.response(pk).raw_headers)
    return str(headers[b"etag"].decode())


def test_a_row_that_has_changed(database: str) -> None:
    """A write with the tag of an older state is refused, in whatever form the tag comes."""

    async def main() -> None:
        async with opened(books()) as (library,):
            pk = (await library.create(title="a"))["id"]
            tag = tag_of(library, pk)
            forms = [tag, f"W/{tag}", f'"x", {tag}', f'{tag[:-1]}-gzip"', "*", tag.strip('"')]
            for number, form in enumerate(forms):
                tag = tag_of(library, pk)
                form = form.replace(forms[0].strip('"'), tag.strip('"'))
                assert (await library.update(pk, title=f"t{number}", if_match=form))["title"] == f"t{number}"
                for write in (library.update(pk, title="no", if_match=tag), library.delete(pk, if_match=tag)):
                    with pytest.raises(PreconditionFailed):
                        await write
            # The database counts, and not the snapshot, which may be older.
            await Book.objects.filter(pk=pk).aupdate(title="elsewhere")
            with pytest.raises(PreconditionFailed):
                await library.update(pk, title="no", if_match=tag_of(library, pk))
            await library.refresh(pk)
            await library.delete(pk, if_match=tag_of(library, pk))
            with pytest.raises(NotFound):
                await library.delete(pk, if_match="*")

    play(main)


def test_writers_at_the_same_moment(database: str) -> None:
    """Of several with one tag, one writes. Without tags, what each of them changes is kept."""

    async def main() -> None:
        async with opened(books()) as (library,):
            pk = (await library.create(title="a"))["id"]
            tag = tag_of(library, pk)
            writes = [library.update(pk, title=f"{number}", if_match=tag) for number in range(4)]
            outcomes = await asyncio.gather(*writes, return_exceptions=True)
            assert sum(isinstance(each, dict) for each in outcomes) == 1
            assert sum(isinstance(each, PreconditionFailed) for each in outcomes) == 3
            changes: list[dict[str, Any]] = [{"title": "x"}, {"place": 7}, {"last": 70}, {"language": "ja"}]
            await asyncio.gather(*(library.update(pk, change) for change in changes))
            row = library.get(pk)
            assert (row["title"], row["place"], row["last"], row["language"]) == ("x", 7, 70, "ja")

    play(main)


# Transactions


@contextmanager
def refused_by_the_database() -> Iterator[None]:
    """Have a signal change books after they were validated, to what a constraint refuses."""

    def change(instance: Book, **kwargs: Any) -> None:
        instance.first = instance.last + 1

    pre_save.connect(change, sender=Book)
    try:
        yield
    finally:
        pre_save.disconnect(change, sender=Book)


@both
def test_inside_of_a_transaction(default_database: str, base: type[Any]) -> None:
    """A write joins it, its row is read inside, and it is served once the transaction has committed."""

    async def main() -> None:
        async with opened(books(base)) as (library,):
            async with atomic():
                row = await library.create(title="a")
                await library.update(row["id"], title="b")
                assert (await library.fetch(row["id"]))["title"] == "b"
                if base is CachedRepository:
                    assert len(library) == 0
                with pytest.raises(ValidationError):
                    await library.create(title="B")
                with refused_by_the_database(), pytest.raises(IntegrityError):
                    await library.update(row["id"], title="d")
                async with atomic():
                    await library.create(title="c")
            if base is CachedRepository:
                assert [each["title"] for each in library.all()] == ["b", "c"]

            async def fail() -> None:
                async with atomic():
                    await library.delete(row["id"])
                    raise LookupError

            with pytest.raises(LookupError):
                await fail()
            assert (await library.fetch(row["id"]))["title"] == "b"

    play(main)


def test_what_awaits_the_commit_finds_the_row(default_database: str) -> None:
    """The row is served before on_commit() functions are awaited, and also if one of them fails."""
    found = []

    async def main() -> None:
        async with opened(books()) as (library,):

            async def look() -> None:
                found.extend(row["title"] for row in library.all())
                raise LookupError

            async def write() -> None:
                async with atomic():
                    await on_commit(look)
                    await library.create(title="a")

            with pytest.raises(LookupError):
                await write()
            assert found == ["a"]
            assert len(library) == 1

    play(main)


def test_one_connection_is_enough(default_database: str) -> None:
    """What is read after a commit needs a connection, and the transaction has released its own by then."""

    async def main() -> None:
        async with opened(books(), threads=1, thread_timeout=5) as (library,):

            async def write(title: str) -> None:
                async with atomic():
                    await library.create(title=title)
                assert title in {row["title"] for row in library.all()}

            await asyncio.gather(*(write(f"{number}") for number in range(5)), library.create(title="x"))
            assert len(library) == 6

    play(main)


def test_a_transaction_of_a_function_that_calls_asynchronous_code(default_database: str) -> None:
    """A write in `with transaction.atomic()` of a thread joins that, and is served soon after its commit."""

    async def main() -> None:
        async with opened(books()) as (library,):

            def write(fail: bool) -> None:
                with transaction.atomic():
                    async_to_sync(library.create)(title="a")
                    if fail:
                        raise LookupError

            with pytest.raises(LookupError):
                await run(write, True)
            assert await Book.objects.acount() == 0
            await run(write, False)
            await until(lambda: len(library) == 1, "the row is served")

    play(main)
