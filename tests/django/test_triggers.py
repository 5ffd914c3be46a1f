"""What PostgreSQL says of writes, whoever writes: which rows, when it is committed, and nothing otherwise."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import pytest
from django.db import connections, transaction

from fastapi_django_orm.coherence.hints import MESSAGE_LIMIT, Hint
from fastapi_django_orm.django import triggers
from fastapi_django_orm.django.tables import announced as announced_by_signals
from fastapi_django_orm.django.tables import table_of
from fastapi_django_orm.django.trigger_sql import MOST_KEYS_OF_STATEMENT
from tests.project import router
from tests.project.board.models import Author, Everything, LoudTopic, Seat, Topic
from tests.project.places.models import (
    Bar,
    Elsewhere,
    Note,
    Odd,
    Piece,
    Place,
    PlaceName,
    Reading,
    Restaurant,
    Tag,
)
from tests.support.announcing import (
    DEADLINE,
    Ear,
    announced,
    ear,
    execute,
    exotic_tables,
    keys,
    plain_connection,
)

TOPICS = "board.Topic"


pytestmark = pytest.mark.parametrize("database", ["postgresql"], indirect=True)


@pytest.fixture
def topics(database: str) -> Iterator[Ear]:
    """What is announced of topics, of which there are three."""
    Topic.objects.bulk_create(Topic(pk=pk, comment="old") for pk in (1, 2, 3))
    with announced(Topic), ear() as heard:
        yield heard


@pytest.fixture
def exotic(database: str) -> Iterator[Ear]:
    """What is announced of tables that Django would not make."""
    with exotic_tables(), ear() as heard:
        yield heard


def _copy() -> None:
    with plain_connection() as connection, connection.cursor() as cursor:
        statement = "COPY board_topic (id, comment, tags, created_at) FROM STDIN"
        with cursor.copy(statement) as copy:
            copy.write_row((8, "new", "[]", "2026-01-01"))
            copy.write_row((9, "new", "[]", "2026-01-01"))


def _plain(statement: str) -> Callable[[], None]:
    def run() -> None:
        with plain_connection() as connection:
            connection.execute(statement)

    return run


COLUMNS = "(id, comment, tags, created_at)"
MERGE = f"""
MERGE INTO board_topic USING (VALUES (1), (9)) AS given (id) ON board_topic.id = given.id
WHEN MATCHED THEN UPDATE SET comment = 'new'
WHEN NOT MATCHED THEN INSERT {COLUMNS} VALUES (given.id, 'new', '[]', now())"""

WRITES: dict[str, tuple[Callable[[], object], set[int]]] = {
    "create": (lambda: Topic.objects.create(pk=9, comment="new"), {9}),
    "save": (lambda: Topic.objects.get(pk=2).save(), {2}),
    "delete": (lambda: Topic.objects.get(pk=2).delete(), {2}),
    "proxy": (lambda: LoudTopic.objects.get(pk=2).save(), {2}),
    "update": (lambda: Topic.objects.filter(pk__gt=1).update(comment="new"), {2, 3}),
    "bulk_create": (lambda: Topic.objects.bulk_create([Topic(pk=8), Topic(pk=9)]), {8, 9}),
    "bulk_update": (lambda: Topic.objects.bulk_update([Topic(pk=1), Topic(pk=3)], ["comment"]), {1, 3}),
    "bulk delete": (lambda: Topic.objects.filter(pk__lt=3).delete(), {1, 2}),
    "raw SQL": (lambda: execute("UPDATE board_topic SET comment = 'new' WHERE id = 3"), {3}),
    "psql": (_plain("DELETE FROM board_topic WHERE id IN (1, 3)"), {1, 3}),
    "COPY": (_copy, {8, 9}),
    "MERGE": (_plain(MERGE), {1, 9}),
    "upsert": (
        _plain(
            f"INSERT INTO board_topic {COLUMNS} SELECT id, 'new', '[]', now() FROM generate_series(3, 4) id"
            " ON CONFLICT (id) DO UPDATE SET comment = 'new'"
        ),
        {3, 4},
    ),
    "a writing WITH": (
        _plain(
            "WITH gone AS (DELETE FROM board_topic WHERE id = 1 RETURNING id)"
            " UPDATE board_topic SET comment = 'new' WHERE id = 2"
        ),
        {1, 2},
    ),
}


@pytest.mark.parametrize("kind", WRITES)
def test_whoever_writes(topics: Ear, kind: str) -> None:
    """Every way to write announces the keys of the rows that it changes, and no others."""
    write, changed = WRITES[kind]
    write()
    hints = topics.hints()
    assert {hint.label for hint in hints} == {TOPICS}
    assert set(keys(hints)) == changed


NO_CHANGES = [
    "UPDATE board_topic SET comment = 'new' WHERE id = 99",
    "UPDATE board_topic SET id = 7 WHERE id = 99",
    "DELETE FROM board_topic WHERE id = 99",
    "INSERT INTO board_topic SELECT * FROM board_topic WHERE id = 99",
    "SELECT * FROM board_topic FOR UPDATE",
]


@pytest.mark.parametrize("statement", NO_CHANGES)
def test_what_changes_nothing(topics: Ear, statement: str) -> None:
    """A statement that changes no row is not announced."""
    execute(statement)
    assert topics.messages() == []


def test_truncate(topics: Ear) -> None:
    """TRUNCATE announces all rows."""
    execute("TRUNCATE board_topic")
    assert topics.hints() == [Hint(TOPICS)]


def test_exactly_at_commit(topics: Ear, database: str) -> None:
    """Nothing is heard of a transaction before it is committed, and all of it then."""
    with transaction.atomic(using=database):
        Topic.objects.filter(pk=1).update(comment="new")
        Topic.objects.filter(pk=2).delete()
        assert topics.messages() == []
    assert keys(topics.hints()) == [1, 2]


def test_rolled_back(topics: Ear, database: str) -> None:
    """What is rolled back is not announced: a transaction, nor a savepoint of one that is committed."""
    with transaction.atomic(using=database):
        Topic.objects.all().delete()
        transaction.set_rollback(True, using=database)
    assert topics.messages() == []
    with transaction.atomic(using=database):
        Topic.objects.filter(pk=1).update(comment="new")
        with transaction.atomic(using=database):
            Topic.objects.filter(pk=2).update(comment="new")
            transaction.set_rollback(True, using=database)
    assert topics.hints() == [Hint(TOPICS, (1,))]


def test_a_transaction_repeats_nothing(topics: Ear, database: str) -> None:
    """A row that one transaction writes ten times is announced once."""
    with transaction.atomic(using=database):
        for number in range(10):
            Topic.objects.filter(pk=1).update(comment=number)
    assert topics.hints() == [Hint(TOPICS, (1,))]


def test_many_keys(database: str) -> None:
    """Keys that one notification cannot hold come in several, each short enough for NOTIFY."""
    rows = [Everything() for _ in range(MOST_KEYS_OF_STATEMENT)]
    with announced(Everything), ear() as heard:
        Everything.objects.bulk_create(rows)
        messages = heard.messages()
        assert len(messages) > 1
        assert max(len(message.encode()) for message in messages) <= MESSAGE_LIMIT
        Everything.objects.update(integer=1)
        found = [UUID(key) for key in keys(heard.hints())]
        assert sorted(found) == sorted(row.pk for row in rows)


def test_too_many_keys(database: str) -> None:
    """A statement that changes more rows than the documented number announces all rows, in one message."""
    with announced(Topic), ear() as heard:
        Topic.objects.bulk_create([Topic(comment="new") for _ in range(MOST_KEYS_OF_STATEMENT + 1)])
        assert heard.hints() == [Hint(TOPICS)]
        Topic.objects.all().delete()
        assert heard.hints() == [Hint(TOPICS)]


def test_a_key_changes(topics: Ear) -> None:
    """When a primary key itself changes, the row that is gone is announced with the one that is new."""
    Topic.objects.filter(pk=1).update(id=7)
    (hint,) = topics.hints()
    assert hint.label == TOPICS
    assert set(hint.keys or ()) == {1, 7}


def test_many_keys_change(topics: Ear) -> None:
    """Keys before and after count together; with too many, all rows are announced."""
    execute("UPDATE board_topic SET id = id + 100")
    assert keys(topics.hints()) == [1, 2, 3, 101, 102, 103]
    half = MOST_KEYS_OF_STATEMENT // 2
    Topic.objects.bulk_create(Topic(pk=1000 + number) for number in range(half + 1))
    topics.messages()
    execute(f"UPDATE board_topic SET id = id + 10000 WHERE id BETWEEN 1000 AND {999 + half}")
    assert len(keys(topics.hints())) == 2 * half
    execute("UPDATE board_topic SET id = id + 10000 WHERE id >= 1000")
    assert topics.hints() == [Hint(TOPICS)]


def test_a_trigger_changes_the_key(topics: Ear) -> None:
    """What another trigger makes of a statement that does not mention the key is announced."""
    execute(
        "CREATE FUNCTION renumber() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN NEW.id := NEW.id + 100; RETURN NEW; END'",
        "CREATE TRIGGER renumber BEFORE UPDATE ON board_topic FOR EACH ROW EXECUTE FUNCTION renumber()",
    )
    try:
        execute("UPDATE board_topic SET comment = 'new' WHERE id = 1")
        assert keys(topics.hints()) == [1, 101]
    finally:
        execute("DROP FUNCTION renumber CASCADE")


def test_cascades_of_keys(exotic: Ear) -> None:
    """So is what ON UPDATE CASCADE does to another table's keys."""
    execute("CREATE TABLE word (id int PRIMARY KEY)", "INSERT INTO word VALUES (1)")
    execute("ALTER TABLE places_piece ADD FOREIGN KEY (part) REFERENCES word ON UPDATE CASCADE")
    try:
        Piece.objects.create(number=1)
        with announced(Piece):
            execute("UPDATE word SET id = 2")
            assert keys(exotic.hints()) == [1, 2]
    finally:
        execute("DROP TABLE word CASCADE")


