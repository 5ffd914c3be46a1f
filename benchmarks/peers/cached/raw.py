"""The limit: prebuilt bytes from a bare ASGI callable, the least that uvicorn can do."""

from typing import TYPE_CHECKING, Any

import django
from asgiref.sync import sync_to_async

if TYPE_CHECKING:
    from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, Scope

django.setup()
from benchmarks.project.bbs.reads import payload  # noqa: E402  # models need django.setup()

body = b""
head: dict[str, Any] = {}


async def lifespan(receive: "ASGIReceiveCallable", send: "ASGISendCallable") -> None:
    """Load once, then wait for the end."""
    global body, head
    await receive()
    body = await sync_to_async(payload)()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    head = {"type": "http.response.start", "status": 200, "headers": headers}
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


async def app(scope: "Scope", receive: "ASGIReceiveCallable", send: "ASGISendCallable") -> None:
    """Send the bytes, whatever was asked."""
    if scope["type"] == "lifespan":
        return await lifespan(receive, send)
    await send(head)  # type: ignore[arg-type]  # made once, so not a literal
    await send({"type": "http.response.body", "body": body, "more_body": False})
    return None
