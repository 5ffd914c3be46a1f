"""The routes that the plugin adds: what they answer, to whom, and where."""

import json
import secrets
from collections.abc import Iterator
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.db import OperationalError
from fastapi import APIRouter, Depends, FastAPI
from fastapi.security import HTTPBearer
from pydantic import BaseModel, SecretStr
from starlette.responses import PlainTextResponse
from structlog.testing import capture_logs

from fastapi_django_orm import CachedRepository, DjangoORM, ORMSettings
from tests.project.board.models import Author, Topic
from tests.support.gates import Gate, add_topics, gated
from tests.support.serving import serving

pytestmark = pytest.mark.usefixtures("sqlite")

TOKEN = "open sesame"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
METHODS = pytest.mark.parametrize("method", ["GET", "POST"])


class Authors(CachedRepository):
    model = "board.Author"
    name = "authors"


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[Any]]:
    """What is logged, instead of the output."""
    with capture_logs() as entries:
        yield entries


@pytest.fixture
def debug(monkeypatch: pytest.MonkeyPatch) -> None:
    """Django's `DEBUG` is on."""
    monkeypatch.setattr(django_settings, "DEBUG", True)


def application(*repositories: type[Any], **settings: Any) -> FastAPI:
    """An application with nothing but the plugin; without a token unless one is given."""
    plugin = DjangoORM(ORMSettings(**settings), repositories=repositories or [gated(Gate())])
    return FastAPI(lifespan=plugin.lifespan)


def with_token(*repositories: type[Any], **settings: Any) -> FastAPI:
    """The same, with the token that `BEARER` sends."""
    return application(*repositories, refresh_token=TOKEN, **settings)


def events(logs: list[Any], name: str) -> list[Any]:
    return [entry for entry in logs if entry["event"] == name]


# What refreshing answers


def test_get_reloads_every_repository_and_returns_the_rows(database: str) -> None:
    """What was written since the last load is in the answer, in the form of the repositories' own."""
    Author.objects.create(name="Ayano")
    with serving(with_token(gated(Gate()), Authors)) as client:
        (topic,) = add_topics("new")
        author = Author.objects.create(name="Bashō")
        answer = client.get("/refresh/", headers=BEARER)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert list(answer.json()) == ["topics", "authors"]
    assert answer.json()["topics"] == [{"id": topic.pk, "comment": "new"}]
    assert answer.json()["authors"][1] == {"id": author.pk, "name": "Bashō"}


def test_post_reloads_every_repository_and_reports() -> None:
    """The report says for each repository what is served now, how long it took and who asked."""
    with serving(with_token(gated(Gate()), Authors)) as client:
        add_topics("one", "two")
        answer = client.post("/refresh/", headers=BEARER)
    assert answer.status_code == 200
    report = answer.json()
    assert list(report) == ["topics", "authors"]
    assert report["topics"].pop("duration_ms") >= 0
    assert len(report["topics"].pop("workers")["have"]) == 1
    assert report["topics"] == {"rows": 2, "version": 2, "trigger": "route", "error": None}
    assert report["authors"]["rows"] == 0
    assert report["authors"]["version"] == 2


def test_what_a_route_has_loaded_is_what_handlers_serve() -> None:
    """After a refresh over HTTP the repository answers every other request from the new rows."""
    topics = gated(Gate())
    app = with_token(topics)

    @app.get("/")
    async def index() -> Any:
        return (await topics.current()).response()

    with serving(app) as client:
        add_topics("new")
        assert client.get("/").json() == {"topics": []}
        refreshed = client.get("/refresh/", headers=BEARER)
        assert client.get("/").content == refreshed.content
        assert "new" in refreshed.text


