"""What exceptions of Django become in an answer, and whose handler answers."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import structlog
from django.apps import apps
from django.contrib.postgres.constraints import ExclusionConstraint
from django.contrib.postgres.fields import IntegerRangeField, RangeOperators
from django.core.exceptions import BadRequest, PermissionDenied, SuspiciousOperation, ValidationError
from django.db import DatabaseError, IntegrityError, InterfaceError, OperationalError, models, transaction
from django.db.backends.postgresql.psycopg_any import NumericRange
from django.db.models import ProtectedError, RestrictedError
from django.db.models.functions import Upper
from django.http import Http404
from django.utils.translation import gettext_lazy
from fastapi import Depends, FastAPI, Request, WebSocket
from fastapi.exceptions import RequestValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.routing import Route
from structlog.contextvars import merge_contextvars
from structlog.testing import LogCapture

from fastapi_django_orm import DjangoORM, InTransaction, ORMSettings, Repository, run
from fastapi_django_orm.errors import DatabaseBusy, NotFound
from tests.project.board.models import Page, Seat, Topic
from tests.project.library.models import Book, Shelf
from tests.support.databases import DEADLINE, client_of, created
from tests.writing.shelves import empty

SECRET = "s3cret value of a row"
ERRORS: dict[str, tuple[Exception, int]] = {
    "http404": (Http404(SECRET), 404),
    "does-not-exist": (Topic.DoesNotExist(SECRET), 404),
    "denied": (PermissionDenied(SECRET), 403),
    "suspicious": (SuspiciousOperation(SECRET), 400),
    "bad": (BadRequest(SECRET), 400),
    "operational": (OperationalError(SECRET), 503),
    "interface": (InterfaceError(0, SECRET), 503),
    "integrity": (IntegrityError(SECRET), 409),
    "protected": (ProtectedError(SECRET, set()), 409),
    "restricted": (RestrictedError(SECRET, set()), 409),
    "invalid": (ValidationError({"comment": [ValidationError("Too long.", code="max_length")]}), 422),
    "busy": (DatabaseBusy("busy"), 503),
    "not-found": (NotFound("no"), 404),
}


@pytest.fixture(autouse=True)
def logs() -> list[Any]:
    """What is logged, with the ids of requests."""
    capture = LogCapture()
    structlog.configure(processors=[merge_contextvars, capture])
    return capture.entries


def application() -> FastAPI:
    """An application that raises what a request asks for, in a handler or a dependency."""
    app = FastAPI()

    async def dependency(name: str) -> None:
        raise ERRORS[name][0]

    @app.get("/handler/{name}")
    async def handler(name: str) -> None:
        raise ERRORS[name][0]

    @app.get("/def/{name}")
    def function(name: str) -> None:
        raise ERRORS[name][0]

    @app.get("/dependency/{name}", dependencies=[Depends(dependency)])
    async def guarded(name: str) -> None: ...

    @app.get("/other")
    async def other() -> None:
        raise ZeroDivisionError

    return app


def get(app: FastAPI, *paths: str, **settings: Any) -> list[httpx.Response]:
    """The answers to some requests."""

    async def main() -> list[httpx.Response]:
        async with client_of(app, **settings) as client:
            return [await client.get(path) for path in paths]

    return asyncio.run(main())


# Statuses and forms


@pytest.mark.parametrize("where", ["handler", "def", "dependency"])
def test_each_has_its_status(where: str, logs: list[Any]) -> None:
    """Wherever it is raised. The answer is FastAPI's own, and has no word of the exception."""
    answers = get(application(), *(f"/{where}/{name}" for name in ERRORS), "/other")
    for (name, (_, status)), answer in zip(ERRORS.items(), answers, strict=False):
        assert answer.status_code == status, name
        assert SECRET not in answer.text
        assert "detail" in answer.json()
        assert (answer.headers.get("Retry-After") is not None) == (status == 503), name
    assert answers[-1].status_code == 500
    failed = {entry["error"]: entry for entry in logs if entry["event"] == "request_failed"}
    assert failed["OperationalError"]["log_level"] == "error"
    assert failed["IntegrityError"]["log_level"] == "warning"
    assert SECRET not in str([entry for name, entry in failed.items() if name == "IntegrityError"])
    assert all(entry["request_id"] for entry in failed.values())


