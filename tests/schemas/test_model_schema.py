"""``ModelSchema`` as a class: which fields it has, what they are, and that it is pydantic's in every use."""

import datetime as dt
import json
import pickle
import uuid
from collections.abc import Iterator
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, Generic, Literal, TypeVar

import pytest
from django.core.files.storage import InMemoryStorage
from django.core.validators import MinValueValidator
from django.db import models
from django.db.models.functions import Now
from django.test.utils import isolate_apps
from django.utils.translation import gettext_lazy
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    computed_field,
    field_validator,
    model_validator,
)
from pydantic.alias_generators import to_camel

from fastapi_django_orm import ModelSchema
from fastapi_django_orm.errors import FieldsNotNamed, InvalidSchema, UnknownField, UnknownModel
from fastapi_django_orm.schemas import FileURL, register_field
from tests.project.board.models import Author, Page, Seat, Topic

T = TypeVar("T")


class Status(StrEnum):
    OPEN = "o"
    CLOSED = "c"


class Money:
    """A value of a package's own."""


class MoneyField(models.Field):  # type: ignore[type-arg]
    """A field that schemas do not know."""


@pytest.fixture(scope="module")
def product() -> Iterator[type[models.Model]]:
    """A model with every option that a schema looks at."""
    with isolate_apps("tests.project.board"):

        class Product(models.Model):
            name = models.CharField("what it is called", max_length=5, help_text="As on the label.")
            status = models.CharField(
                max_length=1, choices=[("o", gettext_lazy("Yes")), ("c", "Closed")], default="o"
            )
            size = models.IntegerField(choices=[(1, "small"), (2, "large")], null=True, blank=True)
            price = models.DecimalField(max_digits=5, decimal_places=2, validators=[MinValueValidator(1)])
            token = models.UUIDField(default=uuid.uuid4, editable=False)
            key = models.UUIDField(default=uuid.uuid4)
            note = models.TextField(blank=True)
            rating = models.IntegerField(db_default=3)
            seen_at = models.DateTimeField(db_default=Now())
            changed_at = models.DateTimeField(auto_now=True)
            labels = models.JSONField(default=list)
            cover = models.FileField(storage=InMemoryStorage(base_url="/media/"), blank=True)
            made_by = models.ForeignKey(Author, models.CASCADE, null=True, blank=True)
            twice = models.GeneratedField(
                expression=models.F("rating") * 2, output_field=models.IntegerField(), db_persist=True
            )
            authors = models.ManyToManyField(Author, related_name="+")

            class Meta:
                app_label = "board"

            def __str__(self) -> str:
                return self.name

        yield Product


@pytest.fixture(scope="module")
def out(product: type[models.Model]) -> type[ModelSchema]:
    class ProductOut(ModelSchema, model=product, fields="__all__"): ...

    return ProductOut


def properties(schema: type[BaseModel], mode: Literal["validation", "serialization"] = "validation") -> Any:
    return schema.model_json_schema(mode=mode)["properties"]


# What a field is


def test_types_and_limits_come_from_the_model(out: type[ModelSchema]) -> None:
    """Length, bounds, choices with their labels, null and documentation are in the JSON schema."""
    found = properties(out)
    assert found["name"] == {
        "title": "what it is called",
        "description": "As on the label.",
        "type": "string",
        "minLength": 1,
        "maxLength": 5,
    }
    assert found["status"] == {
        "default": "o",
        "enum": ["o", "c"],
        "x-enum-descriptions": ["Yes", "Closed"],
        "title": "Status",
        "type": "string",
    }
    assert found["size"]["anyOf"] == [{"enum": [1, 2], "type": "integer"}, {"type": "null"}]
    assert found["price"]["anyOf"][0] == {"minimum": 1.0, "type": "number"}
    assert found["authors"] == {"items": {"type": "integer"}, "title": "Authors", "type": "array"}
    assert found["made_by"]["anyOf"] == [{"type": "integer"}, {"type": "null"}]


def test_what_may_be_left_out_of_a_request_is_always_in_an_answer(out: type[ModelSchema]) -> None:
    """A request needs what has no default, may not be blank and is not read-only; an answer has all."""
    assert out.model_json_schema()["required"] == ["name", "price", "authors"]
    assert {*out.model_json_schema(mode="serialization")["required"]} == {*out.model_fields}


