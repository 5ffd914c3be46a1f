"""What a client gets of a representation: a 304 if it has it already, else the content coding that it wants.

RFC 9110 is followed for conditional requests and content codings.
"""

import asyncio
import re
from collections.abc import Iterable, Iterator
from email.utils import parsedate_to_datetime
from functools import lru_cache

from starlette.types import Scope, Send

from ..snapshots.snapshot import JOINED
from .compression import preferred
from .representation import Answer, Header, Headers, Representation

SLAB = 256 * 2**10  # bytes; a larger body may be sent in pieces of about this size
LONGEST = 1024  # bytes; a longer value is ignored, since those that were read are remembered

_ASKED = frozenset({b"accept-encoding", b"if-none-match", b"if-modified-since"})
# A tag without its coding: another worker may have other libraries.
_TAG = re.compile(rb'(?:W/)?"([^"]*?)(?:-(?:br|zstd|gzip))?"')
_ENTITY = frozenset({b"content-type", b"content-length", b"content-encoding", b"etag", b"last-modified"})


def at_once(representation: Representation, headers: Headers) -> Answer | None:
    """The answer to a GET request with these headers; None if it is not ready, or not sent in one piece.

    A client whose content coding was not made yet gets the bytes as they are, and the next one the coding.
    """
    unmodified, coding = _negotiated(representation, headers)
    if unmodified is not None:
        return unmodified
    answer = representation.made(coding)
    if answer is None and coding is not None and representation.as_is[2] is not None:
        representation.compress(coding)
        answer = representation.as_is
    if answer is None or answer[2] is None or len(answer[2]) > JOINED:
        return None
    return answer


async def deliver(
    representation: Representation,
    scope: Scope,
    send: Send,
    cache_control: Header,
    own: Headers | None = None,
) -> None:
    """Answer a GET or HEAD request.

    Args:
        representation: what its URL stands for.
        scope: the request's.
        send: the request's.
        cache_control: that header.
        own: headers to send instead of all that do not describe the body, and of ``cache_control``.
    """
    answer, coding = _negotiated(representation, scope["headers"])
    answer = answer or representation.made(coding)
    if answer is None:
        assert coding is not None, "what is not compressed is there"
        # A client that goes leaves the work to the others.
        answer = await asyncio.shield(representation.compress(coding))
    status, headers, body = answer
    # A list of its own, since middleware changes it.
    sent = [*headers, cache_control]
    if own is not None:
        sent = entity(headers) + [pair for pair in own if pair[0] not in _ENTITY]
    await send({"type": "http.response.start", "status": status, "headers": sent})
    if scope["method"] == "HEAD":
        body = b""
    elif body is None or len(body) > JOINED:
        # Piece by piece, as the client takes them: a server keeps in memory what it is given.
        for slab in _slabs(representation.parts() if body is None else [body]):
            await send({"type": "http.response.body", "body": slab, "more_body": True})
            await asyncio.sleep(0)  # others want to be answered meanwhile
        body = b""
    await send({"type": "http.response.body", "body": body, "more_body": False})


def entity(headers: Headers) -> Headers:
    """Those of the headers that describe the body."""
    return [pair for pair in headers if pair[0] in _ENTITY]


def _slabs(parts: Iterable[bytes]) -> Iterator[bytes]:
    slab: list[bytes] = []
    size = 0
    for part in parts:
        for start in range(0, len(part), SLAB):
            slab.append(part[start : start + SLAB])
            size += len(slab[-1])
            if size >= SLAB:
                yield b"".join(slab)
                slab, size = [], 0
    yield b"".join(slab)


def _negotiated(representation: Representation, headers: Headers) -> tuple[Answer | None, str | None]:
    """The 304, if the client's copy is good; and the coding that it wants."""
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
    if accepted is not None and representation.compressible and len(accepted) <= LONGEST:
        coding = preferred(accepted)
    if tags is None and since is None:
        return None, coding
    unmodified = representation.not_modified(coding)
    # Mostly the client sends just the tag that it was given.
    is_current = tags == unmodified[1][0][1] or _is_current(representation, tags, since)
    return unmodified if is_current else None, coding


def _is_current(representation: Representation, tags: bytes | None, since: bytes | None) -> bool:
    """Whether the client's copy is good.

    The forms of a representation are equal in meaning, so the tag of any of them will do.

    Source: https://www.rfc-editor.org/rfc/rfc9110#name-precedence-of-preconditions
    """
    if tags is not None:
        return representation.tag in _TAG.findall(tags) or tags.strip() == b"*"
    seconds = representation.modified.seconds
    if since is None or seconds is None or len(since) > LONGEST:
        return False
    return seconds <= _seconds(since)


@lru_cache(maxsize=256)
def _seconds(date: bytes) -> float:
    try:
        return parsedate_to_datetime(date.decode("latin-1")).timestamp()
    except (ValueError, OverflowError):
        return float("-inf")