def test_validation_errors_have_fastapis_form() -> None:
    """With the field's place in the body, the code and the message in the client's language."""
    app = FastAPI()

    @app.get("/fields")
    async def fields() -> None:
        params = {"value": 3}
        message = ValidationError(gettext_lazy("%(value)s is wrong"), code="wrong", params=params)
        raise ValidationError({"comment": [message, "Plain."], "__all__": ["All of it."]})

    @app.get("/text")
    async def text() -> None:
        raise ValidationError("Not now.")

    first, second = get(app, "/fields", "/text")
    assert (first.status_code, second.status_code) == (422, 422)
    assert first.json() == {
        "detail": [
            {"type": "wrong", "loc": ["body", "comment"], "msg": "3 is wrong"},
            {"type": "value_error", "loc": ["body", "comment"], "msg": "Plain."},
            {"type": "value_error", "loc": ["body"], "msg": "All of it."},
        ]
    }
    assert second.json() == {"detail": [{"type": "value_error", "loc": ["body"], "msg": "Not now."}]}


# Constraints


def violate(app: FastAPI, name: str) -> None:
    """Give an application a handler for each constraint that can be violated."""

    def unique() -> None:
        Page.objects.create(slug="b", address=SECRET)

    def key() -> None:
        Page.objects.bulk_create([Page(slug="a", address="x")])

    def together() -> None:
        first = Book.objects.get()
        Book.objects.create(title="two", shelf=first.shelf, place=first.place)

    def composite() -> None:
        Seat.objects.bulk_create([Seat(row=1, number=1, guest=SECRET)])

    def null() -> None:
        Book.objects.create(title="three", first=None)

    def check() -> None:
        Book.objects.create(title="four", first=5, last=4)

    def foreign() -> None:
        with transaction.atomic():
            Topic.objects.create(comment=SECRET, author_id=10**6)

    functions = {each.__name__: each for each in (unique, key, together, composite, null, check, foreign)}

    @app.get(f"/{name}")
    async def handler(_: InTransaction) -> None:
        await run(functions[name])


VIOLATIONS = {
    "unique": ("unique", ["address"]),
    "key": ("unique", ["slug"]),
    "together": ("unique", ["shelf", "place"]),
    "composite": ("unique", ["row", "number"]),
    "null": ("null", ["first"]),
    "check": ("check", ["first", "last"]),
    "foreign": ("foreign_key", ["author"]),
}


def test_constraints_are_named_by_their_fields(default_database: str, logs: list[Any]) -> None:
    """Each is a 409 with the model's fields, as far as the database says which, and no value of a row."""
    app = FastAPI()
    for name in VIOLATIONS:
        violate(app, name)

    def prepare() -> None:
        empty()
        Page.objects.create(slug="a", address=SECRET)
        Book.objects.create(title="one", place=1, shelf=Shelf.objects.create(name="s"))
        Seat.objects.create(row=1, number=1, guest="g")

    async def main() -> None:
        async with client_of(app) as client:
            await run(prepare)
            for name, (kind, fields) in VIOLATIONS.items():
                answer = await client.get(f"/{name}")
                assert answer.status_code == 409, (name, answer.text)
                detail = answer.json()["detail"]
                unknown = {("sqlite", "foreign"), ("mariadb", "key"), ("mariadb", "composite")}
                if (default_database, name) in unknown:
                    fields = []
                assert (detail["type"], detail["fields"]) == (kind, fields), (name, logs)
                assert SECRET not in answer.text

    asyncio.run(main())
    assert SECRET not in str(logs)


def test_a_duplicate_is_a_conflict_before_the_database_says_so(sqlite: str) -> None:
    """A unique check of full_clean() gives the same status as the constraint, beside other errors 422."""
    app = FastAPI()

    @app.get("/{slug}/{title}")
    def handler(slug: str, title: str) -> None:
        Page(slug=slug, address="x", title=title).full_clean(exclude=["number", "token"])

    async def main() -> None:
        async with client_of(app) as client:
            await run(lambda: Page.objects.create(slug="a", address="x"))
            answer = await client.get("/b/t")
            assert answer.status_code == 409
            assert answer.json()["detail"] == {
                "type": "unique",
                "msg": "Page with this Address already exists.",
                "fields": ["address"],
            }
            answer = await client.get(f"/a/{'t' * 101}")
            assert answer.status_code == 422
            assert [each["loc"][1] for each in answer.json()["detail"]] == ["title", "slug", "address"]

    asyncio.run(main())