def test_defaults_are_the_models(out: type[ModelSchema]) -> None:
    """Defaults, also computed ones and those of the database that are plain values, are the model's."""
    made: Any = out.model_validate({"name": "a", "price": "1.50", "authors": []})
    again: Any = out.model_validate({"name": "a", "price": "1.50", "authors": []})
    assert (made.status, made.note, made.rating, made.size, made.made_by) == ("o", "", 3, None, None)
    assert made.labels == []
    assert made.labels is not again.labels
    assert made.key != again.key
    assert made.seen_at is None  # the database has it


def test_fields_that_are_not_edited_are_read_only(out: type[ModelSchema]) -> None:
    """They are marked, may be left out, and are listed for whatever writes."""
    read_only = {"id", "token", "changed_at", "twice"}
    assert out.__read_only__ == read_only
    assert {name for name, each in properties(out).items() if each.get("readOnly")} == read_only
    made: Any = out.model_validate({"name": "a", "price": 2, "authors": []})
    assert made.id is None
    assert json.loads(made.model_dump_json())["id"] is None  # and no warning
    with pytest.raises(ValidationError, match=r"id\n.*valid integer"):
        out.model_validate({"id": None, "name": "a", "price": 2, "authors": []})


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("name", "abcdef"),
        ("name", ""),
        ("name", None),
        ("status", "x"),
        ("status", None),
        ("size", 3),
        ("price", "1000"),
        ("price", "1.001"),
        ("price", "0.5"),
        ("seen_at", None),
        ("labels", None),
        ("authors", ["x"]),
    ],
)
def test_what_the_model_refuses_is_refused(out: type[ModelSchema], name: str, wrong: Any) -> None:
    """Limits hold, and null is refused where it is not a value, also for fields that may be left out."""
    with pytest.raises(ValidationError) as caught:
        out.model_validate({"name": "a", "price": 2, "authors": [], name: wrong})
    assert {each["loc"][0] for each in caught.value.errors()} == {name}


def test_files_are_their_names_and_a_url_by_annotation(product: type[models.Model]) -> None:
    """A file is the name that is stored; annotated as FileURL, it is where a client finds it."""

    class Named(ModelSchema, model=product, fields=("cover",)): ...

    class Linked(ModelSchema, model=product):
        cover: FileURL

    assert Named.model_validate(product(cover="a.png")).model_dump() == {"cover": "a.png"}
    assert Named.model_validate(product()).model_dump() == {"cover": ""}
    assert Linked.model_validate(product(cover="a.png")).model_dump() == {"cover": "/media/a.png"}
    assert Linked.model_validate(product()).model_dump() == {"cover": None}


def test_values_of_instances_go_through_json(product: type[models.Model]) -> None:
    """Values have pydantic's JSON, bytes Django's base64, and come back from it; so do Django's durations."""
    with isolate_apps("tests.project.board"):

        class Kinds(models.Model):
            uuid = models.UUIDField()
            amount = models.DecimalField(max_digits=9, decimal_places=2)
            took = models.DurationField()
            data = models.BinaryField(editable=True)
            at = models.TimeField()

            class Meta:
                app_label = "board"

            def __str__(self) -> str:
                return ""

        class Out(ModelSchema, model=Kinds, fields="__all__", exclude=("id",)): ...

    values = {
        "uuid": uuid.UUID(int=7),
        "amount": Decimal("1.50"),
        "took": dt.timedelta(days=1, seconds=2, microseconds=3),
        "data": b"\xff\x00",
        "at": dt.time(1, 2, 3),
    }
    made = Out.model_validate(Kinds(**values))
    assert made.model_dump() == values
    assert json.loads(made.model_dump_json()) == {
        "uuid": "00000000-0000-0000-0000-000000000007",
        "amount": "1.50",
        "took": "P1DT2.000003S",
        "data": "/wA=",
        "at": "01:02:03",
    }
    assert Out.model_validate_json(made.model_dump_json()) == made
    assert (
        Out.model_validate_json(made.model_dump_json().replace("P1DT2.000003S", "P1DT00H00M02.000003S"))
        == made
    )
    with pytest.raises(ValidationError, match="base64"):
        Out.model_validate({**values, "data": "?"})


