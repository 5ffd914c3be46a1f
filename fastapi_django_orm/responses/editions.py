"""What is sent of a snapshot: bytes that are there already, and headers that tell one version from another.

All of it is made once for a table of rows and goes with it. ``negotiation`` chooses what a client gets of it,
and whoever answers adds ``Cache-Control``: that differs from answer to answer and not from bytes to bytes.
"""

from collections.abc import Hashable, Iterable
from datetime import datetime
from email.utils import format_datetime
from threading import Lock
from typing import Any, Self, TypeAlias
from weakref import WeakKeyDictionary

from ..errors import InvalidWindow
from ..memory.snapshot import JOINED, Snapshot
from ..memory.table import Table
from ..reading.encoding import tag_of
from .compression import MINIMUM, Variants

ROWS = 10_000  # rows that are kept with their headers,
ROW = 1024  # bytes, if they are not larger than this
LONG_ROW = 16 * 2**10  # bytes from which a row is compressed, which takes longer than to send a shorter one
PIECE = 2**20  # bytes: windows of a list and long rows are kept, with their compressed forms, up to this,
PIECES = 8 * 2**20  # bytes, of all together

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


Form: TypeAlias = tuple[HeaderLines, bytes | None]
Span: TypeAlias = tuple[int, int]  # how many rows to leave out, and how many there are
Answer: TypeAlias = tuple[int, HeaderLines, bytes]  # a status, headers that must not be changed, and a body

_TYPE = (b"content-type", b"application/json")
_VARY = (b"vary", b"Accept-Encoding")


def cache_control_header(value: str) -> Header:
    """``Cache-Control`` with this value, which every answer gets beside its content's headers."""
    return b"cache-control", value.encode()


class Stamp:
    """The headers that tell the date, alike for all that is sent of a snapshot.

    Attributes:
        last_modified: that header, if the date is known.
        seconds: the date in whole seconds as HTTP has them; None if it is not known, or would not tell these
            rows from their predecessors.
    """

    __slots__ = ("last_modified", "seconds")

    def __init__(self, modified_at: datetime | None = None, *, exact: bool = False) -> None:
        """Make the headers.

        Args:
            modified_at: when the rows were first seen, if that is known.
            exact: whether the second alone tells them from their predecessors.
        """
        self.last_modified: Headers = []
        self.seconds: int | None = None
        if modified_at is not None:
            self.last_modified = [(b"last-modified", format_datetime(modified_at, usegmt=True).encode())]
            self.seconds = int(modified_at.timestamp()) if exact else None