@METHODS
def test_a_query_selects_repositories(method: str) -> None:
    """Only the named repositories are loaded and answered, once each, in the order of the names."""
    gate = Gate()
    with serving(with_token(gated(gate), Authors, gated(Gate(), name="others"))) as client:
        gate.reset()
        one = client.request(method, "/refresh/?repository=authors", headers=BEARER)
        assert list(one.json()) == ["authors"]
        assert gate.loads == 0
        two = client.request(method, "/refresh/?repository=topics&repository=authors", headers=BEARER)
        assert list(two.json()) == ["topics", "authors"]
        twice = client.request(method, "/refresh/?repository=topics&repository=topics", headers=BEARER)
        assert json.loads(twice.content, object_pairs_hook=lambda pairs: [key for key, _ in pairs]) == [
            "topics"
        ]


@METHODS
def test_an_unknown_repository_is_not_found(method: str) -> None:
    """The answer is 404 with the nearest name, and nothing is loaded."""
    gate = Gate()
    with serving(with_token(gated(gate), Authors)) as client:
        gate.reset()
        answer = client.request(method, "/refresh/?repository=topics&repository=authros", headers=BEARER)
        assert answer.status_code == 404
        assert "'authros'" in answer.json()["detail"]
        assert "'authors'" in answer.json()["detail"]
        assert gate.loads == 0


# What a failing load answers


def test_get_with_a_failing_load_is_unavailable() -> None:
    """The answer is 503 with the class of the error, and the old rows are served on."""
    gate = Gate()
    topics = gated(gate)
    app = with_token(topics)

    @app.get("/")
    async def index() -> Any:
        return (await topics.current()).response()

    add_topics("kept")
    with serving(app) as client:
        gate.error = OperationalError("host db.internal: the disk is gone")
        answer = client.get("/refresh/", headers=BEARER)
        assert answer.status_code == 503
        assert "OperationalError" in answer.json()["detail"]
        assert "db.internal" not in answer.text
        assert answer.headers["Retry-After"]
        assert [row["comment"] for row in client.get("/").json()["topics"]] == ["kept"]


def test_post_with_a_failing_load_reports_every_repository() -> None:
    """The answer is 503, and tells for each repository whether it was loaded and what is served."""
    gate = Gate()
    add_topics("kept")
    with serving(with_token(gated(gate), Authors)) as client:
        gate.error = OperationalError("host db.internal: the disk is gone")
        Author.objects.create(name="Ayano")
        answer = client.post("/refresh/", headers=BEARER)
    assert answer.status_code == 503
    report = answer.json()
    assert len(report["topics"].pop("workers")["failed"]) == 1
    assert report["topics"] == {
        "rows": 1,
        "version": 1,
        "duration_ms": None,
        "trigger": None,
        "error": "OperationalError",
    }
    assert answer.json()["authors"]["rows"] == 1
    assert answer.json()["authors"]["error"] is None
    assert "db.internal" not in answer.text


def test_a_failing_load_of_no_rows_reports_no_rows() -> None:
    """Rows that were loaded and are none count 0, not nothing."""
    gate = Gate()
    with serving(with_token(gated(gate))) as client:
        gate.error = OperationalError("the disk is gone")
        report = client.post("/refresh/", headers=BEARER).json()["topics"]
        assert (report["rows"], report["version"]) == (0, 1)


# Who may refresh


@METHODS
def test_with_a_token_configured_a_request_without_one_is_refused(method: str, debug: None) -> None:
    """Without the header, or with another scheme, the answer is 401 and says which scheme is wanted."""
    gate = Gate()
    with serving(with_token(gated(gate))) as client:
        gate.reset()
        for headers in ({}, {"Authorization": "Basic b3BlbiBzZXNhbWU="}):
            answer = client.request(method, "/refresh/", headers=headers)
            assert answer.status_code == 401
            assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert gate.loads == 0


@METHODS
@pytest.mark.parametrize("sent", ["wrong", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "ключ"])
def test_a_wrong_token_is_refused(method: str, sent: str, debug: None) -> None:
    """With a token that is not the configured one the answer is 403, and nothing is loaded."""
    gate = Gate()
    with serving(with_token(gated(gate))) as client:
        gate.reset()
        header = {"Authorization": f"Bearer {sent}".encode()}
        assert client.request(method, "/refresh/", headers=header).status_code == 403
        assert gate.loads == 0


