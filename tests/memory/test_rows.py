"""Rows: what `.values()` gives, plain, shared by every request and changed by none."""

import copy
import json
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.postgres import fields as postgres
from django.db import connections, models
from django.db.models import F, Window
from django.db.models.functions import RowNumber
from django.db.models.lookups import LessThanOrEqual
from pydantic import BaseModel

from fastapi_django_orm import Repository
from tests.project.board.models import Author, Everything, Poem, Seat, Topic
from tests.support.comparing import finish
from tests.support.gates import started
from tests.support.repositories import declare, of, read, rows

pytestmark = pytest.mark.usefixtures("sqlite")

TAGS = ["a", {"b": [1, 2], "c": {}}, None, True, 1.5]


@pytest.fixture
def topic() -> Topic:
    return Topic.objects.create(comment="here", tags=TAGS)


def test_a_row_is_the_dict_that_values_gives(database: str) -> None:
    """A row is a dict, equal to Django's own, with the same types in it."""
    Topic.objects.create(comment="here", tags=TAGS, author=Author.objects.create(name="A"))
    (row,), (expected,) = rows(declare()), Topic.objects.values()
    assert isinstance(row, dict)
    assert row == expected
    assert expected == row
    assert repr(row) == repr(expected)
    assert json.dumps(row, default=str) == json.dumps(expected, default=str)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "item": lambda row: row.__setitem__("comment", "changed"),
    "new item": lambda row: row.__setitem__("new", 1),
    "del": lambda row: row.__delitem__("comment"),
    "update": lambda row: row.update(comment="changed"),
    "or": lambda row: row.__ior__({"comment": "changed"}),
    "pop": lambda row: row.pop("comment"),
    "popitem": lambda row: row.popitem(),
    "clear": lambda row: row.clear(),
    "setdefault": lambda row: row.setdefault("new", 1),
    "list item": lambda row: row["tags"].__setitem__(0, "changed"),
    "list slice": lambda row: row["tags"].__setitem__(slice(None), []),
    "list del": lambda row: row["tags"].__delitem__(0),
    "list add": lambda row: row["tags"].__iadd__(["changed"]),
    "list times": lambda row: row["tags"].__imul__(2),
    "append": lambda row: row["tags"].append("changed"),
    "extend": lambda row: row["tags"].extend(["changed"]),
    "insert": lambda row: row["tags"].insert(0, "changed"),
    "remove": lambda row: row["tags"].remove("a"),
    "list pop": lambda row: row["tags"].pop(),
    "list clear": lambda row: row["tags"].clear(),
    "sort": lambda row: row["tags"].sort(),
    "reverse": lambda row: row["tags"].reverse(),
    "nested item": lambda row: row["tags"][1].__setitem__("b", 1),
    "nested list": lambda row: row["tags"][1]["b"].append(3),
    "nested empty": lambda row: row["tags"][1]["c"].update(d=1),
    "attribute": lambda row: setattr(row, "comment", "changed"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
@pytest.mark.parametrize("how", ["columns", "values"])
def test_a_row_refuses_every_change(topic: Topic, change: Callable[[Any], Any], how: str) -> None:
    """Whatever a dict or a list in it offers to be changed by raises, and changes nothing."""

    def look(topics: Any) -> None:
        for reach in (
            lambda: topics.all()[0],
            lambda: topics.get(topic.pk),
            lambda: topics.find(comment="here")[0],
        ):
            with pytest.raises((TypeError, AttributeError)):
                change(reach())
        assert topics.all() == (expected,)
        assert topics.get(topic.pk) == expected

    (expected,) = Topic.objects.values()
    attributes: dict[str, Any] = {"indexes": ("comment",)}
    read(declare(**attributes) if how == "columns" else of(Topic.objects.values, **attributes), look)


def test_the_refusal_says_how_to_get_a_copy(topic: Topic) -> None:
    """The error names `dict(row)`."""
    with pytest.raises(TypeError, match=r"change a copy, dict\(row\)"):
        rows(declare())[0]["comment"] = "changed"


COPIES: dict[str, Callable[[Any], Any]] = {
    "dict()": dict,
    ".copy()": lambda row: row.copy(),
    "copy.copy()": copy.copy,
    "{**row}": lambda row: {**row},
    "row | {}": lambda row: row | {},
}


@pytest.mark.parametrize("take", COPIES.values(), ids=list(COPIES))
def test_a_copy_of_a_row_is_a_dict_to_work_on(topic: Topic, take: Callable[[Any], Any]) -> None:
    """A copy can be changed, and what it shares with the row still cannot."""

    def look(topics: Any) -> None:
        mine = take(topics.get(topic.pk))
        assert type(mine) is dict
        mine["comment"] = "mine"
        with pytest.raises(TypeError):
            mine["tags"].append("mine")
        assert topics.get(topic.pk) == expected

    (expected,) = Topic.objects.values()
    read(declare(), look)


def test_a_deep_copy_can_be_changed_to_the_ground(topic: Topic) -> None:
    """`deepcopy` gives plain dicts and lists that share nothing with the row."""

    def look(topics: Any) -> None:
        mine = copy.deepcopy(topics.get(topic.pk))
        assert type(mine) is dict
        assert type(mine["tags"]) is list
        mine["tags"][1]["b"].append("mine")
        mine["tags"][1]["c"]["mine"] = 1
        mine["tags"].append("mine")
        assert topics.get(topic.pk) == expected

    (expected,) = Topic.objects.values()
    read(declare(), look)


def test_copies_of_a_list_in_a_row_can_be_changed(topic: Topic) -> None:
    """`list()`, a slice and `copy.copy` of a nested list are plain lists."""
    (row,) = rows(declare())
    for mine in (
        list(row["tags"]),
        row["tags"][:],
        copy.copy(row["tags"]),
        row["tags"].copy(),
        row["tags"] + [],
    ):
        assert type(mine) is list
        mine.append("mine")
    assert row["tags"] == TAGS


def test_rows_survive_pickling(topic: Topic) -> None:
    """A row that went through pickle, as to another process, is equal to itself."""
    (row,) = rows(declare())
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(row, protocol))
        assert again == row
        assert again["tags"] == TAGS


