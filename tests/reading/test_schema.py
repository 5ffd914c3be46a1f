"""Schemas: rows as instances of a pydantic model, or as a DRF serializer makes them."""

import asyncio
import copy
import enum
import pickle
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from functools import cached_property
from ipaddress import ip_network
from typing import Annotated, Any, ClassVar, Literal, Optional
from zoneinfo import ZoneInfo

import pytest
from django.core.exceptions import SynchronousOnlyOperation
from django.db import models
from django.db.models import Count, Value
from django.test.utils import isolate_apps
from django.utils.functional import SimpleLazyObject
from django.utils.translation import gettext_lazy
from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    PrivateAttr,
    computed_field,
    create_model,
    field_validator,
    model_validator,
)
from pydantic.alias_generators import to_camel
from rest_framework import serializers
from structlog.testing import capture_logs

from fastapi_django_orm.errors import InvalidRow, LazyValue, UnknownField
from tests.project.board.models import Account, Author, Everything, LoudTopic, Page, Topic
from tests.support.databases import created
from tests.support.repositories import declare, of, read, rows

pytestmark = pytest.mark.usefixtures("sqlite")


@pytest.fixture
def author() -> Author:
    return Author.objects.create(name="Ann")


@pytest.fixture
def topic(author: Author) -> Topic:
    return Topic.objects.create(comment="here", author=author, tags=["a", "b"])


class TopicOut(BaseModel):
    id: int
    comment: str


class TagsOut(BaseModel):
    id: int
    tags: list[str]


class AuthorOut(BaseModel):
    id: int
    name: str


def the_row(schema: Any, model: Any = "board.Topic", **attributes: Any) -> Any:
    """The only row, as this schema."""
    (row,) = rows(declare(model=model, schema=schema, **attributes))
    return row


def json_of(schema: Any, **attributes: Any) -> bytes:
    """The bytes of the repository of topics."""
    return read(declare(schema=schema, **attributes), lambda topics: topics.snapshot.json)


# What the rows are


def test_rows_are_instances_of_the_schema(database: str) -> None:
    """A row is an instance of the declared class, equal to one made by hand, and has no other fields."""
    made = Topic.objects.create(comment="here")
    row = the_row(TopicOut)
    assert isinstance(row, TopicOut)
    assert row == TopicOut(id=made.pk, comment="here")
    assert TopicOut(id=made.pk, comment="here") == row
    assert row != TopicOut(id=made.pk, comment="there")
    assert row != AuthorOut(id=made.pk, name="here")
    assert row.model_dump() == {"id": made.pk, "comment": "here"}
    assert repr(row) == f"TopicOut(id={made.pk}, comment='here')"
    assert hash(row) == hash(the_row(TopicOut))


def test_an_instance_made_by_hand_is_found_in_the_repository(topic: Topic) -> None:
    """`in` takes an instance of the schema and compares its values."""

    def look(topics: Any) -> list[bool]:
        return [TopicOut(id=topic.pk, comment=comment) in topics for comment in ("here", "there")]

    assert read(declare(schema=TopicOut), look) == [True, False]


def test_rows_are_validated_when_they_are_loaded(topic: Topic) -> None:
    """A row that the schema refuses ends the load with the row's number and pydantic's reasons."""

    class Long(BaseModel):
        comment: Annotated[str, Field(min_length=100)]

    with pytest.raises(InvalidRow, match=rf"key {topic.pk} does not fit Long(.|\n)*at least 100 characters"):
        the_row(Long)


SECRET = "rosebud"  # the value that no log and no message may have


def refuse(value: Any) -> Any:
    raise ValueError(f"not {value}")


class Plain(BaseModel):
    kind: Literal["a"]


class Other(BaseModel):
    kind: Literal["b"]


