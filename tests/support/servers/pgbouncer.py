"""PgBouncer for the tests, where it is installed: what stands before many a PostgreSQL."""

import shutil
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

import psycopg

from .base import Server

_PATH = "/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin"


class PgBouncer(Server):
    """A PgBouncer in transaction mode in front of one database.

    Args:
        target: The database's URL.
    """

    name = "PgBouncer"
    variable: ClassVar[str] = "TEST_PGBOUNCER_URL"

    def __init__(self, target: str) -> None:
        super().__init__()
        self._target = urlsplit(target)

    @property
    def database(self) -> str:
        """The database's name."""
        return self._target.path.lstrip("/")

    def url(self) -> str:
        """Return the URL that leads through PgBouncer."""
        return f"postgres://{self._target.username}@127.0.0.1:{self.port}/{self.database}"

    @classmethod
    def _missing(cls) -> str | None:
        return None if _program() else "PgBouncer is not here: install the system package pgbouncer."

    def _command(self) -> list[str]:
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "any",
            "pool_mode": "transaction",
            "ignore_startup_parameters": "extra_float_digits,options",
        }
        target = f"host={self._target.hostname} port={self._target.port} user={self._target.username}"
        lines = ["[databases]", f"{self.database} = {target}", "[pgbouncer]"]
        lines += [f"{name} = {value}" for name, value in settings.items()]
        file = self.directory / "pgbouncer.ini"
        file.write_text("\n".join(lines))
        file.chmod(0o644)
        return [str(_program()), str(file)]

    def _ping(self) -> bool:
        try:
            with psycopg.connect(
                self.url(), autocommit=True, connect_timeout=5, prepare_threshold=None
            ) as it:
                it.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True


def _program() -> Path | None:
    found = shutil.which("pgbouncer", path=_PATH)
    return Path(found) if found else None
