"""Short reads on PostgreSQL without a thread: when they are made so, and that the rows are the same."""

import asyncio
import contextvars
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from decimal import Decimal
from typing import Any

import dj_database_url
import psycopg
import pytest
from django.db import OperationalError, connection, connections, models, router
from django.db.backends.signals import connection_created
from django.db.models.lookups import Exact, In
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from fastapi_django_orm import CachedRepository, Repository, atomic, run
from fastapi_django_orm.database.calls import running_calls
from fastapi_django_orm.database.liveness import cut
from fastapi_django_orm.errors import NotFound
from tests.project.board.models import Entry, Page, Topic, Writer
from tests.project.engines.schemas.base import DatabaseWrapper
from tests.support.comparing import finish
from tests.support.databases import (
    BOARD,
    DEADLINE,
    ask,
    created,
    default_changed,
    on_every_thread,
    session,
    until,
    wait_until,
)
from tests.support.gates import started
from tests.support.servers import PostgreSQL

pytestmark = [
    pytest.mark.parametrize("default_database", ["postgresql"], indirect=True),
    pytest.mark.usefixtures("default_database"),
]

THREADS = 2


def pages(base: type[Any] = Repository, **attributes: Any) -> type[Any]:
    """A repository of pages, as a class statement with these attributes would make it."""
    return type("Pages", (base,), {"__module__": __name__, "model": Page, "name": "pages", **attributes})


def add(*slugs: str, **more: Any) -> None:
    Page.objects.bulk_create([Page(slug=slug, address=f"at {slug}", title=slug, **more) for slug in slugs])
    connections.close_all()  # this thread's, which no application would have


@asynccontextmanager
async def threads_taken() -> AsyncIterator[None]:
    """Every database thread busy with something that holds no connection: a read on one would wait."""
    free, begun = threading.Event(), threading.Semaphore(0)

    def keep() -> None:
        begun.release()
        assert free.wait(DEADLINE)

    keeping = on_every_thread(keep, THREADS)
    try:
        for _ in keeping:
            assert await asyncio.to_thread(begun.acquire, timeout=DEADLINE)
        yield
    finally:
        free.set()
        await asyncio.gather(*keeping)


async def warm(*repositories: Any, connections: int = THREADS) -> None:
    """Let threads read first, and leave an open connection for each read that may run at once."""

    def held(arrived: threading.Barrier) -> None:
        connection.ensure_connection()
        arrived.wait(DEADLINE)

    for repository in repositories:
        with suppress(NotFound):
            await repository.fetch("0")
    arrived = threading.Barrier(connections)
    await asyncio.gather(*(run(held, arrived) for _ in range(connections)))


@contextmanager
def table_locked(server: PostgreSQL) -> Iterator[None]:
    """Nobody else can read pages, for the length of the block."""
    with psycopg.connect(server.url(BOARD)) as other:
        other.execute("LOCK TABLE board_page")
        yield


def waiting(server: PostgreSQL, column: str = "pid") -> list[Any]:
    """The numbers of the sessions that wait for a lock, or something else of them."""
    with psycopg.connect(server.url(BOARD), autocommit=True) as other:
        query = f"SELECT {column} FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = %s"
        return [value for (value,) in other.execute(query.encode(), [BOARD])]


# No thread


def test_no_thread_is_needed() -> None:
    """With all threads busy: a row by its key, many at once, a part of the list, a keyed refresh."""
    add(*(str(n) for n in range(300)))

    async def main() -> None:
        cached_pages = pages(CachedRepository, name="cached")
        async with started(pages(), cached_pages, threads=THREADS) as (live, cached):
            await warm(live)
            await Page.objects.filter(slug="7").aupdate(title="new")
            every = json.loads(await live.live.window(0, None))["pages"]
            async with threads_taken():
                assert (await live.fetch("7"))["title"] == "new"
                found = await asyncio.gather(*(live.fetch(str(n)) for n in range(300)))
                assert [row["slug"] for row in found] == [str(n) for n in range(300)]
                with pytest.raises(NotFound):
                    await live.fetch("none")
                for offset, limit in ((0, 20), (290, 20), (300, 20), (0, 20)):
                    listed = json.loads(await live.live.window(offset, limit))["pages"]
                    assert listed == every[offset : offset + limit]
                assert cached.get("7")["title"] == "7"
                await cached.refresh("7", "none")
                assert cached.get("7")["title"] == "new"

    finish(main)


