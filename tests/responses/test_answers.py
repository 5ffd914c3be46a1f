"""Answers: handlers may return instances and queries, and are told what to write where they cannot."""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Annotated, Any

import httpx
import pytest
from asgiref.sync import sync_to_async
from django.core.exceptions import SynchronousOnlyOperation
from fastapi import Depends, FastAPI, Request, Response, encoders
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import ResponseValidationError
from pydantic import BaseModel, ConfigDict

from fastapi_django_orm import (
    CachedRepository,
    DjangoORM,
    InTransaction,
    ORMSettings,
    Repository,
    RepositoryResponse,
    Row,
)
from fastapi_django_orm.errors import LazyAnswer
from tests.project.board.models import Author, Everything, LoudTopic, Topic
from tests.support.serving import serving


class Out(BaseModel):
    model_config = ConfigDict(from_attributes=True)


class AuthorOut(Out):
    name: str


class TopicOut(Out):
    id: int
    comment: str
    author: AuthorOut | None


class LoudOut(TopicOut):
    shout: str


class Page(Out):
    first: TopicOut
    rest: list[TopicOut]


def instance() -> Any:
    return Topic.objects.get(comment="one")  # its author is read when it is asked for


def queryset() -> Any:
    return Topic.objects.order_by("pk")


def manager() -> Any:
    return Topic.objects


def instances() -> Any:
    return list(Topic.objects.order_by("pk"))


def related() -> Any:
    return Author.objects.get().topic_set


def page() -> Any:
    return {"first": Topic.objects.get(comment="one"), "rest": Topic.objects.exclude(comment="one")}


def proxy() -> Any:
    return LoudTopic.objects.get(comment="one")


def nothing() -> Any:
    return Topic.objects.none()


KINDS: list[tuple[Callable[[], Any], Any]] = [
    (instance, TopicOut),
    (queryset, list[TopicOut]),
    (manager, list[TopicOut]),
    (instances, list[TopicOut]),
    (related, list[TopicOut]),
    (page, Page),
    (proxy, LoudOut),
    (nothing, list[TopicOut]),
]


@contextmanager
def answering(add: Callable[[FastAPI], None]) -> Iterator[httpx.Client]:
    """An application with two topics of one author, and the handlers that the function adds."""
    author = Author.objects.create(name="Ann")
    for comment in ("one", "two"):
        Topic.objects.create(comment=comment, author=author)
    app = FastAPI(lifespan=DjangoORM(ORMSettings(threads=1), repositories=[]).lifespan)
    add(app)
    with serving(app) as client:
        client.headers["Connection"] = "close"  # which is what uvicorn does after an error
        yield client


def kept(app: FastAPI, kind: type[Exception], errors: list[Exception]) -> None:
    """Have the application keep the errors of a kind that its handlers raise."""

    async def keep(request: Request, error: Exception) -> Response:
        errors.append(error)
        return Response(status_code=500)

    app.add_exception_handler(kind, keep)


@pytest.mark.parametrize(("kind", "model"), KINDS)
def test_async_handlers_answer_as_def_handlers_do(
    default_database: str, kind: Callable[[], Any], model: Any
) -> None:
    """What is returned lazily is read for a handler of either kind, and the bytes are the same."""

    def add(app: FastAPI) -> None:
        @app.get("/def", response_model=model)
        def synchronous() -> Any:
            return kind()

        @app.get("/async", response_model=model)
        async def asynchronous() -> Any:
            return await sync_to_async(kind)()  # read without the author, and a query not at all

        async def annotated() -> Any:
            return await sync_to_async(kind)()

        annotated.__annotations__["return"] = model
        app.get("/annotated")(annotated)

        @app.get("/transaction", response_model=model)
        async def in_transaction(_: InTransaction) -> Any:
            return await sync_to_async(kind)()

    with answering(add) as client:
        expected = client.get("/def")
        assert expected.status_code == 200, expected.text
        for path in ("/async", "/annotated", "/transaction"):
            answer = client.get(path)
            assert (answer.status_code, answer.content) == (200, expected.content)
    if kind is nothing:
        assert expected.json() == []
    else:
        assert '"author":{"name":"Ann"}' in expected.text


def test_options_of_the_response_model_count(default_database: str) -> None:
    """The response_model_… options of a handler work on a lazy answer as on any other."""

    def add(app: FastAPI) -> None:
        @app.get("/", response_model=list[TopicOut], response_model_include={0: {"comment"}, 1: {"comment"}})
        async def handler() -> Any:
            return Topic.objects.order_by("pk")

    with answering(add) as client:
        assert client.get("/").json() == [{"comment": "one"}, {"comment": "two"}]


def test_an_answer_that_does_not_fit_is_an_error_of_the_model(sqlite: str) -> None:
    """An instance that the response model refuses raises FastAPI's own error."""

    class Wrong(Out):
        missing: int

    errors: list[Exception] = []

    def add(app: FastAPI) -> None:
        kept(app, ResponseValidationError, errors)

        @app.get("/", response_model=Wrong)
        async def handler() -> Any:
            return await Topic.objects.aget(comment="one")

    with answering(add) as client:
        assert client.get("/").status_code == 500
    (error,) = errors
    assert isinstance(error, ResponseValidationError)
    assert error.errors()[0]["loc"] == ("response", "missing")


