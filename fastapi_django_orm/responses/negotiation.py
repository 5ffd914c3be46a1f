"""What a client gets of a representation: a 304 if it has it already, else the content coding that it wants.

RFC 9110 is followed for conditional requests and content codings. gzip is Python's own. ``br`` and ``zstd``
are offered where their libraries are installed, which the extra ``fastapi-django-orm[compression]`` does;
Python 3.14 has zstd itself.
"""

import asyncio
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from email.utils import parsedate_to_datetime
from functools import lru_cache, partial
from importlib import import_module
from typing import Any, TypeAlias

from starlette.types import Scope, Send

from ..memory.snapshot import JOINED
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
        _compressed(representation, coding)
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
        answer = await asyncio.shield(_compressed(representation, coding))
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


# Content codings

Compress: TypeAlias = Callable[[Iterable[bytes]], bytes]


def _gzip(parts: Iterable[bytes]) -> bytes:
    compressor = zlib.compressobj(6, wbits=31)  # 31: with gzip's header, whose time is 0
    return b"".join([*map(compressor.compress, parts), compressor.flush()])


def _brotli(library: Any, parts: Iterable[bytes]) -> bytes:
    compressor = library.Compressor(quality=5)
    return b"".join([*map(compressor.process, parts), compressor.finish()])


def _zstd(library: Any, parts: Iterable[bytes]) -> bytes:
    compressor = library.ZstdCompressor(level=6)
    return b"".join([*map(compressor.compress, parts), compressor.flush()])


def _installed() -> Iterator[tuple[str, Compress]]:
    """The best first."""
    for coding, compress, names in (
        ("br", _brotli, ("brotli",)),
        ("zstd", _zstd, ("compression.zstd", "backports.zstd")),
    ):
        for name in names:
            with suppress(ImportError):
                yield coding, partial(compress, import_module(name))
                break
    yield "gzip", _gzip


CODINGS = dict(_installed())

# Compression that runs. It is kept here because asyncio itself keeps only weak references to tasks.
_compressing: dict[tuple[Representation, str], asyncio.Task[Answer]] = {}


def _compressed(representation: Representation, coding: str) -> "asyncio.Task[Answer]":
    """Make the answer in a coding, on a thread. Callers share the task, so they must not cancel it."""
    if (task := _compressing.get((representation, coding))) is None:
        task = _compressing[representation, coding] = asyncio.ensure_future(_compress(representation, coding))
    return task


async def _compress(representation: Representation, coding: str) -> Answer:
    loop = asyncio.get_running_loop()
    try:
        # The loop's own threads: AnyIO's are there for `def` handlers, and the database's are few.
        body = await loop.run_in_executor(None, lambda: CODINGS[coding](representation.parts()))
    finally:
        del _compressing[representation, coding]
    return representation.add(coding, body)


@lru_cache(maxsize=256)
def preferred(accepted: bytes) -> str | None:
    """The coding to answer with, or None for none.

    Args:
        accepted: the value of ``Accept-Encoding``. Values are remembered, so they must not be long.

    Source: https://www.rfc-editor.org/rfc/rfc9110#name-accept-encoding
    """
    weights = dict(map(_weighed, accepted.decode("latin-1").lower().split(",")))
    others = weights.get("*", 0.0)
    offered = {coding: weights.get(coding, others) for coding in CODINGS}
    best = max(offered, key=lambda coding: offered[coding])  # the first of several
    # A client that gives `identity` no weight prefers any coding that it accepts.
    return best if offered[best] > weights.get("identity", 0.0) else None


def _weighed(item: str) -> tuple[str, float]:
    coding, _, parameter = item.partition(";")
    name, _, weight = parameter.partition("=")
    coding = coding.strip().removeprefix("x-")  # x-gzip is gzip
    if name.strip() != "q":
        return coding, 1.0
    try:
        return coding, float(weight)
    except ValueError:
        return coding, 0.0
