"""Filtered pages: how they are sent, how long they are remembered, and for whom."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from dataclasses import replace
from datetime import date, datetime
from typing import Annotated, Any

import httpx
import pytest
from django.db import OperationalError, connections
from django.db.backends.utils import CursorWrapper
from django.db.models import QuerySet
from django.utils import timezone
from fastapi import Depends, FastAPI, Query, Response

from fastapi_django_orm import (
    CachedRepository,
    DjangoORM,
    Filter,
    ORMSettings,
    Repository,
    application,
    atomic,
)
from fastapi_django_orm.coherence.hints import Hint
from fastapi_django_orm.coherence.service import Coherence
from fastapi_django_orm.errors import NotStarted, ReadFailed
from tests.project import router
from tests.project.board.models import Author, Topic
from tests.queries.test_meaning import answer
from tests.support.announcing import announced, plain_connection
from tests.support.comparing import finish
from tests.support.gates import started
from tests.support.hint_table import installed
from tests.support.playing import outside

DEADLINE = 20.0  # seconds

tenant: ContextVar[str | None] = ContextVar("tenant", default=None)


class TopicFilter(
    Filter, model="board.Topic", search=("comment",), ordering=("comment", "author__name"), limit=2
):
    author: int | None = None
    author__name: str | None = None
    created_at__gte: datetime | None = None
    created_at__date: date | None = None
    comment: str | None = None


class Topics(CachedRepository):
    model = "board.Topic"
    fields = ("id", "comment")


class Live(Repository):
    model = "board.Topic"
    fields = ("id", "comment")


class Own(CachedRepository):
    """Whose rows depend on who asks."""

    model = "board.Topic"
    name = "topics"
    fields = ("id", "comment")

    def queryset(self) -> QuerySet[Any, Any]:
        found = super().queryset()
        return found if tenant.get() is None else found.filter(author__name=tenant.get())


class Statements:
    """The queries that Django executes; a test may hold those back that it waits for."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.begun = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()
        self.error: Exception | None = None

    @property
    def pages(self) -> int:
        """How many have looked for a page."""
        return sum("LIMIT" in sql for sql in self.seen)

    def enter(self, sql: str) -> None:
        self.seen.append(sql)
        if "LIMIT" in sql:
            self.begun.release()
            assert self.gate.wait(DEADLINE)
            if self.error is not None:
                raise self.error


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> Iterator[Statements]:
    found = Statements()
    execute = CursorWrapper.execute

    def watched(self: Any, sql: str, params: Any = None) -> Any:
        result = execute(self, sql, params)
        found.enter(str(sql))
        return result

    monkeypatch.setattr(CursorWrapper, "execute", watched)
    yield found
    found.gate.set()


@pytest.fixture
def people() -> tuple[Author, Author]:
    """Ann has three topics, Bob one."""
    ann, bob = Author.objects.create(name="Ann"), Author.objects.create(name="Bob")
    for author, comment in ((ann, "a"), (bob, "b"), (ann, "c"), (ann, "d")):
        Topic.objects.create(author=author, comment=comment)
    return ann, bob


def comments(rows: list[Any]) -> str:
    return "".join(row["comment"] for row in rows)


@asynccontextmanager
async def client_of(*repositories: Any, **settings: Any) -> Any:
    """A client of an application whose handlers return responses of each repository, by its position."""
    app = FastAPI()
    for number, repository in enumerate(repositories):
        _add_handler(app, f"/{number}", repository)
    async with DjangoORM(ORMSettings(**settings), repositories=repositories).lifespan(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=DEADLINE) as client:
            yield client


def _add_handler(app: FastAPI, path: str, repository: Any) -> None:
    @app.api_route(path, methods=["GET", "HEAD"])
    async def index(
        rows: Annotated[Any, Depends(repository.current)], where: Annotated[TopicFilter, Query()]
    ) -> Response:
        found: Response = rows.response(where)
        found.headers["x-own"] = "1"
        return found

    @app.get(f"{path}/def")
    def on_thread(
        rows: Annotated[Any, Depends(repository.current)], where: Annotated[TopicFilter, Query()]
    ) -> Response:
        tenant.set("Bob")
        return rows.response(where)  # type: ignore[no-any-return]


