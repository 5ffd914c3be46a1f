"""Django, set up once for the test process, and the databases that its tests run on."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

os.environ["DJANGO_SETTINGS_MODULE"] = "tests.project.settings"
for name in [name for name in os.environ if name.startswith("DJANGO_ORM_")]:
    del os.environ[name]  # what a developer has exported is not what the tests are about
os.environ["DJANGO_ORM_COHERENCE"] = "off"  # most tests say themselves when to load

import dj_database_url
import django
import hypothesis
import pymysql
import redis
import structlog
from django.apps import apps
from django.conf import settings
from django.core.management import call_command
from django.db import connections

from tests.project import router
from tests.support.databases import BOARD, default_changed, set_default
from tests.support.interpreter import Interpreter
from tests.support.projects import PUBLISHING, Project
from tests.support.servers import MariaDB, PostgreSQL, Server, Valkey

pymysql.install_as_MySQLdb()
django.setup()

# On a busy machine an example may take any time.
hypothesis.settings.register_profile(
    "no clock", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("no clock")


def pytest_report_header() -> str:
    """Name what decides the result."""
    return f"django {django.__version__}"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int | None:
    """Run in one process where servers are named by the environment: tests empty them and change them."""
    servers = (PostgreSQL, MariaDB, Valkey)
    return 0 if any(os.environ.get(server.variable) for server in servers) else None


# What a test that needs a server has among its fixtures or parameters, and files whose tests start servers.
SERVERS = frozenset({"postgresql", "mariadb", "valkey", "mortal", "board", "server", "triggers"})
ABOUT_SERVERS = frozenset({"test_servers.py", "test_soak.py"})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need a server, so that `-m "not server"` leaves them out."""
    for item in items:
        assert isinstance(item, pytest.Function)
        parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
        needed = {*item.fixturenames, *(value for value in parameters if isinstance(value, str))}
        if needed & SERVERS or item.path.name in ABOUT_SERVERS:
            item.add_marker("server")


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    yield from _server(PostgreSQL)


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDB]:
    yield from _server(MariaDB)


@pytest.fixture(scope="session")
def _valkey() -> Iterator[Valkey]:
    yield from _server(Valkey)


@pytest.fixture
def valkey(_valkey: Valkey) -> Iterator[Valkey]:
    """An empty Valkey that a test may kill."""
    with redis.Redis.from_url(_valkey.url()) as client:
        client.flushall()
    yield _valkey
    if _valkey.pid is None:
        _valkey.start()


def _server(kind: type[Any]) -> Iterator[Any]:
    if reason := kind.unavailable():
        pytest.skip(reason)
    with kind() as server:
        yield server


@pytest.fixture(scope="session", autouse=True)
def _sqlite_tables() -> Iterator[None]:
    call_command("migrate", verbosity=0, run_syncdb=True)
    connections.close_all()
    yield
    settings.DIRECTORY.cleanup()


def add_database(alias: str, url: str, **options: Any) -> None:
    """Make a server's database known to Django under an alias, with the tables of the test project."""
    settings.DATABASES[alias] = dj_database_url.parse(url, conn_max_age=None)
    settings.DATABASES[alias].update(options)
    connections.__dict__.pop("settings", None)  # a cached property; Django's own tests do the same
    connections._settings = None
    router.choose(alias)
    call_command("migrate", verbosity=0, run_syncdb=True, database=alias)
    connections.close_all()


@pytest.fixture(scope="session")
def _databases(request: pytest.FixtureRequest) -> Any:
    known: dict[str, Server] = {}

    def need(kind: str) -> str:
        if kind != "sqlite" and kind not in known:
            known[kind] = server = request.getfixturevalue(kind)
            add_database(kind, server.create_database(BOARD))
        return "default" if kind == "sqlite" else kind

    return need


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def database(request: pytest.FixtureRequest, _databases: Any) -> Iterator[str]:
    """Each kind of database in turn, with empty tables. Its alias."""
    yield from _chosen(_databases(request.param))


@pytest.fixture
def sqlite(_databases: Any) -> Iterator[str]:
    """SQLite with empty tables. Its alias."""
    yield from _chosen(_databases("sqlite"))


def _chosen(alias: str) -> Iterator[str]:
    router.choose(alias)
    for model in apps.get_app_config("board").get_models():
        model._default_manager.using(alias).all().delete()
    yield alias
    connections.close_all()
    router.choose("default")


@pytest.fixture(autouse=True)
def _structlog_as_it_was() -> Iterator[None]:
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.fixture(scope="session")
def interpreter() -> Iterator[Interpreter]:
    with Interpreter() as interpreter:
        yield interpreter


@pytest.fixture
def project(tmp_path: Path, interpreter: Interpreter) -> Project:
    """A Django project of its own with ``main.py``, for code that runs in processes of its own."""
    return Project(tmp_path, interpreter)


@pytest.fixture
def published_project(project: Project) -> Project:
    """The same, whose ``main.py`` publishes the topics and has nothing else."""
    project.write("main.py", PUBLISHING)
    return project


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def default_database(request: pytest.FixtureRequest, _databases: Any) -> Iterator[str]:
    """Each kind of database in turn as the alias `default`, with empty tables. Its kind."""
    alias = _databases(request.param)
    before = settings.DATABASES["default"]
    set_default(settings.DATABASES[alias])
    for _ in _chosen("default"):
        yield request.param
    set_default(before)


@pytest.fixture(scope="session")
def _mortal_servers() -> Iterator[Any]:
    with ExitStack() as stack:
        started: dict[str, Server] = {}

        def start(name: str) -> Server:
            kind = {"postgresql": PostgreSQL, "mariadb": MariaDB}[name]
            if name not in started:
                if reason := kind.unavailable():
                    pytest.skip(reason)
                started[name] = server = stack.enter_context(kind())
                with default_changed(migrate=True, **dj_database_url.parse(server.create_database(BOARD))):
                    pass
            return started[name]

        yield start


@pytest.fixture(params=["postgresql", "mariadb"])
def mortal(request: pytest.FixtureRequest, _mortal_servers: Any) -> Iterator[Any]:
    """A server of each kind in turn that a test may kill, with the tables, as Django's `default`."""
    server = _mortal_servers(request.param)
    if server.pid is None:
        server.start()
    with default_changed(**dj_database_url.parse(server.url(BOARD), conn_max_age=None)):
        for _ in _chosen("default"):
            yield server
            if server.pid is None:
                server.start()
