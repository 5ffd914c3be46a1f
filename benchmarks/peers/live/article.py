"""The article's way: `async def` handlers, `sync_to_async` around functions that return dicts."""

import django
from asgiref.sync import sync_to_async
from fastapi import FastAPI

django.setup()
from benchmarks.project.bbs import reads  # noqa: E402  # models need django.setup()

app = FastAPI()
get_topic = sync_to_async(reads.get)
get_latest = sync_to_async(reads.latest)


@app.get("/topics/{pk}", response_model=None)
async def topic(pk: int) -> reads.Row:
    """Read one topic."""
    return await get_topic(pk)


@app.get("/latest", response_model=None)
async def latest() -> dict[str, list[reads.Row]]:
    """Read the 20 latest."""
    return {"topics": await get_latest()}