def test_a_key_changes_to_its_equal(exotic: Ear) -> None:
    """A key may be another and equal to what it was, where a type makes no difference of case."""
    execute("CREATE EXTENSION citext", 'ALTER TABLE "Select Me" ALTER COLUMN "Order" TYPE citext')
    try:
        with announced(Odd):
            Odd.objects.create(pk="key")
            exotic.messages()
            execute("""UPDATE "Select Me" SET "Order" = 'KEY'""")
            assert keys(exotic.hints()) == ["KEY", "key"]
    finally:
        execute("DROP EXTENSION citext CASCADE")


def test_a_key_is_set_to_itself(topics: Ear) -> None:
    """Naming the primary key in an update is no change of it."""
    execute("UPDATE board_topic SET id = id, comment = 'new' WHERE id = 1")
    assert topics.hints() == [Hint(TOPICS, (1,))]


def test_a_name_of_a_variable(exotic: Ear) -> None:
    """The key's column may be named as anything in the function is."""
    with announced(Piece):
        Piece.objects.bulk_create([Piece(number=1), Piece(number=2)])
        assert keys(exotic.hints()) == [1, 2]


def test_the_key_gets_another_name(topics: Ear) -> None:
    """After a migration of the key no write fails, and all rows are announced until the triggers are new."""
    execute("UPDATE board_topic SET comment = 'planned' WHERE id = 1")
    topics.messages()
    execute("ALTER TABLE board_topic RENAME COLUMN id TO number")
    try:
        execute("UPDATE board_topic SET comment = 'new' WHERE number = 1", "DELETE FROM board_topic")
        assert topics.hints() == [Hint(TOPICS)] * 2
        execute("UPDATE board_topic SET comment = 'none there'")
        assert topics.hints() == []
    finally:
        execute("ALTER TABLE board_topic RENAME COLUMN number TO id")


