"""What a peer is: a module in `peers/`, and for those that answer requests, what serves it."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Literal

FASTAPI = ("fastapi", "pydantic", "uvicorn", "django")

Server = Literal["uvicorn", "gunicorn", "bolt"]


@dataclass(frozen=True)
class Way:
    """One way to do it: the module in `peers/` and what it is made of."""

    name: str
    module: str
    says: str
    packages: tuple[str, ...] = FASTAPI
    settings: dict[str, str] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        """Return what this one needs besides the database's URL."""
        return {"DJANGO_SETTINGS_MODULE": "benchmarks.project.settings", **self.settings}


@dataclass(frozen=True)
class Peer(Way):
    """A way to answer requests.

    Attributes:
        server: what serves it.
        urls: whether the module is a Django URLconf.
        kinds: which kinds of cells it takes part in; by default those of its part that are for all.
        apps: for each kind that has an application of its own in the module, that one's name.
        paths: for each kind that it answers under a path of its own, that path.
        beside: a peer that it is compared with as well, in a line below the table.
        http: uvicorn's ``--http``.
    """

    server: Server = "uvicorn"
    urls: bool = False
    kinds: tuple[str, ...] = ()
    apps: dict[str, str] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)
    beside: str = ""
    http: str = "httptools"

    def command(self, port: int, kind: str) -> list[str]:
        """Return the command that serves this peer on a local port."""
        app = f"{self.module}:{self.apps.get(kind, 'app')}"
        return [sys.executable, "-m", *SERVERS[self.server](app, str(port), self.http)]

    def environment(self) -> dict[str, str]:
        """Return what this peer needs besides the database's URL."""
        names = super().environment()
        if self.server == "bolt":
            return {**names, "BENCHMARK_BOLT_API": f"{self.module}:api"}
        return {**names, "BENCHMARK_URLCONF": self.module} if self.urls else names


def uvicorn(app: str, port: str, http: str) -> list[str]:
    """One worker, uvloop, no access log."""
    return (
        f"uvicorn {app} --host 127.0.0.1 --port {port} --loop uvloop --http {http} "
        "--no-access-log --log-level warning"
    ).split()


def gunicorn(app: str, port: str, _: str) -> list[str]:
    """One worker with 8 threads; clients keep their connections, which sync workers cannot do."""
    return (
        f"gunicorn {app} --bind 127.0.0.1:{port} --workers 1 --worker-class gthread --threads 8 "
        "--keep-alive 75 --log-level warning"
    ).split()


def bolt(app: str, port: str, _: str) -> list[str]:
    """Start django-bolt's own server, one process; it finds the API through `BOLT_API`."""
    return f"django runbolt --host 127.0.0.1 --port {port} --processes 1 --no-admin".split()


SERVERS = {"uvicorn": uvicorn, "gunicorn": gunicorn, "bolt": bolt}