def test_a_projects_own_field_cannot_be_changed_either() -> None:
    """What a custom field makes of a text column, here a list, is as fixed as the row."""
    Poem.objects.create(words=["to", "be"])
    (row,) = rows(declare("Poems", Poem))
    assert row == Poem.objects.values().get()
    with pytest.raises(TypeError):
        row["words"].append("or")


def test_binary_columns_are_bytes(database: str) -> None:
    """A driver's view of its buffer becomes bytes, which can be shared, compared and pickled."""
    Everything.objects.create(binary=b"text")
    (row,) = rows(declare("All", Everything, fields=("binary",)))
    assert row == {"binary": b"text"}
    assert type(row["binary"]) is bytes
    (renamed,) = rows(of(lambda: Everything.objects.values(renamed=F("binary"))))
    assert type(renamed["renamed"]) is bytes


class Shelf(models.Model):
    """A table of PostgreSQL's own types; its app is not installed, so no other database has it."""

    numbers = postgres.ArrayField(postgres.ArrayField(models.IntegerField()))
    span = postgres.IntegerRangeField()
    pairs = postgres.HStoreField(null=True)

    class Meta:
        app_label = "postgresql_only"


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_arrays_cannot_be_changed(database: str) -> None:
    """An array is a list in a list, equal to Django's own and refusing changes at every depth."""
    with connections[database].schema_editor() as editor:
        editor.execute("CREATE EXTENSION IF NOT EXISTS hstore")
        editor.create_model(Shelf)
    try:
        Shelf.objects.create(numbers=[[1, 2], [3, 4]], span=(1, 5))
        repository = declare("Shelves", Shelf, fields=("numbers",))
        (row,) = rows(repository)
        assert row == {"numbers": [[1, 2], [3, 4]]}
        for numbers in (row["numbers"], row["numbers"][0]):
            with pytest.raises(TypeError):
                numbers.append(5)
        assert (
            read(repository, lambda shelves: shelves.snapshot.json)
            == b'{"shelves":[{"numbers":[[1,2],[3,4]]}]}'
        )
    finally:
        with connections[database].schema_editor() as editor:
            editor.delete_model(Shelf)