TEXTS = ["plain", 'quoted "and" \\slashed\n', "掲示板 🍣", "%s %% $hint$ '", ""]


@pytest.mark.parametrize("key", TEXTS)
def test_texts_as_keys(exotic: Ear, key: str) -> None:
    """A key that is text arrives as it is, from a table and a column whose names need quotes."""
    with announced(Odd):
        Odd.objects.create(pk=key)
        assert exotic.hints() == [Hint("places.Odd", (key,))]


def test_long_texts_as_keys(exotic: Ear) -> None:
    """Keys that are too long for NOTIFY become a hint for all rows, and no error of the writer's."""
    with announced(Odd):
        Odd.objects.bulk_create([Odd(pk=f"{number}" + "键" * 1900) for number in range(4)])
        assert exotic.hints() == [Hint("places.Odd")]
        Odd.objects.create(pk="é" * 1900)  # in JSON no longer than in the table
        assert exotic.hints() == [Hint("places.Odd", ("é" * 1900,))]
        Odd.objects.create(pk="\x01" * 1900)  # each of these takes six bytes in JSON
        assert exotic.hints() == [Hint("places.Odd")]
        Odd.objects.bulk_create([Odd(pk=f"{number:03}" + "x" * 600) for number in range(40)])
        assert len(keys(exotic.hints())) == 40


