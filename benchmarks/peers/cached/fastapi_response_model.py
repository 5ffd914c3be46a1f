"""FastAPI as its documentation recommends: a response model, over rows kept in memory."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import django
from asgiref.sync import sync_to_async
from fastapi import FastAPI

from benchmarks.project.bbs.schemas import TopicList

django.setup()
from benchmarks.project.bbs import reads  # noqa: E402  # models need django.setup()

topics: list[dict[str, object]] = []


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load once."""
    global topics
    topics = await sync_to_async(reads.rows)()
    yield


app = FastAPI(lifespan=lifespan)


@app.get("/topics", response_model=TopicList)
async def index() -> dict[str, object]:
    """Let FastAPI validate and encode the rows."""
    return {"topics": topics}