WIDE, ROWS = "題" * 2000, 300  # six kilobytes each


@pytest.mark.parametrize("what", ["a part of the list", "many at once", "a keyed refresh"])
def test_rows_that_are_wide_are_left_to_threads(what: str) -> None:
    """Megabytes would keep the loop from others; one row is read there still, and all when they shrink."""
    Topic.objects.bulk_create([Topic(comment=WIDE) for _ in range(ROWS)])
    keys = list(Topic.objects.order_by("pk").values_list("pk", flat=True))
    connections.close_all()
    attributes = {"model": Topic, "fields": ("id", "comment"), "ordering": ("pk",)}

    async def main() -> None:
        own = type("Topics", (Repository,), attributes), type("Kept", (CachedRepository,), attributes)
        async with started(*own, threads=THREADS) as (live, kept):
            asked: dict[str, Callable[[], Any]] = {
                "a part of the list": lambda: live.live.window(0, 100),
                "many at once": lambda: asyncio.gather(*map(live.fetch, keys[:200])),
                "a keyed refresh": lambda: kept.refresh(max(kept.snapshot.table.pages, key=len).keys[7]),
            }
            await live.fetch(keys[0])
            await warm(live)
            async with threads_taken():
                reading = asyncio.ensure_future(asked[what]())
                for _ in range(3):
                    await asyncio.sleep(0)  # it leaves without those that follow
                for key in keys[:30]:
                    assert (await live.fetch(key))["comment"] == WIDE
                assert not reading.done()
            await reading
            await Topic.objects.aupdate(comment="short")
            for _ in range(3):
                assert len(json.loads(await live.live.window(0, None))[live.name]) == ROWS
            await kept.refresh()
            await warm(live)
            async with threads_taken():
                await asked[what]()

    finish(main)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_bound_holds(default_database: str, postgresql: PostgreSQL, threads: int) -> None:
    """Reads on the loop and on threads, together, use no more connections than there are threads."""
    add(*(str(n) for n in range(200)))

    async def main() -> None:
        async with started(pages(), threads=threads) as (live,):
            most, done = 0, asyncio.Event()

            async def watch() -> None:
                nonlocal most
                while not done.is_set():
                    most = max(most, await asyncio.to_thread(postgresql.connections, BOARD))

            async def one(number: int) -> None:
                assert (await live.fetch(str(number)))["slug"] == str(number)
                assert await Page.objects.filter(slug=str(number)).aexists()
                async with atomic():
                    assert (await live.fetch(str(number)))["slug"] == str(number)

            watching = asyncio.create_task(watch())
            try:
                await asyncio.gather(*map(one, range(200)))
            finally:
                done.set()
                await watching
            assert 1 <= most <= threads

    finish(main)


# The same as on a thread


class Price(models.Model):
    """A key with digits after the point, names that SQL has to quote."""

    amount = models.DecimalField(max_digits=8, decimal_places=3, primary_key=True, db_column="how 'much' {}")
    share = models.TextField(db_column="IN (?1)", default="%s")

    class Meta:
        app_label = "postgresql_only"
        db_table = "the price's"

    def __str__(self) -> str:
        return self.share


def test_names_that_need_quotes() -> None:
    """Whatever stands in names stays there; a decimal is found in each of its forms."""
    with created(Price):
        Price.objects.create(amount="1.500")

        async def main() -> None:
            async with started(type("Prices", (Repository,), {"model": Price}), threads=THREADS) as (prices,):
                await warm(prices)
                async with threads_taken():
                    for key in ("1.5", "1.500", Decimal("1.5")):
                        assert await prices.fetch(key) == {"amount": Decimal("1.500"), "share": "%s"}

        finish(main)


TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=100)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sets(TEXTS | st.sampled_from(["%", "%s", "it's", "\\", "\\'", 'q"', "$1", "{}"]), min_size=1))
def test_any_text_as_key(slugs: set[str]) -> None:
    """Whatever is in a key: the row that Django has."""
    Page.objects.all().delete()
    Page.objects.bulk_create([Page(slug=s, address=str(n), title=s) for n, s in enumerate(slugs)])
    expected = {page["slug"]: page for page in Page.objects.values()}

    async def main() -> None:
        async with started(pages(), threads=THREADS) as (live,):
            await warm(live)
            async with threads_taken():
                for slug in slugs:
                    assert await live.fetch(slug) == expected[slug]
                found = await asyncio.gather(*map(live.fetch, slugs))
            assert found == [expected[slug] for slug in slugs]

    finish(main)


def test_keys_that_the_server_refuses() -> None:
    """A NUL in a text, a number that is too large: nobody has such a key, and the others get their rows."""
    add("a", "b")
    Entry.objects.create(id=1)

    async def main() -> None:
        entries = type("Entries", (Repository,), {"model": Entry})
        async with started(pages(), entries, threads=THREADS) as (live, numbered):
            await warm(live)
            answers = await asyncio.gather(*map(live.fetch, ("a", "\0", "b")), return_exceptions=True)
            assert isinstance(answers[1], NotFound)
            assert [row["slug"] for row in (answers[0], answers[2])] == ["a", "b"]
            answers = await asyncio.gather(*map(numbered.fetch, (1, 2**70)), return_exceptions=True)
            assert answers[0]["id"] == 1
            assert isinstance(answers[1], NotFound)

    finish(main)


def test_a_query_that_does_not_fit_the_socket() -> None:
    """Twenty megabytes of keys go out while the loop does other things."""
    add("a")

    async def main() -> None:
        async with started(pages(), threads=THREADS) as (live,):
            await warm(live)
            async with threads_taken():
                long = [str(n) * 20_000 for n in range(100, 500)]
                answers = await asyncio.gather(*map(live.fetch, ["a", *long]), return_exceptions=True)
                assert answers[0]["slug"] == "a"
                assert all(isinstance(answer, NotFound) for answer in answers[1:])
                assert (await live.fetch("a"))["slug"] == "a"

    finish(main)


def test_in_a_transaction_it_is_the_transactions() -> None:
    """A block reads what it has written, and others do not."""
    add("a")

    async def main() -> None:
        async with started(pages(), threads=THREADS) as (live,):
            await warm(live)
            async with atomic():
                await Page.objects.filter(slug="a").aupdate(title="new")
                assert (await live.fetch("a"))["title"] == "new"
                outside = asyncio.create_task(live.fetch("a"), context=contextvars.Context())
                assert (await outside)["title"] == "a"

    finish(main)


# What makes the query


class Shown(models.Manager[Any]):
    """Shows all, or nothing.

    Attributes:
        shown: which of both.
    """

    shown = True

    def get_queryset(self) -> Any:
        return super().get_queryset().filter(pk__gt=0 if self.shown else 1000)


class Draft(models.Model):
    """A model whose manager shows some of its rows at times, and none at others."""

    objects = Shown()

    class Meta:
        app_label = "postgresql_only"

    def __str__(self) -> str:
        return str(self.pk)


def test_a_query_of_ones_own_is_made_on_threads() -> None:
    """`queryset()`, `ordered_queryset()` and managers may do what they like, and are asked each time."""
    threads: set[str] = set()

    def noted(queryset: Any) -> Any:
        threads.add(threading.current_thread().name)
        return queryset.filter(pk__gt=0 if Shown.shown else 1000)

    attributes: dict[str, Any] = {"model": Writer}
    own = type(
        "Own", (CachedRepository,), {**attributes, "queryset": lambda self: noted(Writer.objects.all())}
    )
    ordered = type(
        "Ordered",
        (Repository,),
        {**attributes, "ordered_queryset": lambda self: noted(Writer.objects.order_by("pk"))},
    )
    managed = type("Managed", (Repository,), {"model": Draft})
    Writer.objects.create(pk=1, name="a")

    async def main() -> None:
        async with started(own, ordered, managed, threads=THREADS) as repositories:
            await warm(*repositories)
            threads.clear()
            for Shown.shown in (True, False, True):
                for repository in repositories:
                    listed = json.loads(await repository.live.window(0, 10))[repository.name]
                    assert len(listed) == Shown.shown
                    if repository is repositories[1]:
                        continue  # whose rows are found without an order
                    if Shown.shown:
                        assert (await repository.fetch(1))["id"] == 1
                    else:
                        with pytest.raises(NotFound):
                            await repository.fetch(1)
                await repositories[0].refresh(1)
                assert len(repositories[0]) == Shown.shown
            assert threads
            assert all(name.startswith("database-") for name in threads)

    with created(Draft):
        Draft.objects.create()
        connections.close_all()
        finish(main)


