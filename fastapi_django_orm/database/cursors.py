"""Cursors that outlive a call: ``queryset.iterator()`` in a streaming response, ``aiterator()`` in a loop.

Each step of such a loop is a call of its own, and between two of them the connection may serve others. The
databases allow that, with some care:

- PostgreSQL keeps a server-side cursor (Django declares it WITH HOLD) for as long as the connection is open,
  so a connection with one is not closed for its age, and others are lent first.
- SQLite has rows still to read in an open read transaction, which a write on the same connection would
  upgrade, and fail ("database is locked"). So rows are read at once, except by code that reads them all
  within one call (``chunked_reads()``).
- MySQL's drivers have all rows in memory anyway.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

from django.db.backends.base.base import BaseDatabaseWrapper


def watch_cursors(connection: BaseDatabaseWrapper) -> None:
    """Make a new connection fit for loops that span calls."""
    if connection.vendor == "sqlite":
        connection.features.can_use_chunked_reads = False
    opened: WeakSet[Any] = WeakSet()
    chunked_cursor = connection.chunked_cursor

    def watched() -> Any:
        cursor = chunked_cursor()
        opened.add(cursor)
        return cursor

    connection.chunked_cursor = watched  # type: ignore[method-assign]
    connection.opened_cursors = opened  # type: ignore[attr-defined]


@contextmanager
def chunked_reads(connection: BaseDatabaseWrapper) -> Iterator[None]:
    """Let queries on this connection give their rows chunk by chunk, for the length of the block.

    The block must read them to the end, or close them, within the call that has borrowed the connection: only
    then does no other call write on it meanwhile. While rows are open SQLite cannot finish a checkpoint, and
    without WAL no other connection can commit, so the block must not rest between them.
    """
    features = connection.features
    before, features.can_use_chunked_reads = features.can_use_chunked_reads, True
    try:
        yield
    finally:
        features.can_use_chunked_reads = before


def has_open_cursor(connection: BaseDatabaseWrapper) -> bool:
    """Whether a loop over this connection's rows has not come to its end."""
    return any(
        not getattr(cursor, "closed", True)
        for cursor in tuple(connection.opened_cursors)  # type: ignore[attr-defined]
    )
