"""Hints in a table: on every database, exact at commit, however late that is."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from django.db import connections, transaction
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from fastapi_django_orm.coherence import mysql, postgresql_table
from fastapi_django_orm.coherence.hints import Hint, decode
from fastapi_django_orm.coherence.mysql import Gaps
from fastapi_django_orm.coherence.table import TABLE
from fastapi_django_orm.django import table_sql, triggers
from fastapi_django_orm.django.tables import table_of
from tests.project import router
from tests.project.board.models import Author, Page, Seat, Topic
from tests.support.announcing import execute as execute_all
from tests.support.databases import until
from tests.support.gates import comments
from tests.support.hearing import create, eventually, execute, follows, hearing, link, roll_back, write
from tests.support.hint_table import forget_hints, hints, install, installed, installed_outside
from tests.support.playing import outside
from tests.support.repositories import declare, of

HEARTBEAT = 0.2  # seconds
ON_SERVERS = pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
ON_POSTGRESQL = pytest.mark.parametrize("database", ["postgresql"], indirect=True)
ON_MARIADB = pytest.mark.parametrize("database", ["mariadb"], indirect=True)
ON_SQLITE = pytest.mark.parametrize("database", ["sqlite"], indirect=True)

# Rows like one that is there, in one statement.
COPY = "INSERT INTO board_topic (comment, tags, created_at) SELECT comment, tags, created_at FROM board_topic"

TABLE_SETTINGS = {"coherence": "table", "coherence_poll": 0.02}


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[Any]]:
    """What is logged, instead of the output."""
    with capture_logs() as entries:
        yield entries


@pytest.fixture
def triggered(database: str) -> Iterator[str]:
    """Tables of topics and authors whose triggers write hints. The database's alias."""
    with installed(Topic, Author):
        yield database


def run(main: Callable[[], Any]) -> None:
    asyncio.run(main())


def transport(coherence: Any) -> Any:
    """The one by which hints come from the table."""
    return link(coherence, "sqlite" if router.chosen == "default" else "table")


class Open:
    """A transaction on a thread of its own, which has written a topic and is still open."""

    def __init__(self, comment: str) -> None:
        self._comment = comment
        self._written, self._end = threading.Event(), threading.Event()
        self._rolls_back = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._written.wait(20), "the transaction has written"

    def end(self, roll_back: bool = False) -> None:
        """Commit, or roll back."""
        self._rolls_back = roll_back
        self._end.set()
        self._thread.join(20)

    def _run(self) -> None:
        try:
            with transaction.atomic(using=router.chosen):
                Topic.objects.create(comment=self._comment)
                self._written.set()
                assert self._end.wait(20), "the transaction may end"
                transaction.set_rollback(self._rolls_back, using=router.chosen)
        finally:
            connections.close_all()


@contextmanager
def open_transaction(comment: str) -> Iterator[Open]:
    opened = Open(comment)
    try:
        yield opened
    finally:
        opened.end()


# Writes


def test_every_kind_of_write(triggered: str) -> None:
    """What the ORM does in bulk, and raw SQL, count, by key."""

    async def main() -> None:
        async with hearing(declare(), **TABLE_SETTINGS) as (topics, coherence):
            assert not transport(coherence).degraded
            assert coherence.why_unheard("topics") is None
            await write("one")
            await follows(topics, "one")
            await outside(lambda: Topic.objects.bulk_create([Topic(comment="two"), Topic(comment="three")]))
            await follows(topics, "one", "two", "three")
            await outside(lambda: Topic.objects.filter(comment="two").update(comment="2"))
            await follows(topics, "one", "2", "three")
            await outside(lambda: execute("UPDATE board_topic SET comment = 'one!' WHERE comment = 'one'"))
            await follows(topics, "one!", "2", "three")
            await outside(lambda: execute("DELETE FROM board_topic WHERE comment = '2'"))
            await follows(topics, "one!", "three")
            await outside(lambda: execute("DELETE FROM board_topic"))
            await follows(topics)

    run(main)