def test_composite_keys(database: str) -> None:
    """A model whose key is several columns is announced without keys."""
    with announced(Seat), ear() as heard:
        Seat.objects.create(row=1, number=2, guest="a")
        assert heard.hints() == [Hint("board.Seat")]
        Seat.objects.filter(row=9).update(guest="b")
        assert heard.messages() == []


def test_inherited_models(exotic: Ear) -> None:
    """A change in the parent's table is one of the child's, and the reverse; with keys where they agree."""
    with announced(Restaurant, Bar):
        pk = Restaurant.objects.create(name="a", serves="b").pk
        exotic.messages()
        both = {Hint("places.Place", (pk,)), Hint("places.Restaurant", (pk,))}
        others = {Hint("places.PlaceName", (pk,)), Hint("places.Bar")}
        Place.objects.filter(pk=pk).update(name="c")
        assert set(exotic.hints()) == both | others
        Restaurant.objects.filter(pk=pk).update(serves="d")
        assert set(exotic.hints()) == both
        Bar.objects.create(name="e", code="f")
        exotic.messages()
        execute("UPDATE places_bar SET code = 'g'")
        assert {hint for hint in exotic.hints() if hint.label == "places.Place"} == {Hint("places.Place")}


def test_two_models_of_a_table(exotic: Ear) -> None:
    """Every model of a table is announced, whichever was named."""
    with announced(PlaceName):
        pk = Place.objects.create(name="a").pk
        assert {Hint("places.Place", (pk,)), Hint("places.PlaceName", (pk,))} <= set(exotic.hints())


def test_signals_say_the_same(database: str) -> None:
    """What a model's signals announce is what the triggers of its tables do."""
    assert dict(announced_by_signals(Restaurant)) == {
        "places.Restaurant": True,
        "places.Place": True,
        "places.PlaceName": True,
        "places.Bar": False,
    }
    assert dict(announced_by_signals(LoudTopic)) == {TOPICS: True}
    assert dict(announced_by_signals(Seat)) == {"board.Seat": False}


def test_several_at_once(database: str) -> None:
    """Commands that run at the same time, as on the machines of a deployment, do not fail one another."""
    table, together = table_of(Topic), threading.Barrier(4)

    def change(action: Callable[[str, Any], object]) -> None:
        try:
            connections[database].ensure_connection()
            together.wait(DEADLINE)
            action(database, table)
        finally:
            connections[database].close()

    with ThreadPoolExecutor(4) as pool:
        for action in (triggers.install, triggers.uninstall) * 3:
            list(pool.map(change, [action] * 4, timeout=DEADLINE))
            wanted = triggers.State.INSTALLED if action is triggers.install else triggers.State.MISSING
            assert triggers.state(database, table) is wanted


def test_many_to_many(exotic: Ear) -> None:
    """The table between two models is announced under its own label."""
    place, tag = Place.objects.create(name="a"), Tag.objects.create(word="b")
    with announced(Place.tags.through):
        place.tags.add(tag)
        (hint,) = exotic.hints()
        assert hint.label == "places.Place_tags"


