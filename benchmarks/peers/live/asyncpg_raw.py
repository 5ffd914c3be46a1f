"""The limit: asyncpg's pool of 8 under Starlette, JSON by orjson, no ORM, no validation.

The pool does not reset connections that come back, which would be a round trip for each request.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg  # type: ignore[import-untyped]
import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

ONE = "SELECT id, comment, created_at FROM bbs_topic WHERE id = $1"
LATEST = "SELECT id, comment, created_at FROM bbs_topic ORDER BY id DESC LIMIT 20"

pool: Any = None  # asyncpg ships no types


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """Open the pool."""
    global pool
    async with asyncpg.create_pool(os.environ["DATABASE_URL"], min_size=8, max_size=8, reset=_keep) as pool:
        yield


async def _keep(connection: object) -> None:
    """Leave a connection as it is."""


async def topic(request: Request) -> Response:
    """Read one topic."""
    record = await pool.fetchrow(ONE, int(request.path_params["pk"]))
    return Response(orjson.dumps(dict(record)), media_type="application/json")


async def latest(request: Request) -> Response:
    """Read the 20 latest."""
    records = [dict(record) for record in await pool.fetch(LATEST)]
    return Response(orjson.dumps({"topics": records}), media_type="application/json")


app = Starlette(routes=[Route("/topics/{pk}", topic), Route("/latest", latest)], lifespan=lifespan)
