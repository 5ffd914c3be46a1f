"""A refresh in a worker thread, so that the event loop only has to share the interpreter."""

import asyncio
from typing import Any

from benchmarks.peers.calm.raw import Served
from benchmarks.project.bbs.models import Topic

topics: list[dict[str, Any]] = []


def read() -> list[dict[str, Any]]:
    """Read all topics."""
    return list(Topic.objects.values())


async def refresh() -> None:
    """Replace the list."""
    global topics
    topics = await asyncio.to_thread(read)


app = Served(refresh)
