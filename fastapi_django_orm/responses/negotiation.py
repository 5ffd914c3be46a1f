"""What a client gets: a 304 if it has the bytes already, else the form that it wants.

RFC 9110 is followed for conditional requests and content codings.
"""

import asyncio
import re
from collections.abc import Iterable, Iterator
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any

from starlette.types import Scope, Send

from ..memory.snapshot import JOINED, Snapshot
from .compression import preferred
from .editions import Answer, Content, Header, HeaderLines, Headers

SLAB = 256 * 2**10  # bytes; a larger body is sent in pieces of about this size
LONGEST = 1024  # bytes; a longer value asks for nothing, since those that were read are remembered

_making: set[asyncio.Future[Any]] = set()  # content codings that a later request will get

_ASKED = frozenset({b"accept-encoding", b"if-none-match", b"if-modified-since"})
# A tag without its coding: another worker may have other libraries.
_TAG = re.compile(rb'(?:W/)?"([^"]*?)(?:-(?:br|zstd|gzip))?"')
_ENTITY = frozenset({b"content-type", b"content-length", b"content-encoding", b"etag", b"last-modified"})


def at_once(content: Content, snapshot: Snapshot[Any] | None, headers: Headers) -> Answer | None:
    """The answer to a GET request but for ``Cache-Control``, if it is there and is sent in one piece.

    A client whose content coding was not made yet gets the bytes as they are, and the next one the coding.

    Args:
        content: what its URL stands for.
        snapshot: what that is of.
        headers: the request's.
    """
    unmodified, coding = _negotiated(content, headers)
    if unmodified is not None:
        return 304, unmodified, b""
    if (answer := content.answer(coding)) is not None or content.as_is is None:
        return answer
    making = asyncio.ensure_future(content.form(coding, snapshot))
    _making.add(making)  # asyncio keeps weak references alone
    making.add_done_callback(_making.discard)
    return content.as_is


async def deliver(
    content: Content,
    snapshot: Snapshot[Any] | None,
    scope: Scope,
    send: Send,
    cache_control: Header,
    own: Headers | None = None,
) -> None:
    """Answer a GET or HEAD request.

    Args:
        content: what its URL stands for.
        snapshot: what that is of; None if it is kept in one piece.
        scope: the request's.
        send: the request's.
        cache_control: that header.
        own: headers to send in the place of all that do not describe the body.
    """
    unmodified, coding = _negotiated(content, scope["headers"])
    status = 200
    body: bytes | None = b""
    if unmodified is not None:
        status, headers = 304, unmodified
    else:
        headers, body = content.made(coding) or await content.form(coding, snapshot)
    # A list of its own, since middleware changes it.
    sent = [*headers, cache_control] if own is None else _with_own(headers, own)
    await send({"type": "http.response.start", "status": status, "headers": sent})
    if scope["method"] == "HEAD":
        body = b""
    elif body is None or len(body) > (SLAB if snapshot is None else JOINED):
        # Piece by piece, as the client takes them: what a server is given it keeps. A snapshot's bytes are
        # there in any case, and the same for all.
        await _send_slabs(send, _joined(content.parts(snapshot)) if body is None else _cut(body))
        body = b""
    await send({"type": "http.response.body", "body": body, "more_body": False})


def _with_own(headers: Headers, own: Headers) -> Headers:
    return entity(headers) + [pair for pair in own if pair[0] not in _ENTITY]


def entity(headers: Headers) -> Headers:
    """Those of the headers that describe the body."""
    return [pair for pair in headers if pair[0] in _ENTITY]


async def _send_slabs(send: Send, slabs: Iterable[bytes]) -> None:
    for slab in slabs:
        await send({"type": "http.response.body", "body": slab, "more_body": True})
        await asyncio.sleep(0)  # others want to be answered meanwhile


def _joined(parts: Iterable[bytes]) -> Iterator[bytes]:
    slab: list[bytes] = []
    size = 0
    for part in parts:
        slab.append(part)
        size += len(part)
        if size >= SLAB:
            yield b"".join(slab)
            slab, size = [], 0
    yield b"".join(slab)


def _cut(body: bytes) -> Iterator[bytes]:
    return (body[start : start + SLAB] for start in range(0, len(body), SLAB))


def _negotiated(content: Content, headers: Headers) -> tuple[HeaderLines | None, str | None]:
    """The headers that tell the client that its copy is good, if it is; and the coding that it wants."""
    accepted: bytes | None = None
    tags: bytes | None = None
    since: bytes | None = None
    for name, value in headers:
        if name in _ASKED:
            # A list may be sent in several lines.
            if name == b"accept-encoding":
                accepted = value if accepted is None else accepted + b"," + value
            elif name == b"if-none-match":
                tags = value if tags is None else tags + b"," + value
            else:
                since = value
    coding: str | None = None
    if accepted is not None and content.variants is not None and len(accepted) <= LONGEST:
        coding = preferred(accepted)
    if tags is None and since is None:
        return None, coding
    unmodified = content.unmodified(coding)
    # Mostly the client sends just the tag that it was given.
    is_current = tags == unmodified[0][1] or _is_current(content, tags, since)
    return unmodified if is_current else None, coding


def _is_current(content: Content, tags: bytes | None, since: bytes | None) -> bool:
    """Whether the client's copy is good.

    The forms of one content are equal in meaning, so the tag of any of them will do.

    Source: https://www.rfc-editor.org/rfc/rfc9110#name-precedence-of-preconditions
    """
    if tags is not None:
        return content.tag in _TAG.findall(tags) or tags.strip() == b"*"
    seconds = content.stamp.seconds
    if since is None or seconds is None or len(since) > LONGEST:
        return False
    return seconds <= _seconds(since)


@lru_cache(maxsize=256)
def _seconds(date: bytes) -> float:
    try:
        return parsedate_to_datetime(date.decode("latin-1")).timestamp()
    except (ValueError, OverflowError):
        return float("-inf")