def test_keys_are_named(triggered: str) -> None:
    """A hint names the rows, a row whose key has changed by both keys, and what changes nothing has none."""
    keys = create(["one", "two"])
    forget_hints()
    execute("UPDATE board_topic SET comment = 'new' WHERE comment = 'two'")
    execute("UPDATE board_topic SET comment = 'new' WHERE comment = 'three'")
    execute(f"UPDATE board_topic SET id = 77 WHERE id = {keys[0]}")
    found = [decode(message) for message in hints()]
    assert [hint.label for hint in found] == ["board.Topic", "board.Topic"]
    assert [sorted(hint.keys or ()) for hint in found] == [[keys[1]], sorted([keys[0], 77])]


@pytest.mark.parametrize("key", ["plain", "with space", "quote ' and \" and \\", "ü🙂", "a,b]"])
def test_keys_that_are_texts(database: str, key: str) -> None:
    """A hint gives every key back as it is."""
    with installed(Page):
        Page.objects.create(slug=key, address="here")
        Page.objects.filter(slug=key).update(title="new")
    with installed(Page):  # without its rows
        Page.objects.filter(slug=key).delete()
        assert [decode(message) for message in hints()] == [Hint("board.Page", (key,))]


def test_composite_keys(database: str) -> None:
    """Rows of a key that a hint does not name are announced as all rows of their model."""
    with installed(Seat):
        Seat.objects.create(row=1, number=2, guest="you")
        assert {decode(message) for message in hints()} == {Hint("board.Seat")}


def test_a_key_that_changes(triggered: str) -> None:
    """The row under its old key goes, and the one under its new key comes."""

    async def main() -> None:
        (key,) = await outside(lambda: create(["one"]))
        async with hearing(declare(), **TABLE_SETTINGS) as (topics, _):
            await outside(lambda: execute(f"UPDATE board_topic SET id = {key + 1000} WHERE id = {key}"))
            await eventually(lambda: [row["id"] for row in topics.all()] == [key + 1000], "the new key")

    run(main)


def test_what_is_rolled_back_is_not_heard(triggered: str) -> None:
    """No hint comes of it, and the next commit's does."""

    async def main() -> None:
        async with hearing(declare(), **TABLE_SETTINGS) as (topics, coherence):
            await outside(roll_back)
            assert await transport(coherence).listener.caught_up()
            assert transport(coherence).last_hint is None
            await write("one")
            assert await transport(coherence).listener.caught_up()
            assert transport(coherence).last_hint is not None
            await follows(topics, "one")

    run(main)


@ON_SERVERS
def test_a_late_commit(triggered: str) -> None:
    """A transaction that commits after later ones is heard then, and holds up none of them."""

    async def main() -> None:
        async with hearing(declare(), **TABLE_SETTINGS) as (topics, coherence):
            with open_transaction("late") as late, open_transaction("never") as never:
                await write("early")
                await follows(topics, "early")
                assert await transport(coherence).listener.caught_up()
                await asyncio.to_thread(never.end, roll_back=True)
                await write("another")
                await follows(topics, "early", "another")
                await asyncio.to_thread(late.end)
                await follows(topics, "early", "another", "late")

    run(main)


@ON_SERVERS
def test_a_transaction_that_was_open_before_the_start(triggered: str) -> None:
    """Its commit is heard, although later hints were there already."""

    async def main() -> None:
        with open_transaction("late") as late:
            await write("early")
            async with hearing(declare(), **TABLE_SETTINGS) as (topics, _):
                await follows(topics, "early")
                await asyncio.to_thread(late.end)
                await follows(topics, "early", "late")

    run(main)


def test_two_readers(triggered: str) -> None:
    """Each hint reaches every application, since reading removes none."""

    async def main() -> None:
        async with (
            hearing(declare(), **TABLE_SETTINGS) as (one, _),
            hearing(declare("Others"), **TABLE_SETTINGS) as (two, _),
        ):
            await write("one")
            await follows(one, "one")
            await follows(two, "one")

    run(main)


