"""The health route: does the database answer, and how fresh is what is served."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
from django.conf import settings as django_settings
from django.db import OperationalError, connections
from fastapi import FastAPI
from structlog.testing import capture_logs

from fastapi_django_orm import CachedRepository, DjangoORM, ORMSettings
from tests.conftest import add_database
from tests.project import router
from tests.project.board.models import Author
from tests.support.gates import Gate, add_topics, gated
from tests.support.servers import PostgreSQL, TCPProxy
from tests.support.serving import serving

SECRET = "user root, password hunter2"


class Authors(CachedRepository):
    model = "board.Author"


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[Any]]:
    """What is logged, instead of the output."""
    with capture_logs() as entries:
        yield entries


def application(*repositories: type[Any], **settings: Any) -> FastAPI:
    plugin = DjangoORM(ORMSettings(refresh_token="token", **settings), repositories=repositories)
    app = FastAPI(lifespan=plugin.lifespan)

    @app.get("/")
    async def index() -> Any:
        return (await repositories[0].current()).response()

    return app


def refresh(client: Any) -> int:
    """Ask for a refresh; the status of the answer."""
    return client.post("/refresh/", headers={"Authorization": "Bearer token"}).status_code  # type: ignore[no-any-return]


# How fresh


def test_an_application_with_fresh_rows_is_ok(database: str) -> None:
    """The answer is 200, and tells rows, version and age of each repository and that the database answers."""
    add_topics("one", "two")
    with serving(application(gated(Gate()), Authors)) as client:
        answer = client.get("/health/")
    assert answer.status_code == 200
    health = answer.json()
    assert health["status"] == "ok"
    assert health["databases"] == dict.fromkeys({"default", database}, True)
    assert health["repositories"]["topics"].pop("age") >= 0
    assert health["repositories"]["topics"] == {
        "rows": 2,
        "version": 1,
        "stale": False,
        "error": None,
        "unheard": None,
    }
    assert health["repositories"]["authors"]["rows"] == 0
    assert health["repositories"]["authors"]["stale"] is False


def test_the_version_and_the_age_are_those_of_the_last_load(sqlite: str) -> None:
    """The age grows, and a refresh begins a new version and a new age."""
    with serving(application(gated(Gate()))) as client:
        ages = [client.get("/health/").json()["repositories"]["topics"]["age"] for _ in range(3)]
        assert ages == sorted(ages)
        assert refresh(client) == 200
        assert client.get("/health/").json()["repositories"]["topics"]["version"] == 2


def test_an_application_without_repositories_tells_about_its_database(sqlite: str) -> None:
    """The default database is asked even if no repository reads it."""
    with serving(application()) as client:
        answer = client.get("/health/")
        assert answer.status_code == 200
        assert answer.json() == {
            "status": "ok",
            "databases": {"default": True},
            "repositories": {},
            "transports": {},
            "not_taken": {},
        }


def test_a_failed_refresh_degrades_until_one_succeeds(sqlite: str) -> None:
    """The rows are stale and served, which is 200; the error's class is told, never its text."""
    gate = Gate()
    add_topics("kept")
    with serving(application(gated(gate), Authors)) as client:
        gate.error = OperationalError(SECRET)
        assert refresh(client) == 503
        answer = client.get("/health/")
        assert answer.status_code == 200
        assert answer.json()["status"] == "degraded"
        topics = answer.json()["repositories"]["topics"]
        assert (topics["rows"], topics["version"], topics["stale"]) == (1, 1, True)
        assert topics["error"] == "OperationalError"
        assert answer.json()["repositories"]["authors"]["stale"] is False
        assert not any(word in answer.text for word in ("root", "hunter2"))

        gate.error = None
        assert refresh(client) == 200
        answer = client.get("/health/")
        assert answer.json()["status"] == "ok"
        assert answer.json()["repositories"]["topics"]["error"] is None


