"""Relations that schemas nest: the rows are right, and there is one query for each level."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from django.contrib.contenttypes.models import ContentType
from django.db import models
from django.db.backends.utils import CursorWrapper
from django.test.utils import isolate_apps
from fastapi import FastAPI
from structlog.testing import capture_logs

from fastapi_django_orm import ModelSchema
from tests.project.board.models import Author, Desk, LoudTopic, Topic, Writer
from tests.project.places.models import Place, Remark, Tag
from tests.support.databases import client_of, created
from tests.support.repositories import declare, of, rows


class AuthorOut(ModelSchema, model="board.Author", fields=("id", "name")): ...


class TopicOut(ModelSchema, model="board.Topic", fields=("comment",)):
    author: AuthorOut | None


class AuthorTopics(ModelSchema, model="board.Author", fields=("name",)):
    topic_set: list[TopicOut]


class TagOut(ModelSchema, model="places.Tag", fields=("word",)): ...


class PlaceOut(ModelSchema, model="places.Place", fields=("name",)):
    tags: list[TagOut]


class PlaceKeys(ModelSchema, model="places.Place", fields=("name", "tags")): ...


class LaterTopics(ModelSchema, model="board.Author", fields=("name",)):
    topic_set: list["LaterTopic"]


class LaterTopic(ModelSchema, model="board.Topic", fields=("comment",)):
    author: "LaterAuthor | None"


class LaterAuthor(ModelSchema, model="board.Author", fields=("name",)): ...


class DeskOut(ModelSchema, model="board.Desk", fields=("number",)): ...


class WriterOut(ModelSchema, model="board.Writer", fields=("name",)):
    desk: DeskOut | None


@contextmanager
def reading() -> Iterator[list[str]]:
    """The statements that read tables of the project, in whatever thread."""
    statements: list[str] = []
    execute = CursorWrapper.execute

    def noted(self: Any, sql: Any, params: Any = None) -> Any:
        if str(sql).startswith("SELECT") and any(
            app in str(sql) for app in ("board_", "places_", "django_content")
        ):
            statements.append(str(sql))
        return execute(self, sql, params)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CursorWrapper, "execute", noted)
        yield statements


def dumped(schema: Any, model: Any, number_of_queries: int) -> list[Any]:
    """The rows that a repository serves, which so many queries have read."""
    with reading() as statements:
        found = rows(declare(model=model, schema=schema))
    assert len(statements) == number_of_queries, statements
    return [row.model_dump() for row in found]


@pytest.fixture
def board(database: str) -> None:
    """Two authors with topics, and topics of no author."""
    ann, bob = Author.objects.create(name="Ann"), Author.objects.create(name="Bob")
    for number, author in enumerate([ann, bob, None, ann]):
        Topic.objects.create(comment=f"c{number}", author=author)


@pytest.fixture
def places(sqlite: str) -> Iterator[None]:
    """A place without tags, and one with two."""
    new, old = Tag.objects.create(word="new"), Tag.objects.create(word="old")
    Place.objects.create(name="none")
    Place.objects.create(name="both").tags.add(new, old)
    yield
    Place.tags.through.objects.all().delete()
    Place.objects.all()._raw_delete("default")  # the table of Guest, which refers to places, is not made
    Tag.objects.all().delete()


@pytest.mark.usefixtures("board")
def test_a_relation_to_one_row_is_joined() -> None:
    """One query reads topics with their authors."""
    ann, bob = Author.objects.order_by("name")
    assert dumped(TopicOut, Topic, 1) == [
        {"comment": "c0", "author": {"id": ann.pk, "name": "Ann"}},
        {"comment": "c1", "author": {"id": bob.pk, "name": "Bob"}},
        {"comment": "c2", "author": None},
        {"comment": "c3", "author": {"id": ann.pk, "name": "Ann"}},
    ]


@pytest.mark.usefixtures("board")
def test_a_reverse_relation_is_one_query_and_one_for_each_level_below() -> None:
    """Authors, their topics, and the topics' authors again: the last are known already."""
    found = dumped(AuthorTopics, Author, 2)
    assert [[topic["comment"] for topic in author["topic_set"]] for author in found] == [["c0", "c3"], ["c1"]]
    assert found[0]["topic_set"][0]["author"]["name"] == "Ann"


