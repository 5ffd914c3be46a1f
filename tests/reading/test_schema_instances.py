"""Schemas whose code expects an instance get one: the rows are those of FastAPI's response model."""

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Annotated, Any

import httpx
import pytest
from django.db import models
from django.db.models.signals import post_init
from django.test.utils import isolate_apps
from fastapi import FastAPI
from pydantic import (
    AliasChoices,
    AliasPath,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    computed_field,
    field_validator,
    model_validator,
)
from pydantic.alias_generators import to_camel
from structlog.testing import capture_logs

from fastapi_django_orm import CachedRepository, DjangoORM, Repository
from tests.support.comparing import DEADLINE, finish
from tests.support.databases import created

File: Any = models.FileField


@pytest.fixture(autouse=True)
def _logs() -> Iterator[None]:
    with capture_logs():
        yield


class Shouted:
    """A descriptor of a field's own, as translations and encrypted texts have them."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else instance.__dict__[self.name].upper()

    def __set__(self, instance: Any, value: Any) -> None:
        instance.__dict__[self.name] = value


class ShoutedField(models.CharField):  # type: ignore[type-arg]
    def contribute_to_class(self, cls: Any, name: str, private_only: bool = False) -> None:
        super().contribute_to_class(cls, name, private_only)
        setattr(cls, name, Shouted(name))


class Named(BaseModel):
    name: str


def with_code() -> dict[str, type[BaseModel]]:
    """Schemas as people write them for ORM objects."""

    class Getter(BaseModel):
        id: int
        title: str

        @model_validator(mode="before")
        @classmethod
        def of(cls, book: Any) -> Any:
            return book if isinstance(book, dict) else {"id": book.pk, "title": book.label()}

    class Wrapped(BaseModel):
        id: int
        title: str

        @model_validator(mode="wrap")
        @classmethod
        def of(cls, book: Any, handler: Any) -> Any:
            found = handler(book)
            found.title += type(book).__name__
            return found

    class After(BaseModel):
        title: str

        @model_validator(mode="after")
        def of(self) -> Any:
            self.title = self.title.upper()
            return self

    class Address(BaseModel):
        cover: Annotated[str | None, BeforeValidator(lambda file: file.url if file else None)]

    class Validated(BaseModel):
        cover: str | None

        @field_validator("cover", mode="before")
        @classmethod
        def address(cls, value: Any) -> Any:
            return value.url if hasattr(value, "url") else value

    class Name(BaseModel):
        author: Annotated[str, BeforeValidator(lambda author: author.name)]

    class NameLater(BaseModel):
        author: str

        @field_validator("*", mode="before")
        @classmethod
        def name(cls, value: Any) -> Any:
            return value.name

    class Path(BaseModel):
        id: int
        title: str = Field(validation_alias=AliasPath("label_parts", 0))

    class Choices(BaseModel):
        title: str = Field(validation_alias=AliasChoices("shout", "title"))

    class Other(BaseModel):
        title: str = Field(alias="subtitle")  # another column of the model

    class OtherAttribute(BaseModel):
        title: str = Field(alias="shout")

    class Shouting(BaseModel):
        loud: str

    class Sum(BaseModel):
        title: str
        price: Decimal

        @computed_field
        def both(self) -> str:
            return f"{self.title} {self.price}"

    class Made(BaseModel):
        title: str

        def __init__(self, **values: Any) -> None:
            super().__init__(**{**values, "title": values["title"] + "!"})

    class Property(BaseModel):
        shout: str
        price: Decimal

    class Nested(BaseModel):
        id: int
        author: "Named"

    Nested.model_rebuild(_types_namespace={"Named": Named})

    class Camel(BaseModel):
        model_config = ConfigDict(alias_generator=to_camel, validate_by_name=True)
        author_id: int
        title: str

    return {name: each for name, each in locals().items() if isinstance(each, type)}


SCHEMAS = with_code()


class Library:
    """The models, made anew for each test."""

    def __init__(self) -> None:
        class Novelist(models.Model):
            name = models.CharField(max_length=50)

            class Meta:
                app_label = "board"

            def __str__(self) -> str:
                return self.name

        class Book(models.Model):
            author = models.ForeignKey(Novelist, models.CASCADE)
            title = models.CharField(max_length=50)
            subtitle = models.CharField(max_length=50, default="sub")
            loud = ShoutedField(max_length=50, default="loud")
            cover = File(upload_to="x", null=True)
            price = models.DecimalField(max_digits=8, decimal_places=2, default="1.50")

            class Meta:
                app_label = "board"

            def __str__(self) -> str:
                return self.title

            def label(self) -> str:
                return f"<{self.title}>"

            @property
            def label_parts(self) -> list[str]:
                return [self.label(), "x"]

            @property
            def shout(self) -> str:
                return self.title.upper()

        self.author, self.book = Novelist, Book


@pytest.fixture
def library(sqlite: str) -> Iterator[Library]:
    with isolate_apps("tests.project.board"):
        library = Library()
        with created(library.author, library.book):
            ann = library.author.objects.create(name="ann")
            library.book.objects.create(author=ann, title="one", cover="c.png")
            library.book.objects.create(author=ann, title="two", price="0.10", cover="d.png")
            yield library


def repositories(library: Library, schema: Any) -> tuple[type[Any], type[Any]]:
    attributes = {"model": library.book, "schema": schema, "ordering": ("pk",)}
    return type("Live", (Repository,), dict(attributes)), type("Kept", (CachedRepository,), dict(attributes))


async def sent(library: Library, schema: Any) -> Any:
    """What FastAPI's response model makes of the instances."""
    app = FastAPI()

    @app.get("/", response_model=list[schema])
    def books() -> Any:
        return list(library.book.objects.select_related("author").order_by("pk"))

    live_class, kept_class = repositories(library, schema)
    async with (
        DjangoORM(repositories=[live_class, kept_class]).lifespan(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://test", timeout=DEADLINE
        ) as client,
    ):
        answer = await client.get("/")
        live, kept = await live_class.current(), await kept_class.current()
        served = json.loads(kept.snapshot.json)["kept"]
        assert json.loads(await live.live.window(0, 5))["live"] == served
        assert [json.loads(await live.live.row_json(key)) for key in (1, 2)] == served
        return served, answer.json()