class Content:
    """What one URL stands for, in its content codings.

    It does not know its snapshot, or the two would hold each other when a refresh has dropped both. There may
    be one for each of thousands of rows, so it has little of its own.

    Attributes:
        stamp: what it has in common with others.
        tag: its entity tag, without quotes and without a coding.
        size: its length in bytes.
        variants: makes its compressed forms; None if it has none.
        headers: those of the bytes as they are.
        as_is: the answer with the bytes as they are; None if these are not sent in one piece.
    """

    __slots__ = (
        "_coded",
        "_large",
        "_span",
        "_unmodified",
        "_varies",
        "as_is",
        "headers",
        "size",
        "stamp",
        "tag",
        "variants",
    )

    def __init__(
        self,
        stamp: Stamp,
        tag: bytes,
        body: bytes | None,
        size: int,
        variants: Variants | None,
        *,
        varies: bool = True,
        span: Span | None = None,
    ) -> None:
        """Describe bytes.

        Args:
            stamp: what they have in common with others.
            tag: their entity tag, without quotes.
            body: the bytes; None if they are not kept in one piece, but with the snapshot alone.
            size: how many there are.
            variants: makes their compressed forms, where they are long enough.
            varies: whether their URL may ever stand for something that is compressed: a list may grow.
            span: which rows of the list they are; None for all, or if the bytes are given.
        """
        self.stamp = stamp
        self.tag = tag
        self.size = size
        self.variants = variants if size >= MINIMUM else None
        self.as_is: Answer | None = None
        self._coded: dict[str, Answer] | None = None
        self._varies = varies
        self._span = span
        self._large: dict[str | None, Form] | None = None
        self._unmodified: dict[str | None, HeaderLines] | None = None
        self.headers = HeaderLines([_TYPE, (b"content-length", b"%d" % size), *self._tagged(None)])
        self._add(None, self.headers, body)

    @classmethod
    def plain(cls, stamp: Stamp, body: bytes, tag: bytes | None = None) -> Self:
        """Bytes that are never compressed: made for one request, they are not worth it."""
        return cls(stamp, tag or tag_of(body), body, len(body), None, varies=False)

    def _tagged(self, coding: str | None) -> Headers:
        """The headers that a form has beside those of its body. Each has a tag of its own."""
        etag = b'"%b"' % self.tag if coding is None else b'"%b-%b"' % (self.tag, coding.encode())
        return [(b"etag", etag), *self._lasting, *self.stamp.last_modified]

    @property
    def _lasting(self) -> Headers:
        return [_VARY] if self._varies else []

    def unmodified(self, coding: str | None) -> HeaderLines:
        """The headers that tell a client that its copy is good, the entity tag first.

        The tag says all that the date could, so a 304 has no date.

        Source: https://www.rfc-editor.org/rfc/rfc9110#name-304-not-modified
        """
        if self._unmodified is None:
            self._unmodified = {}
        headers = self._unmodified.get(coding)
        if headers is None:
            headers = self._unmodified[coding] = HeaderLines(self._tagged(coding)[: 1 + len(self._lasting)])
        return headers

    def answer(self, coding: str | None) -> Answer | None:
        """The answer in a coding, if it was made and is sent in one piece."""
        if coding is None:
            return self.as_is
        return None if self._coded is None else self._coded.get(coding)

    def made(self, coding: str | None) -> Form | None:
        """Headers and body in a coding, if they were made. A body that is None is not kept in one piece."""
        if (answer := self.answer(coding)) is not None:
            return answer[1:]
        return None if self._large is None else self._large.get(coding)

    async def form(self, coding: str | None, snapshot: Snapshot[Any] | None) -> Form:
        """Headers and body in a coding, which may have to be made first."""
        if (form := self.made(coding)) is not None:
            return form
        assert coding is not None
        assert self.variants is not None
        body = await self.variants.make(coding, lambda: self.parts(snapshot))
        length = (b"content-length", b"%d" % len(body))
        coded = (b"content-encoding", coding.encode())
        return self._add(coding, HeaderLines([_TYPE, length, *self._tagged(coding), coded]), body)

    def _add(self, coding: str | None, headers: HeaderLines, body: bytes | None) -> Form:
        if body is not None and len(body) <= JOINED:
            answer = 200, headers, body
            if coding is None:
                self.as_is = answer
            else:
                self._coded = {**(self._coded or {}), coding: answer}
        else:
            self._large = {**(self._large or {}), coding: (headers, body)}
        return headers, body

    def parts(self, snapshot: Snapshot[Any] | None) -> Iterable[bytes]:
        """The bytes as they are, in parts."""
        form = self.made(None)
        if form is not None and form[1] is not None:
            return (form[1],)
        assert snapshot is not None, "nothing else is kept in parts"
        return snapshot.parts() if self._span is None else snapshot.window_parts(*self._span)


