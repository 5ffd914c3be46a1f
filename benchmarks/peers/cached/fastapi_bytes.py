"""The best that a FastAPI handler can do: prebuilt bytes, one async dependency."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import django
from asgiref.sync import sync_to_async
from fastapi import Depends, FastAPI, Response

django.setup()
from benchmarks.project.bbs import reads  # noqa: E402  # models need django.setup()

body = b""
bodies: dict[int, bytes] = {}


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load once."""
    global body, bodies
    body = await sync_to_async(reads.payload)()
    bodies = await sync_to_async(reads.payloads)()
    yield


async def current() -> bytes:
    """Give the bytes to the handler."""
    return body


async def by_key() -> dict[int, bytes]:
    """Give each row's bytes to the handler."""
    return bodies


app = FastAPI(lifespan=lifespan)


@app.get("/topics")
async def index(topics: Annotated[bytes, Depends(current)]) -> Response:
    """Send the bytes."""
    return Response(topics, media_type="application/json")


@app.get("/topics/{pk}")
async def topic(pk: int, topics: Annotated[dict[int, bytes], Depends(by_key)]) -> Response:
    """Send the bytes of one row."""
    return Response(topics[pk], media_type="application/json")
