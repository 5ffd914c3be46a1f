"""The control: prebuilt bytes from a bare ASGI callable, to which other peers add their way to refresh."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import django
import orjson
from asgiref.sync import sync_to_async

if TYPE_CHECKING:
    from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, Scope

django.setup()
from benchmarks.peers.calm.refreshing import SERVED, Refreshing  # noqa: E402  # needs django.setup()
from benchmarks.project.bbs.models import Topic  # noqa: E402


class Served:
    """An application that sends prebuilt bytes."""

    def __init__(self, refresh: Callable[[], Awaitable[object]] | None = None) -> None:
        self.bodies: dict[str, bytes] = {}
        self.refreshing = Refreshing(refresh)

    def load(self) -> None:
        """Make all answers."""
        rows = list(Topic.objects.filter(pk__lte=SERVED).values())
        self.bodies = {f"/topics/{row['id']}": orjson.dumps(row) for row in rows}
        self.bodies["/topics"] = orjson.dumps({"topics": rows})

    async def body(self, path: str) -> bytes:
        """Give the bytes, or begin or end what is done besides."""
        if path == "/busy":
            return b"%d" % await self.refreshing.busy()
        if path == "/idle":
            return b"%d" % await self.refreshing.idle()
        return self.bodies[path]

    async def lifespan(self, receive: "ASGIReceiveCallable", send: "ASGISendCallable") -> None:
        """Load once, then wait for the end."""
        await receive()
        await sync_to_async(self.load)()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.refreshing.idle()
        await send({"type": "lifespan.shutdown.complete"})

    async def __call__(
        self, scope: "Scope", receive: "ASGIReceiveCallable", send: "ASGISendCallable"
    ) -> None:
        """Answer."""
        if scope["type"] == "lifespan":
            return await self.lifespan(receive, send)
        body = self.bodies.get(scope["path"]) or await self.body(scope["path"])
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        head: Any = {"type": "http.response.start", "status": 200, "headers": headers}
        await send(head)
        await send({"type": "http.response.body", "body": body, "more_body": False})
        return None


app = Served()
