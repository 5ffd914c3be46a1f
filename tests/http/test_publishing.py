"""Published repositories: what is served without a handler, to whom, and beside what else."""

import asyncio
import gc
import json
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from copy import deepcopy
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Annotated, Any
from urllib.parse import quote
from uuid import UUID, uuid4

import httpx
import pytest
from django.db import connection, models
from django.db.models import Window
from django.db.models.functions import Rank
from django.test.utils import isolate_apps, override_settings
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Request, WebSocket
from fastapi.middleware.cors import CORSMiddleware
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import BaseModel, Field
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from structlog.testing import capture_logs
from websockets.sync.client import connect

from fastapi_django_orm import CachedRepository, DjangoORM, ORMSettings, Repository
from fastapi_django_orm.errors import InvalidRepository, InvalidRow
from tests.project.board.models import Author, CodeField, Everything, Page, Poem, Seat, Topic
from tests.support.comparing import finish
from tests.support.databases import created
from tests.support.gates import Gate, add_topics, gated, started
from tests.support.repositories import declare
from tests.support.serving import serving

pytestmark = pytest.mark.usefixtures("sqlite")


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[Any]]:
    """What is logged, instead of the output."""
    with capture_logs() as entries:
        yield entries


def warnings(logs: list[Any]) -> list[str]:
    """The paths that were not added."""
    return [entry["path"] for entry in logs if entry["event"] == "route_not_added"]


def topics(publish: Any = "/topics/", **attributes: Any) -> type[Any]:
    """A repository of topics that is published."""
    attributes = {"fields": ("id", "comment"), "ordering": ("pk",), **attributes}
    return declare(publish=publish, **attributes)


def application(*repositories: type[Any], **options: Any) -> FastAPI:
    """An application that serves them."""
    settings = ORMSettings(refresh_token="s3cret")
    plugin = DjangoORM(settings, repositories=repositories or [topics()])
    return FastAPI(lifespan=plugin.lifespan, **options)


async def nothing(request: Request, call_next: Any) -> Any:
    """Middleware that does nothing."""
    return await call_next(request)


# Without middleware the layer answers before the application, with some it answers behind that, and where the
# application has dependencies the routes answer alone.
PLACES: list[Callable[..., FastAPI]] = [application]


@PLACES.append
def with_middleware(*repositories: type[Any]) -> FastAPI:
    app = application(*repositories)
    app.middleware("http")(nothing)
    return app


@PLACES.append
def with_dependencies(*repositories: type[Any]) -> FastAPI:
    async def dependency() -> None:
        """Guard nothing."""

    return application(*repositories, dependencies=[Depends(dependency)])


everywhere = pytest.mark.parametrize("make", PLACES, ids=lambda make: make.__name__)


# What is served


@everywhere
@pytest.mark.parametrize("path", ["/topics/", "/topics", "/", "/api/v1/topics/"])
def test_list_and_rows_are_served(make: Callable[..., FastAPI], path: str) -> None:
    """The list is at the path and each row below it, with the slash at the end or without."""
    added = add_topics("one", "two")
    rows = [{"id": topic.pk, "comment": topic.comment} for topic in added]
    with serving(make(topics(path))) as client:
        assert client.get(path).json() == {"topics": rows}
        for row in rows:
            answer = client.get(f"{path.rstrip('/')}/{row['id']}")
            assert (answer.status_code, answer.json()) == (200, row)


@everywhere
def test_a_handler_answers_the_same(make: Callable[..., FastAPI]) -> None:
    """The bytes and headers are those that a handler gives who returns the repository's response."""
    repository = topics()
    app = make(repository)

    @app.get("/handler")
    async def handler(board: Annotated[Any, Depends(repository.current)]) -> Response:
        return board.response()  # type: ignore[no-any-return]

    add_topics("one", "two")
    with serving(app) as client:
        ours, theirs = client.get("/topics/"), client.get("/handler")
    assert ours.content == theirs.content
    assert ours.headers["ETag"] == theirs.headers["ETag"]


@everywhere
def test_a_query_selects_a_window(make: Callable[..., FastAPI]) -> None:
    """`offset` and `limit` give a slice of the list, in any order and beside anything else."""
    rows = [{"id": topic.pk, "comment": topic.comment} for topic in add_topics(*map(str, range(10)))]
    with serving(make()) as client:
        for query, expected in {
            "?offset=3": rows[3:],
            "?limit=3": rows[:3],
            "?offset=2&limit=3": rows[2:5],
            "?limit=3&offset=2": rows[2:5],
            "?offset=0&limit=100": rows,
            "?offset=50": [],
            "?limit=2&other=1": rows[:2],
            "?offset=%32&limit=3": rows[2:5],
            "?offset=1&offset=2": rows[2:],
            "?": rows,
            "?_=123": rows,
        }.items():
            answer = client.get(f"/topics/{query}")
            assert (query, answer.json()) == (query, {"topics": expected})


@everywhere
@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("offset=-1", "offset"),
        ("limit=0", "limit"),
        ("limit=-1", "limit"),
        ("limit=x", "limit"),
        ("offset=", "offset"),
    ],
)
def test_a_query_that_is_none_is_refused(make: Callable[..., FastAPI], query: str, field: str) -> None:
    """The answer is FastAPI's 422, which names the parameter."""
    with serving(make()) as client:
        answer = client.get(f"/topics/?{query}")
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["query", field]


@everywhere
def test_an_unknown_key_is_not_found(make: Callable[..., FastAPI]) -> None:
    """The answer is FastAPI's 404, and 422 where the key cannot be one."""
    with serving(make()) as client:
        unknown, wrong = client.get("/topics/12345"), client.get("/topics/x")
    assert unknown.status_code == 404
    assert unknown.json() == {"detail": "topics has no row with the key 12345."}
    assert wrong.status_code == 422
    assert wrong.json()["detail"][0]["loc"] == ["path", "pk"]


@everywhere
def test_keys_may_be_written_in_other_ways(make: Callable[..., FastAPI]) -> None:
    """Whatever FastAPI takes for the key is the key, and a number that no key can be is not found."""
    (topic,) = add_topics("one")
    with serving(make()) as client:
        for text in (f"0{topic.pk}", f"%3{str(topic.pk)[0]}{str(topic.pk)[1:]}", f"{topic.pk}?x=1"):
            assert client.get(f"/topics/{text}").json()["comment"] == "one"
        for text in ("-1", "0", str(10**17), str(10**30), "1/2", "1%2F2"):
            assert client.get(f"/topics/{text}").status_code == 404


@everywhere
def test_keys_of_uuids_are_served(make: Callable[..., FastAPI]) -> None:
    """A row is found by its UUID in any form that FastAPI takes."""
    row = Everything.objects.create(char="one")
    repository = declare("Things", "board.Everything", fields=("key", "char"), publish="/things/")
    with serving(make(repository)) as client:
        for text in (str(row.key), str(row.key).upper(), row.key.hex):
            assert client.get(f"/things/{text}").json() == {"key": str(row.key), "char": "one"}
        assert client.get(f"/things/{uuid4()}").status_code == 404
        assert client.get("/things/1").status_code == 422


