"""fastapi-cache2 with its in-memory backend around a handler that reads through the ORM."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import django
from asgiref.sync import sync_to_async
from fastapi import FastAPI
from fastapi_cache import FastAPICache
from fastapi_cache.backends.inmemory import InMemoryBackend
from fastapi_cache.decorator import cache

django.setup()
from benchmarks.project.bbs import reads  # noqa: E402  # models need django.setup()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Choose the backend, as the package's README does."""
    FastAPICache.init(InMemoryBackend())
    yield


app = FastAPI(lifespan=lifespan)


@app.get("/topics")
@cache(expire=3600)
async def index() -> dict[str, object]:
    """Read on the first request only."""
    return {"topics": await sync_to_async(reads.rows)()}