REFUSING: dict[str, tuple[Any, str]] = {
    "number": (int, "comment: Input should be a valid integer"),
    "choice": (Literal["a", "b"], "comment: Input should be 'a' or 'b'"),
    "pattern": (Annotated[str, Field(pattern="^x$")], "comment: String should match pattern"),
    "validator": (
        Annotated[str, AfterValidator(refuse)],
        "comment: str is refused by a validator (ValueError)",
    ),
    "date": (datetime, "comment: Input should be a valid datetime"),
    "serializer": (Annotated[str, PlainSerializer(refuse)], "the column 'comment' holds a value of str"),
}


@pytest.mark.parametrize("way", REFUSING)
def test_a_refused_row_is_told_without_its_values(way: str) -> None:
    """Neither the error nor its traceback nor the log has the value, but repository, column and kind."""
    topic = Topic.objects.create(comment=SECRET)
    annotation, reason = REFUSING[way]
    schema = create_model("Out", comment=annotation)
    with capture_logs() as logs, pytest.raises(InvalidRow) as caught:
        rows(declare("OldTopics", schema=schema))
    message = str(caught.value)
    assert message.startswith(f"old_topics: The row with the key {topic.pk} ")
    assert reason in message
    assert caught.value.key == topic.pk
    said = "".join(traceback.format_exception(caught.value)) + str(logs)
    assert SECRET not in said
    assert "refresh_failed" in said


def test_unions_and_nested_values_are_told_without_them(topic: Topic) -> None:
    """A tag of a union is a value as well, and so are the keys of a dict."""

    class Out(BaseModel):
        tags: dict[str, int] | Annotated[Plain | Other, Discriminator("kind")]

    Topic.objects.update(tags={"kind": SECRET, f"k-{SECRET}": "x"})
    with pytest.raises(InvalidRow, match="tags: ") as caught:
        the_row(Out)
    assert SECRET not in str(caught.value)


def test_a_key_that_is_a_text_is_the_errors_alone(sqlite: str) -> None:
    """An address as a key is no word for a log; code that catches the error finds it there."""
    Page.objects.create(slug=SECRET, address="a")
    with capture_logs() as logs, pytest.raises(InvalidRow) as caught:
        rows(declare("Pages", Page, schema=create_model("Out", title=Annotated[str, Field(min_length=5)])))
    assert (
        str(caught.value) == "pages: A row does not fit Out: title: String should have at least 5 characters."
    )
    assert caught.value.key == SECRET
    assert SECRET not in str(logs)


class Opaque:
    """A value of a package's own."""

    def __str__(self) -> str:
        return SECRET


class OpaqueField(models.CharField):
    def from_db_value(self, value: Any, *rest: Any) -> Any:
        return Opaque()


class ZoneField(models.CharField):
    def from_db_value(self, value: Any, *rest: Any) -> Any:
        return ZoneInfo(value)


class NetworkField(models.CharField):
    def from_db_value(self, value: Any, *rest: Any) -> Any:
        return ip_network(value)


@contextmanager
def holding(field: Any, value: Any) -> Iterator[type[models.Model]]:
    """A model with one row, whose column is of a project's own kind."""
    with isolate_apps("tests.project.board"):
        body = {"__module__": __name__, "value": field, "Meta": type("Meta", (), {"app_label": "board"})}
        model = type("Held", (models.Model,), body)
        with created(model):
            model._default_manager.create(value=value)
            yield model


def test_a_value_without_a_json_form_is_told_by_its_column_and_kind_with_a_cure() -> None:
    """The error names repository, column and class, and what it says to write serves the row."""

    class Out(BaseModel):
        value: Annotated[str, BeforeValidator(str)]

    with holding(OpaqueField(max_length=10), "x") as model:
        with capture_logs() as logs, pytest.raises(InvalidRow) as caught:
            rows(declare("Helds", model))
        message = str(caught.value)
        assert message.startswith(
            "helds: The row with the key 1 cannot be sent as JSON: the column 'value' holds"
        )
        assert f"a value of {__name__}.Opaque, which has no JSON form" in message
        assert "value: Annotated[str, BeforeValidator(str)]" in message
        assert SECRET not in message + str(logs)
        assert read(declare("Helds", model, schema=Out), lambda helds: helds.snapshot.json) == (
            b'{"helds":[{"value":"%s"}]}' % SECRET.encode()
        )


