"""Which hints concern a repository: what it declares, and what its SQL reads."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from django.apps import apps
from django.db.models import Count, Exists, F, OuterRef, Prefetch, QuerySet, Window
from django.db.models.expressions import RawSQL
from django.db.models.functions import Rank
from pydantic import AliasChoices, AliasPath, BaseModel, Field
from rest_framework import serializers

from fastapi_django_orm.coherence.concerns import Concern, concern_of
from fastapi_django_orm.coherence.hints import EVERYTHING, Hint
from fastapi_django_orm.django.tables import table_of
from fastapi_django_orm.errors import InvalidRepository, UnknownModel
from tests.project.board.models import Author, Desk, LoudTopic, Page, Poem, Seat, Topic, Writer
from tests.project.places.models import Guest, Place, Remark
from tests.support.repositories import declare, of


class AuthorOut(BaseModel):
    name: str


class TopicOut(BaseModel):
    id: int
    author: AuthorOut | None


class TopicWithName(serializers.ModelSerializer):  # type: ignore[type-arg]
    by = serializers.CharField(source="author.name")

    class Meta:
        model = Topic
        fields = ("id", "by")


class TopicWithPath(BaseModel):
    by: str = Field(validation_alias=AliasChoices("by", AliasPath("author", "name")))


def concern(repository: Any) -> Concern:
    return concern_of(repository())


OWN_ROWS = {
    "plain": declare(),
    "a proxy": declare(model="board.LoudTopic"),
    "some fields": declare(fields=("id", "author_id")),
    "filtered": of(lambda: Topic.objects.filter(comment="x", author__isnull=True), model="board.Topic"),
}

WITH_AUTHORS = {
    "select_related": of(lambda: Topic.objects.select_related("author")),
    "values": of(lambda: Topic.objects.values("id", "author__name")),
    "fields": declare(fields=("id", "author__name")),
    "ordering": declare(ordering=("author__name",)),
    "a filter": of(lambda: Topic.objects.filter(author__name="x")),
    "an annotation": of(lambda: Topic.objects.annotate(by=F("author__name"))),
    "a subquery": of(lambda: Topic.objects.filter(Exists(Author.objects.filter(pk=OuterRef("author"))))),
    "raw SQL": of(lambda: Topic.objects.annotate(n=RawSQL("select count(*) from board_author", ()))),
    "raw SQL with a schema": of(
        lambda: Topic.objects.annotate(n=RawSQL("select count(*) from public.board_author", ()))
    ),
    "raw SQL in capitals": of(
        lambda: Topic.objects.annotate(n=RawSQL("SELECT count(*) FROM BOARD_AUTHOR", ()))
    ),
    "a union": of(lambda: Topic.objects.values("id").union(Author.objects.values("id"))),
    "prefetching": of(lambda: Topic.objects.prefetch_related("author")),
    "Prefetch": of(lambda: Topic.objects.prefetch_related(Prefetch("author", Author.objects.all()))),
    "a query within Prefetch": of(
        lambda: Desk.objects.prefetch_related(
            Prefetch("writer", Writer.objects.filter(Exists(Author.objects.filter(name=OuterRef("name")))))
        ),
        model="board.Desk",
    ),
    "a manager's query": of(lambda: Place.objects.prefetch_related("guest_set"), model="places.Place"),
    "a path as an alias": declare(schema=TopicWithPath),
    "a pydantic schema": declare(schema=TopicOut),
    "a serializer": declare(schema=TopicWithName),
    "depends_on": declare(depends_on=("board.Author",)),
}


@pytest.mark.parametrize("repository", OWN_ROWS.values(), ids=OWN_ROWS)
def test_rows_of_one_table(repository: Any) -> None:
    """A hint about the model says which rows, and one about another model is for others."""
    found = concern(repository)
    assert found.is_hit(Hint("board.Topic", (1,)))
    assert found.keys(Hint("board.Topic", (1, "2"))) == {1, 2}
    assert found.keys(Hint("board.Topic")) is None
    assert not found.is_hit(Hint("board.Author"))
    assert not found.is_hit(Hint("nobody.Knows", (1,)))


@pytest.mark.parametrize("repository", WITH_AUTHORS.values(), ids=WITH_AUTHORS)
def test_related_tables_are_found(repository: Any) -> None:
    """A hint about a related model concerns all rows; one about another model, none."""
    found = concern(repository)
    assert found.is_hit(Hint("board.Author", (1,)))
    assert found.keys(Hint("board.Author", (1,))) is None
    assert not found.is_hit(Hint("board.Poem"))


def test_a_hint_about_everything_concerns_all() -> None:
    """So does one that could not be read."""
    assert concern(declare()).is_hit(EVERYTHING)
    assert concern(declare()).keys(EVERYTHING) is None


ROW_BESIDE_ROW = {
    "a slice": of(lambda: Topic.objects.all()[:10]),
    "a rank": of(lambda: Topic.objects.annotate(place=Window(Rank(), order_by="comment"))),
    "a join with itself": of(lambda: Topic.objects.annotate(siblings=Count("author__topic"))),
    "a subquery": of(lambda: Topic.objects.filter(pk__in=Topic.objects.filter(comment="x"))),
    "a union": of(lambda: Topic.objects.filter(pk=1).union(Topic.objects.filter(pk=2))),
    "distinct": of(lambda: Topic.objects.values("id", "comment").distinct()),
    "groups": of(lambda: Topic.objects.values("comment").annotate(pk=Count("id"))),
    "no key": of(lambda: Topic.objects.values("comment")),
    "depends_on": declare(depends_on=("board.Topic",)),
    "prefetching itself": of(lambda: Topic.objects.prefetch_related("author__topic_set")),
}


@pytest.mark.parametrize("repository", ROW_BESIDE_ROW.values(), ids=ROW_BESIDE_ROW)
def test_rows_that_depend_on_other_rows_are_all_refreshed(repository: Any) -> None:
    """The keys in a hint do not suffice then; the model's own label in `depends_on` says so."""
    assert concern(repository).is_hit(Hint("board.Topic", (1,)))
    assert concern(repository).keys(Hint("board.Topic", (1,))) is None