def test_the_forms_of_a_response(database: str, people: Any) -> None:
    """A page has the rows, the total and the next cursor; an entity tag, 304, HEAD, and content codings."""
    Topic.objects.filter(comment="d").update(comment="d" * 2000)

    async def main() -> None:
        async with client_of(Topics, Live) as client:
            for path, name in (("/0", "topics"), ("/1", "live")):
                for _ in range(2):  # the second time it is remembered
                    first = await client.get(path, params={"author__name": "Ann"})
                    assert first.status_code == 200
                    assert comments(first.json()[name]) == "ac"
                    assert list(first.json()) == [name, "total", "next"]
                    assert first.json()["total"] == 3
                    assert first.headers["x-own"] == "1"
                    assert first.headers["cache-control"] == "no-cache"
                    assert first.headers["content-type"] == "application/json"
                    query = {"author__name": "Ann", "after": first.json()["next"]}
                    last = await client.get(path, params=query)
                    assert comments(last.json()[name]) == "d" * 2000
                    assert (last.json()["total"], last.json()["next"]) == (3, None)
                    tag = last.headers["etag"]
                    again = await client.get(path, params=query, headers={"if-none-match": tag})
                    assert (again.status_code, again.content) == (304, b"")
                    head = await client.head(path, params=query)
                    assert (head.status_code, head.content) == (200, b"")
                    assert head.headers["etag"]
                    if path == "/0":
                        assert last.headers["content-encoding"] in ("br", "zstd", "gzip")
            kept, live = [(await client.get(path)).json() for path in ("/0", "/1")]
            assert kept["topics"] == live["live"]
            empty = await client.get("/0", params={"offset": 9})
            assert empty.json() == {"topics": [], "total": 4, "next": None}

    finish(main)


def test_what_a_client_may_send(database: str, people: Any) -> None:
    """Values that no row can have are a 422 in FastAPI's form or select nothing; a time needs no zone."""

    async def main() -> None:
        async with client_of(Topics) as client:
            for query, loc in (
                ("after=x", ["query", "after"]),
                ("after=", ["query", "after"]),
                ("comment=%00", ["query", "comment"]),
                ("search=a%00", ["query", "search"]),
                ("author=1e3", ["query", "author"]),
            ):
                refused = await client.get(f"/0?{query}")
                assert refused.status_code == 422, query
                assert refused.json()["detail"][0]["loc"] == loc
                assert refused.json()["detail"][0]["msg"]
            assert (await client.get(f"/0?author={10**30}")).status_code in (200, 422)
            for moment, total in (("1999-01-01T00:00:00", 4), ("9999-12-30T00:00:00", 0)):
                assert (await client.get(f"/0?created_at__gte={moment}")).json()["total"] == total
            for moment in ("0001-01-01T00:00:00", "9999-12-31T23:59:59-12:00"):
                assert (await client.get(f"/0?created_at__gte={moment}")).status_code in (200, 422)
            assert (await client.get("/0?search=%25")).json()["total"] == 0

    finish(main)


def test_a_page_is_remembered(sqlite: str, people: Any, statements: Statements) -> None:
    """The database is asked once for a page, until rows are loaded or a joined table changes."""
    ann, _ = people

    async def main() -> None:
        async with client_of(Topics):  # whose handler takes the filter
            topics = await Topics.current()
            where = TopicFilter(author__name="Ann")

            async def asked(number: int, expected: str) -> None:
                before = statements.pages
                assert comments(await topics.select(where)) == expected
                assert b'"total"' in await answer(topics.response(where))
                assert statements.pages - before == number

            await asked(1, "ac")
            await asked(0, "ac")
            await Topic.objects.filter(comment="a").adelete()
            await asked(0, "ac")  # no hint has come
            await topics.refresh()
            await asked(1, "cd")
            await Author.objects.filter(name="Bob").aupdate(name="Ann")
            coherence = application.find("the test")[Coherence]
            coherence.follow_hint(Hint("board.Topic", (ann.pk,)))
            await coherence._followers["topics"].settle()
            await asked(1, "bc")
            await Author.objects.filter(pk=ann.pk).aupdate(name="Cid")
            coherence.follow_hint(Hint("board.Author", (ann.pk,)))  # of no row that the repository reads
            version = topics.snapshot.version
            await asked(1, "b")
            assert topics.snapshot.version == version
            await asked(0, "b")
            coherence.follow_hint(Hint("board.Seat"))
            await asked(0, "b")

    finish(main)