def test_another_schema(exotic: Ear) -> None:
    """A table in a schema that is not in the search path is announced."""
    with announced(Elsewhere):
        execute("""INSERT INTO "Else where".thing (name) VALUES ('a')""")
        assert exotic.hints() == [Hint("places.Elsewhere", (1,))]


def test_partitions(exotic: Ear) -> None:
    """Writes to a partitioned table are announced, those that move a row to another partition included."""
    with announced(Reading):
        execute("INSERT INTO places_reading VALUES (1, 50), (2, 150)")
        assert keys(exotic.hints()) == [1, 2]
        execute("UPDATE places_reading SET value = 160 WHERE id = 1")
        assert keys(exotic.hints()) == [1]
        execute("UPDATE places_reading SET value = 70, id = 7 WHERE id = 1")
        assert keys(exotic.hints()) == [1, 7]
        execute("DELETE FROM places_reading WHERE id = 2")
        assert keys(exotic.hints()) == [2]
        execute("TRUNCATE places_reading")
        assert exotic.hints() == [Hint("places.Reading")]


def test_statements_that_name_a_partition(exotic: Ear) -> None:
    """They are announced as those that name the table, whatever they do."""
    with announced(Reading):
        execute("INSERT INTO places_reading_low VALUES (1, 50)")
        execute("UPDATE places_reading_low SET id = 7")
        execute("DELETE FROM places_reading_low")
        assert [sorted(hint.keys or ()) for hint in exotic.hints()] == [[1], [1, 7], [7]]
        execute("TRUNCATE places_reading_high")
        assert exotic.hints() == [Hint("places.Reading")]
        for table in ("places_reading", "places_reading_low"):
            execute(f"ALTER TABLE {table} DISABLE TRIGGER ALL")
            assert triggers.state("postgresql", table_of(Reading)) is triggers.State.OUTDATED
            triggers.install("postgresql", table_of(Reading))
            assert triggers.state("postgresql", table_of(Reading)) is triggers.State.INSTALLED


def test_a_new_partition(exotic: Ear) -> None:
    """One that is attached lacks the triggers, which is found out, and `install` gives them to it alone."""
    with announced(Reading):
        execute("CREATE TABLE places_reading_top PARTITION OF places_reading FOR VALUES FROM (200) TO (300)")
        assert triggers.state("postgresql", table_of(Reading)) is triggers.State.OUTDATED
        triggers.install("postgresql", table_of(Reading))
        execute("INSERT INTO places_reading_top VALUES (3, 250)")
        assert keys(exotic.hints()) == [3]
        execute("ALTER TABLE places_reading DETACH PARTITION places_reading_top")
        assert triggers.state("postgresql", table_of(Reading)) is triggers.State.OUTDATED
        triggers.install("postgresql", table_of(Reading))
        execute("INSERT INTO places_reading_top VALUES (4, 250)")
        assert exotic.messages() == []
        execute("DROP TABLE places_reading_top")


def test_a_foreign_partition(exotic: Ear) -> None:
    """PostgreSQL refuses to collect its rows, so a table with one is left alone, and can be freed."""
    execute(
        "CREATE EXTENSION file_fdw",
        "CREATE SERVER files FOREIGN DATA WRAPPER file_fdw",
        "CREATE TABLE partitioned (part int) PARTITION BY RANGE (part)",
        "DROP TABLE places_piece",
        "ALTER TABLE partitioned RENAME TO places_piece",
    )
    try:
        triggers.install("postgresql", table_of(Piece))
        execute(
            "CREATE FOREIGN TABLE far PARTITION OF places_piece FOR VALUES FROM (1) TO (9)"
            " SERVER files OPTIONS (filename '/dev/null')"
        )
        with pytest.raises(triggers.NoTable, match="foreign table"):
            triggers.state("postgresql", table_of(Piece))
        assert triggers.uninstall("postgresql", table_of(Piece))
        assert not triggers.uninstall("postgresql", table_of(Piece))
        with pytest.raises(triggers.NoTable, match="foreign table"):
            triggers.install("postgresql", table_of(Piece))
    finally:
        connections["postgresql"].close()
        execute("DROP EXTENSION file_fdw CASCADE")