# Annotated fields


def test_an_annotation_is_kept_and_gets_what_it_leaves_open(product: type[models.Model]) -> None:
    """What the author writes wins; what is not written comes from the model."""

    class Out(ModelSchema, model=product):
        name: Annotated[str, Field(max_length=3, title="Name")]
        note: str
        status: Status
        price: float
        rating: int = 7

    found = properties(Out)
    assert found["name"] == {
        "title": "Name",
        "description": "As on the label.",
        "type": "string",
        "minLength": 1,
        "maxLength": 3,
    }
    assert Out.model_json_schema()["required"] == ["name", "price"]
    made: Any = Out.model_validate({"name": "abc", "price": 0.5})
    assert (made.status, made.note, made.rating) == (Status.OPEN, "", 7)
    with pytest.raises(ValidationError):
        Out.model_validate({"name": "abcd", "price": 1})


def test_an_open_annotation_gets_the_choices(product: type[models.Model]) -> None:
    """`status: str` says nothing of choices, so that the model's hold."""

    class Out(ModelSchema, model=product):
        status: str

    assert Out.model_validate({"status": "c"}).model_dump() == {"status": "c"}
    with pytest.raises(ValidationError, match="one of the choices"):
        Out.model_validate({"status": "x"})


def test_annotations_may_be_texts_and_name_later_classes() -> None:
    """A forward reference is completed as well, once pydantic can evaluate it."""

    class Out(ModelSchema, model="board.Topic", fields=("id",)):
        comment: "str"
        author: "Later | None"
        siblings: "list[Out] | None" = None

    class Later(ModelSchema, model="board.Author", fields=("name",)): ...

    Out.model_rebuild()
    topic = Topic(id=3, comment="x", author=Author(name="Ann"))
    assert Out.model_validate(topic).model_dump() == {
        "id": 3,
        "comment": "x",
        "author": {"name": "Ann"},
        "siblings": None,
    }
    with pytest.raises(ValidationError):
        Out(comment="")  # type: ignore[call-arg]


def test_annotations_of_what_is_not_a_field_are_left_alone() -> None:
    """A property, an annotation of a query or an input of its own is a field like in any pydantic model."""

    class Out(ModelSchema, model="board.LoudTopic", fields=("comment",)):
        shout: str
        again: str = "no"

    from tests.project.board.models import LoudTopic

    assert Out.model_validate(LoudTopic(comment="a")).model_dump() == {
        "comment": "a",
        "shout": "A",
        "again": "no",
    }


def test_the_json_schema_has_labels_of_every_choice_and_base64s_own_limits() -> None:
    """Choices that `Literal` cannot have are examples; limits of bytes are those of their text."""
    with isolate_apps("tests.project.board"):

        class Parcel(models.Model):
            weight = models.DecimalField(
                max_digits=3, decimal_places=1, choices=[(Decimal("0.5"), "light"), (Decimal(2), "heavy")]
            )
            stamp = models.BinaryField(editable=True, max_length=4, default=b"\xff")

            class Meta:
                app_label = "board"

            def __str__(self) -> str:
                return ""

    class Out(ModelSchema, model=Parcel, fields=("weight", "stamp")): ...

    found = properties(Out)
    assert found["weight"]["examples"] == ["0.5", "2"]
    assert found["weight"]["x-enum-descriptions"] == ["light", "heavy"]
    assert found["stamp"] == {
        "type": "string",
        "contentEncoding": "base64",
        "minLength": 4,
        "maxLength": 8,
        "title": "Stamp",
    }
    assert Out.model_validate({"weight": "2"}).model_dump(mode="json") == {"weight": "2", "stamp": "/w=="}


# Relations


class AuthorOut(ModelSchema, model="board.Author", fields=("id", "name")): ...