@pytest.fixture
def board(_databases: Any) -> Iterator[None]:
    """PostgreSQL, chosen for every query, with empty tables."""
    router.choose(_databases("postgresql"))
    Author.objects.all().delete()
    Topic.objects.all().delete()
    yield
    connections.close_all()
    router.choose("default")


async def page_is(topics: Any, where: Filter, expected: str) -> None:
    """Return when a page has these comments."""
    for _ in range(1000):
        if comments(await topics.select(where)) == expected:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"never {expected!r}")


def test_writes_elsewhere_are_seen(board: None, statements: Statements) -> None:
    """A page is remembered if triggers announce writes to a joined table, and changes with it."""
    ann = Author.objects.create(name="Ann")
    Topic.objects.create(author=ann, comment="a")
    where = TopicFilter(author__name="Ann")

    async def queries(topics: Any) -> int:
        before = statements.pages
        for _ in range(3):
            await topics.select(where)
        return statements.pages - before

    async def authors_are_not_announced() -> None:
        async with client_of(Topics, coherence=("auto",)):
            topics = await Topics.current()
            coherence = application.find("the test")[Coherence]
            assert coherence.why_unheard("topics") is None
            assert await queries(topics) == 3
            # Nor if it is not known all that its rows are read from.
            coherence._concerns["topics"] = replace(coherence._concerns["topics"], related=None)
            assert await queries(topics) == 3

    async def both_are_announced() -> None:
        async with client_of(Topics, coherence=("auto",)):
            topics = await Topics.current()
            assert await queries(topics) == 1
            version = topics.snapshot.version
            elsewhere.execute("UPDATE board_author SET name = 'Bob'")
            await page_is(topics, where, "")
            assert topics.snapshot.version == version
            elsewhere.execute("UPDATE board_author SET name = 'Ann'")
            await page_is(topics, where, "a")
            elsewhere.execute("UPDATE board_topic SET author_id = NULL")
            await page_is(topics, where, "")

    with announced(Topic):
        finish(authors_are_not_announced)
    with announced(Topic, Author), plain_connection() as elsewhere:
        finish(both_are_announced)


def test_hints_in_a_table_are_followed(database: str, people: Any, statements: Statements) -> None:
    """A page that joins a table changes with it, if its triggers write hints into a table."""
    where = TopicFilter(author__name="Ann")

    def pages() -> int:
        return sum("LIMIT" in sql and "board_topic" in sql for sql in statements.seen)

    async def main() -> None:
        async with client_of(Topics, coherence="table", coherence_poll=0.02, coherence_interval=0.02):
            topics = await Topics.current()

            async def page_becomes(expected: str) -> None:
                version = topics.snapshot.version
                await page_is(topics, where, expected)
                assert topics.snapshot.version == version

            await page_becomes("ac")
            before = pages()
            for _ in range(3):
                await topics.select(where)
            assert pages() == before
            await outside(lambda: Author.objects.filter(name="Bob").update(name="Ann"))
            await page_becomes("ab")
            await outside(lambda: Author.objects.filter(name="Ann").update(name="Bob"))
            await page_becomes("")

    with installed(Topic, Author):
        finish(main)


def test_rows_that_memory_does_not_have_yet(database: str, people: Any, statements: Statements) -> None:
    """A row that was inserted before its hint has come is on the page, which is not remembered."""
    ann, _ = people

    async def main() -> None:
        async with started(Topics) as (topics,):
            new = await Topic.objects.acreate(author=ann, comment="b")
            where = TopicFilter(author=ann.pk, ordering=["comment"])
            for _ in range(2):
                before = statements.pages
                assert comments(await topics.select(where)) == "ab"
                assert statements.pages == before + 1
            assert b'"comment":"b"' in await answer(topics.response(where))
            assert len(topics) == 4
            await topics.refresh(new.pk)
            assert comments(await topics.select(where)) == "ab"
            before = statements.pages
            assert comments(await topics.select(where)) == "ab"
            assert statements.pages == before

    finish(main)