@METHODS
def test_the_right_token_is_let_in(method: str) -> None:
    """With the configured token the routes answer although `DEBUG` is off."""
    assert not django_settings.DEBUG
    with serving(with_token()) as client:
        assert client.request(method, "/refresh/", headers=BEARER).status_code == 200


def test_a_token_with_letters_beyond_ascii_is_let_in() -> None:
    """Clients send such a token as UTF-8, and it is compared as that."""
    with serving(application(refresh_token="ключ-ü")) as client:
        for sent, status in [("ключ-ü", 200), ("ключ-u", 403)]:
            header = {"Authorization": f"Bearer {sent}".encode()}
            assert client.get("/refresh/", headers=header).status_code == status


@pytest.mark.parametrize("token", [f"{TOKEN}\n", f"{TOKEN}\r\n", SecretStr(f"{TOKEN}\n")], ids=repr)
def test_a_token_that_ends_in_a_line_feed_is_meant_without(token: Any) -> None:
    """A token that was read from a file is sent without its line feed, which no header can carry."""
    with serving(application(refresh_token=token)) as client:
        assert client.get("/refresh/", headers=BEARER).status_code == 200


@pytest.mark.parametrize("token", [SecretStr(""), SecretStr("\n"), "", " "], ids=repr)
def test_an_empty_token_is_no_token(token: Any) -> None:
    """Nobody may refresh with it, and the answer names the setting."""
    with serving(application(refresh_token=token)) as client:
        for headers in ({}, {"Authorization": "Bearer"}, BEARER):
            answer = client.get("/refresh/", headers=headers)
            assert answer.status_code == 403
            assert "DJANGO_ORM_REFRESH_TOKEN" in answer.json()["detail"]