@pytest.mark.parametrize(
    ("field", "text"),
    [(ZoneField(max_length=50), "Asia/Tokyo"), (NetworkField(max_length=50), "10.0.0.0/8")],
    ids=["zone", "network"],
)
def test_zones_and_networks_are_texts(field: Any, text: str) -> None:
    """What pydantic, Django REST framework and the packages send alike has that form without a schema."""
    with holding(field, text) as model:
        look: Any = lambda helds: (helds.snapshot.json, helds.all()[0]["value"])  # noqa: E731  # for two values
        json, value = read(declare("Helds", model, fields=("value",)), look)
    assert json == b'{"helds":[{"value":"%s"}]}' % text.encode()
    assert str(value) == text
    assert not isinstance(value, str)


def test_validators_of_the_schema_run(topic: Topic) -> None:
    """What a validator makes of a column is what the row has and the bytes say."""

    class Shouting(BaseModel):
        comment: str

        @field_validator("comment")
        @classmethod
        def shout(cls, value: str) -> str:
            return value.upper()

    assert the_row(Shouting).comment == "HERE"
    assert json_of(Shouting) == b'{"topics":[{"comment":"HERE"}]}'


def test_a_schema_is_filled_from_columns_relations_keys_and_annotations(topic: Topic) -> None:
    """`author` and `author_id` both are the relation's key; an annotation is a field like any other."""

    class Out(BaseModel):
        pk_: int = Field(validation_alias="id")
        author: int
        author_id: int
        n: int

    (row,) = rows(of(lambda: Topic.objects.annotate(n=Value(7)), schema=Out))
    assert row.model_dump() == {
        "pk_": topic.pk,
        "author": topic.author_id,
        "author_id": topic.author_id,
        "n": 7,
    }


def test_defaults_do_not_hide_columns(topic: Topic) -> None:
    """A field with a default has the column's value."""

    class Out(BaseModel):
        comment: str = "default"
        missing: str = "default"

    assert the_row(Out).model_dump() == {"comment": "here", "missing": "default"}


def test_an_alias_renames_in_the_response_alone(topic: Topic) -> None:
    """As under a response model, the bytes have the alias; in Python the field has its name."""

    class Out(BaseModel):
        model_config = ConfigDict(alias_generator=to_camel)
        author_id: int
        comment: str = Field(serialization_alias="text")

    assert json_of(Out) == b'{"topics":[{"authorId":%d,"text":"here"}]}' % topic.author_id
    assert the_row(Out).author_id == topic.author_id


@pytest.mark.parametrize("alias", ["comment", AliasChoices("nothing", "comment")], ids=["name", "choices"])
def test_a_validation_alias_names_the_column(topic: Topic, alias: Any) -> None:
    """A field may read a column of another name, as it does from an instance in FastAPI."""

    class Out(BaseModel):
        text: str = Field(validation_alias=alias)

    assert the_row(Out).text == "here"
    assert json_of(Out) == b'{"topics":[{"text":"here"}]}'


def test_computed_fields_are_in_the_response(topic: Topic) -> None:
    """A computed field is sent, and read like an attribute."""

    class Out(BaseModel):
        comment: str

        @computed_field  # type: ignore[prop-decorator]
        @property
        def length(self) -> int:
            return len(self.comment)

    assert json_of(Out) == b'{"topics":[{"comment":"here","length":4}]}'
    assert the_row(Out).length == 4


def test_a_property_of_the_model_fills_a_field(topic: Topic) -> None:
    """A schema may ask for what only an instance has; that is read on the database thread."""

    class Out(BaseModel):
        comment: str
        shout: str

    assert the_row(Out, LoudTopic).shout == "HERE"


@pytest.mark.parametrize("joined", [True, False])
def test_a_relation_fills_a_nested_schema(topic: Topic, author: Author, joined: bool) -> None:
    """A nested model is filled from the related row, with `select_related` in one query, and without too."""
    Topic.objects.create(comment="nobody's")

    class Out(BaseModel):
        comment: str
        author: Optional[AuthorOut]  # noqa: UP045 - the other spelling is below

    queryset = Topic.objects.select_related("author") if joined else Topic.objects.all()
    first, second = rows(of(queryset.all, schema=Out))
    assert first.author == AuthorOut(id=author.pk, name="Ann")
    assert second.author is None


