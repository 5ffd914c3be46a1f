"""Files of writes: storages have no transactions, so what a rolled back write has stored is deleted."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from django.db import IntegrityError, transaction
from django.db.models.signals import post_save
from django.db.transaction import TransactionManagementError
from django.test.utils import override_settings
from fastapi import FastAPI
from starlette.datastructures import UploadFile

from fastapi_django_orm import DjangoORM, InTransaction, atomic, run
from tests.project.library.models import Book
from tests.writing.shelves import books, empty, opened
from tests.writing.test_writes import play


@pytest.fixture(autouse=True)
def media(tmp_path: Path) -> Iterator[Path]:
    """Where the storage has its files."""
    with override_settings(MEDIA_ROOT=tmp_path):
        yield tmp_path


def upload(name: str) -> UploadFile:
    """A file that a client sends."""
    return UploadFile(BytesIO(name.encode()), filename=name)


def stored(media: Path) -> set[str]:
    """The names of all files."""
    return {each.name for each in media.rglob("*") if each.is_file()}


@contextmanager
def after_saving(function: Any) -> Iterator[None]:
    """Call a function when a book has been saved."""

    def saved(instance: Book, **kwargs: Any) -> None:
        function(instance)

    post_save.connect(saved, sender=Book)
    try:
        yield
    finally:
        post_save.disconnect(saved, sender=Book)


def fail(*args: Any) -> None:
    """Be code that fails."""
    raise LookupError


Covers = books(fields=("id", "title", "cover"), name="Covers")


def test_a_write_that_fails_leaves_no_file(database: str, media: Path) -> None:
    """Nor does one row of several. The file that a row had before stays."""

    async def main() -> None:
        async with opened(Covers) as (library,):
            row = await library.create(title="a", cover=upload("old.txt"))
            with after_saving(fail):
                with pytest.raises(LookupError):
                    await library.create(title="b", cover=upload("new.txt"))
                with pytest.raises(LookupError):
                    await library.update(row["id"], cover=upload("other.txt"))
                with pytest.raises(LookupError):
                    await library.update(row["id"], title="c")

            def fail_at_two(book: Book) -> None:
                if book.title == "two":
                    raise LookupError

            items = [{"title": title, "cover": upload(f"{title}.txt")} for title in ("one", "two")]
            with after_saving(fail_at_two), pytest.raises(LookupError):
                await library.create_many(items)
            assert stored(media) == {"old.txt"}

    play(main)


def test_a_transaction_that_is_rolled_back_leaves_no_file(default_database: str, media: Path) -> None:
    """The block's own, or a savepoint's, and what has been committed has its file."""

    async def main() -> None:
        async with opened(Covers) as (library,):

            async def write(name: str, fails: bool) -> None:
                async with atomic():
                    await library.create(title=name, cover=upload(name))
                    if fails:
                        fail()

            async def within(name: str, fails: bool) -> None:
                async with atomic():
                    await write(f"{name}-in", False)
                    with pytest.raises(LookupError):
                        await write(f"{name}-undone", True)
                    await library.create(title=name, cover=upload(name))
                    if fails:
                        fail()

            async def caught() -> None:
                async with atomic():
                    row = await library.create(title="caught", cover=upload("caught"))
                    with pytest.raises(IntegrityError):
                        await Book.objects.acreate(id=row["id"], title="another")

            await within("kept", False)
            with pytest.raises(LookupError):
                await within("lost", True)
            async with atomic():
                await library.create(title="asked", cover=upload("asked"))
                await library.live.run(transaction.set_rollback, True)
            with pytest.raises(TransactionManagementError):
                await caught()
            assert stored(media) == {"kept", "kept-in"}
            assert {book.title async for book in Book.objects.all()} == {"kept", "kept-in"}

    play(main)


def test_a_request_that_fails_leaves_no_file(default_database: str, media: Path) -> None:
    """The transaction of a request is one of atomic()."""
    app = FastAPI()

    @app.get("/{name}")
    async def handler(name: str, _: InTransaction) -> None:
        library = await Covers.current()
        await library.create(title=name, cover=upload(name))
        if name == "lost":
            fail()

    async def main() -> None:
        async with DjangoORM(repositories=[Covers]).lifespan(app):
            await run(empty)
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            client = httpx.AsyncClient(transport=transport, base_url="http://test")
            assert (await client.get("/kept")).status_code == 200
            assert (await client.get("/lost")).status_code == 500
            assert stored(media) == {"kept"}

    play(main)


def test_what_fails_after_the_commit_keeps_the_file(sqlite: str, media: Path) -> None:
    """The row is there by then, and names it."""

    def fail_later(book: Book) -> None:
        transaction.on_commit(fail)

    async def main() -> None:
        async with opened(Covers) as (library,):
            with after_saving(fail_later), pytest.raises(LookupError):
                await library.create(title="a", cover=upload("a.txt"))
            assert stored(media) == {"a.txt"}
            assert await Book.objects.acount() == 1

    play(main)


def test_a_field_of_a_form_without_a_file(sqlite: str, media: Path) -> None:
    """Browsers send an upload without a name, and the row has no file."""

    async def main() -> None:
        async with opened(Covers) as (library,):
            nothing = UploadFile(BytesIO(b""), filename="")
            assert (await library.create(title="a", cover=nothing))["cover"] == ""
            assert stored(media) == set()

    play(main)
