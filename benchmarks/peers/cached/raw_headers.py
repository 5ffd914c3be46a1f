"""The limit for an answer that can be cached: as `raw`, with the headers that this package sends.

uvicorn looks at each header of each answer, so this is how far from `raw` an answer with them is at best.
"""

from benchmarks.peers.cached import raw
from benchmarks.peers.cached.raw import app, row, unchanged

__all__ = ["app", "row", "unchanged"]

_TAG = (b"etag", b'"%b"' % (b"0123456789abcdef" * 2))
_LASTING = (b"cache-control", b"no-cache")
_VARY = (b"vary", b"Accept-Encoding")
_DATE = (b"last-modified", b"Thu, 01 Jan 2026 00:00:00 GMT")

raw.of_list.extend((_TAG, _LASTING, _VARY, _DATE))
raw.of_row.extend((_TAG, _LASTING, _DATE))
raw.of_unchanged.extend((_LASTING, _VARY))
