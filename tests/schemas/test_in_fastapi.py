"""Schemas as request bodies and response models of an application, and in its OpenAPI document."""

import asyncio
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.openapi.models import OpenAPI

from fastapi_django_orm import ModelSchema
from tests.project.board.models import Author, Topic
from tests.support.databases import client_of

pytestmark = pytest.mark.usefixtures("sqlite")


class AuthorOut(ModelSchema, model="board.Author", fields=("id", "name")): ...


class TopicOut(ModelSchema, model="board.Topic", fields=("id", "comment", "tags", "created_at")):
    author: AuthorOut | None


class TopicIn(ModelSchema, model="board.Topic", fields=("comment", "tags", "author")): ...


class TopicPatch(TopicIn, partial=True): ...


class EverythingOut(ModelSchema, model="board.Everything", exclude=("json",)): ...


app = FastAPI()


@app.post("/topics/", status_code=201)
async def post(topic: TopicIn) -> TopicOut:
    made = await Topic.objects.acreate(
        comment=topic.comment,  # type: ignore[attr-defined]
        tags=topic.tags,  # type: ignore[attr-defined]
        author_id=topic.author,  # type: ignore[attr-defined]
    )
    return await Topic.objects.select_related("author").aget(pk=made.pk)  # type: ignore[return-value]


@app.patch("/topics/{pk}")
async def patch(pk: int, topic: TopicPatch) -> dict[str, Any]:
    return topic.model_dump(exclude_unset=True)


@app.get("/everything/")
async def everything() -> list[EverythingOut]:
    return []


def ask(*requests: tuple[str, str, Any]) -> list[Any]:
    """The statuses and bodies of the answers."""

    async def main() -> list[Any]:
        async with client_of(app) as client:
            answers = [await client.request(method, path, json=body) for method, path, body in requests]
        return [(answer.status_code, answer.json()) for answer in answers]

    return asyncio.run(main())


def test_a_request_is_validated_and_the_answer_has_every_field() -> None:
    """A field with a default may be left out of the request, and is in the answer."""
    author = Author.objects.create(name="Ann")
    ((status, topic),) = ask(("POST", "/topics/", {"comment": "hello", "author": author.pk}))
    assert status == 201
    assert topic == {
        "id": Topic.objects.get().pk,
        "comment": "hello",
        "tags": [],
        "created_at": Topic.objects.get().created_at.isoformat().replace("+00:00", "Z"),
        "author": {"id": author.pk, "name": "Ann"},
    }


def test_a_wrong_request_is_a_422_that_names_the_field() -> None:
    """The location is the field's name."""
    answers = ask(
        ("POST", "/topics/", {"comment": "", "author": None}),
        ("POST", "/topics/", {"comment": "a"}),
        ("POST", "/topics/", {"comment": "a", "author": "x"}),
        ("PATCH", "/topics/1", {"comment": None}),
    )
    assert [(status, [each["loc"] for each in body["detail"]]) for status, body in answers] == [
        (422, [["body", "comment"]]),
        (422, [["body", "author"]]),
        (422, [["body", "author"]]),
        (422, [["body", "comment"]]),
    ]


def test_a_patch_has_what_was_sent() -> None:
    """Null and unset are not the same."""
    answers = ask(
        ("PATCH", "/topics/1", {}),
        ("PATCH", "/topics/1", {"author": None}),
        ("PATCH", "/topics/1", {"comment": "a", "tags": ["b"]}),
    )
    assert [body for _, body in answers] == [{}, {"author": None}, {"comment": "a", "tags": ["b"]}]


def test_the_openapi_document_has_requests_and_answers() -> None:
    """The document is valid, and tells what a request needs from what an answer has."""
    document = app.openapi()
    OpenAPI.model_validate(document)
    schemas = document["components"]["schemas"]
    assert schemas["TopicIn"]["required"] == ["comment", "author"]
    assert schemas["TopicOut"]["required"] == ["id", "comment", "tags", "created_at", "author"]
    assert "required" not in schemas["TopicPatch"]
    assert schemas["TopicOut"]["properties"]["id"]["readOnly"] is True
    assert schemas["TopicPatch"]["properties"]["comment"]["maxLength"] == 2000