def test_a_many_relation_fills_a_list_of_schemas(topic: Topic, author: Author) -> None:
    """A property that gives a query is evaluated where it may be, and becomes a list."""

    class Out(BaseModel):
        comment: str
        siblings: list[TopicOut]
        author: AuthorOut | None

    row = the_row(Out, LoudTopic)
    assert row.siblings == [TopicOut(id=topic.pk, comment="here")]


def test_binary_columns_fill_bytes(database: str) -> None:
    """`bytes` takes a BinaryField on every database, from columns and from instances, as base64 if asked."""

    class Out(BaseModel):
        model_config = ConfigDict(ser_json_bytes="base64")
        binary: bytes

    class FromInstance(Out):
        pk: Any

    made = Everything.objects.create(binary=b"\xff\x00")
    assert the_row(Out, Everything).binary == b"\xff\x00"
    assert the_row(FromInstance, Everything).binary == b"\xff\x00"
    assert json_of(Out, model=Everything) == b'{"topics":[{"binary":"_wA="}]}'
    assert the_row(FromInstance, Everything).pk == made.pk


class ViewField(models.BinaryField):
    """Reads as psycopg2 reads it: a view of the driver's buffer."""

    def get_internal_type(self) -> str:
        return "BinaryField"

    def from_db_value(self, value: bytes, expression: object, connection: object) -> memoryview:
        return memoryview(bytes(value))


class Viewed(models.Model):
    key = models.UUIDField(primary_key=True)
    binary = ViewField()

    class Meta:
        app_label = "not_installed"
        managed = False
        db_table = "board_everything"


def test_a_drivers_view_of_its_buffer_becomes_bytes() -> None:
    """A memoryview is bytes in a plain row and in a schema, from columns and from instances."""

    class Out(BaseModel):
        binary: bytes

    class FromInstance(Out):
        pk: Any

    Everything.objects.create(binary=b"text")
    assert type(Viewed.objects.get().binary) is memoryview
    assert type(rows(declare(model=Viewed))[0]["binary"]) is bytes
    assert the_row(Out, Viewed).binary == b"text"
    assert the_row(FromInstance, Viewed).binary == b"text"


def test_binary_that_is_no_text_is_refused_with_advice_that_works() -> None:
    """Bytes that are not UTF-8 have no JSON form; the error says how to give them one."""
    Everything.objects.create(binary=b"\xff")
    with pytest.raises(InvalidRow, match=r"`fields`.*ser_json_bytes='base64'"):
        rows(declare(model=Everything))


def test_a_lone_surrogate_is_refused() -> None:
    """Half a character, which JSON columns can hold and UTF-8 cannot, is an error with a reason."""
    Topic.objects.create(comment="here", tags=["\ud800"])
    with pytest.raises(InvalidRow, match="surrogates not allowed"):
        rows(declare())


def test_a_password_model_is_served_by_what_the_schema_names() -> None:
    """A schema without the password is enough for a model that has one."""

    class Out(BaseModel):
        login: str

    Account.objects.create(login="ann", password="secret")
    assert json_of(Out, model=Account) == b'{"topics":[{"login":"ann"}]}'


def test_indexes_and_keys_work_with_a_schema(topic: Topic) -> None:
    """`get()` needs no key in the schema, and `find()` reads the instances' attributes."""

    class Out(BaseModel):
        comment: str

    def look(topics: Any) -> Any:
        return topics.get(topic.pk), topics.find(comment="here"), topics.find(comment="there")

    assert read(declare(schema=Out, indexes=("comment",)), look) == (
        Out(comment="here"),
        (Out(comment="here"),),
        (),
    )


