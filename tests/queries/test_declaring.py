"""What a filter's class may say, and what it refuses before a request comes."""

from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal

import httpx
import pytest
from fastapi import FastAPI, Query
from pydantic import ConfigDict, Field, PositiveInt

from fastapi_django_orm import CachedRepository, Filter
from fastapi_django_orm.errors import InvalidFilter, UnknownField, UnknownLookup, UnknownModel
from tests.support.comparing import finish
from tests.support.repositories import read

WRONG = [
    (UnknownField, "Did you mean 'comment'?", {"comnt": str | None}, {}),
    (UnknownLookup, "Did you mean 'name'?", {"author__nme": str | None}, {}),
    (UnknownLookup, "Did you mean 'gte' or 'gt'?", {"created_at__gtee": datetime | None}, {}),
    (UnknownLookup, "has no lookup 'yeer'", {"created_at__yeer__gte": int | None}, {}),
    (InvalidFilter, "takes integer, and the annotation gives string", {"author": str | None}, {}),
    (InvalidFilter, "takes integer, and the annotation gives boolean", {"author": bool | None}, {}),
    (InvalidFilter, "takes date-time, and the annotation gives date", {"created_at__lt": date | None}, {}),
    (InvalidFilter, "takes integer, and the annotation gives date-time", {"created_at__year": datetime}, {}),
    (InvalidFilter, "takes a list", {"author__in": int | None}, {}),
    (InvalidFilter, "takes one value", {"author": list[int] | None}, {}),
    (InvalidFilter, "takes string", {"author__name__icontains": int | None}, {}),
    (InvalidFilter, "takes boolean", {"author__isnull": int | None}, {}),
    (InvalidFilter, "write limit__exact", {"limit": int | None}, {}),
    (UnknownLookup, "has no lookup 'icontains'", {"author__icontains": str | None}, {}),
    (UnknownLookup, "has no lookup 'gt'", {"author__in__gt": int | None}, {}),
    (UnknownLookup, "has no lookup 'regex'", {"topic__regex": str | None}, {"model": "board.Author"}),
    (InvalidFilter, "takes two values", {"id__range": list[int] | None}, {}),
    (InvalidFilter, "takes two values", {"id__range": tuple[int, int, int] | None}, {}),
    (InvalidFilter, "names no model", {}, {"model": None}),
    (UnknownModel, "Did you mean 'board.Topic'", {}, {"model": "board.Topc"}),
    (UnknownField, "has no field 'nope'", {}, {"search": ("nope",)}),
    (UnknownLookup, "has no lookup 'icontains'", {}, {"search": ("author",)}),
    (InvalidFilter, "takes integer, and the annotation gives string", {}, {"search": ("id__exact",)}),
    (InvalidFilter, "takes boolean", {}, {"search": ("author__isnull",)}),
    (InvalidFilter, "a tuple of names", {}, {"search": "comment"}),
    (UnknownLookup, "has no lookup 'nope'", {}, {"ordering": ("comment__nope",)}),
    (InvalidFilter, "allows both directions", {}, {"ordering": ("-comment",)}),
    (InvalidFilter, "is not a field", {}, {"ordering": ("created_at__year",)}),
    (InvalidFilter, "have no order", {}, {"ordering": ("tags",)}),
    (InvalidFilter, "several values for one row", {}, {"model": "board.Author", "ordering": ("topic__id",)}),
    (InvalidFilter, "is not a number from 1", {}, {"limit": 0}),
    (InvalidFilter, "max_limit=10", {}, {"limit": 50, "max_limit": 10}),
]


def declare(annotations: dict[str, Any], **arguments: Any) -> type[Filter]:
    """A filter class, as a class statement with these annotations and arguments would make it."""
    options = {"model": "board.Topic", **arguments}
    if options["model"] is None:
        del options["model"]
    names = dict.fromkeys(annotations)
    return type(Filter)(
        "Wrong", (Filter,), {"__module__": __name__, "__annotations__": annotations, **names}, **options
    )


@pytest.mark.parametrize(("error", "message", "annotations", "arguments"), WRONG)
def test_what_does_not_fit_the_model_is_refused(
    error: type[Exception], message: str, annotations: dict[str, Any], arguments: dict[str, Any]
) -> None:
    """A wrong name, lookup, type or argument is an error of the class statement, with the nearest names."""
    with pytest.raises(error, match="Wrong") as raised:
        declare(annotations, **arguments)
    assert message in str(raised.value)