class Lowered(In):
    """Finds a text in whatever letters it is asked for."""

    def get_prep_lookup(self) -> Any:
        return [value.lower() for value in super().get_prep_lookup()]


class LoweredExactly(Exact):
    """The same for one."""

    def get_prep_lookup(self) -> Any:
        return super().get_prep_lookup().lower()


class Looked(models.CharField):  # type: ignore[type-arg]
    """Is looked up in a way of its own."""


Looked.register_lookup(Lowered)
Looked.register_lookup(LoweredExactly)


class Raised(models.CharField):  # type: ignore[type-arg]
    """Is stored in another form than it is asked for."""

    def get_db_prep_value(self, value: Any, connection: Any, prepared: bool = False) -> Any:
        return super().get_db_prep_value(value, connection, prepared).upper()


class Code(models.Model):
    """Its key is looked up in a way of its own."""

    code = Looked(max_length=20, primary_key=True)

    class Meta:
        app_label = "postgresql_only"

    def __str__(self) -> str:
        return self.code


class Label(models.Model):
    """Its key is stored in a form of its own."""

    code = Raised(max_length=20, primary_key=True)

    class Meta:
        app_label = "postgresql_only"

    def __str__(self) -> str:
        return self.code


@pytest.mark.parametrize(("model", "stored", "asked"), [(Code, "abc", "ABC"), (Label, "ABC", "abc")])
def test_a_key_of_ones_own_kind(model: Any, stored: str, asked: str) -> None:
    """What Django finds by such a key is found each time, and a refresh drops no row."""

    async def main() -> None:
        async with started(type("Codes", (CachedRepository,), {"model": model}), threads=THREADS) as (codes,):
            await warm(codes)
            for _ in range(3):
                assert await codes.fetch(asked) == {"code": stored}
                await codes.refresh(asked)
                assert codes.all() == ({"code": stored},)

    with created(model):
        model.objects.create(code=stored)
        connections.close_all()
        finish(main)


class Moody:
    """A router that raises when it is told to."""

    error: Exception | None = None

    def db_for_read(self, *_: Any, **__: Any) -> None:
        if self.error is not None:
            raise self.error