def test_a_schema_that_holds_itself_is_a_schema(topic: Topic) -> None:
    """A recursive schema, frozen or not, can be declared and read."""
    assert the_row(Tree, LoudTopic).siblings[0].siblings == []
    assert the_row(FrozenTree).parent is None


class Tree(BaseModel):
    id: int
    comment: str
    siblings: Annotated[list["Tree"], Field(validation_alias=AliasChoices("siblings", "nothing"))] = []


class FrozenTree(BaseModel, frozen=True):
    id: int
    parent: "FrozenTree | None" = None


# Nobody changes what others see


class Colour(enum.Enum):
    RED = "red"


class Frozen(BaseModel, frozen=True):
    id: int
    tags: list[str]


class Pair(BaseModel, frozen=True):
    tags: tuple[str, ...]


class Immutable(BaseModel, frozen=True):
    id: int
    comment: str | None
    tags: tuple[str, ...]
    kind: Literal["a"] = "a"
    colour: Colour = Colour.RED
    price: Decimal = Decimal(1)
    pair: Pair = Pair(tags=("a",))


@pytest.mark.parametrize("schema", [TopicOut, Immutable, Pair])
def test_rows_of_immutable_values_are_shared(topic: Topic, schema: Any) -> None:
    """Where nothing in a row can be changed every reader has the same instance, and assignment is refused."""

    def look(topics: Any) -> None:
        row = topics.get(topic.pk)
        assert row is topics.get(topic.pk)
        assert row is topics.all()[0]
        with pytest.raises(ValueError, match="frozen"):
            setattr(row, next(iter(schema.model_fields)), "changed")

    read(declare(schema=schema), look)


class Keeping(BaseModel):
    id: int
    comment: str
    _notes: list[str] = PrivateAttr(default_factory=list)


class Caching(BaseModel):
    id: int
    comment: str

    @cached_property
    def words(self) -> list[str]:
        return [self.comment]


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    id: int


class Nesting(BaseModel, frozen=True):
    id: int
    author: AuthorOut | None


class Anything(BaseModel, frozen=True):
    id: int
    tags: Any


def _rename(row: Any) -> None:
    row.author.name = "changed"


def _keep(row: Any) -> None:
    row._notes.append("changed")
    row._notes = ["changed"]


def _extra(row: Any) -> None:
    row.model_extra["new"] = "changed"


MUTABLE: dict[str, tuple[Any, Callable[[Any], Any], Callable[[Any], Any]]] = {
    "list": (TagsOut, lambda row: row.tags.append("changed"), lambda row: row.tags),
    "list of a frozen one": (Frozen, lambda row: row.tags.append("changed"), lambda row: row.tags),
    "any": (Anything, lambda row: row.tags.append("changed"), lambda row: row.tags),
    "nested": (Nesting, _rename, lambda row: row.author.name),
    "private": (Keeping, _keep, lambda row: row._notes),
    "cached property": (Caching, lambda row: row.words.append("changed"), lambda row: row.words),
    "extra": (Open, _extra, lambda row: row.model_extra),
}

WAYS: dict[str, Callable[[Any, Any], Any]] = {
    "all": lambda topics, pk: topics.all()[0],
    "get": lambda topics, pk: topics.get(pk),
    "find": lambda topics, pk: topics.find(id=pk)[0],
    "iteration": lambda topics, pk: next(iter(topics)),
    "snapshot.rows": lambda topics, pk: topics.snapshot.rows[0],
    "iterated rows": lambda topics, pk: next(iter(topics.snapshot.rows)),
    "unpacked rows": lambda topics, pk: [*topics.snapshot.rows][0],  # noqa: RUF015
    "sliced rows": lambda topics, pk: topics.snapshot.rows[:1][0],
    "reversed rows": lambda topics, pk: next(reversed(topics.snapshot.rows)),
    "added rows": lambda topics, pk: (topics.snapshot.rows + ())[0],  # noqa: RUF005
    "multiplied rows": lambda topics, pk: (2 * topics.snapshot.rows)[0],
    "copied rows": lambda topics, pk: copy.copy(topics.snapshot.rows)[0],
    "sorted rows": lambda topics, pk: sorted(topics.snapshot.rows, key=lambda row: row.id)[0],  # noqa: FURB192
    "by_key": lambda topics, pk: topics.snapshot.by_key[pk],
    "by_key.get": lambda topics, pk: topics.snapshot.by_key.get(pk),
    "by_key.values": lambda topics, pk: next(iter(topics.snapshot.by_key.values())),
    "by_key.items": lambda topics, pk: next(iter(topics.snapshot.by_key.items()))[1],
    "indexes": lambda topics, pk: topics.snapshot.indexes["id"][pk][0],
}