def test_a_foreign_key_is_its_key_under_its_name() -> None:
    """`author` is the key, read from `author_id` without a query; nested by annotation."""

    class ByKey(ModelSchema, model="board.Topic", fields=("author",)): ...

    class ByColumn(ModelSchema, model="board.Topic", fields=("author_id",)): ...

    class Written(ModelSchema, model="board.Topic"):
        author: int

    class Nested(ModelSchema, model="board.Topic"):
        author: AuthorOut

    topic = Topic(author_id=7)
    assert ByKey.model_validate(topic).model_dump() == {"author": 7}
    assert ByKey.model_validate({"author": 7}).model_dump() == {"author": 7}
    assert ByColumn.model_validate(topic).model_dump() == {"author_id": 7}
    assert Written.model_validate(topic).model_dump() == {"author": 7}
    assert Nested.model_validate(Topic(author=Author(id=1, name="a"))).model_dump() == {
        "author": {"id": 1, "name": "a"}
    }


def test_a_subclass_may_nest_what_its_base_has_by_key_and_the_reverse() -> None:
    """The annotation of the subclass decides."""

    class ByKey(ModelSchema, model="board.Topic", fields=("author",)): ...

    class Nested(ByKey):
        author: AuthorOut  # type: ignore[misc,unused-ignore]

    class Again(Nested):
        author: int  # type: ignore[assignment]

    topic = Topic(author=Author(id=1, name="a"))
    assert Nested.model_validate(topic).model_dump() == {"author": {"id": 1, "name": "a"}}
    assert Again.model_validate(topic).model_dump() == {"author": 1}


def test_a_key_may_have_another_name() -> None:
    """An alias that names the relation reads its key; beside the row itself it must name the column."""

    class Named(ModelSchema, model="board.Topic"):
        writer: int = Field(alias="author")

    topic = Topic(author=Author(id=7, name="a"))
    assert Named.model_validate(topic).model_dump() == {"writer": 7}

    class Nested(Named):
        writer: AuthorOut = Field(alias="author")  # type: ignore[assignment]

    assert Nested.model_validate(topic).model_dump() == {"writer": {"id": 7, "name": "a"}}

    class Both(ModelSchema, model="board.Topic"):
        writer: AuthorOut = Field(alias="author")
        author: int = Field(validation_alias="author_id")

    assert Both.model_validate(topic).author == Both.model_validate(topic).writer.id == 7
    with pytest.raises(InvalidSchema, match=r'writer takes the row.*validation_alias="author_id"'):

        class Out(ModelSchema, model="board.Topic", fields=("author",)):
            writer: AuthorOut = Field(alias="author")


# Partial


def test_a_partial_schema_tells_unset_from_null() -> None:
    """Every field may be left out, limits hold, and null is only what the model has as null."""

    class TopicIn(ModelSchema, model="board.Topic", fields=("comment", "author")): ...

    class TopicPatch(TopicIn, partial=True): ...

    assert "required" not in TopicPatch.model_json_schema()
    assert "default" not in json.dumps(TopicPatch.model_json_schema())
    nothing = TopicPatch()
    assert nothing.model_fields_set == set()
    assert nothing.model_dump() == {"comment": None, "author": None}  # and no warning
    assert TopicPatch(author=None).model_fields_set == {"author"}  # type: ignore[call-arg]
    assert TopicPatch(author=None).model_dump(exclude_unset=True) == {"author": None}  # type: ignore[call-arg]
    for wrong in (None, "", "a" * 2001, 3):
        with pytest.raises(ValidationError):
            TopicPatch(comment=wrong)  # type: ignore[call-arg]
    with pytest.raises(ValidationError):
        TopicPatch.model_validate({"comment": None}, strict=True)
    assert TopicIn.model_json_schema()["required"] == ["comment", "author"]  # the base is as it was


def test_a_partial_schema_has_no_defaults(product: type[models.Model]) -> None:
    """A default of the model would overwrite what the row has."""

    class Patch(ModelSchema, model=product, fields=("status", "note", "key"), partial=True): ...

    assert Patch().model_dump() == {"status": None, "note": None, "key": None}


# Pydantic's uses