def test_callers_share_a_query(sqlite: str, people: Any, statements: Statements) -> None:
    """All callers who want the same page wait for one query; one that goes leaves it to the others."""

    async def main() -> None:
        async with started(Topics) as (topics,):
            statements.gate.clear()
            before = statements.pages
            where = TopicFilter(comment="a")
            callers = [asyncio.ensure_future(topics.select(where.model_copy())) for _ in range(20)]
            await asyncio.to_thread(statements.begun.acquire, timeout=DEADLINE)
            callers[0].cancel()
            statements.gate.set()
            found = await asyncio.gather(*callers, return_exceptions=True)
            assert isinstance(found[0], asyncio.CancelledError)
            assert [comments(rows) for rows in found[1:] if not isinstance(rows, BaseException)] == ["a"] * 19
            assert statements.pages == before + 1
            statements.gate.clear()
            late = asyncio.ensure_future(topics.select(TopicFilter(comment="b")))
            await asyncio.to_thread(statements.begun.acquire, timeout=DEADLINE)
            await topics.refresh()  # what began before is not for those who come now
            later = asyncio.ensure_future(topics.select(TopicFilter(comment="b")))
            await asyncio.to_thread(statements.begun.acquire, timeout=DEADLINE)
            statements.gate.set()
            assert [comments(rows) for rows in await asyncio.gather(late, later)] == ["b", "b"]
            assert statements.pages == before + 3

    finish(main)


def test_callers_of_what_is_read_now_share_the_next_query(
    sqlite: str, people: Any, statements: Statements
) -> None:
    """Callers of a live repository wait together for a query that begins after all of them have asked."""

    async def main() -> None:
        async with started(Live) as (topics,):
            statements.gate.clear()
            where = TopicFilter(comment="a")
            first = asyncio.ensure_future(topics.select(where))
            await asyncio.to_thread(statements.begun.acquire, timeout=DEADLINE)
            await Topic.objects.filter(comment="b").aupdate(comment="a")
            late = [asyncio.ensure_future(topics.select(where.model_copy())) for _ in range(20)]
            gone = asyncio.ensure_future(topics.select(TopicFilter(comment="c")))
            await asyncio.sleep(0)
            gone.cancel()
            late[0].cancel()
            statements.gate.set()
            assert comments(await first) == "a"
            found = await asyncio.gather(*late, return_exceptions=True)
            assert isinstance(found[0], asyncio.CancelledError)
            assert [comments(rows) for rows in found[1:] if not isinstance(rows, BaseException)] == [
                "aa"
            ] * 19
            assert statements.pages == 2

    finish(main)


def test_a_page_is_for_whom_it_was_made(sqlite: str, people: Any, statements: Statements) -> None:
    """Where the query depends on the caller, each gets the page of its own SQL, remembered or not."""

    async def main() -> None:
        async with client_of(Own) as client:
            topics = await Own.current()
            for number in range(3):
                before = statements.pages
                for name, expected in (("Ann", "ac"), ("Bob", "b"), (None, "ab")):
                    tenant.set(name)
                    assert comments(await topics.select(TopicFilter())) == expected
                    sent = await answer(topics.response(TopicFilter()))
                    assert (b'"comment":"b"' in sent) == ("b" in expected)
                assert statements.pages - before == (0 if number else 3)
            tenant.set(None)
            # Set by a handler that runs on a thread, and gone when the response is sent.
            assert comments((await client.get("/0/def")).json()["topics"]) == "b"
            assert comments((await client.get("/0")).json()["topics"]) == "ab"

    finish(main)