@pytest.mark.parametrize("kind", [instance, queryset, manager, instances, page])
@pytest.mark.parametrize("annotated", [True, False])
@pytest.mark.parametrize("is_async", [True, False])
def test_without_a_response_model_the_handler_is_named(
    sqlite: str, kind: Callable[[], Any], is_async: bool, annotated: bool
) -> None:
    """A lazy answer without a response model, or with Any, is an error that names both handler and file."""
    errors: list[Exception] = []

    async def asynchronous() -> Any:
        return await sync_to_async(kind)()

    def synchronous() -> Any:
        return kind()

    def add(app: FastAPI) -> None:
        kept(app, LazyAnswer, errors)
        handler: Any = asynchronous if is_async else synchronous
        if not annotated:
            del handler.__annotations__["return"]
        app.get("/lazy")(handler)

    with answering(add) as client:
        assert client.get("/lazy").status_code == 500
    (error,) = errors
    name = "asynchronous" if is_async else "synchronous"
    assert f"The handler {name}() of GET /lazy ({__file__}:" in str(error)
    assert "response_model" in str(error)


def test_plain_answers_are_left_alone(sqlite: str) -> None:
    """Values, rows and responses need no response model."""

    def add(app: FastAPI) -> None:
        @app.get("/values")
        async def values() -> Any:
            return [row async for row in Topic.objects.order_by("pk").values("comment")]

        @app.get("/response")
        async def response() -> Any:
            return Response("plain")

        @app.get("/model")
        async def model() -> AuthorOut:
            return AuthorOut(name="Ann")

    with answering(add) as client:
        assert client.get("/values").json() == [{"comment": "one"}, {"comment": "two"}]
        assert client.get("/response").text == "plain"
        assert client.get("/model").json() == {"name": "Ann"}


def test_rows_are_sent_in_one_form(default_database: str) -> None:
    """A row that a handler returns looks as in `response()`, in whatever it is, with a model or without."""
    row = Everything.objects.create(
        decimal=Decimal("1.50"),
        moment=datetime(2026, 7, 1, 12, 0, tzinfo=timezone(timedelta(hours=9))),
        duration=timedelta(days=1, seconds=2.5),
        date=date(2026, 7, 1),
    )
    columns = ("key", "decimal", "moment", "duration", "boolean", "date", "big")
    attributes = {"__module__": __name__, "model": Everything, "name": "rows", "fields": columns}
    rows: Any = type("Rows", (CachedRepository,), attributes)
    app = FastAPI(lifespan=DjangoORM(repositories=[rows]).lifespan)

    @app.get("/{what}", response_model=None)
    @app.get("/typed/{what}", response_model=list[dict[str, Any]])
    async def handler(what: str, rows: Annotated[Any, Depends(rows.current)]) -> Any:
        answers = {
            "response": rows.response(),
            "one": rows.get(row.pk),
            "all": rows.all(),
            "dict": {"rows": list(rows), "count": len(rows)},
            "live": await rows.fetch(row.pk),
        }
        return answers[what]

    with serving(app) as client:
        (sent,) = client.get("/response").json()["rows"]
        assert Decimal(sent["decimal"]) == Decimal("1.50")
        assert isinstance(sent["decimal"], str)
        assert sent["moment"] == "2026-07-01T03:00:00Z"
        assert client.get("/one").json() == client.get("/live").json() == sent
        assert client.get("/all").json() == client.get("/typed/all").json() == [sent]
        assert client.get("/dict").json() == {"rows": [sent], "count": 1}