class Reached(QuerySet[Any]):
    """A queryset class that is not Django's, as django-polymorphic's."""


class PlaceOut(BaseModel):
    id: int
    serves: str | None = None


def test_children_of_instances_that_others_read() -> None:
    """Where a class that is not Django's reads instances, they may be those of the model's children."""
    places = of(lambda: Reached(Place), model="places.Place", schema=PlaceOut)
    found = concern(places)
    assert {"places_restaurant", "places_bar", "places_place"} <= found.tables.keys()
    assert found.keys(Hint("places.Restaurant", (1,))) == {1}  # whose key is the place's
    assert found.is_hit(Hint("places.Bar", ("a",)))
    assert found.keys(Hint("places.Bar", ("a",))) is None
    for plain in (
        of(lambda: Place.objects.all(), model="places.Place", schema=PlaceOut),
        of(lambda: Reached(Place), model="places.Place"),
        of(lambda: Reached(Place).values("id"), model="places.Place"),
    ):
        assert "places_restaurant" not in concern(plain).tables


UNKNOWN = {
    "a generic foreign key": of(lambda: Remark.objects.prefetch_related("subject"), model="places.Remark"),
    "no query today": of(lambda: Topic.objects.filter(author__name__in=[])),
}


@pytest.mark.parametrize("repository", UNKNOWN.values(), ids=UNKNOWN)
def test_what_cannot_be_found_out_may_be_anything(repository: Any) -> None:
    """Where only the data, or another day's query, names the tables, every hint counts."""
    assert concern(repository).is_hit(Hint("board.Author", (1,)))
    assert concern(repository).keys(Hint("board.Author", (1,))) is None


def test_names_with_signs() -> None:
    """A table is found whatever its name begins and ends with."""
    visited = of(lambda: Place.objects.filter(Exists(Guest.objects.filter(place=OuterRef("pk")))))
    assert concern(visited).is_hit(Hint("places.Guest", (1,)))


def test_keys_get_their_types_back() -> None:
    """Composite keys are tuples; what is no key of the model's means all rows."""
    assert concern(of(Seat.objects.all)).keys(Hint("board.Seat", (("1", 2),))) == {(1, 2)}
    assert concern(of(Seat.objects.all)).keys(Hint("board.Seat", (1,))) is None
    assert concern(of(Poem.objects.all)).keys(Hint("board.Poem", ("x",))) is None
    assert concern(of(Page.objects.all)).keys(Hint("board.Page", (("x", 1),))) is None


def test_a_proxy_has_the_label_of_its_table() -> None:
    """Triggers and signals name the model whose table it is."""
    assert concern(of(LoudTopic.objects.all, model="board.LoudTopic")).is_hit(Hint("board.Topic", (1,)))


@pytest.mark.parametrize(
    ("depends_on", "error", "told"),
    [
        (("board.Athor",), UnknownModel, "board.Author"),
        ("board.Author", InvalidRepository, "('board.Author',)"),
    ],
)
def test_depends_on_is_checked(depends_on: Any, error: type[Exception], told: str) -> None:
    """A label that is not installed, or no tuple, is told with what to write instead."""
    with pytest.raises(error) as failure:
        concern(declare(depends_on=depends_on))
    assert told in str(failure.value)
    assert "Topics.depends_on" in str(failure.value)


def test_what_is_read_is_found_in_the_time_that_it_takes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other models, however many, add nothing: with a repository for each, it would be their square."""
    installed = apps.get_models(include_auto_created=True)
    more = [*installed, *(other_model(number) for number in range(600))]
    repository = declare(fields=("id", "author__name"))

    def calls() -> int:
        concern(repository)  # what is found out once for all repositories
        table_of(Topic)
        with counted_calls() as count:
            found = concern(repository)
            table_of(Topic)
        assert found.tables == {"board_topic": "board.Topic", "board_author": "board.Author"}
        return count[0]

    alone = calls()
    monkeypatch.setattr(apps, "get_models", lambda **options: more)
    assert calls() < alone + 10


def other_model(number: int) -> Any:
    """A class with as much of a model as is looked at."""
    meta = SimpleNamespace(
        db_table=f"other_{number}",
        label=f"other.Model{number}",
        proxy=False,
        get_parent_list=list,
        concrete_model=None,
    )
    return type("Other", (), {"_meta": meta})


@contextmanager
def counted_calls() -> Iterator[list[int]]:
    """How many functions of Python are called within the block."""
    count = [0]

    def profile(frame: Any, event: str, arg: Any) -> None:
        count[0] += event == "call"

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        yield count
    finally:
        sys.setprofile(before)
