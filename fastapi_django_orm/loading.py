"""A load: all rows, read and encoded chunk by chunk, become a snapshot."""

from collections.abc import Hashable, Sequence
from datetime import UTC, datetime
from itertools import islice
from types import MappingProxyType
from typing import Any

from .encoding import Encoder, digest, envelope
from .readers import CHUNK, AnyQuerySet, Reader
from .sharing import CopiedRows, CopiedValues
from .snapshot import Snapshot, index_rows


def load(
    queryset: AnyQuerySet, reader: Reader, *, name: str, version: int, indexes: Sequence[str]
) -> Snapshot[Any]:
    """Read all rows and make a snapshot of them.

    Args:
        queryset: what to read, ordered.
        reader: how to read it.
        name: the key of the list in the JSON.
        version: the new snapshot's number.
        indexes: fields to look rows up by.

    Raises:
        InvalidRow: the schema refuses a row, or JSON cannot carry it.
        LazyValue: a row holds something that would query later.
        DatabaseError: as Django raises it.
    """
    loaded_at = datetime.now(UTC)
    encoder = Encoder(reader.row_type)
    rows: list[Any] = []
    keys: list[Hashable] = []
    chunks: list[bytes] = []
    pairs = reader.read(queryset)
    while chunk := list(islice(pairs, CHUNK)):
        part = [row for _, row in chunk]
        keys.extend(key for key, _ in chunk)
        rows.extend(part)
        chunks.append(encoder.encode(part))
    body = envelope(name, chunks)
    given = CopiedRows if reader.copied else tuple
    by_key = dict(zip(keys, rows, strict=True))
    view = CopiedValues if reader.copied else MappingProxyType
    return Snapshot(
        rows=given(rows),
        version=version,
        loaded_at=loaded_at,
        etag=digest(body),
        json=body,
        by_key=view(by_key) if reader.keyed else None,
        indexes=index_rows(rows, indexes, given),
    )