@pytest.mark.parametrize("name", SCHEMAS)
def test_rows_are_those_of_the_response_model(library: Library, name: str) -> None:
    """Validators, paths, properties, files and relations see what they see under a response model."""

    async def main() -> None:
        served, expected = await sent(library, SCHEMAS[name])
        assert served == expected

    finish(main)


class Plain(BaseModel):
    id: int
    title: str


def test_instances_that_the_project_changes(library: Library) -> None:
    """A receiver of `post_init` changes what a plain schema shows, as it does under a response model."""

    def change(instance: Any, **_: Any) -> None:
        instance.title = f"changed {instance.title}"

    post_init.connect(change, sender=library.book)
    try:

        async def main() -> None:
            served, expected = await sent(library, Plain)
            assert served == expected
            assert served[0]["title"] == "changed one"

        finish(main)
    finally:
        post_init.disconnect(change, sender=library.book)


def test_a_row_cannot_be_changed_though_its_validator_does(library: Library) -> None:
    """What pydantic has made of a row may be changed by the schema's own code, and by nobody later."""
    _, kept_class = repositories(library, SCHEMAS["After"])

    async def main() -> None:
        async with DjangoORM(repositories=[kept_class]).lifespan(FastAPI()):
            kept = await kept_class.current()
            with pytest.raises(ValidationError, match="frozen"):
                kept.get(1).title = "mine"
            assert kept.get(1).title == "ONE"

    finish(main)


def test_a_plain_schema_reads_columns(library: Library) -> None:
    """Where nothing looks at the instance none is made, which the health report would tell."""
    live_class, kept_class = repositories(library, Plain)

    async def main() -> None:
        async with DjangoORM(repositories=[live_class, kept_class]).lifespan(FastAPI()):
            kept = await kept_class.current()
            assert [row.title for row in kept.all()] == ["one", "two"]
            assert "columns_for_schema" not in kept.reasons

    finish(main)
