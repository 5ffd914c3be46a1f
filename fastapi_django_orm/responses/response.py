"""``RepositoryResponse``: what a handler returns to answer from a repository's bytes.

A handler makes it without seeing the request, so whatever depends on the request is decided when it is sent.
"""

from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..memory.snapshot import Snapshot
from .negotiation import deliver, entity
from .representation import Representation, Representations

READING = ("GET", "HEAD")


class RepositoryResponse(Response):
    """A list, some rows of it, or one row, from bytes that were made when the rows were loaded.

    To be returned by a handler. Headers may be added or replaced. If one is replaced that describes the body,
    or the body or the status, the response is sent as it stands: no 304, no compression.
    """

    media_type = "application/json"

    def __init__(self, representation: Representation, cache_control: str) -> None:
        """Send a representation: use ``of_list()`` and ``of_row()``."""
        self._representation = representation
        self._cache_control = (b"cache-control", cache_control.encode())
        self._body: bytes | None = None
        self.status_code = 200
        self.background = None
        self.raw_headers = [*representation.as_is[1], self._cache_control]

    @classmethod
    def of_list(
        cls,
        snapshot: Snapshot[Any],
        *,
        offset: int = 0,
        limit: int | None = None,
        cache_control: str = "no-cache",
    ) -> "RepositoryResponse":
        """The list; or at most ``limit`` rows of it, without the first ``offset`` ones.

        Raises:
            InvalidWindow: ``offset`` is negative, or ``limit`` below 1. In a handler: 422.
        """
        return cls(Representations.of(snapshot).window(snapshot, offset, limit), cache_control)

    @classmethod
    def of_row(
        cls, snapshot: Snapshot[Any], key: Any, *, cache_control: str = "no-cache"
    ) -> "RepositoryResponse":
        """One row.

        Raises:
            KeyError: there is none with this key.
        """
        return cls(Representations.of(snapshot).row(snapshot, key), cache_control)

    @property
    def body(self) -> bytes:
        """The bytes, not compressed."""
        return b"".join(self._representation.parts()) if self._body is None else self._body

    @body.setter
    def body(self, body: bytes) -> None:
        self._body = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send what the client asks for."""
        identity = self._representation.as_is[1]
        own = None if self.raw_headers == [*identity, self._cache_control] else self.raw_headers
        if (
            self._body is not None
            or self.status_code != 200
            or scope.get("method") not in READING  # a websocket that is refused has none
            or (own is not None and entity(own) != entity(identity))
        ):
            await super().__call__(scope, receive, send)
            return
        await deliver(self._representation, scope, send, self._cache_control, own)
        if self.background is not None:
            await self.background()