@pytest.fixture
def booking() -> Iterator[type[models.Model]]:
    """A model of the project for as long as the test runs, since only PostgreSQL has its table."""

    class Booking(models.Model):
        """A room is booked for some days, once for each, unless that was cancelled."""

        room = models.CharField(max_length=20)
        days = IntegerRangeField()
        cancelled = models.BooleanField(default=False)
        code = models.CharField(max_length=20)

        class Meta:
            app_label = "library"
            constraints = (
                models.UniqueConstraint(
                    fields=["room", "code"], condition=models.Q(cancelled=False), name="booking_code"
                ),
                models.UniqueConstraint(Upper("code"), "days", name="booking_upper"),
                ExclusionConstraint(
                    name="booking_days",
                    index_type="SPGIST",
                    expressions=[("days", RangeOperators.OVERLAPS)],
                    condition=models.Q(cancelled=False),
                    violation_error_message="These days are taken.",
                ),
            )

        def __str__(self) -> str:
            return self.room

    yield Booking
    del apps.all_models["library"]["booking"]
    apps.clear_cache()


@pytest.mark.parametrize("default_database", ["postgresql"], indirect=True)
def test_constraints_with_conditions_and_expressions(
    default_database: str, booking: type[models.Model]
) -> None:
    """Whether full_clean() or the database finds the conflict, the answer has the constraint's fields."""
    app = FastAPI()

    @app.get("/")
    async def handler(
        _: InTransaction, code: str, first: int, checked: bool, cancelled: bool = False
    ) -> None:
        days = NumericRange(first, first + 10)
        values = {"room": "r", "code": code, "days": days, "cancelled": cancelled}
        if checked:
            await (await Bookings.current()).create(values)
        else:
            await booking._default_manager.acreate(**values)

    Bookings = type(
        "Bookings", (Repository,), {"__module__": __name__, "model": booking, "fields": ("id", "room")}
    )
    conflicts = [
        ({"code": "a", "first": 100}, "unique", ["room", "code", "cancelled"]),
        ({"code": "A", "first": 1, "cancelled": True}, "unique", ["code", "days"]),
        ({"code": "b", "first": 5}, "exclusion", ["days", "cancelled"]),
    ]

    async def main() -> None:
        async with asyncio.timeout(DEADLINE), DjangoORM(repositories=[Bookings]).lifespan(app):
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            client = httpx.AsyncClient(transport=transport, base_url="http://test")
            ask = {"code": "a", "first": 1, "checked": True}
            assert (await client.get("/", params=ask)).status_code == 200
            for checked in (True, False):
                for values, kind, fields in conflicts:
                    answer = await client.get("/", params={**values, "checked": checked})
                    assert answer.status_code == 409, (checked, answer.text)
                    detail = answer.json()["detail"]
                    assert (detail["type"], detail["fields"]) == (kind, fields), checked

    with created(booking):
        asyncio.run(main())


@pytest.mark.parametrize("default_database", ["postgresql", "mariadb"], indirect=True)
def test_a_deadlock_may_be_repeated(default_database: str) -> None:
    """The transaction that the database has ended is a 503 with Retry-After."""
    app = FastAPI()
    barrier = asyncio.Barrier(2)

    @app.get("/{first}/{second}")
    async def handler(first: str, second: str, _: InTransaction) -> None:
        await Page.objects.filter(slug=first).aupdate(title=first)
        await barrier.wait()
        await Page.objects.filter(slug=second).aupdate(title=first)

    async def main() -> None:
        async with asyncio.timeout(DEADLINE), client_of(app) as client:
            pages = [Page(slug=slug, address=slug) for slug in "ab"]
            await run(lambda: Page.objects.bulk_create(pages))
            answers = await asyncio.gather(client.get("/a/b"), client.get("/b/a"))
            assert sorted(answer.status_code for answer in answers) == [200, 503]
            refused = next(answer for answer in answers if answer.status_code == 503)
            assert refused.headers["Retry-After"] == "1"
            assert refused.json() == {"detail": "Service Unavailable"}

    asyncio.run(main())