@pytest.mark.parametrize("reach", WAYS.values(), ids=list(WAYS))
@pytest.mark.parametrize("case", MUTABLE.values(), ids=list(MUTABLE))
def test_what_one_reader_changes_no_other_sees(
    topic: Topic, case: Any, reach: Callable[[Any, Any], Any]
) -> None:
    """Whichever way a reader came to a row and changed it, the next one has the loaded values."""
    schema, change, value = case

    def look(topics: Any) -> None:
        before, body = copy.deepcopy(value(topics.get(topic.pk))), topics.response().body
        change(reach(topics, topic.pk))
        for again in WAYS.values():
            assert value(again(topics, topic.pk)) == before
        assert topics.response().body == body

    read(declare(schema=schema, indexes=("id",)), look)


def test_the_maps_of_a_snapshot_with_copied_rows_are_maps(topic: Topic) -> None:
    """Copies or not, the snapshot's mapping by key has length, keys and membership."""

    def look(topics: Any) -> None:
        by_key = topics.snapshot.by_key
        assert (len(by_key), list(by_key), topic.pk in by_key, -1 in by_key) == (1, [topic.pk], True, False)
        assert topics.snapshot.rows == topics.all()
        assert len(topics.snapshot) == len(topics.all()) == 1

    read(declare(schema=TagsOut), look)


@pytest.mark.parametrize("schema", [TopicOut, TagsOut, Immutable])
def test_instances_survive_pickling_and_copying(topic: Topic, schema: Any) -> None:
    """A row goes through pickle and `deepcopy` as an instance of the schema, equal to itself."""
    row = the_row(schema)
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(row, protocol))
        assert type(again) is schema
        assert again == row
    assert copy.deepcopy(row) == row
    assert isinstance(copy.deepcopy(row), schema)


def test_model_copy_gives_a_changed_copy(topic: Topic) -> None:
    """`model_copy(update=…)` is how a handler changes a row for itself."""
    row = the_row(TopicOut)
    assert row.model_copy(update={"comment": "mine"}).comment == "mine"
    assert row.comment == "here"


def test_a_schema_with_its_own_equality_and_hash_keeps_them(topic: Topic) -> None:
    """What the schema's author has written about equality counts."""

    class ByKey(BaseModel):
        id: int
        comment: str

        def __eq__(self, other: object) -> bool:
            return isinstance(other, ByKey) and other.id == self.id

        def __hash__(self) -> int:
            return self.id

    class Hashed(BaseModel):
        id: int

        def __hash__(self) -> int:
            return 7

    assert the_row(ByKey) == ByKey(id=topic.pk, comment="other")
    assert hash(the_row(ByKey)) == topic.pk
    assert hash(the_row(Hashed)) == 7


# Nothing lazy leaves the database threads


def _topic_of(value: Callable[[Topic], Any]) -> Any:
    """A schema whose field takes anything, and a model that gives this value for it."""

    class Taking(BaseModel):
        id: int
        given: Any

    class Giving(LoudTopic):
        class Meta:
            proxy = True
            app_label = "not_installed"

        given = property(value)

    return declare(model=Giving, schema=Taking)