def test_a_router_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks meanwhile is told; everybody afterwards gets rows, and a refresh succeeds."""
    add("a")
    moody = Moody()
    monkeypatch.setattr(router, "routers", [moody])

    async def main() -> None:
        async with started(pages(CachedRepository), threads=THREADS) as (cached,):
            await warm(cached)
            moody.error = LookupError("no replica")
            for _ in range(3):
                with pytest.raises(LookupError):
                    await cached.fetch("a")
                with pytest.raises(LookupError):
                    await cached.live.window(0, 10)
            moody.error = None
            assert (await cached.fetch("a"))["slug"] == "a"
            await cached.refresh("a")

    finish(main)


def test_an_engine_that_prepares_each_query(postgresql: PostgreSQL) -> None:
    """Where the engine chooses a schema for each cursor, as those for tenants do, its choice counts."""
    url = postgresql.url(BOARD)
    with psycopg.connect(url, autocommit=True) as other:
        other.execute("DROP SCHEMA IF EXISTS tenant CASCADE; CREATE SCHEMA tenant")
        other.execute("CREATE TABLE tenant.board_page (LIKE public.board_page INCLUDING ALL)")
    add("ours")
    engine = {"ENGINE": "tests.project.engines.schemas"}

    async def main() -> None:
        async with started(pages(CachedRepository), threads=THREADS) as (cached,):
            assert [row["slug"] for row in cached.all()] == ["ours"]
            await warm(cached)
            assert (await cached.fetch("ours"))["slug"] == "ours"
            DatabaseWrapper.schema = "tenant"
            with pytest.raises(NotFound):
                await cached.fetch("ours")
            await cached.refresh()
            assert cached.all() == ()

    with default_changed(**dj_database_url.parse(url, conn_max_age=None) | engine):
        try:
            finish(main)
        finally:
            DatabaseWrapper.schema = "public"


def test_queries_that_somebody_watches() -> None:
    """What a tracer has put around a connection's queries, when it was opened, is run."""
    add("a")
    connection.close()
    seen: list[str] = []

    def watch(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        seen.append(sql)
        return execute(sql, params, many, context)

    def put_around(connection: Any, **_: Any) -> None:
        connection.execute_wrappers.append(watch)

    async def main() -> None:
        async with started(pages(), threads=1) as (live,):
            await live.fetch("a")
            seen.clear()
            assert (await live.fetch("a"))["slug"] == "a"
            assert seen

    connection_created.connect(put_around)
    try:
        finish(main)
    finally:
        connection_created.disconnect(put_around)


# What goes wrong


def end_session(server: PostgreSQL) -> None:
    """Have the server end the connection that waits."""
    with psycopg.connect(server.url(BOARD), autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s)", waiting(server))


def reset(_: PostgreSQL) -> None:
    """Cut the connection that waits, as a network does."""
    (call,) = running_calls
    cut(call.held["default"])


@pytest.mark.parametrize("broken", [end_session, reset])
def test_a_connection_that_breaks(postgresql: PostgreSQL, broken: Callable[[PostgreSQL], None]) -> None:
    """A query on it fails, as it would on a thread; the next one works."""
    add("a")

    async def main() -> None:
        async with started(pages(), threads=THREADS) as (live,):
            await warm(live)
            with table_locked(postgresql):
                reading = asyncio.create_task(live.fetch("a"))
                await until(lambda: waiting(postgresql), "the query waits")
                broken(postgresql)
                with pytest.raises(OperationalError):
                    await reading
            assert (await live.fetch("a"))["slug"] == "a"

    finish(main)


def test_it_is_cut_off_and_named_like_any_call(postgresql: PostgreSQL) -> None:
    """A query that does not end is in the log, and fails after DJANGO_ORM_CALL_TIMEOUT."""
    add("a")

    async def main() -> list[Any]:
        with capture_logs() as logs:
            async with started(pages(), threads=THREADS, call_timeout=1.0, thread_timeout=0.3) as (live,):
                await warm(live)
                with table_locked(postgresql), pytest.raises(OperationalError):
                    await live.fetch("a")
                assert (await live.fetch("a"))["slug"] == "a"
        return logs

    logs = {entry["event"]: entry for entry in finish(main)}
    assert logs["call_does_not_end"]["at"] == ["a query that the event loop waits for"]
    assert logs["call_cut_off"]["databases"] == ["default"]


def test_the_application_ends_meanwhile(postgresql: PostgreSQL) -> None:
    """Who waits for a query at the end is told, the end does not wait, and no connection is left."""
    add("a")

    async def main() -> None:
        with ExitStack() as stack:
            async with started(pages(), threads=THREADS) as (live,):
                await warm(live)
                stack.enter_context(table_locked(postgresql))
                reading = asyncio.create_task(live.fetch("a"))
                await until(lambda: waiting(postgresql), "the query waits")
            with pytest.raises(RuntimeError, match="shut down"):
                await reading

    finish(main)
    wait_until(lambda: postgresql.connections(BOARD) == 0, "all connections gone")


def test_a_caller_that_gives_up(postgresql: PostgreSQL) -> None:
    """The query ends for those who are left, and its connection serves others."""
    add("a")

    async def main() -> None:
        async with started(pages(), threads=1) as (live,):
            await warm(live, connections=1)
            with table_locked(postgresql):
                gone, staying = (asyncio.create_task(live.fetch("a")) for _ in range(2))
                await until(lambda: waiting(postgresql), "the query waits")
                gone.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await gone
            assert (await staying)["slug"] == "a"
            assert await Page.objects.acount() == 1

    finish(main)


def test_a_refresh_whose_connection_breaks(postgresql: PostgreSQL) -> None:
    """It is made again on a thread."""
    add("a")

    async def main() -> None:
        async with started(pages(CachedRepository), threads=THREADS) as (cached,):
            await warm(cached)
            await Page.objects.filter(slug="a").aupdate(title="new")
            with table_locked(postgresql):
                refreshing = asyncio.create_task(cached.refresh("a"))
                await until(lambda: waiting(postgresql), "the query waits")
                (first,) = waiting(postgresql)
                reset(postgresql)
                await until(lambda: waiting(postgresql) not in ([], [first]), "asked again")
            await refreshing
            assert cached.get("a")["title"] == "new"

    finish(main)


def test_what_the_server_refuses_is_not_asked_again(postgresql: PostgreSQL) -> None:
    """A statement that took too long has failed, and is not given as much time once more."""
    add("a")
    options = {"OPTIONS": {"options": "-c statement_timeout=1000"}}

    async def main() -> None:
        async with started(pages(), threads=THREADS) as (live,):
            await warm(live)
            begun: set[Any] = set()
            with table_locked(postgresql):
                reading = asyncio.create_task(live.fetch("a"))
                while not reading.done():
                    begun.update(await asyncio.to_thread(waiting, postgresql, "query_start"))
                with pytest.raises(OperationalError, match="statement timeout"):
                    await reading
            assert len(begun) == 1
            assert (await live.fetch("a"))["slug"] == "a"

    with default_changed(**options):
        finish(main)


def test_a_loop_that_cannot_watch_sockets() -> None:
    """Reads are made on threads, and connections stay."""
    add("a")

    class Deaf(asyncio.SelectorEventLoop):
        def add_reader(self, *_: Any) -> None:
            raise NotImplementedError

    async def main() -> None:
        async with started(pages(), threads=1) as (live,):
            await warm(live, connections=1)
            before = await run(session)
            for _ in range(3):
                assert (await live.fetch("a"))["slug"] == "a"
            assert await run(session) == before

    with asyncio.Runner(loop_factory=Deaf) as runner:
        runner.run(asyncio.wait_for(main(), DEADLINE))


# The end


def test_the_application_ends_while_others_wait_in_line(postgresql: PostgreSQL) -> None:
    """Those whose query has not been sent are told as well, and none is sent any more."""
    add("a", "b", "c")

    async def main() -> None:
        with ExitStack() as stack:
            async with started(pages(), threads=4) as (live,):
                await warm(live, connections=4)
                stack.enter_context(table_locked(postgresql))
                readings = []
                for sent, slug in ((1, "a"), (2, "b"), (2, "c")):  # as many queries as there may be
                    readings.append(asyncio.create_task(live.fetch(slug)))
                    await until(lambda sent=sent: len(waiting(postgresql)) == sent, f"{sent} queries wait")
            for answer in await asyncio.gather(*readings, return_exceptions=True):
                assert isinstance(answer, RuntimeError)
            assert not running_calls

    finish(main)
    wait_until(lambda: postgresql.connections(BOARD) == 0, "all connections gone")


def test_a_read_after_the_end_leaves_nothing(postgresql: PostgreSQL) -> None:
    """The next application has its own settings and its own database."""
    add("a")
    other = postgresql.create_database("other")

    async def first() -> None:
        async with started(pages(), threads=THREADS) as (live,):
            await warm(live)
        with pytest.raises(RuntimeError):
            await live.fetch("a")

    async def second() -> str:
        async with started(threads=THREADS):
            return await run(lambda: str(ask("SELECT current_database()")))

    finish(first)
    with default_changed(**dj_database_url.parse(other, conn_max_age=None)):
        assert finish(second) == "other"
