"""Cursors that outlive a call: ``queryset.iterator()`` in a streaming response, ``aiterator()`` in a loop.

Each step of such a loop is a call of its own, and between two of them the connection is free. Others would
have their transactions on it, and a FETCH in a transaction that has failed fails as well ("current
transaction is aborted"). But a loop may take as long as the client that downloads its rows, and eight of
those must not keep everybody from the database. So there is one rule:

    The next user of the connection first reads the rest of the loop's rows into a file.

The pool lends a connection with an open loop when there is no other. On SQLite the rows are read as soon as
the call ends, since an open cursor there is an open read transaction, which a write on the same connection
would have to upgrade ("database is locked"). MySQL's drivers have all rows in memory anyway.
"""

import pickle
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from tempfile import SpooledTemporaryFile
from threading import Lock
from typing import Any, Self
from weakref import finalize

IN_MEMORY = 1024 * 1024  # bytes that are read ahead before they go to a file
ROWS_AT_ONCE = 2000


def watch_cursors(connection: Any) -> None:
    """Have a new connection keep its chunked cursors until ``settle_cursors()`` has closed them."""
    # They are kept here because one that is collected while it is open cannot close itself (psycopg warns).
    loops: list[LoopCursor] = []
    connection.loops = loops
    if connection.vendor == "mysql":
        return
    chunked_cursor = connection.chunked_cursor

    def begin() -> LoopCursor:
        for loop in [loop for loop in loops if loop.finished]:  # left early
            loop.end()
        loops.append(loop := LoopCursor(chunked_cursor(), connection.connection, loops))
        return loop

    connection.chunked_cursor = begin


def is_read_from(connection: Any) -> bool:
    """Whether a loop has not come to its end."""
    return any(not loop.finished and loop.raw is connection.connection for loop in tuple(connection.loops))


def was_left(connection: Any) -> bool:
    """Whether all loops have ended, and cursors of theirs are open."""
    return bool(connection.loops) and not is_read_from(connection)


def settle_cursors(connection: Any, *, read_ahead: bool) -> None:
    """Close the cursors of loops that have ended. On the thread that has the connection.

    Args:
        connection: one of ours.
        read_ahead: whether to read the others to their end, so that they need the connection no more.
    """
    for loop in tuple(connection.loops):
        loop.settle(connection.connection, read_ahead)


def end_cursors(connection: Any) -> None:
    """Close the cursors of a connection that has ended. What still reads from them fails."""
    for loop in tuple(connection.loops):
        loop.end()


class LoopCursor:
    """What Django's iterators read from: the database's cursor, and later what was left of its rows.

    ``_lock`` is held by the thread that reads from the cursor: a step of the loop, or the next user of the
    connection. No other lock is taken under it. ``close()`` takes none: a garbage collection may call it
    anywhere, in the middle of a query on the same connection too. So those who have the connection close the
    server's cursor.

    Attributes:
        raw: the driver's connection.
        finished: whether the loop has ended.
    """

    def __init__(self, cursor: Any, raw: Any, opened: "list[LoopCursor]") -> None:
        """Read from Django's cursor, one of those that are open on a connection."""
        self.raw = raw
        self.finished = False
        self._cursor = cursor
        self._opened = opened
        self._rest: Iterator[Any] | None = None
        self._lock = Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)

    def fetchmany(self, size: int = ROWS_AT_ONCE) -> list[Any]:
        """The next rows; an empty list at the end."""
        with self._lock:
            if self._rest is not None:
                return list(islice(self._rest, size))
            rows = list(self._cursor.fetchmany(size))
            if len(rows) < size:
                self.finished, self._rest = True, iter(())
                self.end()
            return rows

    def fetchone(self) -> Any:
        """The next row, or None."""
        return next(iter(self.fetchmany(1)), None)

    def fetchall(self) -> list[Any]:
        """All rows that are left."""
        return list(self)

    def __iter__(self) -> Iterator[Any]:
        while rows := self.fetchmany():
            yield from rows

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Note that the loop has ended; see the class."""
        self.finished = True

    def settle(self, raw: Any, read_ahead: bool) -> None:
        """Close the cursor, unless the loop goes on; see ``settle_cursors()``."""
        with self._lock:
            if not self.finished and self.raw is raw:
                if not read_ahead:
                    return
                file = SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115
                finalize(self, file.close)
                self._rest = _moved(self._cursor, file)
            self.end()

    def end(self) -> None:
        """Close the cursor. On the thread that has the connection, or a step of the loop at its end."""
        # Exception: the driver's own errors come here, since Django wraps those of close() in no cursor.
        with suppress(Exception):
            try:
                self._cursor.close()
            except Exception:
                # The server has gone. psycopg has noticed by now, and closes the cursor without asking it.
                # One that stays open warns when it is collected, wherever that is.
                self._cursor.close()
        with suppress(ValueError):  # afterwards: until then the next user of the connection waits for _lock
            self._opened.remove(self)


def _moved(cursor: Any, file: Any) -> Iterator[Any]:
    """Write all rows of a cursor into a file, and read them from there.

    An error is raised in the loop, when it has come so far, and not in the next user of the connection.
    """
    kept: list[Any] = []  # all from the first rows that cannot be pickled, as psycopg2's memoryview cannot
    failed: Exception | None = None
    try:
        while rows := list(cursor.fetchmany(ROWS_AT_ONCE)):
            if not kept:
                with suppress(Exception):
                    pickled = pickle.dumps(rows, pickle.HIGHEST_PROTOCOL)
                    file.write(pickled)
                    continue
            kept += rows
    except Exception as error:
        failed = error
    file.seek(0)
    return _read_back(file, kept, failed)


def _read_back(file: Any, kept: list[Any], failed: Exception | None) -> Iterator[Any]:
    with suppress(EOFError):
        while True:
            yield from pickle.load(file)
    yield from kept
    if failed is not None:
        raise failed