LAZY: dict[str, Callable[[Topic], Any]] = {
    "instance": lambda topic: topic.author,
    "query": lambda topic: Topic.objects.all(),
    "values query": lambda topic: Topic.objects.values(),
    "manager": lambda topic: topic.author.topic_set,
    "default manager": lambda topic: Topic.objects,
    "lazy object": lambda topic: SimpleLazyObject(lambda: topic.author),
    "in a list": lambda topic: [1, [topic.author]],
    "in a tuple": lambda topic: (topic.author,),
    "in a set": lambda topic: {topic.author},
    "in a dict": lambda topic: {"author": {"of": topic.author}},
}


@pytest.mark.filterwarnings("ignore:Model 'not_installed:RuntimeWarning")
@pytest.mark.parametrize("value", LAZY.values(), ids=list(LAZY))
def test_what_would_query_when_touched_is_refused(topic: Topic, value: Callable[[Topic], Any]) -> None:
    """A query, an instance, a relation or a lazy object never leaves, however deep; the error explains it."""
    with pytest.raises(LazyValue, match=r"would query when it is touched(.|\n)*plain values"):
        rows(_topic_of(value))


def test_a_relation_under_anything_is_its_key(topic: Topic) -> None:
    """`author: Any` beside columns reads the column, which is the key."""

    class Out(BaseModel):
        author: Any

    assert the_row(Out).author == topic.author_id


def test_a_load_runs_where_the_orm_may_be_used(topic: Topic) -> None:
    """`queryset()`, the query and the validators run on another thread than the event loop's."""
    threads: set[int] = set()

    class Out(BaseModel):
        id: int

        @field_validator("id")
        @classmethod
        def note(cls, value: int) -> int:
            threads.add(threading.get_ident())
            with pytest.raises(RuntimeError):
                asyncio.get_running_loop()
            return value

    def queryset() -> Any:
        threads.add(threading.get_ident())
        assert Topic.objects.count() == 1
        return Topic.objects.all()

    assert len(rows(of(queryset, schema=Out))) == 1
    assert threads
    assert threading.get_ident() not in threads


def test_what_was_loaded_can_be_touched_on_the_event_loop(topic: Topic) -> None:
    """Nothing in a row asks Django for anything, where Django itself would refuse to be asked."""

    class Out(BaseModel):
        comment: str
        author: AuthorOut | None
        siblings: list[TopicOut]

    def look(topics: Any) -> str:
        with pytest.raises(SynchronousOnlyOperation):
            Topic.objects.count()
        (row,) = topics.all()
        assert row.siblings[0].comment == "here"
        return row.author.name

    assert read(declare(model=LoudTopic, schema=Out), look) == "Ann"
    assert read(declare(model=LoudTopic), lambda topics: repr(topics.all()))


# DRF


class AuthorSerializer(serializers.ModelSerializer):
    class Meta:
        model = Author
        fields: ClassVar = ["id", "name"]


class TopicSerializer(serializers.ModelSerializer):
    author = AuthorSerializer()
    kinds = serializers.MultipleChoiceField(choices=["a", "b"], source="tags")
    length = serializers.SerializerMethodField()
    written = serializers.IntegerField(default=0)
    secret = serializers.CharField(write_only=True)

    class Meta:
        model = Topic
        fields: ClassVar = [
            "id",
            "comment",
            "author",
            "tags",
            "kinds",
            "length",
            "created_at",
            "written",
            "secret",
        ]

    def get_length(self, topic: Topic) -> int:
        return len(topic.comment)


def test_rows_are_what_the_serializer_gives(topic: Topic, author: Author) -> None:
    """Rows are equal to the serializer's own data: nested, computed, annotated, formatted."""
    queryset = Topic.objects.select_related("author").annotate(written=Count("pk"))
    expected = TopicSerializer(queryset.all(), many=True).data
    found = rows(of(queryset.all, schema=TopicSerializer))
    assert found == list(expected)
    assert found[0]["author"] == {"id": author.pk, "name": "Ann"}
    assert found[0]["created_at"].endswith("+09:00")


def test_serialized_rows_cannot_be_changed(topic: Topic) -> None:
    """Dicts, lists and sets that a serializer makes are as fixed as any row."""
    (row,) = rows(declare(schema=TopicSerializer))
    for change in (
        lambda: row.update(comment="changed"),
        lambda: row["author"].update(name="changed"),
        lambda: row["tags"].append("changed"),
    ):
        with pytest.raises(TypeError):
            change()
    assert not hasattr(row["kinds"], "add")