# The rows with the highest of something

LATEST = Window(RowNumber(), order_by=F("id").desc())


class TopicOut(BaseModel):
    id: int
    comment: str


@pytest.mark.parametrize("ordering", [("pk",), ("-comment", "-id")], ids=str)
@pytest.mark.parametrize(
    "attributes",
    [{}, *({"fields": names} for names in (("id",), ("comment", "pk"), ("comment",))), {"schema": TopicOut}],
    ids=["all fields", "the key", "pk", "without the key", "schema"],
)
@pytest.mark.parametrize("filtered", ["annotate", "alias", "filter"])
def test_rows_chosen_by_a_window_function(
    database: str, filtered: str, attributes: dict[str, Any], ordering: tuple[str, ...]
) -> None:
    """A repository of the last three rows has these, by their keys and in their order."""
    topics = [Topic.objects.create(comment=comment) for comment in "ebdca"]
    by_name: dict[str, Callable[[], Any]] = {
        "annotate": lambda: Topic.objects.annotate(rank=LATEST).filter(rank__lte=3),
        "alias": lambda: Topic.objects.alias(rank=LATEST).filter(rank__lte=3),
        "filter": lambda: Topic.objects.filter(LessThanOrEqual(LATEST, 3)),
    }
    last = sorted(topics[2:], key=lambda topic: topic.comment if "comment" in ordering[0] else topic.pk)
    if ordering[0].startswith("-"):
        last.reverse()
    found = read(
        of(by_name[filtered], ordering=ordering, **attributes),
        lambda kept: (list(kept.snapshot.by_key), json.loads(kept.snapshot.json)["topics"]),
    )
    assert found[0] == [topic.pk for topic in last]
    names = {"id", "pk", "comment"}.intersection(found[1][0])
    assert [{name: row[name] for name in names} for row in found[1]] == [
        {name: getattr(topic, name) for name in names} for topic in last
    ]


@pytest.mark.parametrize("ordering", [("pk",), ("-pk",), ("-number",)], ids=str)
@pytest.mark.parametrize("fields", [None, ("guest",), ("number", "guest")], ids=str)
def test_rows_with_composite_keys_chosen_by_a_window_function(
    database: str, fields: tuple[str, ...] | None, ordering: tuple[str, ...]
) -> None:
    """Their keys are whole, and a list of them and a part of it are in order."""
    for row, number in [(1, 2), (1, 3), (2, 1), (3, 9)]:
        Seat.objects.create(row=row, number=number, guest=f"{row} {number}")
    best = Window(RowNumber(), order_by=[F("row").desc(), F("number").desc()])

    def seats(self: Any) -> Any:
        return Seat.objects.annotate(rank=best).filter(rank__lte=3)

    attributes = {"model": Seat, "fields": fields, "ordering": ordering, "queryset": seats, "name": "seats"}
    keys = {
        "pk": [(1, 3), (2, 1), (3, 9)],
        "-pk": [(3, 9), (2, 1), (1, 3)],
        "-number": [(3, 9), (1, 3), (2, 1)],
    }
    expected = keys[ordering[0]]
    assert read(declare(**attributes), lambda kept: list(kept.snapshot.by_key)) == expected

    async def main() -> None:
        async with started(type("Seats", (Repository,), attributes)) as (live,):
            listed = json.loads(await live.live.window(1, 2))["seats"]
            assert [seat["guest"] for seat in listed] == [f"{row} {number}" for row, number in expected[1:]]

    finish(main)