# Whose handler answers


def test_handlers_of_the_application_win() -> None:
    """One for the class, or for a base of it, gets the exception itself."""
    app = application()
    caught: list[Exception] = []

    @app.exception_handler(Http404)
    @app.exception_handler(DatabaseError)
    async def own(request: Request, error: Exception) -> JSONResponse:
        caught.append(error)
        return JSONResponse("own", 418)

    names = ["http404", "operational", "integrity", "does-not-exist"]
    answers = get(app, *(f"/handler/{name}" for name in names))
    assert [answer.status_code for answer in answers] == [418, 418, 418, 404]
    assert caught == [ERRORS[name][0] for name in names[:3]]


def test_the_form_is_that_of_the_applications_own_errors() -> None:
    """Where it answers FastAPI's exceptions in a form of its own, Django's have that as well."""
    app = application()

    @app.exception_handler(HTTPException)
    async def problem(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"title": error.detail}, error.status_code, error.headers)

    @app.exception_handler(404)
    async def missing(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"title": "missing"}, 404)

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"errors": error.errors()}, 422)

    @app.exception_handler(Exception)
    async def rest(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse("rest", 500)

    names = ["denied", "does-not-exist", "invalid", "operational"]
    denied, gone, wrong, away = get(app, *(f"/handler/{name}" for name in names))
    assert (denied.status_code, denied.json()) == (403, {"title": "Forbidden"})
    assert (gone.status_code, gone.json()) == (404, {"title": "missing"})
    assert (wrong.status_code, wrong.json()["errors"][0]["loc"]) == (422, ["body", "comment"])
    assert (away.status_code, away.headers["Retry-After"]) == (503, "1")


def test_off_leaves_all_to_the_application() -> None:
    """DJANGO_ORM_ERRORS=off; the exceptions that have a status of their own keep it."""
    answers = get(application(), "/handler/http404", "/handler/operational", "/handler/busy", errors=False)
    assert [answer.status_code for answer in answers] == [500, 500, 503]


def test_one_application_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has its setting, and one without the plugin is left alone while another has it."""
    monkeypatch.setenv("DJANGO_ORM_ERRORS", "off")
    on, off, plain = application(), application(), application()

    @asynccontextmanager
    async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as made:
            yield made

    async def main() -> None:
        async with (
            DjangoORM(ORMSettings(errors=True), repositories=[]).lifespan(on),
            DjangoORM(repositories=[]).lifespan(off),
        ):
            found = []
            for app in (on, off, plain):
                async with client(app) as asking:
                    found.append((await asking.get("/handler/http404")).status_code)
            assert found == [404, 500, 500]
        async with client(on) as asking:  # after the lifespan
            assert (await asking.get("/handler/http404")).status_code == 500

    asyncio.run(main())


def test_mounted_applications(sqlite: str) -> None:
    """One of FastAPI or Starlette, mounted, answers alike; its own handlers win there."""
    app, inner = FastAPI(), application()

    def invalid(request: Any) -> None:
        raise ERRORS["invalid"][0]

    app.mount("/inner", inner)
    app.mount("/starlette", Starlette(routes=[Route("/", invalid)]))

    @inner.exception_handler(Http404)
    async def own(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse("own", 418)

    paths = ["/inner/handler/denied", "/inner/handler/http404", "/starlette/"]
    assert [answer.status_code for answer in get(app, *paths)] == [403, 418, 422]


def test_a_websocket_gets_no_status() -> None:
    """It ends as without the plugin."""
    app = FastAPI(lifespan=DjangoORM(repositories=[]).lifespan)

    @app.websocket("/")
    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        raise Http404(SECRET)

    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message["type"])

    async def main() -> None:
        scope = {"type": "websocket", "path": "/", "raw_path": b"/", "query_string": b"", "headers": []}
        async with app.router.lifespan_context(app):
            with pytest.raises(Http404):
                await app({**scope, "subprotocols": []}, receive, send)
        assert sent == ["websocket.accept"]

    asyncio.run(main())