@pytest.mark.usefixtures("board")
def test_schemas_that_are_declared_later_are_followed() -> None:
    """Annotations are evaluated before the first row is read, not by its validation."""
    found = dumped(LaterTopics, Author, 2)
    assert [[topic["author"]["name"] for topic in row["topic_set"]] for row in found] == [
        ["Ann"] * 2,
        ["Bob"],
    ]


@pytest.mark.usefixtures("places")
def test_many_to_many_is_nested_or_by_key() -> None:
    """Two queries read places and their tags, as rows or as keys."""
    keys = [tag.pk for tag in Tag.objects.order_by("word")]
    assert dumped(PlaceOut, Place, 2) == [
        {"name": "none", "tags": []},
        {"name": "both", "tags": [{"word": "new"}, {"word": "old"}]},
    ]
    assert dumped(PlaceKeys, Place, 2) == [{"name": "none", "tags": []}, {"name": "both", "tags": keys}]


def test_the_other_side_of_one_to_one_is_null_where_there_is_no_row(sqlite: str) -> None:
    """It is joined as well."""
    Writer.objects.create(name="a")
    Desk.objects.create(writer=Writer.objects.create(name="b"), number=3)
    assert dumped(WriterOut, Writer, 1) == [{"name": "a", "desk": None}, {"name": "b", "desk": {"number": 3}}]


def test_a_generic_relation_is_the_schema_of_its_row(sqlite: str) -> None:
    """Each row is validated by the schema of its own model, also if another schema would take it."""

    class WriterName(ModelSchema, model="board.Writer", fields=("name",)): ...

    class AuthorName(ModelSchema, model="board.Author", fields=("name",)): ...

    class RemarkOut(ModelSchema, model="places.Remark", fields=("number",)):
        subject: WriterName | AuthorName | None

    author, writer = Author.objects.create(name="Ann"), Writer.objects.create(name="Bob")
    with created(Remark):
        for row in (author, writer, author):
            Remark.objects.create(kind=ContentType.objects.get_for_model(row), number=row.pk)
        found = rows(declare(model="places.Remark", schema=RemarkOut))
        assert [type(row.subject).__name__ for row in found] == ["AuthorName", "WriterName", "AuthorName"]
        assert len(dumped(RemarkOut, Remark, 3)) == 3  # remarks, authors, writers


def test_a_tree_is_read_level_by_level_however_deep_it_is(sqlite: str) -> None:
    """A schema that nests itself costs one query for each level that has rows, and one that finds none."""
    with isolate_apps("tests.project.board"):

        class Node(models.Model):
            name = models.CharField(max_length=9)
            parent = models.ForeignKey("self", models.CASCADE, null=True, related_name="children")

            class Meta:
                app_label = "board"

            def __str__(self) -> str:
                return self.name

        class NodeOut(ModelSchema, model=Node, fields=("name",)):
            children: "list[NodeOut]"

        def roots() -> Any:
            return Node._default_manager.filter(parent=None)

        with created(Node):
            for name in ("a", "b"):
                node = Node._default_manager.create(name=name)
                for depth in range(3):
                    node = Node._default_manager.create(name=f"{name}{depth}", parent=node)
            with reading() as statements:
                (tree, _) = rows(of(roots, schema=NodeOut))
            assert len(statements) == 1 + 3 + 1
            assert tree.children[0].children[0].children[0].model_dump() == {"name": "a2", "children": []}


@pytest.mark.usefixtures("board")
def test_what_the_query_follows_itself_is_left_alone() -> None:
    """A prefetch of the project's own, with its own query, is what the rows have."""
    only = models.Prefetch("topic_set", Topic.objects.filter(comment="c3"))
    found = rows(of(lambda: Author.objects.prefetch_related(only).order_by("name"), schema=AuthorTopics))
    assert [[topic.comment for topic in author.topic_set] for author in found] == [["c3"], []]