ODD = ["/a", "a/", "a//b", "/", "a\nb", "a/b\n", "a?b#c", "..a", "a.b/..c", " ", "x%2Fy", "é/ü", "+ &="]


@pytest.fixture
def tags() -> Iterator[type[models.Model]]:
    """A model whose key is text, with a few rows."""
    with isolate_apps("tests.project.board"):

        class Tag(models.Model):
            slug = models.CharField(max_length=100, primary_key=True)

            class Meta:
                app_label = "board"

            def __str__(self) -> str:
                return self.slug

        with connection.schema_editor() as editor:
            editor.create_model(Tag)
        for slug in ("news", "latest", "a b", "日本", "a/b", "50%"):
            Tag.objects.create(slug=slug)
        yield Tag
        with connection.schema_editor() as editor:
            editor.delete_model(Tag)


@everywhere
def test_keys_of_text_are_served(make: Callable[..., FastAPI], tags: Any) -> None:
    """A row is found by its text, whatever is in it; a slash is sent as `%2F`, or it is another path."""
    with serving(make(declare("Tags", tags, fields=("slug",), publish="/tags"))) as client:
        for slug, path in {"news": "news", "a b": "a%20b", "日本": "日本", "50%": "50%25"}.items():
            assert client.get(f"/tags/{path}").json() == {"slug": slug}
        for slug in ODD:
            tags.objects.create(slug=slug)
        assert client.post("/refresh/", headers={"Authorization": "Bearer s3cret"}).status_code == 200
        for slug in ("a/b", *ODD):
            answer = client.get(f"/tags/{quote(slug, safe='')}")
            assert (answer.status_code, answer.json()) == (200, {"slug": slug})
            assert client.head(f"/tags/{quote(slug, safe='')}").status_code == 200
            assert client.post(f"/tags/{quote(slug, safe='')}").status_code == 405
        for path in ("unknown", "a/b", "a%2Fc", "a%2Fb/", "a/b%2Fc"):
            assert client.get(f"/tags/{path}", follow_redirects=True).status_code == 404


