"""Representations: the bytes and headers that one URL stands for, in each content coding.

They are made once for a table of rows, and go with it. ``negotiation`` chooses what a client gets of one.
``Cache-Control`` is not among the headers: it differs from answer to answer, and not from bytes to bytes.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from email.utils import format_datetime
from functools import partial
from threading import Lock
from typing import Any, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

from ..errors import InvalidWindow
from ..memory.pages import Page
from ..memory.snapshot import JOINED, Snapshot, in_parts
from ..memory.table import Table
from ..reading.encoding import tag_of
from ..shared import renewed_at_fork

MINIMUM = 1024  # bytes; what is shorter fits into one packet, and is not compressed
LONG_ROW = 16 * 2**10  # bytes from which a row is compressed, which takes longer than to send a shorter one
LARGEST = 2**20  # bytes of a window or row that is kept for the next client, with its compressed forms
MOST = 16 * 2**20  # bytes of all that are kept of one table
OVERHEAD = 1024  # bytes that a representation takes beside its body

Header: TypeAlias = tuple[bytes, bytes]
Headers: TypeAlias = list[Header]


class HeaderLines(list[Header]):
    """Headers that do not change, and the lines that a server protocol sends for them."""

    __slots__ = ("_lines",)
    _lines: bytes

    @property
    def lines(self) -> bytes:
        """As HTTP/1.1 has them."""
        try:
            return self._lines
        except AttributeError:
            self._lines = b"".join([b"%b: %b\r\n" % pair for pair in self])
            return self._lines


# A status, headers that must not be changed, and a body; None for one that is not kept in one piece.
Answer: TypeAlias = tuple[int, HeaderLines, bytes | None]

_TYPE = (b"content-type", b"application/json")
_VARY = (b"vary", b"Accept-Encoding")


class Modified(NamedTuple):
    """When rows were first seen: the header, and the date in whole seconds if it identifies the rows."""

    headers: Headers
    seconds: int | None

    @classmethod
    def of(cls, snapshot: Snapshot[Any]) -> "Modified":
        """The date of a snapshot, which all that is sent of it has."""
        date = snapshot.modified_at
        header = b"last-modified", format_datetime(date, usegmt=True).encode()
        return cls([header], int(date.timestamp()) if snapshot.date_is_exact else None)


UNKNOWN = Modified([], None)


class Representation:
    """What one URL stands for. There may be one for each of thousands of rows, so it has few attributes.

    Attributes:
        tag: its entity tag, without quotes and without a coding.
        compressible: whether clients may get it compressed.
        as_is: the answer that is not compressed.
    """

    __slots__ = ("_made", "_parts", "_varies", "as_is", "compressible", "modified", "size", "tag")

    def __init__(
        self,
        tag: bytes,
        body: bytes | None,
        size: int,
        *,
        modified: Modified = UNKNOWN,
        varies: bool = False,
        compressible: bool = False,
        parts: Callable[[], Iterable[bytes]] | None = None,
    ) -> None:
        """Describe bytes.

        Args:
            tag: their entity tag, without quotes.
            body: the bytes; None if there are only parts.
            size: how many bytes.
            modified: their date.
            varies: whether the URL may ever stand for something that is compressed: a list may grow.
            compressible: whether these bytes may be compressed, if there are enough of them.
            parts: returns the bytes in parts. If this is kept for a table, it must not hold the table, or
                neither would ever be freed.
        """
        self.tag = tag
        self.size = size
        self.modified = modified
        self.compressible = compressible and size >= MINIMUM
        self._varies = varies
        self._parts = parts
        self._made: dict[tuple[int, str | None], Answer] = {}
        headers = [_TYPE, (b"content-length", b"%d" % size), *self._validators(None), *modified.headers]
        self.as_is: Answer = 200, HeaderLines(headers), body

    def _validators(self, coding: str | None) -> Headers:
        # Each coding has a tag of its own.
        etag = b'"%b"' % self.tag if coding is None else b'"%b-%b"' % (self.tag, coding.encode())
        return [(b"etag", etag), _VARY] if self._varies else [(b"etag", etag)]

    def not_modified(self, coding: str | None) -> Answer:
        """The answer to a client whose copy is good. Its first header is the entity tag."""
        # The tag says all that the date could: https://www.rfc-editor.org/rfc/rfc9110#name-304-not-modified
        if (answer := self._made.get((304, coding))) is None:
            answer = self._made[304, coding] = 304, HeaderLines(self._validators(coding)), b""
        return answer

    def made(self, coding: str | None) -> Answer | None:
        """The answer in a coding, if it was made already."""
        return self.as_is if coding is None else self._made.get((200, coding))

    def add(self, coding: str, body: bytes) -> Answer:
        """Keep the bytes in a coding, and return the answer."""
        headers = [
            _TYPE,
            (b"content-length", b"%d" % len(body)),
            *self._validators(coding),
            *self.modified.headers,
            (b"content-encoding", coding.encode()),
        ]
        answer = self._made[200, coding] = 200, HeaderLines(headers), body
        return answer

    def parts(self) -> Iterable[bytes]:
        """The bytes that are not compressed."""
        if (body := self.as_is[2]) is not None:
            return (body,)
        assert self._parts is not None, "what has no body in one piece comes with its parts"
        return self._parts()


class Representations:
    """Those of one table of rows: the whole list, and the latest windows and rows that were asked for."""

    __slots__ = ("_bytes", "_kept", "_lock", "_modified", "whole")

    def __init__(self, snapshot: Snapshot[Any]) -> None:
        self._modified = Modified.of(snapshot)
        self.whole = Representation(
            snapshot.etag.strip('"').encode(),
            snapshot.json if snapshot.size <= JOINED else None,
            snapshot.size,
            modified=self._modified,
            varies=True,
            compressible=True,
            parts=partial(_in_parts, snapshot.name, snapshot.table.pages),
        )
        # By (first, last) for a window, and by (key,) for a row.
        self._kept: dict[tuple[Hashable, ...], Representation] = {}
        self._bytes = 0
        self._lock = renewed_at_fork(Lock())  # handlers on threads make them, too

    @classmethod
    def of(cls, snapshot: Snapshot[Any]) -> "Representations":
        """Those of a snapshot's rows."""
        found = _of_tables.get(snapshot.table)
        return _of_tables.setdefault(snapshot.table, cls(snapshot)) if found is None else found

    def window(self, snapshot: Snapshot[Any], offset: Any, limit: Any) -> Representation:
        """Some rows of the list, in the list's form. A large window is not compressed.

        Raises:
            InvalidWindow: ``offset`` is negative, or ``limit`` below 1, or one of them is not a whole number.
        """
        # What a handler has of a query parameter may be anything, and is its client's mistake.
        starts = isinstance(offset, int) and offset >= 0
        if not starts or not (limit is None or (isinstance(limit, int) and limit >= 1)):
            raise InvalidWindow(f"offset={offset!r} must be a number from 0, and limit={limit!r} one from 1.")
        first = min(offset, len(snapshot))
        last = len(snapshot) if limit is None else min(first + limit, len(snapshot))
        if (first, last) == (0, len(snapshot)):
            return self.whole
        if (window := self._kept.get((first, last))) is None:
            size = snapshot.window_size(first, last - first)
            parts = partial(snapshot.window_parts, first, last - first)
            # Made of the list's tag, and not of the window's bytes, which may be megabytes.
            tag = b"%b-%d-%d" % (self.whole.tag, first, last)
            options: dict[str, Any] = {"modified": self._modified, "varies": True}
            if size > LARGEST:
                return Representation(tag, None, size, parts=parts, **options)
            window = Representation(tag, b"".join(parts()), size, compressible=True, **options)
            self._keep((first, last), window)
        return window

    def row(self, snapshot: Snapshot[Any], key: Hashable) -> Representation:
        """One row.

        Raises:
            KeyError: there is none with this key.
        """
        if (row := self._kept.get((key,))) is None:
            body = snapshot.row_json(key)
            is_long = LONG_ROW <= len(body) <= LARGEST
            options: dict[str, Any] = {"modified": self._modified, "varies": is_long}
            row = Representation(tag_of(body), body, len(body), compressible=is_long, **options)
            if len(body) <= LARGEST:
                self._keep((key,), row)
        return row

    def _keep(self, name: tuple[Hashable, ...], made: Representation) -> None:
        with self._lock:
            if name in self._kept:  # another thread was faster
                return
            self._kept[name] = made
            self._bytes += made.size + OVERHEAD
            while self._bytes > MOST:
                self._bytes -= self._kept.pop(next(iter(self._kept))).size + OVERHEAD


def _in_parts(name: str, pages: Sequence[Page]) -> Iterator[bytes]:
    return in_parts(name, (page.json for page in pages))


# By the table and not by the snapshot: a refresh that finds the same rows makes another snapshot of the same
# table, and what was compressed is still good.
_of_tables: WeakKeyDictionary[Table, Representations] = WeakKeyDictionary()
