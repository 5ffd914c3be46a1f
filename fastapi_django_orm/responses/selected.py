"""``SelectedResponse``: a response whose bytes have to be found first, when it is sent."""

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from typing import Any

from starlette.types import Receive, Scope, Send

from .representation import Representation
from .response import RepositoryResponse

_NONE_YET = Representation(b"", None, 0)


class SelectedResponse(RepositoryResponse):
    """Rows that the database is asked for when the response is sent.

    To be returned by a handler. If they cannot be found, the request ends as if the handler had raised the
    error, since nothing was sent yet.
    """

    def __init__(self, find: Callable[[], Coroutine[Any, Any, Representation]], cache_control: str) -> None:
        """Send what ``find`` returns. It runs in the context of this call, be it on a thread."""
        super().__init__(_NONE_YET, cache_control)
        self._find = find
        self._context = copy_context()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Find the bytes, and send what the client asks for."""
        loop = asyncio.get_running_loop()
        self._representation = await loop.create_task(self._find(), context=self._context)
        none_yet = _NONE_YET.as_is[1]
        # What the handler has added, or has put in the place of a header.
        own = [pair for pair in self.raw_headers if pair not in none_yet]
        names = {name for name, _ in own}
        found = self._representation.as_is[1]
        self.raw_headers = [*(pair for pair in found if pair[0] not in names), *own]
        await super().__call__(scope, receive, send)
