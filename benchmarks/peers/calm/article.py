"""The article's refresh: it reads in a thread, and FastAPI encodes what the handler returns."""

from typing import Any

from asgiref.sync import sync_to_async
from fastapi.encoders import jsonable_encoder
from fastapi.responses import JSONResponse

from benchmarks.peers.calm.raw import Served
from benchmarks.project.bbs.models import Topic

topics_cache: list[dict[str, Any]] = []


@sync_to_async
def get_topics() -> list[dict[str, Any]]:
    """Read all topics as dicts."""
    return list(Topic.objects.all().values())


async def refresh() -> JSONResponse:
    """Do what a request to `/refresh/` does: fill the global, return it, encode it."""
    global topics_cache
    topics_cache = await get_topics()
    return JSONResponse(jsonable_encoder({"topics": topics_cache}))


app = Served(refresh)