def test_a_token_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole of both tokens goes to the comparison that does not tell how much of them is equal."""
    compared = []
    compare = secrets.compare_digest

    def spy(one: Any, other: Any) -> bool:
        compared.append({one, other})
        return compare(one, other)

    monkeypatch.setattr(secrets, "compare_digest", spy)
    with serving(with_token()) as client:
        client.get("/refresh/", headers={"Authorization": "Bearer guess"})
        client.get("/refresh/", headers=BEARER)
    assert compared == [{b"guess", TOKEN.encode()}, {TOKEN.encode()}]


def test_who_may_not_refresh_is_not_told_which_repositories_there_are() -> None:
    """The token is asked for before the name is looked up."""
    with serving(with_token()) as client:
        answer = client.get("/refresh/?repository=unknown")
        assert answer.status_code == 401
        assert "topics" not in answer.text


def test_a_refusal_is_logged_without_the_token(logs: list[Any]) -> None:
    """The log says why a request was refused, and holds neither the token nor what was sent."""
    with serving(with_token()) as client:
        client.get("/refresh/")
        client.get("/refresh/", headers={"Authorization": "Bearer guess"})
    refused = events(logs, "refresh_refused")
    assert [(entry["status"], entry["reason"]) for entry in refused] == [
        (401, "no token sent"),
        (403, "wrong token"),
    ]
    assert TOKEN not in str(logs)
    assert "guess" not in str(logs)


@METHODS
def test_without_a_token_refreshing_is_open_under_debug(method: str, debug: None, logs: list[Any]) -> None:
    """While `DEBUG` is on everybody may refresh, and the log warns of it at startup."""
    with serving(application()) as client:
        assert client.request(method, "/refresh/").status_code == 200
    (warning,) = events(logs, "refresh_open_to_all")
    assert warning["log_level"] == "warning"
    assert "DJANGO_ORM_REFRESH_TOKEN" in warning["hint"]


@METHODS
def test_without_a_token_refreshing_is_closed_otherwise(method: str, logs: list[Any]) -> None:
    """While `DEBUG` is off nobody may refresh; the answer and a warning at startup name the setting."""
    gate = Gate()
    with serving(application(gated(gate))) as client:
        gate.reset()
        (warning,) = events(logs, "refresh_closed")
        answer = client.request(method, "/refresh/", headers=BEARER)
        assert answer.status_code == 403
        assert "DJANGO_ORM_REFRESH_TOKEN" in answer.json()["detail"]
        assert gate.loads == 0
    assert warning["log_level"] == "warning"
    assert "DJANGO_ORM_REFRESH_TOKEN" in warning["hint"]


def test_with_a_token_nothing_is_warned_of(logs: list[Any]) -> None:
    """An application with a token, or without the route, starts without a warning."""
    for app in (with_token(), application(refresh_path="off")):
        with serving(app):
            pass
    assert [entry["event"] for entry in logs if entry["log_level"] != "info"] == []


def test_health_is_for_everybody() -> None:
    """The health route wants no token."""
    with serving(with_token()) as client:
        assert client.get("/health/").status_code == 200


# Where the routes are


def test_the_paths_are_settings() -> None:
    """The routes answer at the configured paths and not at the default ones."""
    app = with_token(refresh_path="/internal/reload", health_path="/internal/health")
    with serving(app) as client:
        assert client.get("/internal/reload", headers=BEARER).status_code == 200
        assert client.post("/internal/reload", headers=BEARER).status_code == 200
        assert client.get("/internal/health").status_code == 200
        assert client.get("/refresh/", headers=BEARER).status_code == 404
        assert client.get("/health/").status_code == 404


@pytest.mark.parametrize("setting", ["refresh_path", "health_path"])
def test_off_as_a_path_means_no_route(setting: str) -> None:
    """The route whose path is `off` is neither served nor documented; the other one is."""
    paths = {"refresh_path": "/refresh/", "health_path": "/health/"}
    with serving(with_token(**{setting: "off"})) as client:
        documented = client.get("/openapi.json").json()["paths"]
        absent = paths.pop(setting)
        (present,) = paths.values()
        assert client.get(absent, headers=BEARER).status_code == 404
        assert client.get(present, headers=BEARER).status_code == 200
        assert list(documented) == [present]


async def everything(scope: Any, receive: Any, send: Any) -> None:
    """An ASGI application that answers every path."""
    await PlainTextResponse("mounted")(scope, receive, send)


def test_a_mount_at_the_root_does_not_hide_the_routes() -> None:
    """An application that mounts another at "/" gets the routes nevertheless, and keeps the rest."""
    app = with_token()
    app.mount("/", everything)
    with serving(app) as client:
        assert "topics" in client.get("/refresh/", headers=BEARER).json()
        assert client.get("/health/").json()["status"] == "ok"
        assert client.get("/other/").text == "mounted"


def test_a_path_that_takes_any_name_does_not_hide_the_routes() -> None:
    """A path with a parameter that would match theirs stands behind them."""
    app = with_token()

    @app.get("/{name}/")
    async def named(name: str) -> str:
        return name

    with serving(app) as client:
        assert "topics" in client.get("/refresh/", headers=BEARER).json()
        assert client.get("/other/").json() == "other"


@pytest.mark.parametrize("where", ["application", "included", "included under a prefix"])
def test_a_path_of_the_applications_own_wins(where: str, logs: list[Any]) -> None:
    """A route that the application declares at one of the paths is served, and the log warns of it."""
    app = with_token(health_path="/own/health/")
    router = APIRouter()
    target: Any = app if where == "application" else router

    @target.get("/health/" if where == "included under a prefix" else "/own/health/")
    async def health() -> str:
        return "the application's own"

    if target is router:
        app.include_router(router, prefix="/own" if where == "included under a prefix" else "")
    with serving(app) as client:
        assert client.get("/own/health/").json() == "the application's own"
        assert client.get("/refresh/", headers=BEARER).status_code == 200
        documented = client.get("/openapi.json").json()["paths"]["/own/health/"]["get"]
        assert list(documented["responses"]) == ["200"]
    (warning,) = events(logs, "route_not_added")
    assert warning["log_level"] == "warning"
    assert warning["path"] == "/own/health/"


@pytest.mark.parametrize("methods", [["GET"], ["GET", "POST"]])
def test_a_refresh_of_the_applications_own_is_warned_of_once(
    methods: list[str], debug: None, logs: list[Any]
) -> None:
    """One line says whose route is served and what to set; nothing is said of the route that is not there."""
    app = application()

    @app.api_route("/refresh/", methods=methods)
    async def refresh() -> str:
        return "the application's own"

    with serving(app) as client:
        for method in ("GET", "POST"):
            answer = client.request(method, "/refresh/")
            assert answer.status_code == (200 if method in methods else 405)
        assert client.get("/refresh/").json() == "the application's own"
        assert client.get("/health/").status_code == 200
    (warning,) = [entry for entry in logs if entry["log_level"] == "warning"]
    assert warning["event"] == "route_not_added"
    assert "DJANGO_ORM_REFRESH_PATH" in warning["hint"]


def test_a_refusal_of_a_method_names_all_that_there_are() -> None:
    """405 has the methods of the path in `Allow`, and not those of one route."""
    with serving(with_token()) as client:
        for method in ("PUT", "HEAD", "OPTIONS"):
            answer = client.request(method, "/refresh/", headers=BEARER)
            assert answer.status_code == 405
            assert answer.headers["Allow"] == "GET, POST"
        answer = client.post("/health/")
        assert (answer.status_code, answer.headers["Allow"]) == (405, "GET, HEAD")


def test_health_answers_head_without_a_body() -> None:
    """The status and the headers are those of GET."""
    with serving(application()) as client:
        get, head = client.get("/health/"), client.head("/health/")
        assert (head.status_code, head.content) == (get.status_code, b"") == (200, b"")
        assert head.headers["Content-Type"] == get.headers["Content-Type"]


def test_the_routes_pass_the_applications_middleware() -> None:
    """What the application does to every response it does to these."""
    app = with_token()

    @app.middleware("http")
    async def mark(request: Any, call_next: Any) -> Any:
        response = await call_next(request)
        response.headers["X-Seen"] = request.url.path
        return response

    with serving(app) as client:
        assert client.get("/refresh/", headers=BEARER).headers["X-Seen"] == "/refresh/"
        assert client.get("/health/").headers["X-Seen"] == "/health/"


# How they are documented


def schema(document: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    """The schema of an answer, references followed."""
    found = answer["content"]["application/json"]["schema"]
    return resolved(document, found)


def resolved(document: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in found:
        return document["components"]["schemas"][found["$ref"].rsplit("/", 1)[-1]]  # type: ignore[no-any-return]
    return found


def test_the_routes_are_documented_with_what_they_answer() -> None:
    """The OpenAPI document has all three, with the models of their answers, good and bad."""
    with serving(with_token()) as client:
        document = client.get("/openapi.json").json()
        assert client.get("/docs").status_code == 200
    get, post = document["paths"]["/refresh/"]["get"], document["paths"]["/refresh/"]["post"]
    health = document["paths"]["/health/"]["get"]

    rows = schema(document, get["responses"]["200"])["additionalProperties"]
    assert (rows["type"], rows["items"]["type"]) == ("array", "object")
    for status in ("200", "503"):
        report = resolved(document, schema(document, post["responses"][status])["additionalProperties"])
        assert set(report["properties"]) == {"rows", "version", "duration_ms", "trigger", "error", "workers"}
        state = schema(document, health["responses"][status])
        assert set(state["properties"]) == {
            "status",
            "databases",
            "repositories",
            "transports",
            "not_taken",
        }
        repository = resolved(document, state["properties"]["repositories"]["additionalProperties"])
        assert set(repository["properties"]) == {"rows", "version", "age", "stale", "error", "unheard"}
    parameters = [{parameter["name"] for parameter in each["parameters"]} for each in (get, post)]
    assert parameters == [{"repository", "wait"}, {"repository", "wait", "model"}]
    assert {"202", "413", "504"} <= set(post["responses"])
    for operation in (get, post):
        assert {"401", "403", "404", "503"} <= set(operation["responses"])
        (scheme,) = operation["security"][0]
        assert document["components"]["securitySchemes"][scheme]["scheme"] == "bearer"
    assert "security" not in health


class Health(BaseModel):
    pulse: int


class Workers(BaseModel):
    names: list[str]


class RefreshReport(BaseModel):
    rows: int


def test_the_applications_models_keep_their_names() -> None:
    """FastAPI renames both models where two have one name, so the plugin's have names of their own."""
    own = (Health, Workers, RefreshReport)
    app = with_token()
    for model in own:
        app.post(f"/{model.__name__}/", response_model=model)(lambda: None)
    security = HTTPBearer(description="the application's own")
    app.get("/secret/", dependencies=[Depends(security)])(lambda: None)
    with serving(app) as client:
        components = client.get("/openapi.json").json()["components"]
    for model in own:
        assert components["schemas"][model.__name__]["title"] == model.__name__
        assert set(components["schemas"][model.__name__]["properties"]) == set(model.model_fields)
    assert components["securitySchemes"]["HTTPBearer"]["description"] == "the application's own"