def test_it_is_pydantics_in_every_use() -> None:
    """Aliases, validators, computed fields, config, generics, TypeAdapter, pickling and copies work."""

    class Base(ModelSchema):
        model_config = ConfigDict(alias_generator=to_camel, frozen=True)

    class Out(Base, Generic[T], model="board.Topic", fields=("comment", "created_at", "author")):
        extra: T

        @field_validator("comment")
        @classmethod
        def shout(cls, value: str) -> str:
            return value.upper()

        @computed_field  # type: ignore[prop-decorator]
        @property
        def length(self) -> int:
            return len(self.comment)  # type: ignore[attr-defined,no-any-return]

    topic = Topic(comment="abc", author_id=3, created_at=dt.datetime(2020, 1, 1, tzinfo=dt.UTC))
    topic.extra = "5"  # type: ignore[attr-defined]
    made = Out[int].model_validate(topic)
    assert made.model_dump(by_alias=True) == {
        "comment": "ABC",
        "createdAt": topic.created_at,
        "author": 3,
        "extra": 5,
        "length": 3,
    }
    assert "createdAt" in properties(Out[int])
    assert Out[int].model_validate(made.model_dump(by_alias=True)) == made
    assert hash(made) == hash(made.model_copy())
    assert TypeAdapter(list[Out[int]]).validate_python([topic]) == [made]
    author = AuthorOut.model_validate(Author(id=1, name="x"))
    assert pickle.loads(pickle.dumps(author)) == author
    assert author.__django_model__ is Author


def test_a_validator_before_all_others_sees_the_instance() -> None:
    """Also where a relation is read by its key."""
    seen = []

    class Out(ModelSchema, model="board.Topic", fields=("author",)):
        @model_validator(mode="before")
        @classmethod
        def look(cls, value: Any) -> Any:
            seen.append(value)
            return value

    class More(Out, fields=("comment",)): ...

    topic = Topic(comment="a", author_id=3)
    assert Out.model_validate(topic).model_dump() == {"author": 3}
    assert More.model_validate(topic).model_dump() == {"author": 3, "comment": "a"}
    assert seen == [topic, topic]


def test_a_parametrized_schema_has_what_the_generic_one_has() -> None:
    """Limits of annotated fields, `partial`, and relations whose schema is a type variable."""

    class Out(ModelSchema, Generic[T], model="board.Topic", fields=("author",)):
        comment: str
        author: T

    class Patch(Out[T], Generic[T], partial=True): ...

    class Whole(Patch[T], Generic[T]):
        comment: str

    topic = Topic(comment="a", author=Author(id=1, name="x"))
    assert Out[int].model_validate(topic).model_dump() == {"author": 1, "comment": "a"}
    nested = Out[AuthorOut].model_validate(topic)
    assert nested.model_dump() == {"author": {"id": 1, "name": "x"}, "comment": "a"}
    assert Patch[int]().model_fields_set == set()  # type: ignore[call-arg]
    for schema in (Out[int], Patch[int], Patch[AuthorOut], Whole[int]):
        assert properties(schema)["comment"]["maxLength"] == 2000
    assert Whole[int].model_json_schema()["required"] == ["comment"]


def test_a_model_without_fields_of_this_package_is_a_base_class() -> None:
    """A class without a model holds what others share; a subclass adds fields to its base's."""

    class Base(ModelSchema):
        at: int = 0

    class Out(Base, model="board.Topic", fields=("id",)): ...

    class More(Out, fields=("comment",)): ...

    assert [*More.model_fields] == ["at", "id", "comment"]
    assert More.__read_only__ == {"id"}


# Names


def test_fields_have_the_order_in_which_they_are_named() -> None:
    """Named fields come first; annotated ones that are not named follow."""

    class Out(ModelSchema, model="board.Topic", fields=("comment", "author", "id")):
        extra: int = 0
        author: int | None

    assert [*Out.model_fields] == ["comment", "author", "id", "extra"]


def test_exclude_takes_all_others() -> None:
    """`exclude` names what is left out."""

    class Out(ModelSchema, model="board.Topic", exclude=("tags", "author")): ...

    assert [*Out.model_fields] == ["id", "comment", "created_at"]


