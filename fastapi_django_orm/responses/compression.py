"""Content codings: which are installed, and which one a client wants.

gzip is Python's own. ``br`` and ``zstd`` are offered where their libraries are installed, which the extra
``fastapi-django-orm[compression]`` does; Python 3.14 has zstd itself.
"""

import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import lru_cache, partial
from importlib import import_module
from typing import Any, TypeAlias

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