def test_wait_until_current(triggered: str) -> None:
    """A caller gets what was committed before, without a load of all rows."""

    async def main() -> None:
        async with hearing(declare(), coherence="table", coherence_poll=60, coherence_interval=60) as (
            topics,
            _,
        ):
            for number in range(3):
                await write(str(number))
                await topics.wait_until_current()
                assert len(list(topics.all())) == number + 1

    run(main)


@ON_POSTGRESQL
def test_the_first_reader_wakes_others(triggered: str) -> None:
    """A worker that reads rarely reads at once when another has found hints."""

    async def main() -> None:
        async with (
            hearing(declare(), coherence="table", coherence_interval=60, coherence_heartbeat=60) as (rare, _),
            hearing(declare("Others"), coherence="table") as (often, _),
        ):
            await write("one")
            await follows(often, "one")
            await follows(rare, "one")

    run(main)


# What else may happen to the tables


@ON_POSTGRESQL
def test_bulk_statements(triggered: str) -> None:
    """A statement writes one row for up to 1,000 keys, and one for all rows beyond 10,000."""
    forget_hints()
    Topic.objects.bulk_create([Topic(comment="x" * 100) for _ in range(1000)])
    (message,) = hints()
    assert len(decode(message).keys or ()) == 1000
    forget_hints()
    keys = [topic.pk for topic in Topic.objects.bulk_create([Topic(comment="y") for _ in range(4500)])]
    found = [decode(message).keys or () for message in hints()]
    assert sorted(map(len, found)) == [500, 1000, 1000, 1000, 1000]
    assert sorted(key for part in found for key in part) == keys
    forget_hints()
    Topic.objects.filter(pk__in=keys).delete()
    forget_hints()
    execute(f"{COPY}, generate_series(1, 11) WHERE comment LIKE %s", "x%")  # 11 times 1,000
    assert [decode(message) for message in hints()] == [Hint("board.Topic")]


@ON_POSTGRESQL
def test_many_keys_are_read_by_key(triggered: str) -> None:
    """Hints that come together are followed by their keys."""

    async def main() -> None:
        (key,) = await outside(lambda: create(["x"]))
        await outside(lambda: execute(f"{COPY}, generate_series(1, 60000) WHERE id = {key}"))
        async with hearing(declare(), **TABLE_SETTINGS) as (topics, _):
            with capture_logs() as entries:
                await outside(lambda: execute("UPDATE board_topic SET comment = 'y' WHERE mod(id, 55) = 0"))
                await eventually(lambda: "y" in comments(topics), "the new comments")
            (refreshed,) = [entry for entry in entries if entry["event"] == "repository_refreshed"]
            assert 1000 < refreshed["keys"] < 1200

    run(main)


@ON_SERVERS
@pytest.mark.parametrize("after", [[], ["two"]])
def test_truncate(triggered: str, after: list[str]) -> None:
    """It is noticed: by a trigger, or by the look at the table, also if rows were written after it."""

    async def main() -> None:
        await outside(lambda: create(["one", "another", "a third"]))
        async with hearing(declare(), coherence_heartbeat=HEARTBEAT, **TABLE_SETTINGS) as (topics, _):
            await outside(lambda: (execute("TRUNCATE board_topic"), create(after)))
            await follows(topics, *after)

    run(main)


@ON_SQLITE
@pytest.mark.parametrize("statement", ["INSERT OR REPLACE INTO", "UPDATE"])
def test_rows_that_sqlite_replaces(database: str, statement: str) -> None:
    """A row that goes because another gets its unique value is announced, though no trigger fires for it."""
    Page.objects.create(slug="old", address="here")
    Page.objects.create(slug="other", address="there")
    with installed(Page):
        if statement == "UPDATE":
            execute("UPDATE OR REPLACE board_page SET address = 'here' WHERE slug = 'other'")
        else:
            execute(
                "INSERT OR REPLACE INTO board_page (slug, address, title, shown)"
                " VALUES ('new', 'here', '', 1)"
            )
        assert not Page.objects.filter(slug="old").exists()
        assert "old" in {key for message in hints() for key in decode(message).keys or ()}


