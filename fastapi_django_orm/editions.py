"""What is sent of a snapshot: bytes that are there already, and headers that tell one version from another.

All of it is kept with the snapshot's table and goes with it. What a client wants of it is seen to in
``negotiation``.
"""

from collections.abc import Hashable, Iterable
from datetime import datetime
from email.utils import format_datetime
from hashlib import sha256
from itertools import islice
from typing import Any, Self

from .compression import MINIMUM, Variants
from .snapshot import JOINED, Snapshot

WINDOWS = 32  # windows of a list that are kept with their compressed forms,
WINDOW = 128 * 2**10  # bytes, if they are not larger than this
ROWS = 10_000  # rows that are kept with their headers,
ROW = 1024  # bytes, if they are not larger than this

Headers = list[tuple[bytes, bytes]]

_TYPE = (b"content-type", b"application/json")


class Stamp:
    """What tells when, and how to cache, alike for all that is sent of a snapshot.

    Attributes:
        headers: these, and ``Vary``.
        seconds: when it was modified, in whole seconds as HTTP has them; None if that is not known, or would
            not tell it from its predecessor.
    """

    __slots__ = ("headers", "seconds")

    def __init__(
        self, cache_control: str, modified_at: datetime | None = None, *, exact: bool = False
    ) -> None:
        """Make the headers.

        Args:
            cache_control: the value of that header.
            modified_at: when the rows were first seen, if that is known.
            exact: whether the second alone tells them from their predecessors.
        """
        # Vary also with what is never compressed: a list may grow.
        self.headers: Headers = [(b"cache-control", cache_control.encode()), (b"vary", b"Accept-Encoding")]
        self.seconds: int | None = None
        if modified_at is not None:
            self.headers.append((b"last-modified", format_datetime(modified_at, usegmt=True).encode()))
            self.seconds = int(modified_at.timestamp()) if exact else None


class Content:
    """What one URL stands for, in its content codings.

    It does not know its snapshot, or the two would hold each other when a refresh has dropped both.

    Attributes:
        stamp: what it has in common with others.
        tag: its entity tag, without quotes and without a coding.
        size: its length in bytes.
        variants: makes its compressed forms; None if it has none.
        forms: headers and body, by coding; None stands for the bytes as they are. A body that is None is
            not kept in one piece.
    """

    __slots__ = ("_unmodified", "forms", "size", "stamp", "tag", "variants")

    def __init__(
        self, stamp: Stamp, tag: bytes, body: bytes | None, size: int, variants: Variants | None
    ) -> None:
        """Describe bytes."""
        self.stamp = stamp
        self.tag = tag
        self.size = size
        self.variants = variants if size >= MINIMUM else None
        etag = (b"etag", b'"%b"' % tag)
        identity = [_TYPE, (b"content-length", b"%d" % size), etag, *stamp.headers]
        self._unmodified: dict[str | None, Headers] = {}
        self.forms: dict[str | None, tuple[Headers, bytes | None]] = {None: (identity, body)}

    @classmethod
    def plain(cls, stamp: Stamp, body: bytes) -> Self:
        """Bytes that are never compressed: made for one request, they are not worth it."""
        return cls(stamp, sha256(body).hexdigest()[:32].encode(), body, len(body), None)

    def unmodified(self, coding: str | None) -> Headers:
        """The headers that tell a client that its copy is good, the entity tag first.

        Each form has a tag of its own, since their bytes differ.
        """
        headers = self._unmodified.get(coding)
        if headers is None:
            etag = b'"%b"' % self.tag if coding is None else b'"%b-%b"' % (self.tag, coding.encode())
            headers = self._unmodified[coding] = [(b"etag", etag), *self.stamp.headers]
        return headers

    async def form(self, coding: str | None, snapshot: Snapshot[Any] | None) -> tuple[Headers, bytes | None]:
        """Headers and body in a coding, which may have to be made first."""
        form = self.forms.get(coding)
        if form is None:
            assert coding is not None
            assert self.variants is not None
            body = await self.variants.make(coding, lambda: self.parts(snapshot))
            headers = [
                _TYPE,
                (b"content-length", b"%d" % len(body)),
                *self.unmodified(coding),
                (b"content-encoding", coding.encode()),
            ]
            form = self.forms[coding] = headers, body
        return form

    def parts(self, snapshot: Snapshot[Any] | None) -> Iterable[bytes]:
        """The bytes as they are, in parts."""
        body = self.forms[None][1]
        if body is not None:
            return (body,)
        assert snapshot is not None, "nothing else is kept in parts"
        return snapshot.parts()


class Edition:
    """All that is sent of one snapshot, kept with its table.

    Attributes:
        stamp: what all of it has in common.
        whole: the list.
    """

    __slots__ = ("_rows", "_windows", "stamp", "whole")

    def __init__(self, snapshot: Snapshot[Any], cache_control: str) -> None:
        """Prepare the list; the rest is made when it is asked for.

        Args:
            snapshot: what to send.
            cache_control: the value of that header.
        """
        self.stamp = Stamp(cache_control, snapshot.modified_at, exact=snapshot.date_is_exact)
        body = snapshot.json if snapshot.size <= JOINED else None
        tag = snapshot.etag.strip('"').encode()
        self.whole = Content(self.stamp, tag, body, snapshot.size, Variants())
        self._windows: dict[tuple[int, int], Content] = {}
        self._rows: dict[Hashable, Content] = {}

    @classmethod
    def of(cls, snapshot: Snapshot[Any], cache_control: str) -> "Edition":
        """The edition that is kept with a snapshot, made by the first who asks."""
        kept = snapshot.table.kept
        edition: Edition | None = kept.get("edition")
        if edition is None:
            edition = kept["edition"] = cls(snapshot, cache_control)
        return edition

    def window(self, snapshot: Snapshot[Any], offset: int, limit: int | None) -> "Content":
        """Some rows of the list, in the list's form.

        Args:
            snapshot: the edition's.
            offset: how many rows to leave out.
            limit: how many to give at most; None for all.

        Raises:
            ValueError: ``offset`` is negative, or ``limit`` below 1.
        """
        if offset < 0 or (limit is not None and limit < 1):
            raise ValueError(f"offset={offset} must be 0 or more, and limit={limit} 1 or more.")
        first = min(offset, len(snapshot))
        last = len(snapshot) if limit is None else min(first + limit, len(snapshot))
        if (first, last) == (0, len(snapshot)):
            return self.whole
        return self._windows.get((first, last)) or self._cut(snapshot, first, last)

    def _cut(self, snapshot: Snapshot[Any], first: int, last: int) -> "Content":
        body = snapshot.window(first, last - first)
        # Made of the list's tag, and not of the window's bytes, which may be megabytes.
        tag = b"%b-%d-%d" % (self.whole.tag, first, last)
        if len(body) > WINDOW:
            return Content(self.stamp, tag, body, len(body), None)
        window = Content(self.stamp, tag, body, len(body), Variants())
        self._windows[first, last] = window
        for oldest in list(islice(self._windows, max(0, len(self._windows) - WINDOWS))):
            self._windows.pop(oldest, None)  # another thread may have dropped it
        return window

    def row(self, snapshot: Snapshot[Any], key: Hashable) -> "Content":
        """One row.

        Raises:
            KeyError: there is none with this key.
        """
        row = self._rows.get(key)
        if row is None:
            row = Content.plain(self.stamp, snapshot.row_json(key))
            if row.size <= ROW:
                if len(self._rows) >= ROWS:
                    self._rows.clear()  # the cheapest way to make room, once in ten thousand times
                self._rows[key] = row
        return row
