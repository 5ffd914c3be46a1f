"""The article's way: a list of dicts in a global, encoded again in every request."""

import django
from asgiref.sync import sync_to_async
from fastapi import FastAPI

django.setup()
from benchmarks.project.bbs.models import Topic  # noqa: E402  # models need django.setup()

app = FastAPI()
topics_cache: list[dict[str, object]] = []


@sync_to_async
def get_topics() -> list[dict[str, object]]:
    """Read all topics as dicts."""
    return list(Topic.objects.all().values())


@app.on_event("startup")
async def load() -> None:
    """Fill the global."""
    global topics_cache
    topics_cache = await get_topics()


@app.get("/topics", response_model=None)
async def index() -> dict[str, object]:
    """Return the global."""
    return {"topics": topics_cache}