@ON_SQLITE
def test_a_commit_costs_its_keys(triggered: str) -> None:
    """A commit to a table that a repository does not read leaves its snapshot as it is."""

    async def main() -> None:
        await outside(lambda: create(["one"]))
        async with hearing(declare(fields=("id", "comment")), **TABLE_SETTINGS) as (topics, coherence):
            before = topics.snapshot
            await outside(lambda: Author.objects.create(name="x"))
            assert await transport(coherence).listener.caught_up()
            await topics.wait_until_current()
            assert topics.snapshot is before
            await outside(lambda: execute("CREATE TABLE other (id int)"))  # no trigger is as sure as before
            try:
                await eventually(lambda: topics.snapshot is not before, "loaded anew")
            finally:
                await outside(lambda: execute("DROP TABLE other"))

    run(main)


@ON_SQLITE
def test_tables_without_triggers(database: str) -> None:
    """Every commit counts for a table whose triggers are missing."""

    async def main() -> None:
        async with installed_outside(Author), hearing(declare(), **TABLE_SETTINGS) as (topics, coherence):
            assert not transport(coherence).degraded
            await write("one")
            await follows(topics, "one")
            await outside(lambda: install(Topic))
            await write("two")
            await follows(topics, "one", "two")

    run(main)


@ON_SQLITE
def test_a_query_of_no_model(triggered: str) -> None:
    """A repository that reads a table of no model is refreshed by every commit."""

    async def main() -> None:
        await outside(lambda: execute("CREATE TABLE other (id int)"))
        await outside(lambda: execute("INSERT INTO other VALUES (1)"))
        try:
            topics = of(
                lambda: Topic.objects.extra(select={"n": "SELECT sum(id) FROM other"}), fields=("id", "n")
            )
            await outside(lambda: create(["one"]))
            async with hearing(topics, **TABLE_SETTINGS) as (found, _):
                assert [row["n"] for row in found.all()] == [1]
                await outside(lambda: execute("INSERT INTO other VALUES (2)"))
                await eventually(lambda: [row["n"] for row in found.all()] == [3], "the new sum")
        finally:
            await outside(lambda: execute("DROP TABLE other"))

    run(main)


# When hints are lost


def test_a_table_that_was_emptied(triggered: str) -> None:
    """A reader that finds another table than it has left reads everything again."""

    def unheard() -> None:
        with transaction.atomic(using=router.chosen):
            create(["two"])
            execute(f"DELETE FROM {TABLE}")
        if router.chosen == "postgresql":
            execute(f"TRUNCATE {TABLE}")

    async def main() -> None:
        async with hearing(declare(), **TABLE_SETTINGS) as (topics, _):
            await write("one")
            await follows(topics, "one")
            await outside(unheard)
            await follows(topics, "one", "two")

    run(main)