def test_an_empty_list_is_no_default() -> None:
    """A list that is empty by default would match no row, which the class statement says."""
    with pytest.raises(InvalidFilter, match="Let the default be None"):

        class Wrong(Filter, model="board.Topic"):
            author__in: list[int] = Field(default_factory=list)


class Colour(Enum):
    RED = "red"


def test_types_that_fit() -> None:
    """Narrower types than the field's are taken, and any type by fields that say nothing."""

    class Entries(Filter, model="board.Entry"):
        number: PositiveInt | None = None
        number__range: tuple[int, int] | None = None
        price__gte: Decimal | None = None
        ratio: float | None = None
        word: Literal["a", "b"] | None = None
        word__in: list[Colour] | None = None
        word__iregex: Annotated[str | None, Field(max_length=5)] = None
        day__month: int | None = None
        writer__entry__number: int | None = None

    class Topics(Filter, model="board.Topic"):
        tags__kind__0: Any = None

    assert "number__range" in Entries.model_fields
    assert "tags__kind__0" in Topics.model_fields


def test_a_subclass_inherits_and_changes() -> None:
    """It has the lookups and arguments of its base, but for those that it gives anew."""

    class Base(Filter, model="board.Topic", search=("comment",), ordering=("comment",), limit=5):
        author: int | None = None

    class Changed(Base, ordering=(), max_limit=20):
        comment__icontains: str | None = None

    assert Base(ordering=["-comment"], search="x").limit == 5  # type: ignore[call-arg]
    assert set(Changed.model_fields) == {
        "author",
        "comment__icontains",
        "search",
        "limit",
        "offset",
        "after",
    }
    assert Changed().limit == 5
    with pytest.raises(ValueError, match="less than or equal to 20"):
        Changed(limit=21)  # type: ignore[call-arg]


def test_the_openapi_document_has_the_types() -> None:
    """FastAPI takes a filter as query parameters: typed, described, limited, and wrong ones are a 422."""

    class TopicFilter(Filter, model="board.Topic", search=("comment",), ordering=("id", "comment")):
        author: int | None = None
        created_at__gte: datetime | None = None

    class Strict(TopicFilter):
        model_config = ConfigDict(extra="forbid")

    app = FastAPI()

    @app.get("/")
    def index(where: Annotated[TopicFilter, Query()]) -> Any:
        return where

    @app.get("/strict")
    def strict(where: Annotated[Strict, Query()]) -> Any:
        return where

    operation = app.openapi()["paths"]["/"]["get"]
    schemas = {each["name"]: each["schema"] for each in operation["parameters"]}
    assert list(schemas) == ["author", "created_at__gte", "search", "ordering", "limit", "offset", "after"]
    assert schemas["author"]["anyOf"][0] == {"type": "integer"}
    assert schemas["created_at__gte"]["anyOf"][0] == {"type": "string", "format": "date-time"}
    assert schemas["ordering"]["items"]["enum"] == ["id", "-id", "comment", "-comment"]
    assert (schemas["limit"]["default"], schemas["limit"]["maximum"]) == (50, 500)

    async def main() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            too_many = await client.get("/?ordering=-id,comment&ordering=id")
            assert too_many.status_code == 422
            ordered = await client.get("/?ordering=-id,comment")
            assert ordered.json()["ordering"] == ["-id", "comment"]
            refused = await client.get("/?ordering=author")
            assert refused.json()["detail"][0]["loc"] == ["query", "ordering", 0]
            assert (await client.get("/?limit=501")).status_code == 422
            assert (await client.get("/?unknown=1")).status_code == 200  # as FastAPI does by itself
            assert (await client.get("/strict?unknown=1")).status_code == 422

    finish(main)


def test_a_repository_refuses_a_filter_of_another_model() -> None:
    """``filter`` must be a filter of the repository's model."""

    class Authors(Filter, model="board.Author"):
        name: str | None = None

    class Topics(CachedRepository):
        model = "board.Topic"
        filter = Authors

    class Strange(CachedRepository):
        model = "board.Topic"
        filter = int  # type: ignore[assignment]

    for repository, message in ((Topics, "is a filter of board.Author"), (Strange, "is not a filter")):
        with pytest.raises(InvalidFilter, match=message):
            read(repository, lambda topics: None)