@pytest.mark.parametrize("through_a_middleware", [False, True])
def test_a_query_on_the_event_loop_is_explained(
    sqlite: str, through_a_middleware: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Django's SynchronousOnlyOperation stays what it is, and says what to write in a FastAPI handler."""

    def add(app: FastAPI) -> None:
        if through_a_middleware:

            @app.middleware("http")
            async def middleware(request: Request, call_next: Any) -> Any:
                return await call_next(request)

        @app.get("/query")
        async def query() -> int:
            return Topic.objects.count()

        @app.get("/lazy")
        async def lazy() -> str:
            topic = await Topic.objects.aget(comment="one")
            return str(topic.author)

    with answering(add) as client:
        assert client.get("/query").status_code == 500
        assert client.get("/lazy").status_code == 500
    errors = [record.exc_info[1] for record in caplog.records if record.exc_info]  # what uvicorn has logged
    assert [type(error) for error in errors] == [SynchronousOnlyOperation] * 2
    for error in errors:
        (line,) = error.__notes__  # type: ignore[union-attr]
        assert "await run(" in line
        assert "aget(" in line
        assert "\n" not in line


# What is of this package


class Topics(CachedRepository):
    model = "board.Topic"
    fields = ("id", "comment")
    ordering = ("pk",)


class Live(Repository):
    model = "board.Topic"


class Short(BaseModel):
    comment: str


RIGHT: dict[str, Callable[[Any, Any], Any]] = {
    "itself": lambda topics, live: topics,
    "in a list": lambda topics, live: [topics],
    "in a dict": lambda topics, live: {"topics": topics, "n": 2},
    "encoded": lambda topics, live: jsonable_encoder({"topics": topics}),
}
WRONG: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "a snapshot": (lambda topics, live: topics.snapshot, r"<Snapshot of 'topics'.*topics\.response\(\)"),
    "all": (lambda topics, live: topics.all, r"the method all of <Topics 'topics'.*Write `all\("),
    "get": (lambda topics, live: {"row": topics.get}, r"the method get.*Write `get\("),
    "a row's method": (lambda topics, live: topics.all()[0].items, "the method items of a Row without"),
    "a live one": (lambda topics, live: live, r"<Live 'live'.*await topics\.fetch\(pk\)"),
    "nested": (lambda topics, live: {"a": [{"b": (live,)}]}, r"await topics\.fetch"),
    "a coroutine": (lambda topics, live: live.fetch(1), r"fetch\(…\) without.*`return await"),
    "a class": (lambda topics, live: Topics, "the class Topics.*`return topics`"),
    "Row": (lambda topics, live: [Row], "the class Row"),
    "a class of a response": (lambda topics, live: RepositoryResponse, "the class RepositoryResponse"),
    "a nested response": (lambda topics, live: {"data": topics.response()}, "Return it alone"),
    "an encoded snapshot": (lambda topics, live: jsonable_encoder(topics.snapshot), "<Snapshot of"),
    "an encoded method": (lambda topics, live: jsonable_encoder([topics.all]), "the method all"),
    "an encoded response": (lambda topics, live: jsonable_encoder([topics.response()]), "Return it alone"),
}


@contextmanager
def returning(results: Iterable[Callable[[Any, Any], Any]], **options: Any) -> Iterator[Any]:
    """A client of an application with two handlers for each result, and the errors that these raise."""
    for comment in ("one", "two"):
        Topic.objects.create(comment=comment)
    app = FastAPI(lifespan=DjangoORM(ORMSettings(), repositories=[Topics, Live]).lifespan)
    errors: list[Exception] = []
    kept(app, LazyAnswer, errors)
    for number, result in enumerate(results):

        async def on_loop(
            topics: Annotated[Topics, Depends(Topics.current)],
            live: Annotated[Live, Depends(Live.current)],
            result: Annotated[Any, Depends(lambda result=result: result)],
        ):
            return result(topics, live)

        def on_thread(
            topics: Annotated[Topics, Depends(Topics.current)],
            live: Annotated[Live, Depends(Live.current)],
            result: Annotated[Any, Depends(lambda result=result: result)],
        ):
            return result(topics, live)

        app.add_api_route(f"/async/{number}", on_loop, **options)
        app.add_api_route(f"/def/{number}", on_thread, **options)
    with serving(app) as client:
        yield client, errors


def test_a_returned_repository_is_its_rows(sqlite: str) -> None:
    """`return topics` sends the list of its rows, wherever the repository stands in the answer."""
    with returning(RIGHT.values()) as (client, errors):
        for kind in ("async", "def"):
            itself, listed, named, encoded = (client.get(f"/{kind}/{number}").json() for number in range(4))
            assert [row["comment"] for row in itself] == ["one", "two"]
            assert [{*row} for row in itself] == [{"id", "comment"}] * 2
            assert listed == [itself]
            assert named == {"topics": itself, "n": 2}
            assert encoded == {"topics": itself}
    assert errors == []


def test_a_returned_repository_is_validated_by_a_response_model(sqlite: str) -> None:
    """Under a response model the rows are what is validated, and what is not in it is not sent."""
    with returning([lambda topics, live: topics], response_model=list[Short]) as (client, _):
        for kind in ("async", "def"):
            assert client.get(f"/{kind}/0").json() == [{"comment": "one"}, {"comment": "two"}]


def test_what_is_no_answer_is_refused(sqlite: str) -> None:
    """A snapshot, a method, a class, a live repository, a nested response: the error says what to write."""
    with returning(result for result, _ in WRONG.values()) as (client, errors):
        for number, (way, (_, message)) in enumerate(WRONG.items()):
            for kind in ("async", "def"):
                assert client.get(f"/{kind}/{number}").status_code == 500, way
                error = errors.pop()
                assert re.search(message, str(error)), way
                if "encoded" not in way:
                    assert f"of GET /{kind}/{number}" in str(error)
    assert errors == []


def test_what_others_return_is_left_to_fastapi(sqlite: str) -> None:
    """Methods and objects of others are encoded as without the plugin; and after it, so are ours."""

    class Other:
        def __init__(self) -> None:
            self.name = "theirs"

    with returning([lambda topics, live: {"other": Other(), "method": Other().__init__}]) as (client, _):
        assert client.get("/async/0").json() == {"other": {"name": "theirs"}, "method": {}}
    assert Repository not in {each for kinds in encoders.encoders_by_class_tuples.values() for each in kinds}
