"""``RepositoryResponse``: what a handler returns to answer from a repository's bytes.

A handler makes it without seeing the request, so whatever depends on the request is decided when it is sent.
"""

from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..memory.snapshot import Snapshot
from .editions import Content, Edition, Headers, cache_control_header
from .negotiation import deliver, entity

READING = ("GET", "HEAD")


class RepositoryResponse(Response):
    """A list, some rows of it, or one row, from bytes that were made when the rows were loaded.

    To be returned by a handler. Headers may be added or replaced. Whoever replaces one that describes the
    body, or the body or the status, gets the response as it stands: no 304, no compression.
    """

    media_type = "application/json"

    def __init__(self, snapshot: Snapshot[Any] | None, content: Content, cache_control: str) -> None:
        """Show a part of a snapshot: use ``of_list()`` and ``of_row()``."""
        self._snapshot = snapshot
        self._content = content
        self._cache_control = cache_control_header(cache_control)
        self._body: bytes | None = None
        self.status_code = 200
        self.background = None
        self.raw_headers = [*content.headers, self._cache_control]

    @classmethod
    def of_list(
        cls,
        snapshot: Snapshot[Any],
        *,
        offset: int = 0,
        limit: int | None = None,
        cache_control: str = "no-cache",
    ) -> "RepositoryResponse":
        """The list, or some rows of it.

        Args:
            snapshot: what to send.
            offset: how many rows to leave out.
            limit: how many rows to send at most.
            cache_control: the value of that header.

        Raises:
            InvalidWindow: ``offset`` is negative, or ``limit`` below 1. In a handler: 422.
        """
        edition = Edition.of(snapshot)
        if offset == 0 and limit is None:
            return cls(snapshot, edition.whole, cache_control)
        return cls(snapshot, edition.window(snapshot, offset, limit), cache_control)

    @classmethod
    def of_row(
        cls, snapshot: Snapshot[Any], key: Any, *, cache_control: str = "no-cache"
    ) -> "RepositoryResponse":
        """One row.

        Raises:
            KeyError: there is none with this key.
        """
        return cls(snapshot, Edition.of(snapshot).row(snapshot, key), cache_control)

    @property
    def body(self) -> bytes:
        """The bytes, not compressed."""
        if self._body is None:
            return b"".join(self._content.parts(self._snapshot))
        return self._body

    @body.setter
    def body(self, body: bytes) -> None:
        self._body = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send what the client asks for."""
        identity: Headers = self._content.headers
        own = None if self.raw_headers == [*identity, self._cache_control] else self.raw_headers
        if (
            self._body is not None
            or self.status_code != 200
            or scope.get("method") not in READING  # a websocket that is refused has none
            or (own is not None and entity(own) != entity(identity))
        ):
            await super().__call__(scope, receive, send)
            return
        await deliver(self._content, self._snapshot, scope, send, self._cache_control, own)
        if self.background is not None:
            await self.background()