def test_time_zones_do_not_share(sqlite: str, statements: Statements) -> None:
    """A lookup that depends on the current time zone is remembered for that alone."""
    Topic.objects.create(comment="a")
    Topic.objects.update(created_at=datetime.fromisoformat("2026-01-01T23:30:00Z"))

    async def main() -> None:
        async with started(Topics) as (topics,):
            where = TopicFilter(created_at__date=date(2026, 1, 2))
            for _ in range(2):
                for zone, expected in (("UTC", ""), ("Asia/Tokyo", "a")):
                    with timezone.override(zone):
                        assert comments(await topics.select(where)) == expected

    finish(main)


def test_inside_a_transaction(default_database: str, people: Any) -> None:
    """Inside of `atomic()` a page has what the transaction has written, and others do not get it."""
    ann, _ = people
    where = TopicFilter(author=ann.pk, ordering=["-comment"])

    async def main() -> None:
        async with started(Topics, Live) as repositories:
            for topics in repositories:
                with suppress(ZeroDivisionError):
                    async with atomic():
                        await Topic.objects.filter(comment="d").aupdate(comment="e")
                        assert comments(await topics.select(where)) == "ec"
                        raise ZeroDivisionError
                assert comments(await topics.select(where)) == "dc"

    finish(main)


def test_a_database_that_does_not_answer(sqlite: str, people: Any, statements: Statements) -> None:
    """A page that cannot be read is a 503 with the package's own error; one that is remembered is sent."""

    async def main() -> None:
        async with client_of(Topics, Live) as client:
            assert (await client.get("/0?comment=a")).status_code == 200
            statements.error = OperationalError("secret")
            assert (await client.get("/0?comment=a")).status_code == 200
            for path in ("/0", "/1"):
                failed = await client.get(f"{path}?comment=b")
                assert failed.status_code == 503
                assert failed.headers["retry-after"]
                assert "secret" not in failed.text
            with pytest.raises(OperationalError):
                await (await Topics.current()).select(TopicFilter(comment="b"))
            with pytest.raises(ReadFailed):
                await answer((await Topics.current()).response(TopicFilter(comment="b")))
            statements.error = None
            assert (await client.get("/0?comment=b")).status_code == 200

    finish(main)


def test_the_bytes_that_are_remembered_are_bounded(sqlite: str, people: Any) -> None:
    """Pages that were used longest ago go first; with 0 nothing is remembered."""

    async def main() -> None:
        async with started(Topics, filter_memory=1) as (topics,):
            remembered = topics.pages._remembered
            for number in range(500):
                await topics.select(TopicFilter(comment=str(number)))
                await topics.select(TopicFilter(comment="a"))
                assert remembered.size <= 2**20
            assert 100 < len(remembered) < 500
            assert topics.pages.at_hand(TopicFilter(comment="a")) is not None
            assert topics.pages.at_hand(TopicFilter(comment="499")) is not None
            assert topics.pages.at_hand(TopicFilter(comment="0")) is None
        async with started(Topics, filter_memory=0) as (topics,):
            await topics.select(TopicFilter(comment="a"))
            assert topics.pages.at_hand(TopicFilter(comment="a")) is None

    finish(main)


def test_long_values_count(sqlite: str, people: Any) -> None:
    """What is asked for counts among the bytes that are remembered: a client may send thousands of values."""

    class Listed(TopicFilter):
        author__in: list[int] | None = None

    async def main() -> None:
        async with started(Topics, filter_memory=1) as (topics,):
            remembered = topics.pages._remembered
            for number in range(20):
                await topics.select(Listed(author__in=list(range(number, number + 2000))))
                await topics.select(TopicFilter(comment="a" * 100_000 + str(number)))
            assert 0 < len(remembered) < 10
            await topics.select(TopicFilter(comment="a"))
            await topics.select(TopicFilter(comment="a" * 2_000_000))  # more than all that may be remembered
            assert topics.pages.at_hand(TopicFilter(comment="a")) is not None

    finish(main)


def test_without_an_application() -> None:
    """An instance that no lifespan has made says so."""
    with pytest.raises(NotStarted):
        Topics().response(TopicFilter())


def test_what_the_filter_says_is_not_said_twice(sqlite: str) -> None:
    """A filter has the offset and the limit."""

    async def main() -> None:
        async with started(Topics) as (topics,):
            with pytest.raises(TypeError, match="in the filter"):
                topics.response(TopicFilter(), limit=3)

    finish(main)
