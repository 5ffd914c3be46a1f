"""What Django's signals tell of: when it is committed, merged, and only what is kept."""

import asyncio
from collections.abc import Callable, Iterator

import pytest
from django.db import connection, transaction
from django.db.models.signals import m2m_changed, post_delete, post_save
from django.test.utils import CaptureQueriesContext

from fastapi_django_orm.coherence import process
from fastapi_django_orm.coherence.hints import Hint
from fastapi_django_orm.django import signals
from tests.project.board.models import Author, LoudTopic, Seat, Topic
from tests.project.places.models import Place, Restaurant, Tag
from tests.support.hearing import follows, hearing
from tests.support.playing import outside
from tests.support.repositories import declare

TOPICS = "board.Topic"


@pytest.fixture
def connected() -> Iterator[None]:
    """The signals as an installed app has them, for one test."""
    before = list(process.on_change)
    signals.connect()
    yield
    process.on_change[:] = before
    for signal in (post_save, m2m_changed, post_delete):
        signal.disconnect(dispatch_uid="fastapi_django_orm")


@pytest.fixture
def heard(connected: None, sqlite: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Hint]]:
    """What an application in this process is told."""
    found: list[Hint] = []
    monkeypatch.setattr(process, "publish", found.append)
    process.on_change[-1](True)  # as when one begins to listen
    return found


def rolled_back(write: Callable[[], object]) -> None:
    """Write something that is taken back."""
    with transaction.atomic():
        write()
        transaction.set_rollback(True)


def test_followed_at_once(connected: None, sqlite: str) -> None:
    """An application follows what the same process writes, with no transport but the process itself."""

    async def main() -> None:
        async with hearing(declare(), coherence="process") as (topics, _):
            await outside(lambda: Topic.objects.create(comment="one"))
            await follows(topics, "one")
            await outside(lambda: Topic.objects.get().delete())
            await follows(topics)

    asyncio.run(main())


def test_saved_and_deleted(heard: list[Hint]) -> None:
    """A row that is created, changed or deleted is told with its key."""
    topic = Topic.objects.create(comment="a")
    pk = topic.pk
    topic.save()
    topic.delete()
    assert heard == [Hint(TOPICS, (pk,))] * 3


def test_queries_that_delete(heard: list[Hint]) -> None:
    """Rows that a query deletes, and those that go with them, are told with their keys."""
    author = Author.objects.create(name="a")
    Topic.objects.create(pk=1, author=author)
    Topic.objects.create(pk=2, author=author)
    heard.clear()
    pk = author.pk
    Author.objects.all().delete()
    assert {hint.label: set(hint.keys or ()) for hint in heard} == {TOPICS: {1, 2}, "board.Author": {pk}}


def test_deletes_stay_fast_until_somebody_listens(connected: None, sqlite: str) -> None:
    """Django deletes without reading the rows first, while no application runs in the process."""
    Topic.objects.create(comment="a")
    with CaptureQueriesContext(connection) as queries:
        Topic.objects.all().delete()
    assert [query["sql"].partition(" ")[0] for query in queries].count("SELECT") == 0
    assert not Topic.objects.exists()


def test_merged_by_transaction(heard: list[Hint]) -> None:
    """A transaction tells of each model once, at its end."""
    with transaction.atomic():
        author = Author.objects.create(name="a")
        for pk in range(10):
            Topic.objects.create(pk=pk, author=author)
        assert heard == []
    assert {hint.label for hint in heard} == {TOPICS, "board.Author"}
    assert len(heard) == 2
    assert {pk for hint in heard if hint.label == TOPICS for pk in hint.keys or ()} == set(range(10))


def test_many_rows(heard: list[Hint]) -> None:
    """A transaction with more rows than the documented number tells of all rows."""
    with transaction.atomic():
        for _ in range(1001):
            Topic.objects.create(comment="a")
    assert heard == [Hint(TOPICS)]


def test_rolled_back(heard: list[Hint]) -> None:
    """What is rolled back is never told, and what follows it is."""
    rolled_back(lambda: Topic.objects.create(pk=1))
    assert heard == []
    with transaction.atomic():
        Topic.objects.create(pk=2)
    assert heard == [Hint(TOPICS, (2,))]


def test_savepoints(heard: list[Hint]) -> None:
    """A savepoint that is rolled back takes what it wrote along, and nothing else."""
    with transaction.atomic():
        Topic.objects.create(pk=1)
        rolled_back(lambda: Topic.objects.create(pk=2))
        Topic.objects.create(pk=3)
        with transaction.atomic():
            Topic.objects.create(pk=4)
        rolled_back(lambda: Topic.objects.create(pk=5))
        Topic.objects.create(pk=6)
    assert {pk for hint in heard for pk in hint.keys or ()} == {1, 3, 4, 6}


def test_other_callbacks(heard: list[Hint]) -> None:
    """What others do at the commit, or fail to do, takes nothing away."""
    with transaction.atomic():
        Topic.objects.create(pk=1)
        transaction.on_commit(lambda: Topic.objects.create(pk=2))
        Topic.objects.create(pk=3)
        transaction.on_commit(lambda: 1 / 0, robust=True)
        Topic.objects.create(pk=4)
    assert {pk for hint in heard for pk in hint.keys or ()} == {1, 2, 3, 4}


def test_without_atomic(heard: list[Hint]) -> None:
    """A write with autocommit off does not fail, though nobody says when it is committed."""
    transaction.set_autocommit(False)
    try:
        Topic.objects.create(pk=1)
        transaction.commit()
    finally:
        transaction.set_autocommit(True)
    assert heard == [Hint(TOPICS, (1,))]


def test_a_failure_stays_here(
    heard: list[Hint], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If telling goes wrong, the write has not: the error is in the log."""

    def fail(hint: Hint) -> None:
        raise RuntimeError("nobody there")

    monkeypatch.setattr(process, "publish", fail)
    Topic.objects.create(pk=1)
    with transaction.atomic():
        Topic.objects.create(pk=2)
    assert Topic.objects.count() == 2
    assert caplog.text.count("nobody there") >= 2


def test_proxies_and_composite_keys(heard: list[Hint]) -> None:
    """A proxy's row is told as its model's; a model with a composite key without keys."""
    LoudTopic.objects.create(pk=1)
    Seat.objects.create(row=1, number=2)
    assert heard == [Hint(TOPICS, (1,)), Hint("board.Seat")]


def test_inherited_models(heard: list[Hint]) -> None:
    """A change of the child is one of the parent, and the reverse."""
    pk = Restaurant.objects.create(name="a", serves="b").pk
    both = {Hint("places.Restaurant", (pk,)), Hint("places.Place", (pk,))}
    assert both <= set(heard)
    heard.clear()
    Place.objects.get(pk=pk).save()
    assert both <= set(heard)


def test_many_to_many(heard: list[Hint]) -> None:
    """What is added to a relation, or taken from it, tells of the table between and of both ends."""
    place, tag = Place.objects.create(name="a"), Tag.objects.create(word="b")
    for change in (place.tags.add, place.tags.remove):
        heard.clear()
        change(tag)
        ends = {Hint("places.Place", (place.pk,)), Hint("places.Tag", (tag.pk,))}
        assert {Hint("places.Place_tags"), *ends} <= set(heard)
    place.tags.add(tag)
    heard.clear()
    place.tags.clear()
    assert {Hint("places.Place_tags"), Hint("places.Place", (place.pk,))} <= set(heard)