def test_the_routes_stand_last_under_a_tag_of_their_own() -> None:
    """In the document the application's own routes come first, also before a mount that takes everything."""
    app = with_token()
    app.get("/own/")(lambda: None)
    app.mount("/", everything)
    with serving(app) as client:
        paths = client.get("/openapi.json").json()["paths"]
        assert client.get("/health/").json()["status"] == "ok"
    assert list(paths) == ["/own/", "/refresh/", "/health/"]
    assert [operation["tags"] for operation in paths["/refresh/"].values()] == [["django-orm"]] * 2
    assert list(paths["/health/"]) == ["get"]


def test_the_routes_need_not_be_documented() -> None:
    """With `include_in_schema` off they answer and are not in the document."""
    with serving(with_token(include_in_schema=False)) as client:
        assert client.get("/openapi.json").json()["paths"] == {}
        assert client.get("/refresh/", headers=BEARER).status_code == 200
        assert client.get("/health/").status_code == 200


def test_a_document_that_was_made_early_is_made_again() -> None:
    """An application that asks for its OpenAPI document before it starts has the routes in it afterwards."""
    app = with_token()
    assert app.openapi()["paths"] == {}
    with serving(app) as client:
        assert set(client.get("/openapi.json").json()["paths"]) == {"/refresh/", "/health/"}


