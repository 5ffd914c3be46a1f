"""Where a run takes place: the database, the broker if there is one, the environment of all processes."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.servers import MariaDB, PostgreSQL, Valkey

ROOT = Path(__file__).resolve().parents[2]
NAME = "soak"  # of the database


@dataclass(frozen=True, slots=True)
class Place:
    """One.

    Attributes:
        variables: the settings of every process, writers and workers alike.
        pool: whether half of the writers may use a pool of connections.
        postgresql: the server, where faults cut connections.
        valkey: the server, where faults restart it.
    """

    variables: dict[str, str]
    pool: bool = False
    postgresql: PostgreSQL | None = None
    valkey: Valkey | None = None

    def environment(self, **variables: str) -> dict[str, str]:
        """A process's: nothing of the caller's own Django gets in."""
        foreign = ("DJANGO_", "PGOPTIONS", "SOAK_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        return {**kept, "PYTHONPATH": str(ROOT), **self.variables, **variables}


@contextmanager
def on_postgresql(server: PostgreSQL, valkey: Valkey | None = None) -> Iterator[Place]:
    """A database that tells of its writes by itself; with a broker, by which workers share loads."""
    server.drop_database(NAME)
    try:
        variables = _variables(server.create_database(NAME))
        if valkey is not None:
            variables["DJANGO_ORM_SHARED"] = valkey.url(1)
        yield Place(variables, pool=True, postgresql=server, valkey=valkey)
    finally:
        server.drop_database(NAME)


@contextmanager
def on_sqlite() -> Iterator[Place]:
    """A file."""
    with tempfile.TemporaryDirectory(prefix="soak-") as directory:
        yield Place(_variables(f"sqlite:///{directory}/soak.sqlite3"))


@contextmanager
def on_mariadb(server: MariaDB, valkey: Valkey) -> Iterator[Place]:
    """A database that tells nobody, and a broker for what Django tells, by which workers also share loads."""
    server.drop_database(NAME)
    try:
        variables = _variables(server.create_database(NAME), valkey.url(0))
        yield Place({**variables, "DJANGO_ORM_SHARED": valkey.url(1)}, valkey=valkey)
    finally:
        server.drop_database(NAME)


@contextmanager
def servers_for(database: str, *, shared: bool = False) -> Iterator[Place]:
    """A place with servers of its own.

    Args:
        database: ``postgresql``, ``sqlite`` or ``mariadb``.
        shared: whether workers share loads on PostgreSQL as well.

    Raises:
        ServerError: one of them is not here, or does not start.
    """
    with ExitStack() as stack:
        if database == "postgresql":
            valkey = stack.enter_context(Valkey()) if shared else None
            yield stack.enter_context(on_postgresql(stack.enter_context(PostgreSQL()), valkey))
        elif database == "mariadb":
            servers = stack.enter_context(MariaDB()), stack.enter_context(Valkey())
            yield stack.enter_context(on_mariadb(*servers))
        else:
            yield stack.enter_context(on_sqlite())


def _variables(url: str, coherence: str = "auto") -> dict[str, str]:
    return {
        "SOAK_DATABASE_URL": url,
        "DJANGO_SETTINGS_MODULE": "tests.soak.project.settings",
        "DJANGO_ORM_COHERENCE": coherence,
        "DJANGO_ORM_REFRESH_PATH": "",  # nobody calls it
    }
