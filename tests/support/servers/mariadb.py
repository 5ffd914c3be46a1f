"""MariaDB for the tests, from the `mariadbd` of the operating system.

No package on the index brings a MariaDB server, so these tests skip where it is not installed.
"""

import os
import shutil
import time
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import pymysql
from pymysql.cursors import Cursor

from .base import Server

# Debian keeps server programs in a folder that is not in an ordinary user's PATH.
_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
_NEEDED = ("mariadbd", "mariadb-install-db")


class MariaDB(Server):
    """A MariaDB server whose `root` has no password; `TEST_MARIADB_URL` replaces it."""

    name = "MariaDB"
    variable = "TEST_MARIADB_URL"

    def url(self, database: str | None = None) -> str:
        """Return `mysql://user@host:port/database`."""
        base = self.external or f"mysql://root@127.0.0.1:{self.port}/mysql"
        if database is None:
            return base
        return urlunsplit(urlsplit(base)._replace(path=f"/{database}"))

    def create_database(self, name: str) -> str:
        """Create an empty database and return its URL."""
        self._query(f"CREATE DATABASE {_quote(name)} CHARACTER SET utf8mb4")
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Drop a database if it exists."""
        self._query(f"DROP DATABASE IF EXISTS {_quote(name)}")

    def connections(self, database: str) -> int:
        """Count the clients connected to a database, without the one that asks."""
        return len(self._clients(database))

    def in_transaction(self, database: str) -> int:
        """Count the clients that left a transaction open and do nothing in it.

        InnoDB knows of a transaction from its first statement on a table, and answers from a copy
        that it renews only when nobody has read it for 0.1 s: who asks more often sees the past.
        """
        time.sleep(0.15)
        rows = self._query(
            "SELECT p.ID FROM information_schema.PROCESSLIST p"
            " JOIN information_schema.INNODB_TRX t ON t.trx_mysql_thread_id = p.ID"
            " WHERE p.DB = %s AND p.COMMAND = 'Sleep'",
            database,
        )
        return len(rows)

    def terminate_backends(self, database: str) -> int:
        """Disconnect every client of a database and return how many there were."""
        clients = self._clients(database)
        for client in clients:
            try:
                self._query("KILL CONNECTION %s", client)
            except pymysql.err.OperationalError as error:
                if error.args[0] != pymysql.constants.ER.NO_SUCH_THREAD:
                    raise
        return len(clients)

    @classmethod
    def _missing(cls) -> str | None:
        missing = [name for name in _NEEDED if shutil.which(name, path=_PATH) is None]
        if not missing:
            return None
        return (
            f"MariaDB is not here ({', '.join(missing)} not found):"
            f" install mariadb-server or set {cls.variable}."
        )

    def _initialise(self) -> None:
        self._run(
            [
                _program("mariadb-install-db"),
                "--no-defaults",
                f"--datadir={self.directory / 'data'}",
                f"--tmpdir={self.directory}",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
                "--innodb-log-file-size=8M",
            ]
        )

    def _command(self) -> list[str]:
        return [
            _program("mariadbd"),
            # First, or the settings of the machine's own server apply.
            "--no-defaults",
            f"--datadir={self.directory / 'data'}",
            f"--tmpdir={self.directory}",
            f"--socket={self.directory / 'socket'}",
            f"--pid-file={self.directory / 'pid'}",
            "--bind-address=127.0.0.1",
            f"--port={self.port}",
            "--skip-networking=0",
            "--skip-name-resolve",
            "--max-connections=150",
            "--character-set-server=utf8mb4",
            "--default-time-zone=+00:00",
            # A killed server must find every commit again, a machine that lost its power need not:
            # commits are written to the operating system and not forced to the disk.
            "--innodb-flush-log-at-trx-commit=2",
            "--innodb-buffer-pool-size=32M",
            "--innodb-log-file-size=8M",
            "--performance-schema=off",
        ]

    def _ping(self) -> bool:
        try:
            self._query("SELECT 1")
        except pymysql.err.OperationalError:
            return False
        return True

    def _clients(self, database: str) -> list[int]:
        rows = self._query(
            "SELECT ID FROM information_schema.PROCESSLIST WHERE DB = %s AND ID <> CONNECTION_ID()",
            database,
        )
        return [int(row[0]) for row in rows]

    def _query(self, statement: str, *arguments: object) -> tuple[tuple[Any, ...], ...]:
        parts = urlsplit(self.url())
        connection = pymysql.connect(
            host=parts.hostname or "127.0.0.1",
            port=parts.port or 3306,
            user=unquote(parts.username or "root"),
            password=unquote(parts.password or ""),
            autocommit=True,
            connect_timeout=5,
            read_timeout=self.deadline,
            write_timeout=self.deadline,
        )
        with connection, connection.cursor(Cursor) as cursor:
            cursor.execute(statement, arguments or None)
            return tuple(cursor.fetchall())


def _program(name: str) -> str:
    path = shutil.which(name, path=_PATH)
    assert path is not None
    return path


def _quote(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"