@pytest.mark.usefixtures("board")
def test_queries_that_cannot_be_joined_are_prefetched() -> None:
    """After `only()`, and in a union, Django refuses select_related()."""
    partly = rows(of(lambda: Topic.objects.only("comment", "author_id").order_by("pk"), schema=TopicOut))
    union = rows(of(lambda: Topic.objects.all().union(Topic.objects.all()).order_by("id"), schema=TopicOut))
    assert [row.author and row.author.name for row in partly] == ["Ann", "Bob", None, "Ann"]
    assert [row.model_dump() for row in union] == [row.model_dump() for row in partly]


def test_a_row_without_its_constraint_is_not_lost(sqlite: str) -> None:
    """Where the database does not guarantee the other row, an inner join would drop this one."""
    with isolate_apps("tests.project.board"):

        class Loose(models.Model):
            author = models.ForeignKey(Author, models.DO_NOTHING, db_constraint=False, related_name="+")

            class Meta:
                app_label = "board"

            def __str__(self) -> str:
                return ""

        class LooseOut(ModelSchema, model=Loose, fields=("id",)):
            author: AuthorOut | None = None

        with created(Loose):
            Loose._default_manager.create(author_id=99)
            Loose._default_manager.create(author=Author.objects.create(name="Ann"))
            found = rows(declare(model=Loose, schema=LooseOut))
        assert [row.author and row.author.name for row in found] == [None, "Ann"]


@pytest.mark.usefixtures("board")
def test_a_field_that_queries_for_each_row_is_named_in_a_warning() -> None:
    """A property that no relation is known of is found when the first rows are made."""

    class Out(ModelSchema, model="board.LoudTopic", fields=("comment",)):
        siblings: list[str]

    with pytest.MonkeyPatch.context() as patch, capture_logs() as logs:

        def siblings(self: LoudTopic) -> list[str]:
            return [topic.comment for topic in Topic.objects.filter(author=self.author_id).order_by("pk")]

        patch.setattr(LoudTopic, "siblings", property(siblings))
        found = rows(declare(model="board.LoudTopic", schema=Out))
    assert found[0].siblings == ["c0", "c3"]
    (warning,) = [log for log in logs if log["event"] == "queries_for_each_row"]
    assert (warning["schema"], warning["fields"]) == ("Out", ["siblings"])


@pytest.mark.usefixtures("board")
def test_nested_schemas_cause_no_warning() -> None:
    """What this package prefetches is not read row by row."""
    with capture_logs() as logs:
        rows(declare(model="board.Author", schema=AuthorTopics))
    assert not [log for log in logs if log["event"] == "queries_for_each_row"]


@pytest.mark.usefixtures("board")
def test_a_handler_may_return_queries_and_instances() -> None:
    """Under a response model their relations are read in one query for each level, too."""
    app = FastAPI()

    @app.get("/query", response_model=list[AuthorTopics])
    async def query() -> Any:
        return Author.objects.order_by("name")

    @app.get("/rows", response_model=dict[str, list[AuthorTopics]])
    async def some() -> Any:
        return {"authors": [author async for author in Author.objects.order_by("name")]}

    @app.get("/row", response_model=AuthorTopics)
    async def one() -> Any:
        return await Author.objects.aget(name="Ann")

    async def get() -> list[Any]:
        async with client_of(app) as client:
            answers: list[httpx.Response] = [await client.get(path) for path in ("/query", "/rows", "/row")]
        return [answer.json() for answer in answers]

    with reading() as statements:
        of_query, of_rows, of_row = asyncio.run(get())
    assert [len(author["topic_set"]) for author in of_query] == [2, 1]
    assert of_rows == {"authors": of_query}
    assert of_row == of_query[0]
    assert len(statements) == 3 * 2
