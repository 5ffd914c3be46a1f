"""Which peers there are, and how each one's documentation says to serve it on one processor."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Literal

Part = Literal["cached", "live"]
Server = Literal["uvicorn", "gunicorn", "bolt"]

FASTAPI = ("fastapi", "pydantic", "uvicorn", "django")
NINJA = ("django-ninja", "pydantic", "django")

# Keep connections under WSGI, and here; under ASGI leave them to the driver's pool:
# https://docs.djangoproject.com/en/stable/ref/databases/#persistent-connections
PERSISTENT = {"BENCHMARK_CONN_MAX_AGE": "600"}
POOL = {"BENCHMARK_POOL": "8"}


@dataclass(frozen=True)
class Peer:
    """One way to answer: the module in `peers/`, what serves it and what it is made of."""

    name: str
    module: str
    says: str
    packages: tuple[str, ...] = FASTAPI
    server: Server = "uvicorn"
    urls: bool = False  # the module is a Django URLconf
    settings: dict[str, str] = field(default_factory=dict)

    def command(self, port: int) -> list[str]:
        """Return the command that serves this peer on a local port."""
        return [sys.executable, "-m", *SERVERS[self.server](f"{self.module}:app", str(port))]

    def environment(self) -> dict[str, str]:
        """Return what this peer needs besides the database's URL."""
        names = {"DJANGO_SETTINGS_MODULE": "benchmarks.project.settings", **self.settings}
        if self.server == "bolt":
            return {**names, "BENCHMARK_BOLT_API": f"{self.module}:api"}
        return {**names, "BENCHMARK_URLCONF": self.module} if self.urls else names


def uvicorn(app: str, port: str) -> list[str]:
    """One worker, uvloop, httptools, no access log."""
    return (
        f"uvicorn {app} --host 127.0.0.1 --port {port} --loop uvloop --http httptools "
        "--no-access-log --log-level warning"
    ).split()


def gunicorn(app: str, port: str) -> list[str]:
    """One worker with 8 threads; clients keep their connections, which sync workers cannot do."""
    return (
        f"gunicorn {app} --bind 127.0.0.1:{port} --workers 1 --worker-class gthread --threads 8 "
        "--keep-alive 75 --log-level warning"
    ).split()


def bolt(app: str, port: str) -> list[str]:
    """Start django-bolt's own server, one process; it finds the API through `BOLT_API`."""
    return f"django runbolt --host 127.0.0.1 --port {port} --processes 1 --no-admin".split()


SERVERS = {"uvicorn": uvicorn, "gunicorn": gunicorn, "bolt": bolt}

GUNICORN = ("gunicorn",)
BOLT = ("django-bolt", "msgspec", "django")
OURS = ("fastapi-django-orm", *FASTAPI)

C = "benchmarks.peers.cached"
L = "benchmarks.peers.live"

# The first peer of each part is the limit, 1.00.
PEERS: dict[Part, tuple[Peer, ...]] = {
    "cached": (
        Peer("raw", f"{C}.raw", "ASGI callable, prebuilt bytes: the limit", ("uvicorn",)),
        Peer("ours", f"{C}.ours", "handler, `topics.response()`", OURS),
        Peer("fastapi_bytes", f"{C}.fastapi_bytes", "handler, bytes, async dependency"),
        Peer("fastapi_def_dependency", f"{C}.fastapi_def_dependency", "… with a `def` dependency"),
        Peer("article", f"{C}.article", "global list, encoded in each request"),
        Peer("fastapi_response_model", f"{C}.fastapi_response_model", "handler, response model"),
        Peer(
            "fastapi_cache2",
            f"{C}.fastapi_cache2",
            "`@cache`, in memory",
            ("fastapi-cache2", *FASTAPI),
        ),
        Peer(
            "ninja_sync",
            f"{C}.ninja_sync",
            "gunicorn, `cache_page`",
            NINJA + GUNICORN,
            "gunicorn",
            urls=True,
        ),
        Peer(
            "drf",
            f"{C}.drf",
            "gunicorn, `cache_page`",
            ("djangorestframework", "django", *GUNICORN),
            "gunicorn",
            urls=True,
        ),
        Peer("bolt", f"{C}.bolt", "own server, list encoded in each request", BOLT, "bolt"),
    ),
    "live": (
        Peer(
            "asyncpg_raw",
            f"{L}.asyncpg_raw",
            "Starlette, asyncpg pool of 8, orjson: the limit",
            ("starlette", "asyncpg", "orjson", "uvicorn"),
        ),
        Peer("ours_run", f"{L}.ours_run", "`await run(fn)`", OURS, settings=PERSISTENT),
        Peer("ours_aget", f"{L}.ours_aget", "`await aget()`", OURS, settings=PERSISTENT),
        Peer("article", f"{L}.article", "`async def` + `sync_to_async`"),
        Peer("plain_def", f"{L}.plain_def", "`def` handlers"),
        Peer(
            "sqlalchemy_async",
            f"{L}.sqlalchemy_async",
            "SQLAlchemy async, asyncpg, pool of 8",
            ("sqlalchemy", "asyncpg", "fastapi", "pydantic", "uvicorn"),
        ),
        Peer(
            "ninja_async",
            f"{L}.ninja_async",
            "uvicorn, a connection for each request",
            (*NINJA, "uvicorn"),
            urls=True,
        ),
        Peer(
            "ninja_async_pool",
            f"{L}.ninja_async",
            "uvicorn, psycopg pool of 8",
            (*NINJA, "uvicorn", "psycopg-pool"),
            urls=True,
            settings=POOL,
        ),
        Peer(
            "ninja_sync",
            f"{L}.ninja_sync",
            "gunicorn, 8 threads",
            NINJA + GUNICORN,
            "gunicorn",
            urls=True,
            settings=PERSISTENT,
        ),
        Peer(
            "bolt",
            f"{L}.bolt",
            "own server, `aget`, psycopg pool of 8",
            (*BOLT, "psycopg-pool"),
            "bolt",
            settings=POOL,
        ),
    ),
}


def choose(part: Part, names: list[str]) -> tuple[Peer, ...]:
    """Return the named peers, or all, with the limit first: ratios need it in every run.

    Raises `LookupError` for a name that no peer of this part has.
    """
    peers = PEERS[part]
    if unknown := set(names) - {peer.name for peer in peers}:
        known = ", ".join(peer.name for peer in peers)
        raise LookupError(f"no such peer: {', '.join(sorted(unknown))}; {part} has {known}")
    return tuple(peer for peer in peers if not names or peer is peers[0] or peer.name in names)