def test_rows_older_than_max_age_are_stale(sqlite: str) -> None:
    """While the load that is due has not ended, the application is degraded, without an error."""
    gate = Gate()
    with serving(application(gated(gate, max_age=timedelta(milliseconds=20)))) as client:
        gate.close()
        gate.reset()
        gate.wait_for_load()
        answer = client.get("/health/")
        gate.open()
    assert answer.status_code == 200
    assert answer.json()["status"] == "degraded"
    assert answer.json()["repositories"]["topics"]["stale"] is True
    assert answer.json()["repositories"]["topics"]["error"] is None


def test_rows_younger_than_max_age_are_not_stale(sqlite: str) -> None:
    """A repository with a `max_age` that has not passed is fresh."""
    with serving(application(gated(Gate(), max_age=timedelta(hours=1)))) as client:
        assert client.get("/health/").json()["status"] == "ok"


def test_an_application_without_rows_is_unavailable(sqlite: str) -> None:
    """Before a first load has succeeded the answers of health and of what reads the rows are 503."""
    gate = Gate()
    gate.error = OperationalError(SECRET)
    with serving(application(gated(gate), startup="retry")) as client:
        answer = client.get("/health/")
        assert answer.status_code == 503
        assert answer.json()["status"] == "unavailable"
        assert answer.json()["databases"] == {"default": True}
        assert answer.json()["repositories"]["topics"] == {
            "rows": None,
            "version": None,
            "age": None,
            "stale": True,
            "error": "OperationalError",
            "unheard": None,
        }
        assert "hunter2" not in answer.text
        assert client.get("/").status_code == 503

        gate.error = None
        assert refresh(client) == 200
        assert client.get("/health/").status_code == 200
        assert client.get("/").status_code == 200


# Whether the database answers


@pytest.fixture(scope="module")
def proxied(postgresql: PostgreSQL) -> Iterator[TCPProxy]:
    """A proxy in front of a database that Django knows as `proxied`."""
    url = urlsplit(postgresql.create_database("proxied"))
    with TCPProxy(url.hostname or "127.0.0.1", url.port or 5432) as proxy:
        user = f"{url.username}{':' + url.password if url.password else ''}"
        address = f"{user}@{proxy.host}:{proxy.port}"
        add_database("proxied", urlunsplit(url._replace(netloc=address)))
        router.choose("default")
        yield proxy
    connections.close_all()
    del django_settings.DATABASES["proxied"]
    connections.__dict__.pop("settings", None)
    connections._settings = None


@pytest.fixture
def network(proxied: TCPProxy, sqlite: str) -> Iterator[TCPProxy]:
    """The same, chosen for the queries of this test; it works when the test begins."""
    router.choose("proxied")
    yield proxied
    proxied.resume()


def test_a_database_that_is_down_makes_unavailable(network: TCPProxy) -> None:
    """The answer is 503 and names the database, the rows are served on, and 200 comes back with it."""
    with serving(application(gated(Gate()))) as client:
        assert client.get("/health/").json()["databases"] == {"default": True, "proxied": True}
        network.refuse()
        network.reset()
        answer = client.get("/health/")
        assert answer.status_code == 503
        assert answer.json()["status"] == "unavailable"
        assert answer.json()["databases"] == {"default": True, "proxied": False}
        assert answer.json()["repositories"]["topics"]["stale"] is False
        assert str(network.port) not in answer.text
        assert client.get("/").status_code == 200

        network.resume()
        answer = client.get("/health/")
        while answer.status_code == 503:  # each connection that the reset has broken may fail once
            answer = client.get("/health/")
        assert answer.json()["databases"] == {"default": True, "proxied": True}


def test_a_database_that_hangs_makes_unavailable(network: TCPProxy) -> None:
    """Every request is answered although the database is silent, and together they occupy one thread."""
    app = application(gated(Gate()), threads=2)

    @app.get("/authors/")
    async def count() -> int:
        return await Author.objects.using("default").acount()

    with serving(app) as client, ThreadPoolExecutor(4) as visitors:
        network.black_hole()
        for answer in visitors.map(client.get, ["/health/"] * 4):
            assert answer.status_code == 503
            assert answer.json()["databases"] == {"default": True, "proxied": False}
        assert client.get("/health/").status_code == 503
        assert client.get("/authors/").json() == 0
        assert client.get("/").status_code == 200

        network.resume()
        answer = client.get("/health/")
        assert answer.status_code == 200
