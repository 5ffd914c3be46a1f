"""What the limits have in common: prebuilt bytes from a bare ASGI callable, and a listener beside it."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from benchmarks.peers.cached import raw
from benchmarks.peers.coherence.seen import Seen

if TYPE_CHECKING:
    from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, Scope

Listen = Callable[[Seen, asyncio.Event], Awaitable[None]]


class Listening:
    """An application that listens from its start to its end.

    Args:
        listen: notes what it hears, and says when it has begun to.
    """

    def __init__(self, listen: Listen) -> None:
        self._listen = listen

    async def __call__(
        self, scope: "Scope", receive: "ASGIReceiveCallable", send: "ASGISendCallable"
    ) -> None:
        """Answer, or live."""
        if scope["type"] != "lifespan":
            return await raw.app(scope, receive, send)
        seen, begun = Seen(), asyncio.Event()
        task = asyncio.ensure_future(self._listen(seen, begun))
        await begun.wait()
        with seen.told():
            await raw.app(scope, receive, send)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        return None
