"""The same handler of prebuilt bytes with one `def` dependency, which costs a thread."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import django
from asgiref.sync import sync_to_async
from fastapi import Depends, FastAPI, Response

django.setup()
from benchmarks.project.bbs.reads import payload  # noqa: E402  # models need django.setup()

body = b""


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load once."""
    global body
    body = await sync_to_async(payload)()
    yield


def current() -> bytes:
    """Give the bytes to the handler."""
    return body


app = FastAPI(lifespan=lifespan)


@app.get("/topics")
async def index(topics: Annotated[bytes, Depends(current)]) -> Response:
    """Send the bytes."""
    return Response(topics, media_type="application/json")
