"""Cursors that outlive a call: ``queryset.iterator()`` in a streaming response, ``aiterator()`` in a loop.

Each step of such a loop is a call of its own. Between two of them its connection is not lent: others would
have their transactions on it, and a FETCH in a transaction that has failed fails as well ("current
transaction is aborted"). But a loop may take as long as the client that downloads its rows, and eight of
those must not keep everybody from the database. So whoever finds no other connection takes that of a loop,
and first reads what the loop has left to read into a file. On SQLite that is done as soon as a call ends,
since an open cursor there is an open read transaction, which a write on the same connection would have to
upgrade ("database is locked").

MySQL's drivers have all rows in memory anyway.
"""

import pickle
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from tempfile import SpooledTemporaryFile
from threading import Lock
from typing import Any, Self, cast
from weakref import finalize

from django.db import Error
from django.db.backends.base.base import BaseDatabaseWrapper

IN_MEMORY = 1024 * 1024  # bytes that are read ahead before they go to a file
ROWS_AT_ONCE = 2000


def watch_cursors(connection: BaseDatabaseWrapper) -> None:
    """Make a new connection fit for loops that span calls."""
    loops = Loops(connection)
    connection.loops = loops  # type: ignore[attr-defined]
    if connection.vendor == "mysql":
        return
    chunked_cursor = connection.chunked_cursor
    wrapper: Any = connection
    wrapper.chunked_cursor = lambda: loops.begin(chunked_cursor())


def loops_of(connection: BaseDatabaseWrapper) -> "Loops":
    """The loops that read from a connection of ours."""
    return cast("Loops", connection.loops)  # type: ignore[attr-defined]


class Loops:
    """The loops that read from one connection.

    ``_lock`` is held by the thread that reads from one of the cursors: a step of the loop, or whoever reads
    ahead. No other lock is taken under it. It is never waited for in ``LoopCursor.close()``, which a garbage
    collection may call anywhere, in the middle of a query on the same connection too.
    """

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        """Watch a connection that nobody reads from yet."""
        self._connection = connection
        self._lock = Lock()
        # Cursors are kept here until they are closed. One that is collected while it is open cannot close
        # itself (psycopg warns), and what the server keeps for it stays.
        self._open: list[_Rows] = []

    def __bool__(self) -> bool:
        return bool(self._open)

    @property
    def unfinished(self) -> bool:
        """Whether a loop has not come to its end."""
        raw = self._connection.connection
        return any(not rows.finished and rows.raw is raw for rows in tuple(self._open))

    def begin(self, cursor: Any) -> "LoopCursor":
        """Watch a cursor.

        Args:
            cursor: Django's wrapper of it.
        """
        rows = _Rows(cursor, self._connection.connection)
        self._open.append(rows)
        return LoopCursor(rows, self)

    def take(self, rows: "_Rows", size: int) -> list[Any]:
        """The next rows of one loop."""
        with self._lock:
            taken = rows.take(size)
            self._forget_closed()
        return taken

    def settle(self, *, read_ahead: bool) -> None:
        """Close the cursors of loops that have ended. On a thread that has the connection to itself.

        Args:
            read_ahead: whether to read the others to their end, so that they need the connection no more.
        """
        with self._lock:
            for rows in tuple(self._open):
                if rows.raw is not self._connection.connection:
                    rows.break_off()
                elif rows.finished:
                    rows.close()
                elif read_ahead:
                    rows.read_ahead()
            self._forget_closed()

    def break_off(self) -> None:
        """Close all cursors, whose connection has ended. What still reads from them fails."""
        opened, self._open = self._open, []
        for rows in opened:
            rows.break_off()

    def _forget_closed(self) -> None:
        if self._open:
            self._open = [rows for rows in self._open if rows.cursor_is_open]


class _Rows:
    """The rows of one loop: on the server, or what is left of them here.

    Attributes:
        raw: the driver's connection.
        finished: whether nobody will ask for more.
        cursor_is_open: whether it has yet to be closed.
    """

    def __init__(self, cursor: Any, raw: Any) -> None:
        self.raw = raw
        self.finished = False
        self.cursor_is_open = True
        self.cursor = cursor
        self._rest: _Rest | None = None
        self._error: Exception | None = None

    def take(self, size: int) -> list[Any]:
        """The next rows, fewer than ``size`` only at the end."""
        if self._rest is not None:
            rows = self._rest.take(size)
            if not rows and self._error is not None:
                raise self._error
            return rows
        if self.finished and not self.cursor_is_open:
            return []
        rows = list(self.cursor.fetchmany(size))
        if len(rows) < size:
            self.close()
        return rows

    def read_ahead(self) -> None:
        """Move what is left from the cursor into a file."""
        self._rest = _Rest()
        try:
            while rows := self.cursor.fetchmany(ROWS_AT_ONCE):
                self._rest.add(list(rows))
        except (
            Exception
        ) as error:  # told to the loop, when it has come so far; not to who took the connection
            self._error = error
        self._close_cursor()

    def close(self) -> None:
        """Close the cursor: there is no more to read, or nobody to read it."""
        self.finished = True
        self._close_cursor()

    def break_off(self) -> None:
        """Close the cursor of a connection that has ended."""
        self._close_cursor()

    def _close_cursor(self) -> None:
        self.cursor_is_open = False
        with suppress(Error):
            try:
                self.cursor.close()
            except Error:
                # The server has gone. psycopg has noticed by now, and closes the cursor without asking it.
                # One that stays open warns when it is collected, wherever that is.
                self.cursor.close()

    def forget(self) -> None:
        """Free what was read ahead, when the loop is gone."""
        self.finished = True
        if self._rest is not None:
            self._rest.close()


class LoopCursor:
    """What Django's iterators read from: a cursor, or what is left of its rows."""

    def __init__(self, rows: _Rows, loops: Loops) -> None:
        self._rows = rows
        self._loops = loops
        finalize(self, rows.forget)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rows.cursor, name)

    def fetchmany(self, size: int = ROWS_AT_ONCE) -> list[Any]:
        """The next rows; an empty list at the end."""
        return self._loops.take(self._rows, size)

    def fetchone(self) -> Any:
        """The next row, or None."""
        rows = self.fetchmany(1)
        return rows[0] if rows else None

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
        """Note that the loop has ended. Whoever has the connection next closes the server's cursor.

        An abandoned generator comes here in the event loop, or wherever it is collected: no place to wait for
        a server.
        """
        self._rows.finished = True


class _Rest:
    """Rows in the order in which they came, in a file if they are many."""

    def __init__(self) -> None:
        # Closed by _Rows.forget(), whatever a garbage collection comes upon first.
        self._file = SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115
        self._written = self._read = 0
        self._unread: deque[Any] = deque()
        self._last: list[Any] = []  # from the first that cannot be pickled on

    def add(self, rows: list[Any]) -> None:
        """Keep some more."""
        if not self._last:
            with suppress(Exception):
                written = pickle.dumps(rows, pickle.HIGHEST_PROTOCOL)
                self._written += self._file.write(written)
                return
        self._last += rows

    def take(self, size: int) -> list[Any]:
        """The next rows, fewer than ``size`` only at the end."""
        while len(self._unread) < size and self._read < self._written:
            self._file.seek(self._read)
            self._unread += pickle.load(self._file)
            self._read = self._file.tell()
        if self._read == self._written:
            last, self._last = self._last, []
            self._unread += last
        return [self._unread.popleft() for _ in range(min(size, len(self._unread)))]

    def close(self) -> None:
        """Remove the file."""
        self._file.close()