def test_the_routes_go_when_the_application_ends() -> None:
    """After the shutdown the application is as it was, and a second start adds the routes once."""
    app = with_token()

    @app.get("/")
    async def index() -> str:
        return "own"

    before = list(app.routes)
    for _ in range(2):
        with serving(app) as client:
            assert list(client.get("/openapi.json").json()["paths"]) == ["/", "/refresh/", "/health/"]
            assert client.get("/refresh/", headers=BEARER).status_code == 200
        assert list(app.routes) == before
        assert list(app.openapi()["paths"]) == ["/"]


def test_the_routes_go_when_the_application_ends_with_routes_of_its_own_added_later() -> None:
    """What the application has added while it ran stays."""
    app = with_token()
    with serving(app) as client:

        @app.get("/late/")
        async def late() -> str:
            return "late"

        assert client.get("/late/").json() == "late"
    assert list(app.openapi()["paths"]) == ["/late/"]


def test_topics_are_written_between_two_requests() -> None:
    """Every refresh reads again: a deleted row is gone from the next answer."""
    add_topics("one", "two")
    with serving(with_token()) as client:
        assert len(client.get("/refresh/", headers=BEARER).json()["topics"]) == 2
        Topic.objects.filter(comment="one").delete()
        assert len(client.get("/refresh/", headers=BEARER).json()["topics"]) == 1