def test_children_by_inherits(exotic: Ear) -> None:
    """A row of a child is one of its parent's, and a statement on either may change it."""
    execute("CREATE TABLE places_piece_of (more text) INHERITS (places_piece)")
    try:
        with announced(Piece):
            execute("INSERT INTO places_piece_of VALUES (1, 'more')")
            execute("UPDATE places_piece SET part = 2")
            execute("UPDATE places_piece_of SET part = 3")
            assert [sorted(hint.keys or ()) for hint in exotic.hints()] == [[1], [1, 2], [2, 3]]
    finally:
        execute("DROP TABLE places_piece_of")


def test_a_model_of_a_child(exotic: Ear) -> None:
    """A table and its child may both have models: each keeps its triggers without the other's."""
    execute(
        "DROP TABLE places_piece; CREATE TABLE places_piece (part int PRIMARY KEY, name text)"
        " PARTITION BY RANGE (part)",
        'DROP TABLE "Else where".thing; CREATE TABLE "Else where".thing (part int PRIMARY KEY, name text)',
        'ALTER TABLE places_piece ATTACH PARTITION "Else where".thing FOR VALUES FROM (0) TO (10)',
    )
    with announced(Piece):
        with announced(Elsewhere):
            for model in (Piece, Elsewhere):
                assert triggers.state("postgresql", table_of(model)) is triggers.State.INSTALLED
            execute("INSERT INTO places_piece VALUES (1, 'a')")
            assert {hint.label for hint in exotic.hints()} == {"places.Piece", "places.Elsewhere"}
            execute("""UPDATE "Else where".thing SET name = 'b'""")
            assert {hint.label for hint in exotic.hints()} == {"places.Piece", "places.Elsewhere"}
        assert triggers.state("postgresql", table_of(Piece)) is triggers.State.INSTALLED
        execute("""UPDATE "Else where".thing SET name = 'c'""")
        assert exotic.hints() == [Hint("places.Piece", (1,))]


SPOILT = {
    "disabled": "ALTER TABLE board_topic DISABLE TRIGGER fastapi_django_orm_update",
    "not for replicas": "ALTER TABLE board_topic ENABLE TRIGGER fastapi_django_orm_update",
    "dropped": "DROP TRIGGER fastapi_django_orm_update ON board_topic",
    "renamed": "ALTER TRIGGER fastapi_django_orm_update ON board_topic RENAME TO mine",
    "one more": "CREATE TRIGGER mine AFTER TRUNCATE ON board_topic EXECUTE FUNCTION {function}()",
    "on the wrong event": "CREATE OR REPLACE TRIGGER fastapi_django_orm_update AFTER DELETE ON board_topic"
    " REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION {function}()",
    "under a condition": "CREATE OR REPLACE TRIGGER fastapi_django_orm_truncate AFTER TRUNCATE ON board_topic"
    " WHEN (false) EXECUTE FUNCTION {function}()",
    "another function": "CREATE FUNCTION mine() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';"
    " CREATE OR REPLACE TRIGGER fastapi_django_orm_truncate AFTER TRUNCATE ON board_topic "
    " EXECUTE FUNCTION mine()",
    "a function replaced by hand": "CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql"
    " AS 'BEGIN RETURN NULL; END'",
    "made for another table": "ALTER FUNCTION {function}() RENAME TO fastapi_django_orm_other",
}


@pytest.mark.parametrize("how", SPOILT)
def test_what_is_spoilt_is_repaired(topics: Ear, database: str, how: str) -> None:
    """`install` brings back exactly what should be there, whatever was done to it by hand."""
    table = table_of(Topic)
    before = _ours()
    function = next(name for _, _, name in before)
    execute(SPOILT[how].format(function=function))
    assert triggers.state(database, table) is triggers.State.OUTDATED
    triggers.install(database, table)
    assert triggers.state(database, table) is triggers.State.INSTALLED
    assert _ours() == before
    execute("DROP FUNCTION IF EXISTS mine")
    topics.messages()
    execute("UPDATE board_topic SET comment = 'new'", "TRUNCATE board_topic")
    assert [hint.keys is None for hint in topics.hints()] == [False, True]