def test_serialized_rows_have_keys_and_indexes(topic: Topic) -> None:
    """A serializer that shows no key still has rows to get; its output can be looked up by."""

    class Short(serializers.ModelSerializer):
        class Meta:
            model = Topic
            fields: ClassVar = ["comment"]

    def look(topics: Any) -> Any:
        return topics.get(topic.pk), topics.find(comment="here"), topics.response().body

    row = {"comment": "here"}
    assert read(declare(schema=Short, indexes=("comment",)), look) == (
        row,
        (row,),
        b'{"topics":[{"comment":"here"}]}',
    )


def test_a_field_that_is_only_written_is_no_field_of_the_rows(topic: Topic) -> None:
    """An index on a write-only field ends the start with the fields that there are."""
    with pytest.raises(UnknownField, match="'secret'"):
        rows(declare(schema=TopicSerializer, indexes=("secret",)))


def test_a_serializer_that_gives_an_instance_is_refused(topic: Topic) -> None:
    """What a serializer method hands over must be plain."""

    class Leaking(serializers.Serializer):
        author = serializers.SerializerMethodField()

        def get_author(self, topic: Topic) -> Any:
            return topic.author

    with pytest.raises(LazyValue, match="Author would query"):
        rows(declare(schema=Leaking))


def test_a_translated_text_becomes_text(topic: Topic) -> None:
    """A lazy translation is the text in the language of the load, which no reader can ask for again."""

    class Translated(serializers.Serializer):
        answer = serializers.SerializerMethodField()

        def get_answer(self, topic: Topic) -> Any:
            return gettext_lazy("Yes")

    row = the_row(Translated)
    assert row == {"answer": "Yes"}
    assert type(row["answer"]) is str


# Schemas that the model cannot fill


class CommentOut(BaseModel):
    id: int
    coment: str


@pytest.mark.parametrize("filled", [True, False], ids=["with a row", "without rows"])
def test_a_required_field_that_the_model_does_not_have_is_refused(filled: bool) -> None:
    """The start ends with the field's name and the nearest one, whether or not there is a row to fit."""
    if filled:
        Topic.objects.create(comment="here")
    with pytest.raises(UnknownField, match=r"board\.Topic has no field 'coment'. Did you mean 'comment'"):
        rows(declare(schema=CommentOut))


class Gathered(BaseModel):
    words: list[str]

    @model_validator(mode="before")
    @classmethod
    def gather(cls, topic: Any) -> Any:
        return {"words": topic.comment.split()}


class Chosen(BaseModel):
    text: str = Field(validation_alias=AliasChoices("nothing", "comment"))


class Renamed(BaseModel):
    comment: str = Field(alias="text")


class Sparing(BaseModel):
    missing: str | None = None


class Counting(BaseModel):
    comment: str

    @computed_field  # type: ignore[prop-decorator]
    @property
    def length(self) -> int:
        return len(self.comment)


class Shouted(BaseModel):
    shout: str


@pytest.mark.parametrize(
    ("schema", "row"),
    [
        (Gathered, b'{"words":["over","here"]}'),
        (Chosen, b'{"text":"over here"}'),
        (Renamed, b'{"text":"over here"}'),
        (Sparing, b'{"missing":null}'),
        (Counting, b'{"comment":"over here","length":9}'),
        (Shouted, b'{"shout":"OVER HERE"}'),
    ],
    ids=["model validator", "validation alias", "alias", "default", "computed field", "property"],
)
def test_a_schema_that_is_filled_by_other_means_is_not_refused(schema: type[BaseModel], row: bytes) -> None:
    """What a validator, an alias, a default or an instance provides does not have to be a column."""
    assert json_of(schema, model=LoudTopic) == b'{"topics":[]}'
    Topic.objects.create(comment="over here")
    assert json_of(schema, model=LoudTopic) == b'{"topics":[%s]}' % row
