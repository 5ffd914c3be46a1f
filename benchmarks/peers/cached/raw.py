"""The limit: prebuilt bytes from a bare ASGI callable, the least that uvicorn can do.

A callable for each kind of answer, so that none of them looks at more of the request than it must.
"""

from typing import TYPE_CHECKING, Any

import django
from asgiref.sync import sync_to_async

if TYPE_CHECKING:
    from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, Scope

django.setup()
from benchmarks.project.bbs import reads  # noqa: E402  # models need django.setup()

Answer = tuple[dict[str, Any], dict[str, Any]]  # the two messages of ASGI

Headers = list[tuple[bytes, bytes]]

whole: Answer = ({}, {})
single: dict[str, Answer] = {}
not_modified: Answer = ({}, {})

# Headers that an answer of each kind has besides; `raw_headers` adds some.
of_list: Headers = []
of_row: Headers = []
of_unchanged: Headers = []


def answer(body: bytes, more: Headers, status: int = 200) -> Answer:
    """Make the messages that send these bytes."""
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    head = {"type": "http.response.start", "status": status, "headers": [*(headers if body else []), *more]}
    return head, {"type": "http.response.body", "body": body, "more_body": False}


def load() -> None:
    """Make all answers."""
    global whole, single, not_modified
    whole = answer(reads.payload(), of_list)
    single = {f"/topics/{pk}": answer(body, of_row) for pk, body in reads.payloads().items()}
    not_modified = answer(b"", [(b"etag", b'"the only one"'), *of_unchanged], status=304)


async def lifespan(receive: "ASGIReceiveCallable", send: "ASGISendCallable") -> None:
    """Load once, then wait for the end."""
    await receive()
    await sync_to_async(load)()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


async def app(scope: "Scope", receive: "ASGIReceiveCallable", send: "ASGISendCallable") -> None:
    """Send the list, whatever was asked."""
    if scope["type"] == "lifespan":
        return await lifespan(receive, send)
    head, body = whole
    await send(head)  # type: ignore[arg-type]  # made once, so not a literal
    await send(body)  # type: ignore[arg-type]
    return None


async def row(scope: "Scope", receive: "ASGIReceiveCallable", send: "ASGISendCallable") -> None:
    """Send the row that the path names."""
    if scope["type"] == "lifespan":
        return await lifespan(receive, send)
    head, body = single[scope["path"]]
    await send(head)  # type: ignore[arg-type]
    await send(body)  # type: ignore[arg-type]
    return None


async def unchanged(scope: "Scope", receive: "ASGIReceiveCallable", send: "ASGISendCallable") -> None:
    """Say that there is nothing new, whatever was asked."""
    if scope["type"] == "lifespan":
        return await lifespan(receive, send)
    head, body = not_modified
    await send(head)  # type: ignore[arg-type]
    await send(body)  # type: ignore[arg-type]
    return None