class Edition:
    """All that is sent of one snapshot, for as long as its table is in use.

    Attributes:
        stamp: what all of it has in common.
        whole: the list.
    """

    __slots__ = ("_kept", "_lock", "_pieces", "_rows", "stamp", "whole")

    def __init__(self, snapshot: Snapshot[Any]) -> None:
        """Prepare the list; the rest is made when it is asked for.

        Args:
            snapshot: what to send.
        """
        self.stamp = Stamp(snapshot.modified_at, exact=snapshot.date_is_exact)
        body = snapshot.json if snapshot.size <= JOINED else None
        tag = snapshot.etag.strip('"').encode()
        self.whole = Content(self.stamp, tag, body, snapshot.size, Variants())
        self._rows: dict[Hashable, Content] = {}
        self._pieces: dict[Hashable, Content] = {}  # by their span, or as rows by their key
        self._kept = 0  # bytes of these
        self._lock = Lock()  # handlers on threads make pieces, too

    @classmethod
    def of(cls, snapshot: Snapshot[Any]) -> "Edition":
        """The edition of a snapshot's rows, made when it is first asked for."""
        edition = _editions.get(snapshot.table)
        return _editions.setdefault(snapshot.table, cls(snapshot)) if edition is None else edition

    def window(self, snapshot: Snapshot[Any], offset: int, limit: int | None) -> "Content":
        """Some rows of the list, in the list's form; a large part is not compressed.

        Args:
            snapshot: the edition's.
            offset: how many rows to leave out.
            limit: how many to give at most; None for all.

        Raises:
            InvalidWindow: ``offset`` is negative, or ``limit`` below 1, or one of them no whole number.
        """
        _check_window(offset, limit)
        first = min(offset, len(snapshot))
        last = len(snapshot) if limit is None else min(first + limit, len(snapshot))
        if (first, last) == (0, len(snapshot)):
            return self.whole
        span = (first, last - first)
        return self._pieces.get(span) or self._cut(snapshot, span)

    def _cut(self, snapshot: Snapshot[Any], span: Span) -> "Content":
        size = snapshot.window_size(*span)
        # Made of the list's tag, and not of the window's bytes, which may be megabytes.
        tag = b"%b-%d-%d" % (self.whole.tag, span[0], sum(span))
        if size > PIECE:
            return Content(self.stamp, tag, None, size, None, span=span)
        piece = Content(self.stamp, tag, b"".join(snapshot.window_parts(*span)), size, Variants())
        return piece if size < MINIMUM else self._keep(span, piece)  # a short one is as quickly cut as kept

    def _keep(self, name: Hashable, piece: "Content") -> "Content":
        with self._lock:
            before = self._pieces.pop(name, None)
            self._kept += piece.size - (0 if before is None else before.size)
            self._pieces[name] = piece
            while self._kept > PIECES:
                self._kept -= self._pieces.pop(next(iter(self._pieces))).size
        return piece

    def row(self, snapshot: Snapshot[Any], key: Hashable) -> "Content":
        """One row.

        Raises:
            KeyError: there is none with this key.
        """
        return self._rows.get(key) or self._pieces.get(("row", key)) or self._make_row(snapshot, key)

    def _make_row(self, snapshot: Snapshot[Any], key: Hashable) -> "Content":
        body = snapshot.row_json(key)
        if ROW < len(body) < LONG_ROW or len(body) > PIECE:
            return Content.plain(self.stamp, body)
        if len(body) >= LONG_ROW:
            return self._keep(("row", key), Content(self.stamp, tag_of(body), body, len(body), Variants()))
        row = Content.plain(self.stamp, body)
        if len(self._rows) >= ROWS:
            self._rows.clear()  # the cheapest way to make room, once in ten thousand times
        self._rows[key] = row
        return row


def _check_window(offset: Any, limit: Any) -> None:
    # What a handler has of a query parameter may be anything, and is its client's mistake.
    starts = isinstance(offset, int) and offset >= 0
    if not starts or not (limit is None or (isinstance(limit, int) and limit >= 1)):
        raise InvalidWindow(f"offset={offset!r} must be a number from 0, and limit={limit!r} one from 1.")


# By the table and not by the snapshot: a refresh that finds the same rows makes another snapshot of the same
# table, and what was compressed is still good. An edition does not know its table, or neither would ever go.
_editions: WeakKeyDictionary[Table, Edition] = WeakKeyDictionary()