@ON_SERVERS
def test_a_reader_that_comes_back_late(triggered: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a time in which hints may have been removed, it reads everything again."""

    def unheard() -> None:
        with transaction.atomic(using=router.chosen):
            create(["one"])
            execute(f"DELETE FROM {TABLE} WHERE hint LIKE %s", "%")

    async def main() -> None:
        async with hearing(declare(), **TABLE_SETTINGS) as (topics, _):
            monkeypatch.setattr(mysql, "LAPSE", -1.0)
            monkeypatch.setattr(postgresql_table, "LAPSE", -1.0)
            await outside(unheard)
            await follows(topics, "one")

    run(main)


@ON_POSTGRESQL
def test_hints_of_another_server(triggered: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a restored dump, whose numbers this server has not given out yet, mean nothing and go."""
    monkeypatch.setattr(postgresql_table, "KEPT", 0.1)

    async def main() -> None:
        restored = f'INSERT INTO {TABLE} VALUES (\'999999999999\', \'{{"v":1,"m":"board.Topic"}}\')'
        await outside(lambda: execute(restored))
        async with hearing(declare(), coherence_heartbeat=HEARTBEAT, **TABLE_SETTINGS) as (topics, coherence):
            assert await transport(coherence).listener.caught_up()
            assert transport(coherence).last_hint is None
            await until(lambda: not hints(), "it is removed")
            await write("one")
            await follows(topics, "one")

    run(main)


@ON_SERVERS
def test_hints_are_removed(triggered: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers remove them, except those of transactions that are still open."""
    for module in (mysql, postgresql_table):
        monkeypatch.setattr(module, "KEPT", 0.1)

    async def main() -> None:
        async with hearing(declare(), coherence_heartbeat=HEARTBEAT, **TABLE_SETTINGS) as (topics, _):
            for number in range(5):
                await write(str(number))
            with open_transaction("late") as late:
                await write("last")
                await until(lambda: len(hints()) <= 2, "the first five are removed")
                await asyncio.to_thread(late.end)
                await follows(topics, *"01234", "late", "last")
            await until(lambda: len(hints()) <= 2, "late's is removed")

    run(main)


@ON_SQLITE
def test_sqlite_keeps_few(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its triggers keep the table short, and a reader for which that is too short reads everything again."""
    monkeypatch.setattr(table_sql, "MOST_ROWS", 10)

    async def main() -> None:
        async with installed_outside(Topic), hearing(declare(), **TABLE_SETTINGS) as (topics, _):
            new = [str(number) for number in range(30)]
            await outside(lambda: Topic.objects.bulk_create([Topic(comment=comment) for comment in new]))
            await follows(topics, *new)
            assert len(await outside(hints)) == 10

    run(main)


def test_a_crash(mortal: Any) -> None:
    """After the server was killed, everything is read again; PostgreSQL's table is empty then."""

    async def main() -> None:
        async with installed_outside(Topic), hearing(declare(), **TABLE_SETTINGS) as (topics, coherence):
            await write("one")
            await follows(topics, "one")
            supervisor = link(coherence, "table")
            mortal.kill()
            await eventually(lambda: supervisor.connected_since is None, "the loss was noticed")
            connections.close_all()
            mortal.start()
            if connections["default"].vendor == "postgresql":
                assert await outside(hints) == []
            await write("two")
            await follows(topics, "one", "two")
            await eventually(lambda: supervisor.connected_since is not None, "connected again")
            await write("three")
            await follows(topics, "one", "two", "three")

    run(main)


@ON_SERVERS
def test_no_table(triggered: str) -> None:
    """If somebody removes it, writes go on, and the application says that it misses them."""

    async def main() -> None:
        async with hearing(declare(), coherence_heartbeat=HEARTBEAT, **TABLE_SETTINGS) as (topics, coherence):
            await outside(lambda: execute(f"DROP TABLE {TABLE}"))
            await write("one")
            await eventually(lambda: transport(coherence).degraded, "degraded")
            await outside(lambda: triggers.uninstall_all(router.chosen))
            await outside(lambda: install(Topic, Author))
            await follows(topics, "one")
            await eventually(lambda: not transport(coherence).degraded, "in order again")
            await write("two")
            await follows(topics, "one", "two")

    run(main)


@ON_POSTGRESQL
def test_a_writer_without_rights(triggered: str) -> None:
    """Whoever may write a table needs no rights on the table of hints."""
    forget_hints()
    execute_all("DROP ROLE IF EXISTS poor", "CREATE ROLE poor", "GRANT INSERT ON board_author TO poor")
    try:
        execute_all("SET ROLE poor", "INSERT INTO board_author (id, name) VALUES (5, 'x')", "RESET ROLE")
        assert [decode(message) for message in hints()] == [Hint("board.Author", (5,))]
    finally:
        execute_all("RESET ROLE", "DROP OWNED BY poor", "DROP ROLE poor")


# Which triggers there are


@ON_POSTGRESQL
def test_the_other_triggers(triggered: str) -> None:
    """Workers that listen for NOTIFY say that nothing reaches them, and the reverse."""

    async def main() -> None:
        async with hearing(declare(), coherence="auto") as (_, coherence):
            assert link(coherence, "postgresql").degraded
            assert "coherence install." in (coherence.why_unheard("topics") or "")
        for model in (Topic, Author):
            outdated = await outside(partial(triggers.install, router.chosen, table_of(model)))
            assert outdated is triggers.State.OUTDATED
        async with hearing(declare(), coherence="table") as (_, coherence):
            assert transport(coherence).degraded
        async with hearing(declare(), coherence="auto") as (topics, coherence):
            assert not link(coherence, "postgresql").degraded
            await write("one")
            await follows(topics, "one")

    run(main)


@ON_MARIADB
def test_auto(database: str, logs: list[Any]) -> None:
    """MariaDB's writes are heard once the triggers are there, and until then the application says so."""

    async def main() -> None:
        async with hearing(declare(), coherence_heartbeat=HEARTBEAT) as (topics, coherence):
            assert "manage.py coherence install --table" in (coherence.why_unheard("topics") or "")
            (warning,) = [entry for entry in logs if entry["event"] == "triggers_missing"]
            assert "coherence install --table board.Topic" in warning["hint"]
            async with installed_outside(Topic):
                await eventually(lambda: coherence.why_unheard("topics") is None, "heard")
                await write("one")
                await follows(topics, "one")
            await eventually(lambda: coherence.why_unheard("topics") is not None, "not heard")

    run(main)


@ON_MARIADB
def test_cascades_of_the_server(triggered: str) -> None:
    """A table whose rows the server itself changes, without triggers, is not announced."""
    execute(
        "ALTER TABLE board_topic ADD CONSTRAINT own FOREIGN KEY (author_id)"
        " REFERENCES board_author (id) ON DELETE CASCADE"
    )

    async def main() -> None:
        async with hearing(declare(), **TABLE_SETTINGS) as (_, coherence):
            assert coherence.why_unheard("topics") is not None

    try:
        run(main)
    finally:
        execute("ALTER TABLE board_topic DROP FOREIGN KEY own")


def test_uninstall_leaves_nothing(database: str) -> None:
    """After it the database is what it was."""

    def everything() -> Any:
        with connections[database].cursor() as cursor:
            tables = connections[database].introspection.table_names(cursor)
        if connections[database].vendor == "postgresql":
            return tables, triggers.tables_with_triggers(database), triggers.unused_functions(database)
        return tables, triggers.tables_with_triggers(database)

    before = everything()
    for model in (Topic, Author, Page, Seat):
        assert triggers.install(database, table_of(model), into_table=True) is triggers.State.MISSING
        assert triggers.install(database, table_of(model), into_table=True) is triggers.State.INSTALLED
    assert everything() != before
    triggers.uninstall_all(database)
    assert everything() == before
    install(Topic, Author)
    assert triggers.uninstall(database, table_of(Topic))
    assert triggers.has_hints(database)
    assert triggers.uninstall(database, table_of(Author))
    assert everything() == before


# Gaps


@given(st.data())
def test_gaps(data: st.DataObject) -> None:
    """Whatever order ids become visible in, each is new once, and a condition finds it."""
    order = data.draw(st.permutations(range(1, 30)))
    visible: set[int] = set()
    gaps, found = Gaps(), []
    while order:
        number = data.draw(st.integers(1, len(order)))
        visible.update(order[:number])
        order = order[number:]
        clauses = gaps.condition().split(" OR ")
        seen = [each for each in sorted(visible) if any(_holds(clause, each) for clause in clauses)]
        found += gaps.read(seen, 0.0)
        assert set(found) == visible
        assert gaps.low == min(
            (each for each in range(1, max(visible)) if each not in visible), default=gaps.last
        )
    assert len(found) == len(set(found))


def _holds(clause: str, number: int) -> bool:
    if clause.startswith("id >= "):
        return number >= int(clause.removeprefix("id >= "))
    first, last = clause.removeprefix("id BETWEEN ").split(" AND ")
    return int(first) <= number <= int(last)