def _ours() -> set[tuple[str, str, str]]:
    """All triggers of the tests' tables, with their functions."""
    with connections[router.chosen].cursor() as cursor:
        cursor.execute(
            "SELECT tgrelid::regclass::text, tgname, proname"
            " FROM pg_trigger JOIN pg_proc p ON p.oid = tgfoid WHERE NOT tgisinternal"
        )
        return set(cursor.fetchall())


def test_a_writer_that_plays_a_replica(topics: Ear) -> None:
    """What is written under session_replication_role = replica is announced."""
    with plain_connection() as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute("UPDATE board_topic SET comment = 'new' WHERE id = 1")
    assert keys(topics.hints()) == [1]


def test_the_key_gets_another_type(topics: Ear) -> None:
    """No migration is kept from it, by whoever it is made, and later writes announce keys of the new type."""
    execute("UPDATE board_topic SET comment = 'planned' WHERE id = 1")
    topics.messages()
    with plain_connection() as connection:
        connection.execute(
            "ALTER TABLE board_topic ALTER id DROP IDENTITY; ALTER TABLE board_topic ALTER id TYPE text"
        )
    try:
        execute("UPDATE board_topic SET id = 'x' WHERE id = '1'")
        assert keys(topics.hints()) == ["1", "x"]
    finally:
        execute("UPDATE board_topic SET id = '1' WHERE id = 'x'")
        execute("ALTER TABLE board_topic ALTER id TYPE bigint USING id::bigint")
        execute("ALTER TABLE board_topic ALTER id ADD GENERATED BY DEFAULT AS IDENTITY")


def test_cascades_of_the_database(exotic: Ear) -> None:
    """Rows that a foreign key's ON DELETE CASCADE deletes are announced, though Django sees none of it."""
    place = Place.objects.create(name="a")
    note = Note.objects.create(place=place)
    with announced(Note):
        execute(f"DELETE FROM places_place WHERE id = {place.pk}")
        assert exotic.hints() == [Hint("places.Note", (note.pk,))]


HOSTILE = """
CREATE SCHEMA hostile;
CREATE FUNCTION hostile.pg_notify(text, text) RETURNS void LANGUAGE plpgsql AS 'BEGIN RAISE ''hostile''; END';
CREATE FUNCTION hostile.no(int, int) RETURNS bool LANGUAGE plpgsql AS 'BEGIN RAISE ''hostile''; END';
CREATE OPERATOR hostile.= (LEFTARG = int, RIGHTARG = int, FUNCTION = hostile.no);
CREATE OPERATOR hostile.<= (LEFTARG = int, RIGHTARG = int, FUNCTION = hostile.no);
CREATE OPERATOR hostile.> (LEFTARG = int, RIGHTARG = int, FUNCTION = hostile.no);
CREATE TABLE hostile.changed (id text);
CREATE DOMAIN hostile.text AS int;
"""


def test_search_path(topics: Ear) -> None:
    """No search_path of a writer changes what is announced: an empty one, nor one that leads astray."""
    execute(HOSTILE)
    try:
        for path in ("''", "hostile, pg_catalog"):
            with plain_connection() as connection:
                connection.execute(f"SET search_path = {path}")
                connection.execute("UPDATE public.board_topic SET comment = 'new' WHERE id < 3")
            assert keys(topics.hints()) == [1, 2]
    finally:
        execute("DROP SCHEMA hostile CASCADE")


def test_a_writer_without_rights(topics: Ear) -> None:
    """A role that may only write the table needs no right to anything else."""
    execute("CREATE ROLE writer", "GRANT INSERT ON board_topic TO writer")
    try:
        with plain_connection() as connection:
            connection.execute("SET ROLE writer")
            connection.execute(f"INSERT INTO board_topic {COLUMNS} VALUES (9, 'new', '[]', now())")
        assert topics.hints() == [Hint(TOPICS, (9,))]
    finally:
        execute("DROP OWNED BY writer", "DROP ROLE writer")


def test_other_tables(topics: Ear) -> None:
    """A table that nobody has asked for is not announced."""
    Author.objects.create(name="a")
    assert topics.messages() == []