def test_pk_is_the_key_also_of_several_columns() -> None:
    """`pk` is what instances have under this name."""

    class SeatOut(ModelSchema, model=Seat, fields=("pk", "guest")): ...

    class PageOut(ModelSchema, model=Page, fields=("pk",)): ...

    assert SeatOut.model_validate(Seat(row=1, number=2, guest="x")).model_dump() == {
        "pk": (1, 2),
        "guest": "x",
    }
    assert PageOut.model_validate(Page(slug="a")).model_dump() == {"pk": "a"}


def declare(**arguments: Any) -> type[ModelSchema]:
    class Out(ModelSchema, **arguments): ...

    return Out


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"model": "board.Topik", "fields": ["id"]},
            UnknownModel,
            "Out: there is no model 'board.Topik'.*'board.Topic'",
        ),
        ({"model": int, "fields": ["id"]}, UnknownModel, "neither a model's label nor a model"),
        ({"model": models.Model, "fields": ["id"]}, UnknownModel, "neither a model's label nor a model"),
        (
            {"model": "board.Topic", "fields": ["coment"]},
            UnknownField,
            "no field 'coment'. Did you mean 'comment'",
        ),
        ({"model": "board.Topic", "exclude": ["coment"]}, UnknownField, "Did you mean 'comment'"),
        ({"model": "board.Author", "fields": ["zzz"]}, UnknownField, "There is: id, name, pk."),
        ({"model": "board.Topic"}, FieldsNotNamed, r"fields=\('id', 'comment', 'author'\)"),
        ({"model": "board.Topic", "fields": "id"}, InvalidSchema, r"fields=\('id',\)"),
        ({"model": "board.Topic", "exclude": "id"}, InvalidSchema, r"exclude=\('id',\)"),
        (
            {"model": "board.Topic", "fields": ["id"], "exclude": ["tags"]},
            InvalidSchema,
            "`fields` or `exclude`",
        ),
        ({"fields": ["id"]}, InvalidSchema, 'model="app.Model"'),
        ({"model": "board.Account", "fields": "__all__"}, FieldsNotNamed, "'password'"),
        ({"model": "board.Account", "exclude": ["login"]}, FieldsNotNamed, "'password'"),
        (
            {"model": "board.LoudTopic", "fields": ["shout"]},
            InvalidSchema,
            "shout is not a field. Annotate it",
        ),
        ({"model": "board.Author", "fields": ["topic_set"]}, InvalidSchema, r"`topic_set: list\[OtherOut\]`"),
        ({"model": "places.Remark", "fields": ["subject"]}, InvalidSchema, "leads to other rows"),
    ],
)
def test_a_wrong_declaration_is_an_error_that_says_what_to_write(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    """The class statement raises, with the nearest names."""
    with pytest.raises(error, match=message):
        declare(**arguments)


def test_a_secret_is_taken_if_it_is_named_and_all_others_if_it_is_excluded() -> None:
    """`exclude` may name the secret itself."""
    assert [*declare(model="board.Account", fields=["password"]).model_fields] == ["password"]
    assert [*declare(model="board.Account", exclude=["password"]).model_fields] == ["id", "login"]


def test_an_unknown_kind_is_an_error_until_it_is_registered_or_annotated() -> None:
    """The error names the field and what to write, and both ways that it names work."""
    with isolate_apps("tests.project.board"):

        class Priced(models.Model):
            price = MoneyField()

            class Meta:
                app_label = "board"

            def __str__(self) -> str:
                return ""

    with pytest.raises(
        InvalidSchema, match=r"Out: board.Priced.price is a .*MoneyField.*register_field\(MoneyField"
    ):
        declare(model=Priced, fields=["price"])

    class Written(ModelSchema, model=Priced):
        price: int

    assert Written.model_validate(Priced(price=3)).model_dump() == {"price": 3}

    class EuroField(MoneyField):
        places = 2

    register_field(EuroField, lambda field: Annotated[Decimal, Field(decimal_places=field.places)])
    with isolate_apps("tests.project.board"):

        class Euros(models.Model):
            price = EuroField()

            class Meta:
                app_label = "board"

            def __str__(self) -> str:
                return ""

    with pytest.raises(ValidationError):
        declare(model=Euros, fields=["price"]).model_validate({"price": "1.001"})