def test_keys_with_slashes_are_served_live(tags: Any) -> None:
    """A live row is found by such a key as well, and Django's pages below the list stay Django's."""
    live = type("Live", (Repository,), {"model": tags, "fields": ("slug",), "publish": "/tags/"})
    app = application(live)

    async def django(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse("a page")(scope, receive, send)

    app.mount("/", django)
    with serving(app) as client:
        assert client.get("/tags/a%2Fb").json() == {"slug": "a/b"}
        assert client.get("/tags/a%2Fx").status_code == 404
        assert client.get("/tags/a/edit/").text == "a page"
        assert "/tags/{pk}" in client.get("/openapi.json").json()["paths"]


def test_a_row_without_a_path_of_its_own_is_told_at_the_start(tags: Any, logs: list[Any]) -> None:
    """The path of an empty key would be the list's: the log names the repository."""
    tags.objects.create(slug="")
    with serving(application(declare("Tags", tags, fields=("slug",), publish="/tags/"))) as client:
        assert {"slug": ""} in client.get("/tags/").json()["tags"]
    (warning,) = [entry for entry in logs if entry["event"] == "row_not_reachable"]
    assert (warning["repository"], warning["log_level"]) == ("tags", "warning")


@everywhere
def test_keys_of_a_projects_own_kind_are_served(make: Callable[..., FastAPI]) -> None:
    """A row is found by what the model's field makes of the path, live and cached."""
    with isolate_apps("tests.project.board"):

        class Coded(models.Model):
            id = CodeField(primary_key=True)
            name = models.CharField(max_length=10)

            class Meta:
                app_label = "board"

            def __str__(self) -> str:
                return self.name

        with created(Coded):
            Coded.objects.create(id=5, name="five")
            attributes = {"model": Coded, "fields": ("name",)}
            live = type("Live", (Repository,), {"publish": "/live/", **attributes})
            cached = type("Cached", (CachedRepository,), {"publish": "/cached/", **attributes})
            with serving(make(live, cached)) as client:
                for path in ("/live/", "/cached/"):
                    assert client.get(f"{path}5").json() == {"name": "five"}
                    for text in ("6", "five"):
                        assert client.get(f"{path}{text}").status_code == 404


@everywhere
def test_rows_without_a_key_for_a_path_are_a_list_alone(make: Callable[..., FastAPI]) -> None:
    """Rows whose key is several columns, or was left out, are served together and not one by one."""
    Seat.objects.create(row=1, number=2, guest="Ann")
    add_topics("one")
    seats = declare("Seats", "board.Seat", fields=("guest",), publish="/seats/")
    comments = declare(
        "Comments", publish="/comments/", queryset=lambda self: Topic.objects.order_by("pk").values("comment")
    )
    with serving(make(seats, comments)) as client:
        assert client.get("/seats/").json() == {"seats": [{"guest": "Ann"}]}
        assert client.get("/comments/").json() == {"comments": [{"comment": "one"}]}
        for path in ("/seats/1", "/comments/0", "/comments/1"):
            assert client.get(path).status_code == 404
        assert "/comments/{pk}" not in client.get("/openapi.json").json()["paths"]


@everywhere
def test_head_is_answered(make: Callable[..., FastAPI]) -> None:
    """HEAD gets the headers of GET, of the list, a window written in any way, and a row."""
    (topic,) = add_topics("one")
    with serving(make()) as client:
        for path in ("/topics/", f"/topics/{topic.pk}", "/topics/?limit=01", "/topics/?x=1"):
            whole, head = client.get(path), client.head(path)
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers["Content-Length"] == whole.headers["Content-Length"]
            assert head.headers["ETag"] == whole.headers["ETag"]
        assert client.head("/topics/12345").status_code == 404


@everywhere
def test_what_a_client_has_is_not_sent(make: Callable[..., FastAPI]) -> None:
    """List, window and row answer 304 to their tags."""
    (topic, _) = add_topics("one", "two")
    with serving(make()) as client:
        for path in ("/topics/", f"/topics/{topic.pk}", "/topics/?limit=1"):
            tag = client.get(path).headers["ETag"]
            assert client.get(path, headers={"If-None-Match": tag}).status_code == 304


@everywhere
def test_a_refresh_is_seen(make: Callable[..., FastAPI]) -> None:
    """What was loaded last is what is served."""
    with serving(make()) as client:
        assert client.get("/topics/").json() == {"topics": []}
        (topic,) = add_topics("new")
        client.post("/refresh/", headers={"Authorization": "Bearer s3cret"})
        assert client.get("/topics/").json()["topics"] == [{"id": topic.pk, "comment": "new"}]
        assert client.get(f"/topics/{topic.pk}").json()["comment"] == "new"


@everywhere
def test_live_repositories_are_served_as_the_database_has_them(make: Callable[..., FastAPI]) -> None:
    """A repository without a cache is read for each request: no refresh is needed."""

    class Board(Repository):
        model = "board.Topic"
        fields = ("id", "comment")
        ordering = ("-pk",)
        publish = "/board/"

    with serving(make(Board)) as client:
        assert client.get("/board/").json() == {"board": []}
        first, second = add_topics("one", "two")
        assert [row["comment"] for row in client.get("/board/").json()["board"]] == ["two", "one"]
        assert client.get("/board/?offset=1&limit=1").json()["board"] == [{"id": first.pk, "comment": "one"}]
        assert client.get(f"/board/{second.pk}").json() == {"id": second.pk, "comment": "two"}
        tag = client.get(f"/board/{second.pk}").headers["ETag"]
        Topic.objects.filter(pk=second.pk).update(comment="changed")
        answer = client.get(f"/board/{second.pk}", headers={"If-None-Match": tag})
        assert answer.json()["comment"] == "changed"
        tag = answer.headers["ETag"]
        assert client.get(f"/board/{second.pk}", headers={"If-None-Match": tag}).status_code == 304
        missing = client.get("/board/12345")
        assert (missing.status_code, missing.json()) == (
            404,
            {"detail": "board has no row with the key 12345."},
        )
        assert client.get("/board/x").status_code == 422
        assert client.head("/board/").content == b""


@everywhere
def test_live_rows_beyond_what_a_database_can_count(make: Callable[..., FastAPI], database: str) -> None:
    """However large `offset` and `limit` are, without limits the answer is what it is from the cache."""
    add_topics("one")
    unlimited = {"max_limit": None, "max_offset": None}
    attributes = {"model": "board.Topic", "fields": ("comment",), "publish": "/live/", **unlimited}
    live = type("Live", (Repository,), attributes)
    most = 2**63 - 1
    with serving(make(live)) as client:
        for offset, limit, comments in (
            (most, 1, []),
            (most + 1, 1, []),
            (10**30, 1, []),
            (0, most, ["one"]),
            (0, 10**30, ["one"]),
            (10**15 - 1, 10**15 - 1, []),
        ):
            answer = client.get(f"/live/?offset={offset}&limit={limit}")
            assert answer.json() == {"live": [{"comment": comment} for comment in comments]}


def test_live_rows_that_cannot_be_read_spoil_no_other_part_of_the_list() -> None:
    """Of lists that are read at the same moment only those fail that such a row is in."""

    class Short(BaseModel):
        comment: Annotated[str, Field(max_length=5)]

    class Board(Repository):
        model = "board.Topic"
        schema = Short

    add_topics("short", "much longer")

    async def main() -> None:
        async with started(Board) as (board,):
            good, bad = await asyncio.gather(
                board.live.window(0, 1), board.live.window(1, 1), return_exceptions=True
            )
            assert json.loads(good) == {"board": [{"comment": "short"}]}
            assert isinstance(bad, InvalidRow)

    finish(main)


@everywhere
def test_a_text_that_no_row_can_have_is_not_found(make: Callable[..., FastAPI], database: str) -> None:
    """NUL, which PostgreSQL takes in no text, is the key of no row, live and cached."""
    Page.objects.create(slug="a", address="a")
    attributes = {"model": "board.Page", "fields": ("address",)}
    live = type("Live", (Repository,), {"publish": "/live/", **attributes})
    with serving(make(live, declare("Cached", publish="/cached/", **attributes))) as client:
        for path in ("/live/a", "/cached/a"):
            assert client.get(path).json()["address"] == "a"
        for path in ("/live/%00", "/cached/%00", "/live/a%00"):
            assert client.get(path).status_code == 404


KEYS: dict[str, tuple[Any, Any]] = {
    "number": (models.BigIntegerField(primary_key=True), 5),
    "small": (models.SmallIntegerField(primary_key=True), 5),
    "text": (models.CharField(max_length=50, primary_key=True), "a"),
    "file": (models.FileField(primary_key=True), "a"),
    "address": (models.GenericIPAddressField(primary_key=True), "::1"),
    "old_address": (models.GenericIPAddressField(protocol="IPv4", primary_key=True), "1.2.3.4"),
    "flag": (models.BooleanField(primary_key=True), True),
    "ratio": (models.FloatField(primary_key=True), 1.5),
    "price": (models.DecimalField(max_digits=10, decimal_places=2, primary_key=True), Decimal("1.50")),
    "day": (models.DateField(primary_key=True), date(2024, 1, 2)),
    "moment": (models.DateTimeField(primary_key=True), datetime(2024, 1, 2, 3, 4, tzinfo=UTC)),
    "time": (models.TimeField(primary_key=True), time(1, 2, 3)),
    "duration": (models.DurationField(primary_key=True), timedelta(days=1)),
    "uuid": (models.UUIDField(primary_key=True), UUID(int=5)),
    "code": (CodeField(primary_key=True), 5),
}

NOBODYS = [
    *("x", "-7", "7.5", "None", "[]", "%20", "%25", "%00", "a%00", "%ff", "%ed%a0%80", "%F0%9F%98%80"),
    *("inf", "-Infinity", "nan", "1e400", "1e1000000", str(2**63), "9" * 5000, "a" * 50_000),
    *("1.2.3.256", "::12345", "25:00", "P999999999D", "-P999999999D"),
    *("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"),
]


@contextmanager
def keyed(kinds: Iterable[str]) -> Iterator[dict[str, type[models.Model]]]:
    """For each of these kinds of keys a model with one row, by kind."""
    made: dict[str, type[models.Model]] = {}
    with isolate_apps("tests.project.board"):
        for kind in kinds:
            body = {"key": deepcopy(KEYS[kind][0]), "name": models.CharField(max_length=20)}
            meta = type("Meta", (), {"app_label": "board"})
            made[kind] = type(kind.title(), (models.Model,), {"__module__": __name__, "Meta": meta, **body})
        with created(*made.values()):
            for kind, model in made.items():
                model._default_manager.create(key=KEYS[kind][1], name=kind)
            yield made


def live_and_cached(kind: str, model: type[models.Model], field: str = "name") -> list[type[Any]]:
    """Two repositories of a model, published below `/live/` and `/cached/`."""
    attributes = {"model": model, "fields": (field,)}
    return [
        type(f"{base.__name__}{kind}", (base,), {"publish": f"/{path}/{kind}/", **attributes})
        for base, path in ((Repository, "live"), (CachedRepository, "cached"))
    ]


def test_a_key_that_no_row_can_have_is_not_found(database: str) -> None:
    """Whatever the key's type and whatever stands in its place, it is found nowhere, live and cached."""
    with keyed(KEYS) as made:
        repositories = [each for kind in made for each in live_and_cached(kind, made[kind])]
        with serving(application(*repositories)) as client:
            for kind in made:
                for text in NOBODYS:
                    live, cached = (client.get(f"/{path}/{kind}/{text}") for path in ("live", "cached"))
                    found = kind, text[:50], live.status_code, cached.status_code
                    assert found[2] == found[3] in (404, 422), found


WRITTEN: dict[str, list[str]] = {
    "address": ["::1", "0:0::1", "0:0:0:0:0:0:0:1", "0::1%25eth0"],
    "old_address": ["1.2.3.4", "1.2.3.4%20"],
    "ratio": ["1.5", "1.50", "15e-1"],
    "price": ["1.5", "1.50"],
    "moment": ["2024-01-02T03:04:00Z", "2024-01-02T04:04+01:00", "2024-01-02T12:04", "2024-01-02 12:04:00"],
    "duration": ["P1D", "PT24H"],
    "uuid": [str(UUID(int=5)), UUID(int=5).hex],
    "code": ["5", "05"],
}


@everywhere
def test_a_key_may_be_written_as_the_database_does_not(make: Callable[..., FastAPI], database: str) -> None:
    """Whatever Django and FastAPI take for a row's key finds it, live and cached."""
    with keyed(WRITTEN) as made:
        repositories = [each for kind in made for each in live_and_cached(kind, made[kind])]
        with serving(make(*repositories)) as client:
            for kind, texts in WRITTEN.items():
                for path in (f"/{base}/{kind}/{text}" for text in texts for base in ("live", "cached")):
                    answer = client.get(path)
                    assert (path, answer.status_code) == (path, 200)
                    assert answer.json() == {"name": kind}


def test_times_without_a_zone_are_found_under_one() -> None:
    """Where USE_TZ is off, a time that is written with its zone is the same time in Django's own."""
    with override_settings(USE_TZ=False, TIME_ZONE="Asia/Tokyo"), isolate_apps("tests.project.board"):

        class Event(models.Model):
            at = models.DateTimeField(primary_key=True)

            class Meta:
                app_label = "board"

            def __str__(self) -> str:
                return str(self.at)

        with created(Event):
            Event.objects.create(at=datetime(2024, 1, 2, 12, 4))
            with serving(application(*live_and_cached("events", Event, "at"))) as client:
                for path in ("/live/events/", "/cached/events/"):
                    for text in ("2024-01-02T12:04", "2024-01-02T12:04:00+09:00", "2024-01-02T03:04:00Z"):
                        assert client.get(f"{path}{text}").json() == {"at": "2024-01-02T12:04:00"}
                    assert client.get(f"{path}9999-12-31T23:59:59-14:00").status_code == 404


@everywhere
@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_a_collation_is_the_databases_alone(make: Callable[..., FastAPI], database: str) -> None:
    """Another spelling of a text that the database holds for equal is found live, and not in memory."""
    with keyed(["text"]) as made, serving(make(*live_and_cached("text", made["text"]))) as client:
        found = [client.get(f"/{path}/text/A").status_code for path in ("live", "cached")]
    assert found == [200, 404]


@everywhere
def test_live_rows_that_cannot_be_told_apart_are_a_list_alone(make: Callable[..., FastAPI]) -> None:
    """Django cannot look for a key in a part of a query, and the cache can."""
    first, _ = add_topics("one", "two")

    def newest(self: Any) -> Any:
        return Topic.objects.order_by("pk")[:1]

    attributes = {"model": "board.Topic", "fields": ("comment",), "queryset": newest}
    live = type("Live", (Repository,), {"publish": "/live/", **attributes})
    with serving(make(live, declare("Cached", publish="/cached/", **attributes))) as client:
        assert len(client.get("/live/").json()["live"]) == 1
        assert client.get(f"/live/{first.pk}").status_code == 404
        assert "/live/{pk}" not in client.get("/openapi.json").json()["paths"]
        assert client.get(f"/cached/{first.pk}").json()["comment"] == "one"


@everywhere
def test_before_the_first_load_nothing_is_there(make: Callable[..., FastAPI], logs: list[Any]) -> None:
    """A repository that could not be loaded is unavailable, and served once it was."""
    gate = Gate()
    gate.error = RuntimeError("not now")
    repository = gated(gate, publish="/topics/")
    app = make(repository)
    app.router.lifespan_context = DjangoORM(
        ORMSettings(refresh_token="s3cret", startup="retry"), repositories=[repository]
    ).lifespan
    (topic,) = add_topics("one")
    with serving(app) as client:
        for path in ("/topics/", f"/topics/{topic.pk}"):
            answer = client.get(path)
            assert answer.status_code == 503
            assert answer.headers["Retry-After"]
        gate.error = None
        client.post("/refresh/", headers={"Authorization": "Bearer s3cret"})
        assert client.get(f"/topics/{topic.pk}").json()["comment"] == "one"


# Beside what else


@everywhere
def test_other_methods_are_refused(make: Callable[..., FastAPI]) -> None:
    """Whatever is not reading is answered with 405 and what may be done."""
    with serving(make()) as client:
        for method in ("POST", "PUT", "PATCH", "DELETE"):
            for path in ("/topics/", "/topics/1"):
                answer = client.request(method, path)
                assert answer.status_code == 405
                assert answer.headers["Allow"] == "GET, HEAD"
                assert answer.json() == {"detail": "Method Not Allowed"}


@everywhere
@pytest.mark.parametrize("path", ["/topics/", "/topics"])
def test_slashes_are_redirected(make: Callable[..., FastAPI], path: str) -> None:
    """Without its slash at the end, or with one too many, a request is sent to the right path."""
    other = path.rstrip("/") if path.endswith("/") else f"{path}/"
    (topic,) = add_topics("one")
    with serving(make(topics(path))) as client:
        assert client.get(other).headers["Location"].endswith(path)
        assert client.get(other, follow_redirects=True).json()["topics"][0]["comment"] == "one"
        row = client.get(f"/topics/{topic.pk}/", follow_redirects=True)
        assert row.json()["comment"] == "one"


@everywhere
def test_writing_at_the_same_path_goes_on(make: Callable[..., FastAPI], logs: list[Any]) -> None:
    """The application's own POST, PUT and DELETE stand beside what is published."""
    app = make()

    @app.post("/topics/")
    async def post() -> str:
        return "posted"

    @app.delete("/topics/{pk}")
    async def delete(pk: int) -> str:
        return f"deleted {pk}"

    (topic,) = add_topics("one")
    with serving(app) as client:
        assert client.post("/topics/").json() == "posted"
        assert client.delete("/topics/5").json() == "deleted 5"
        assert client.get(f"/topics/{topic.pk}").json()["comment"] == "one"
        assert {*client.get("/openapi.json").json()["paths"]["/topics/"]} == {"get", "post"}
    assert warnings(logs) == []


@everywhere
@pytest.mark.parametrize("included", [False, True])
def test_the_applications_own_paths_win(
    make: Callable[..., FastAPI], included: bool, tags: Any, logs: list[Any]
) -> None:
    """A path below the published one that the application serves is the application's, a key or not."""
    app = make(declare("Tags", tags, fields=("slug",), publish="/tags/"), topics())
    router = APIRouter(prefix="/topics" if included else "")
    target: Any = router if included else app
    prefix = "" if included else "/topics"

    @app.get("/tags/latest")
    async def latest() -> str:
        return "own"

    @target.get(f"{prefix}/1")
    async def first() -> str:
        return "own"

    @target.get(f"{prefix}/of-{{author}}")
    async def of(author: str) -> str:
        return author

    app.include_router(router)
    (topic,) = Topic.objects.bulk_create([Topic(pk=2, comment="two")])
    with serving(app) as client:
        assert client.get("/tags/latest").json() == "own"
        assert client.get("/tags/news").json() == {"slug": "news"}
        assert client.get("/topics/1").json() == "own"
        assert client.get("/topics/of-ann").json() == "ann"
        assert client.get(f"/topics/{topic.pk}").json()["comment"] == "two"
    assert warnings(logs) == []


@everywhere
def test_what_an_included_router_gets_later_wins(make: Callable[..., FastAPI]) -> None:
    """A route that is added to a router, after the application with it has started, is served at once."""
    app, outer, inner = make(), APIRouter(), APIRouter()

    @inner.get("/other")
    async def other() -> str:
        return "other"

    outer.include_router(inner, prefix="/topics")
    app.include_router(outer)
    Topic.objects.bulk_create([Topic(pk=pk, comment=str(pk)) for pk in range(1, 6)])

    async def own() -> str:
        return "own"

    def mounted() -> APIRouter:
        router = APIRouter()
        router.add_api_route("/topics/4", own)
        return router

    additions: dict[int, Callable[[], Any]] = {
        1: lambda: outer.get("/topics/1")(own),
        2: lambda: inner.get("/2")(own),
        3: lambda: outer.add_route("/topics/3", lambda request: PlainTextResponse('"own"')),
        4: lambda: outer.include_router(mounted()),
    }
    with serving(app) as client:
        for pk, add in additions.items():
            assert client.get(f"/topics/{pk}").json()["comment"] == str(pk)
            add()
            assert client.get(f"/topics/{pk}").json() == "own"
        assert client.get("/topics/5").json()["comment"] == "5"


@everywhere
def test_the_applications_own_list_wins(make: Callable[..., FastAPI], logs: list[Any]) -> None:
    """A GET of the application's own at the list's path is served, with a warning; rows are beside it."""
    app = make()

    @app.get("/topics/")
    async def own() -> str:
        return "own"

    (topic,) = add_topics("one")
    with serving(app) as client:
        assert client.get("/topics/").json() == "own"
        assert client.get("/topics/?limit=1").json() == "own"
        assert client.get(f"/topics/{topic.pk}").json()["comment"] == "one"
    assert warnings(logs) == ["/topics/"]


@everywhere
@pytest.mark.parametrize("pattern", ["/topics/{number}", "/topics/{pk:int}", "/topics/{rest:path}"])
def test_the_applications_own_rows_win(make: Callable[..., FastAPI], pattern: str, logs: list[Any]) -> None:
    """A GET of the application's own for any key is served, whatever it calls the key."""
    app = make()

    @app.get(pattern)
    async def own(request: Request) -> str:
        return "own"

    (topic,) = add_topics("one")
    with serving(app) as client:
        assert client.get(f"/topics/{topic.pk}").json() == "own"
    assert "/topics/{pk}" in warnings(logs)


@everywhere
def test_what_is_mounted_at_the_root_does_not_hide_it(make: Callable[..., FastAPI], logs: list[Any]) -> None:
    """A mount at "/", as of Django, stands behind what is published."""
    app = make()

    async def everything(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse("mounted")(scope, receive, send)

    app.mount("/", everything)
    (topic,) = add_topics("one")
    with serving(app) as client:
        assert client.get("/topics/").json()["topics"][0]["comment"] == "one"
        assert client.get(f"/topics/{topic.pk}").json()["comment"] == "one"
        assert client.get("/a/b/c").text == "mounted"
    assert warnings(logs) == []


@everywhere
def test_a_route_of_the_application_that_takes_any_path(
    make: Callable[..., FastAPI], logs: list[Any]
) -> None:
    """The application's route is reached first, and the warning names it and the repository."""
    app = make()

    @app.get("/{name}/")
    async def named(name: str) -> str:
        return name

    (topic,) = add_topics("one")
    with serving(app) as client:
        assert client.get("/topics/").json() == "topics"
        assert client.get(f"/topics/{topic.pk}").json()["comment"] == "one"
    (warning,) = (entry for entry in logs if entry["event"] == "route_not_added")
    assert (warning["taken_by"], warning["repository"]) == ("/{name}/", "topics")


@everywhere
def test_one_list_may_be_below_another(make: Callable[..., FastAPI], tags: Any) -> None:
    """A list whose path could be another's row is served, and the other's rows beside it."""
    add_topics("one")
    repositories = declare("Tags", tags, fields=("slug",), publish="/tags"), topics("/tags/latest")
    with serving(make(*repositories)) as client:
        assert client.get("/tags/latest").json()["topics"][0]["comment"] == "one"
        assert client.get("/tags/news").json() == {"slug": "news"}
        assert len(client.get("/tags").json()["tags"]) == 6


@everywhere
def test_websockets_pass(make: Callable[..., FastAPI]) -> None:
    """A websocket at the same path is the application's."""
    app = make()

    @app.websocket("/topics/")
    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text("hello")
        await websocket.close()

    with serving(app) as client:
        url = str(client.base_url.copy_with(scheme="ws")).rstrip("/")
        with connect(f"{url}/topics/") as socket:
            assert socket.recv() == "hello"
        assert client.get("/topics/").json() == {"topics": []}


@everywhere
def test_own_routes_for_head_win(make: Callable[..., FastAPI]) -> None:
    """HEAD goes to the application's own route for it, and GET to what is published."""
    (topic,) = add_topics("one")
    app = make()
    paths = ("/topics/", f"/topics/{topic.pk}")
    for path in paths:

        async def own() -> Response:
            return Response(headers={"X-Own": "yes"})

        app.head(path)(own)
    with serving(app) as client:
        for path in paths:
            assert client.head(path).headers["X-Own"] == "yes"
            assert client.get(path).status_code == 200
            assert "X-Own" not in client.get(path).headers


@everywhere
def test_own_hosts_win(make: Callable[..., FastAPI]) -> None:
    """What the application serves on another host is not hidden there."""
    (topic,) = add_topics("one")
    app, other = make(), FastAPI()

    @other.get("/topics/{path:path}")
    async def own() -> str:
        return "own"

    app.host("other.example", other)
    with serving(app) as client:
        for path in ("/topics/", f"/topics/{topic.pk}"):
            assert client.get(path, headers={"Host": "other.example"}).json() == "own"
            assert client.get(path, headers={"Host": "main.example"}).json() != "own"


# Who may read


def test_middleware_applies() -> None:
    """CORS headers come with what is published, and middleware that refuses a request refuses it here."""
    app = application()
    app.add_middleware(CORSMiddleware, allow_origins=["https://board.example"])

    @app.middleware("http")
    async def locked(request: Request, call_next: Any) -> Any:
        if request.headers.get("X-Key") != "open sesame":
            return PlainTextResponse("locked", status_code=401)
        return await call_next(request)

    with serving(app) as client:
        assert client.get("/topics/").status_code == 401
        headers = {"X-Key": "open sesame", "Origin": "https://board.example"}
        answer = client.get("/topics/", headers=headers)
        assert answer.json() == {"topics": []}
        assert answer.headers["Access-Control-Allow-Origin"] == "https://board.example"


@pytest.mark.parametrize("place", ["inside", "outside"])
def test_middleware_may_change_what_is_sent(place: str) -> None:
    """What middleware adds to one answer is not in the next one, be it the application's or around that."""
    app, count = application(), iter(range(10))

    class Adding:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            async def adding(message: Any) -> None:
                if message["type"] == "http.response.start":
                    message["headers"].append((b"x-count", b"%d" % next(count)))
                await send(message)

            await self.app(scope, receive, adding)

    if place == "inside":
        app.add_middleware(Adding)
    with serving(app, around=Adding if place == "outside" else None) as client:
        first = client.get("/topics/")
        known = {"If-None-Match": first.headers["ETag"]}
        answers = [first, *(client.get("/topics/", headers=known if i % 2 else {}) for i in range(1, 6))]
    assert [answer.status_code for answer in answers] == [200, 304] * 3
    assert [answer.headers.get_list("X-Count") for answer in answers] == [[str(i)] for i in range(6)]


async def refuse(request: Request, call_next: Any) -> Any:
    """Middleware that lets nobody pass."""
    return PlainTextResponse("locked", status_code=401)


class Guarded(FastAPI):
    """An application that puts middleware around its own stack."""

    def build_middleware_stack(self) -> Any:
        return BaseHTTPMiddleware(super().build_middleware_stack(), dispatch=refuse)


def guarded_instance(**options: Any) -> FastAPI:
    app = FastAPI(**options)
    build = app.build_middleware_stack
    app.build_middleware_stack = lambda: BaseHTTPMiddleware(build(), dispatch=refuse)  # type: ignore[method-assign]
    return app


def guarded_router(**options: Any) -> FastAPI:
    app = FastAPI(**options)
    app.router.middleware_stack = BaseHTTPMiddleware(app.router.middleware_stack, dispatch=refuse)
    return app


@pytest.mark.parametrize("make", [Guarded, guarded_instance, guarded_router])
def test_middleware_that_is_put_there_in_another_way_applies(make: Callable[..., FastAPI]) -> None:
    """Be it of Starlette's own kinds, and around the stack, or around the router."""
    (topic,) = add_topics("one")
    app = make(lifespan=DjangoORM(repositories=[topics()]).lifespan)
    with serving(app) as client:
        for path in ("/topics/", f"/topics/{topic.pk}", f"/topics/0{topic.pk}", "/topics/?limit=1"):
            assert client.get(path).status_code == 401


def test_middleware_that_is_put_into_every_stack_applies(monkeypatch: pytest.MonkeyPatch) -> None:
    """As tracers do, who replace the method of the class."""
    build = FastAPI.build_middleware_stack
    monkeypatch.setattr(
        FastAPI,
        "build_middleware_stack",
        lambda app: BaseHTTPMiddleware(build(app), dispatch=refuse),
    )
    with serving(application()) as client:
        assert client.get("/topics/").status_code == 401


@pytest.mark.parametrize("place", ["inside", "outside"])
def test_middleware_sees_which_route_it_was(place: str) -> None:
    """The scope has what the router leaves there, whoever has answered."""
    (topic,) = add_topics("one")
    app = application()
    seen: list[Any] = []

    class Seeing:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await self.app(scope, receive, send)
            if scope["type"] == "http":
                params = scope["path_params"]
                seen.append((scope["route"].path, scope["endpoint"].__name__, params, scope["app"]))

    if place == "inside":
        app.add_middleware(Seeing)
    with serving(app, around=Seeing if place == "outside" else None) as client:
        for _ in range(2):
            client.get("/topics/")
            client.get(f"/topics/{topic.pk}")
        client.get("/topics/?limit=1")
        client.get(f"/topics/0{topic.pk}")  # which the route answers
    a_list = ("/topics/", "rows", {}, app)
    assert seen == [
        *[a_list, ("/topics/{pk}", "row", {"pk": str(topic.pk)}, app)] * 2,
        a_list,
        ("/topics/{pk}", "row", {"pk": f"0{topic.pk}"}, app),
    ]


@pytest.mark.parametrize("late", [False, True], ids=["at once", "late"])
def test_telemetry_sees_which_route_it_was(late: bool) -> None:
    """FastAPI's spans name what is published as any route, soon after they were configured at the latest."""
    (topic,) = add_topics("one")
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    telemetry: dict[str, Any] = {"tracer_provider": None if late else provider}
    app = application(telemetry=telemetry)
    with serving(app) as client:
        if late:
            assert client.get("/topics/").status_code == 200
            app._native_telemetry.config["tracer_provider"] = provider  # as a global one would be found
        exporter.clear()
        client.get("/topics/")
        client.get(f"/topics/{topic.pk}")
        names = {span.name for span in exporter.get_finished_spans()}
    assert {"GET /topics/", "GET /topics/{pk}"} <= names


def test_a_server_need_not_name_a_root_path() -> None:
    """ASGI leaves `root_path` out where there is none."""
    app = application()
    statuses: list[int] = []

    async def main() -> None:
        async with app.router.lifespan_context(app):
            for path in ("/topics/", "/topics/1", "/topics/"):

                async def send(message: Any) -> None:
                    if message["type"] == "http.response.start":
                        statuses.append(message["status"])

                scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": []}
                await app({**scope, "http_version": "1.1", "scheme": "http"}, None, send)  # type: ignore[arg-type]

    finish(main)
    assert statuses == [200, 404, 200]


def test_an_application_class_of_its_own_sees_every_request() -> None:
    """Whoever has overridden `__call__`, or wraps what is there, is not passed by."""
    seen: list[str] = []

    class Watched(FastAPI):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            seen.append(scope.get("path", ""))
            await super().__call__(scope, receive, send)

    app = Watched(lifespan=DjangoORM(repositories=[topics()]).lifespan)
    with serving(app) as client:
        client.get("/topics/")
        assert seen[-1] == "/topics/"

    plain = application()
    with serving(plain) as client:
        client.get("/topics/")
        inner: Any = plain.middleware_stack

        async def wrapped(scope: Any, receive: Any, send: Any) -> None:
            seen.append("wrapped")
            await inner(scope, receive, send)

        plain.middleware_stack = wrapped
        assert client.get("/topics/").json() == {"topics": []}
        assert seen[-1] == "wrapped"
        plain.middleware_stack = inner


def test_dependencies_of_the_application_apply() -> None:
    """A dependency that the whole application has guards what is published, too."""

    async def guard(x_key: Annotated[str, Header()]) -> None:
        if x_key != "open sesame":
            raise HTTPException(403, "wrong key")

    (topic,) = add_topics("one")
    with serving(application(dependencies=[Depends(guard)])) as client:
        for path in ("/topics/", f"/topics/{topic.pk}"):
            assert client.get(path).status_code == 422
            assert client.get(path, headers={"X-Key": "guess"}).json() == {"detail": "wrong key"}
            assert client.get(path, headers={"X-Key": "open sesame"}).status_code == 200


# Where


@everywhere
@pytest.mark.parametrize("where", ["server", "application"])
def test_a_root_path_is_respected(make: Callable[..., FastAPI], where: str) -> None:
    """Behind a proxy, told by the server or by the application, the paths are the same."""
    app = make()
    if where == "application":
        app.root_path = "/api"
    (topic,) = add_topics("one")
    with serving(app, **({"root_path": "/api"} if where == "server" else {})) as client:
        for prefix in [""] if where == "server" else ["", "/api"]:
            assert client.get(f"{prefix}/topics/").json()["topics"][0]["comment"] == "one"
            assert client.get(f"{prefix}/topics/{topic.pk}").json()["comment"] == "one"
        assert client.get("/openapi.json").json()["servers"] == [{"url": "/api"}]


@everywhere
def test_a_mounted_application_is_respected(make: Callable[..., FastAPI]) -> None:
    """Mounted in another one, the application serves below where it is mounted, and nowhere else."""
    inner = make()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> Any:
        async with inner.router.lifespan_context(inner):
            yield

    outer = FastAPI(lifespan=lifespan)
    outer.mount("/board", inner)
    (topic,) = add_topics("one")
    with serving(outer) as client:
        assert client.get("/board/topics/").json()["topics"][0]["comment"] == "one"
        assert client.get(f"/board/topics/{topic.pk}").json()["comment"] == "one"
        assert client.get("/topics/").status_code == 404


def test_everything_goes_when_the_application_ends() -> None:
    """After the shutdown the application is as it was, and a second start serves again."""
    app = application()

    @app.get("/own")
    async def own() -> str:
        return "own"

    kind, routes, router = type(app), list(app.routes), app.router.middleware_stack
    class_of_routers = dict(vars(APIRouter))
    for _ in range(2):
        with serving(app) as client:
            assert client.get("/topics/").json() == {"topics": []}
            assert isinstance(app, kind)
        assert type(app) is kind
        assert list(app.routes) == routes
        assert app.router.middleware_stack == router
        assert dict(vars(APIRouter)) == class_of_routers
        assert list(app.openapi()["paths"]) == ["/own"]


def test_rows_that_depend_on_others_have_no_path_of_their_own() -> None:
    """Where a row alone would be another one than in the list, the list is published alone."""
    ranked = type(
        "Ranked",
        (Repository,),
        {
            "__module__": __name__,
            "model": "board.Topic",
            "fields": ("comment", "rank"),
            "publish": "/ranked/",
            "queryset": lambda self: Topic.objects.annotate(rank=Window(Rank(), order_by="comment")),
        },
    )
    (topic,) = add_topics("one")
    app = application(ranked)
    with serving(app) as client:
        assert client.get("/ranked/").json()["ranked"][0]["rank"] == 1
        assert client.get(f"/ranked/{topic.pk}").status_code == 404
        assert "/ranked/{pk}" not in client.get("/openapi.json").json()["paths"]


def test_no_rows_stay_when_the_application_ends() -> None:
    """FastAPI remembers handlers, and these must not remember rows."""
    add_topics("one")
    repository, private = topics(), declare(name="Private")
    tables: list[weakref.ref[Any]] = []

    async def main() -> None:
        app = application(repository, private)
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                for path in ("/topics/", "/topics/1", "/health/", "/openapi.json"):
                    await client.get(path)
                await client.post("/refresh/", headers={"Authorization": "Bearer s3cret"})
            served = [await each.current() for each in (repository, private)]
            tables.extend(weakref.ref(each.snapshot.table) for each in served)

    finish(main)
    gc.collect()
    assert [table() for table in tables] == [None, None]


# What is written wrong


@pytest.mark.parametrize(
    "path", ["topics/", "", "/topics/{pk}", "/topics?limit=5", "/topics#top", "//topics", "/a//b", "/a b/", 5]
)
def test_what_is_no_path_is_refused(path: Any) -> None:
    """The application does not start, and says which repository it is and what to write."""
    with pytest.raises(InvalidRepository) as error, serving(application(topics(path))):
        pass
    assert "Topics.publish" in str(error.value)
    assert repr(path) in str(error.value)
    assert 'publish = "/topics/"' in str(error.value)


@pytest.mark.parametrize("other", ["/topics/", "/topics"])
def test_two_at_one_path_are_refused(other: str) -> None:
    """The application does not start, and names both."""
    authors = declare("Authors", "board.Author", fields=("name",), publish=other)
    with pytest.raises(InvalidRepository) as error, serving(application(topics(), authors)):
        pass
    assert "Authors.publish" in str(error.value)
    assert "Topics is published at '/topics/'" in str(error.value)


# The OpenAPI document


class TopicOut(BaseModel):
    id: int
    comment: str


def document(app: FastAPI) -> dict[str, Any]:
    """The application's OpenAPI document."""
    with serving(app) as client:
        return client.get("/openapi.json").json()  # type: ignore[no-any-return]


def resolved(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """A schema, its reference followed."""
    return (
        document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[-1]] if "$ref" in schema else schema
    )


def answer_of(document: dict[str, Any], path: str) -> dict[str, Any]:
    """The schema of a path's good answer."""
    answer = document["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]
    return resolved(document, answer["schema"])


@everywhere
def test_what_is_published_is_documented(make: Callable[..., FastAPI]) -> None:
    """Both paths are in the document, with parameters, constraints and all answers."""
    repository = topics(__doc__="Every topic of the board.", schema=TopicOut, fields=None)
    paths = document(make(repository))["paths"]
    rows, row = paths["/topics/"], paths["/topics/{pk}"]
    assert (list(rows), list(row)) == (["get"], ["get"])
    for operation in (rows["get"], row["get"]):
        assert operation["tags"] == ["topics"]
        assert operation["summary"]
        assert operation["description"] == "Every topic of the board."
        assert {"200", "304", "422", "503"} <= {*operation["responses"]}
    assert "404" in row["get"]["responses"]
    offset, limit = rows["get"]["parameters"]
    assert (offset["name"], offset["in"], offset["required"]) == ("offset", "query", False)
    assert (offset["schema"]["type"], offset["schema"]["minimum"]) == ("integer", 0)
    assert limit["schema"]["anyOf"][0] == {"type": "integer", "minimum": 1}
    (key,) = row["get"]["parameters"]
    assert (key["name"], key["in"], key["schema"]["type"]) == ("pk", "path", "integer")


def test_an_application_of_pages_documents_json_for_what_is_published() -> None:
    """An application whose handlers answer with HTML by default publishes JSON all the same."""
    with serving(application(default_response_class=HTMLResponse)) as client:
        answer = client.get("/topics/")
        paths = client.get("/openapi.json").json()["paths"]
    for path in ("/topics/", "/topics/{pk}"):
        assert list(paths[path]["get"]["responses"]["200"]["content"]) == [answer.headers["Content-Type"]]


def test_rows_of_a_schema_are_documented_as_that() -> None:
    """The document has the schema's own name."""
    api = document(application(topics(schema=TopicOut, fields=None)))
    assert answer_of(api, "/topics/{pk}")["title"] == "TopicOut"
    rows = answer_of(api, "/topics/")
    assert rows["required"] == ["topics"]
    assert resolved(api, rows["properties"]["topics"]["items"])["title"] == "TopicOut"


def test_rows_of_columns_are_documented_by_their_types() -> None:
    """Columns, relations' columns and annotations have the JSON types that their values have."""

    class Board(CachedRepository):
        model = "board.Topic"
        fields = ("id", "comment", "author_id", "author__name", "created_at", "tags", "answer")
        publish = "/board"

        def queryset(self) -> Any:
            return super().queryset().annotate(answer=models.Value(42))

    row = answer_of(document(application(Board)), "/board/{pk}")
    assert row["required"] == [*Board.fields]
    properties = {name: {k: v for k, v in p.items() if k != "title"} for name, p in row["properties"].items()}
    nullable = lambda kind: {"anyOf": [{"type": kind}, {"type": "null"}]}  # noqa: E731
    assert properties == {
        "id": {"type": "integer"},
        "comment": {"type": "string"},
        "author_id": nullable("integer"),
        "author__name": nullable("string"),
        "created_at": {"type": "string", "format": "date-time"},
        "tags": {},
        "answer": nullable("integer"),
    }


def test_every_type_of_column_is_documented() -> None:
    """What FastAPI's own encoder sends for a row of every type fits what the document says of it."""
    fields = [field.attname for field in Everything._meta.concrete_fields]
    api = document(application(declare("Things", "board.Everything", fields=fields, publish="/things/")))
    row = answer_of(api, "/things/{pk}")
    assert row["properties"]["doubled"]["anyOf"][1] == {"type": "null"}  # as what it is made of may be one
    kinds = {name: (each.get("anyOf") or [each])[0] for name, each in row["properties"].items()}
    assert {*kinds} == {field.attname for field in Everything._meta.concrete_fields}
    assert kinds.pop("binary")["type"] == "string"  # of which FastAPI's versions say different things
    assert {name: kind.get("format") or kind.get("type") for name, kind in kinds.items()} == {
        "key": "uuid",
        "big": "integer",
        "boolean": "boolean",
        "char": "string",
        "date": "date",
        "moment": "date-time",
        "decimal": "string",
        "duration": "duration",
        "file": "string",
        "floating": "number",
        "integer": "integer",
        "ip": "string",
        "json": None,
        "slug": "string",
        "small": "integer",
        "text": "string",
        "time": "time",
        "unique": "uuid",
        "doubled": "integer",
    }


def test_fields_of_a_projects_own_are_documented_as_anything() -> None:
    """What reads as it likes is not promised to be anything."""
    api = document(application(declare("Poems", "board.Poem", fields=("words",), publish="/poems/")))
    assert {"type", "anyOf"}.isdisjoint(answer_of(api, "/poems/{pk}")["properties"]["words"])
    assert Poem._meta.get_field("words").get_internal_type() == "CharField"


def test_rows_of_dicts_are_documented_by_their_names() -> None:
    """A query that ends in `.values()` says what its rows have."""
    repository = declare(
        "Authors",
        "board.Author",
        publish="/authors/",
        queryset=lambda self: Author.objects.annotate(topics=models.Count("topic")).values("id", "topics"),
    )
    api = document(application(repository))
    properties = answer_of(api, "/authors/{pk}")["properties"]
    assert {*properties} == {"id", "topics"}
    assert properties["id"]["type"] == "integer"


def test_names_that_pydantic_would_not_take_are_documented() -> None:
    """Columns may be called what a pydantic model's fields may not."""
    repository = declare(
        queryset=lambda self: Topic.objects.annotate(model_dump=models.Value(1), schema=models.Value("x")),
        fields=("id", "model_dump", "schema"),
        publish="/topics/",
    )
    add_topics("one")
    app = application(repository)
    with serving(app) as client:
        row = client.get("/topics/").json()["topics"][0]
        properties = answer_of(client.get("/openapi.json").json(), "/topics/{pk}")["properties"]
    assert [*properties] == [*row]


def test_published_by_a_class_in_a_module(published_project: Any) -> None:
    """A project that declares a published repository needs nothing else."""
    with published_project.uvicorn() as server:
        assert json.loads(server.get("/topics/").content)["topics"][0]["comment"] == "first"
        assert server.get("/topics/1").status_code == 200


@pytest.mark.parametrize("path", ["/health/", "/docs"])
def test_a_taken_path_is_told_with_its_repository(logs: list[Any], path: str) -> None:
    """The warning names the repository, the route and what to change; the rows are served all the same."""
    topic = Topic.objects.create(comment="here")
    with serving(application(topics(publish=path))) as client:
        assert not client.get(path).text.startswith('{"topics":')
        assert client.get(f"{path.rstrip('/')}/{topic.pk}").json()["comment"] == "here"
    (warning,) = (entry for entry in logs if entry["event"] == "route_not_added")
    assert warning["repository"] == "topics"
    assert "Topics.publish" in warning["hint"]
    assert warning["taken_by"] == path


def test_a_taken_rows_path_is_told_alone(logs: list[Any]) -> None:
    """Where the application has a route for rows the warning is about these, and the list is there."""
    app = application()

    @app.get("/topics/{number}")
    async def own(number: int) -> int:
        return number

    with serving(app) as client:
        assert client.get("/topics/7").json() == 7
        assert client.get("/topics/").json() == {"topics": []}
    (warning,) = (entry for entry in logs if entry["event"] == "route_not_added")
    assert (warning["path"], warning["repository"]) == ("/topics/{pk}", "topics")
