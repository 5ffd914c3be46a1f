"""Content codings: which one a client wants, and bodies that are compressed once for all who want the same.

gzip is Python's own. ``br`` and ``zstd`` are offered where their libraries are installed, which the extra
``fastapi-django-orm[compression]`` does; Python 3.14 has zstd itself.
"""

import asyncio
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import lru_cache
from importlib import import_module
from typing import Any

MINIMUM = 1024  # bytes; what is shorter fits into one packet as it is

Parts = Callable[[], Iterable[bytes]]


def _gzip(parts: Iterable[bytes]) -> bytes:
    compressor = zlib.compressobj(6, wbits=31)  # 31: with gzip's header, whose time is 0
    return b"".join([*map(compressor.compress, parts), compressor.flush()])


def _brotli(library: Any) -> Callable[[Iterable[bytes]], bytes]:
    def compress(parts: Iterable[bytes]) -> bytes:
        compressor = library.Compressor(quality=5)
        return b"".join([*map(compressor.process, parts), compressor.finish()])

    return compress


def _zstd(library: Any) -> Callable[[Iterable[bytes]], bytes]:
    def compress(parts: Iterable[bytes]) -> bytes:
        compressor = library.ZstdCompressor(level=6)
        return b"".join([*map(compressor.compress, parts), compressor.flush()])

    return compress


def _installed() -> Iterator[tuple[str, Callable[[Iterable[bytes]], bytes]]]:
    """The codings there are, best first."""
    for coding, make, names in (
        ("br", _brotli, ("brotli",)),
        ("zstd", _zstd, ("compression.zstd", "backports.zstd")),
    ):
        for name in names:
            with suppress(ImportError):
                yield coding, make(import_module(name))
                break
    yield "gzip", _gzip


CODINGS = dict(_installed())


@lru_cache(maxsize=256)
def preferred(accepted: bytes) -> str | None:
    """The coding to answer with, or None for none.

    Args:
        accepted: the value of ``Accept-Encoding``; values are remembered, so they must not be long.

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


class Variants:
    """The compressed forms of one body, each made when it is first asked for."""

    def __init__(self) -> None:
        self._making: dict[str, asyncio.Task[bytes]] = {}

    async def make(self, coding: str, parts: Parts) -> bytes:
        """Compress, on a thread; those who ask meanwhile share the work.

        A caller that is cancelled leaves the work to the others.

        Args:
            coding: one of ``CODINGS``.
            parts: gives the body in parts.
        """
        task = self._making.get(coding)
        if task is None:
            task = self._making[coding] = asyncio.ensure_future(self._make(coding, parts))
        return await asyncio.shield(task)

    async def _make(self, coding: str, parts: Parts) -> bytes:
        # The loop's own threads: AnyIO's are there for `def` handlers, and the database's are few.
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(None, lambda: CODINGS[coding](parts()))
        finally:
            del self._making[coding]
