"""Rows in pages: the unit that is encoded, hashed and replaced when a row changes.

Where a page begins is told by the rows' keys and by nothing else. So any two processes that hold the same
rows cut them into the same pages, whatever history has led them there, and a list's entity tag can be
made of its pages' digests. It is the idea of content-defined chunking, with keys in the place of content.
"""

from array import array
from collections.abc import Hashable, Iterable, Iterator, Sequence
from enum import Enum
from itertools import accumulate
from typing import Any
from zlib import crc32

from ..rows.codec import RowCodec
from ..rows.encoding import digest
from .keys import check, text_of

ROWS = 256  # in a page, on average

# Fibonacci hashing: multiples of the golden ratio spread evenly, so consecutive keys make pages of even size.
_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1
_FIRST = 2**64 // ROWS


class Head(Enum):
    """The name of the first page when its first key is not one that begins a page."""

    HEAD = "head"


HEAD = Head.HEAD


class Chunk:
    """Some rows on their way into pages: three lists of one length.

    Attributes:
        keys: their primary keys.
        json: the JSON of each.
        objects: what each is in Python; None where the JSON says it all.
        codec: what reads such JSON; None if there is none.
    """

    __slots__ = ("codec", "json", "keys", "objects")

    def __init__(
        self,
        keys: list[Hashable],
        json: list[bytes],
        objects: list[Any],
        codec: RowCodec | None = None,
    ) -> None:
        self.keys = keys
        self.json = json
        self.objects = objects
        self.codec = codec

    def __len__(self) -> int:
        return len(self.keys)

    def append(self, key: Hashable, json: bytes, row: Any) -> None:
        """Add a row."""
        self.keys.append(key)
        self.json.append(json)
        self.objects.append(row)

    def extend(self, other: "Chunk") -> None:
        """Append the other's rows."""
        self.keys += other.keys
        self.json += other.json
        self.objects += other.objects

    def part(self, first: int, last: int | None = None) -> "Chunk":
        """The rows from ``first`` up to ``last``."""
        return Chunk(self.keys[first:last], self.json[first:last], self.objects[first:last])


class Page:
    """Some consecutive rows. Never changed once it is in a table.

    Attributes:
        start: the key that begins it, or ``HEAD``; its name among the pages.
        keys: of its rows.
        json: of its rows, comma between.
        ends: how long the rows' JSON is up to each row and with it, without the commas.
        objects: its rows in Python, with None for those whose JSON says it all; or None if that is so for
            every row.
        digest: of ``json``.
        decoded: its rows in Python, for as long as a ``RowCache`` keeps them.
    """

    __slots__ = ("decoded", "digest", "ends", "json", "keys", "objects", "start")

    def __init__(self, start: Hashable, rows: Chunk) -> None:
        """Make a page of these rows."""
        self.start = start
        self.keys = tuple(rows.keys)  # which the garbage collector need not look into, if they are plain
        self.json = b",".join(rows.json)
        self.ends = array("I", accumulate(map(len, rows.json)))
        self.objects = rows.objects if rows.objects.count(None) < len(rows) else None
        self.digest = digest(self.json)
        self.decoded: Sequence[Any] | None = None

    @classmethod
    def restored(cls, start: Hashable, keys: tuple[Hashable, ...], json: bytes, ends: "array[int]") -> "Page":
        """A page that another process has had, of rows whose JSON says all; its digest is made anew."""
        page = cls(start, Chunk([], [], []))
        page.keys, page.json, page.ends, page.digest = keys, json, ends, digest(json)
        return page

    def apart(self) -> "Page":
        """The same page, of which nothing has been decoded."""
        page = Page.restored(self.start, self.keys, self.json, self.ends)
        page.objects = self.objects
        return page

    @classmethod
    def empty(cls) -> "Page":
        """A page to put the first rows of a table into."""
        return cls(HEAD, Chunk([], [], []))

    def __len__(self) -> int:
        return len(self.ends)

    def row_json(self, index: int) -> bytes:
        """One row's JSON."""
        return self.slice_json(index, index + 1)

    def slice_json(self, first: int, last: int) -> bytes:
        """The JSON of the rows from ``first`` up to ``last``, comma between."""
        begin, end = self._place(first, last)
        return self.json[begin:end]

    def slice_size(self, first: int, last: int) -> int:
        """How many bytes that is."""
        begin, end = self._place(first, last)
        return end - begin

    def _place(self, first: int, last: int) -> tuple[int, int]:
        if first >= last:
            return 0, 0
        # There is a comma before each row but the page's first.
        return (self.ends[first - 1] + first if first else 0), self.ends[last - 1] + last - 1

    def chunk(self) -> Chunk:
        """Its rows, to make other pages of."""
        json = [self.row_json(index) for index in range(len(self))]
        return Chunk(list(self.keys), json, list(self.objects or [None] * len(self)))


def begins_page(key: Hashable) -> bool:
    """Whether the row with this key is the first of a page."""
    return _mixed(key) < _FIRST


def _mixed(key: Hashable) -> int:
    number = key if type(key) is int else crc32(text_of(key).encode())
    return number * _GOLDEN & _MASK


def _beginnings(keys: Sequence[Any]) -> list[int]:
    kinds = set(map(type, keys))
    if kinds == {int}:  # no call for each
        return [index for index, key in enumerate(keys) if key * _GOLDEN & _MASK < _FIRST]
    check(keys, kinds)
    return [index for index, key in enumerate(keys) if begins_page(key)]


def cut(chunks: Iterable[Chunk]) -> Iterator[Page]:
    """The pages of these rows.

    Raises:
        InvalidRow: rows cannot be kept by one of the keys.
    """
    start: Hashable = HEAD
    held = Chunk([], [], [])
    for chunk in chunks:
        done = 0
        for index in _beginnings(chunk.keys):
            held.extend(chunk.part(done, index))
            if held.keys:
                yield Page(start, held)
            start, held, done = chunk.keys[index], Chunk([], [], []), index
        held.extend(chunk.part(done))
    if held.keys:
        yield Page(start, held)


def cut_evenly(chunks: Iterable[Chunk]) -> Iterator[Page]:
    """The pages of rows without keys, which are numbered instead."""
    number = 0
    for chunk in chunks:
        for first in range(0, len(chunk), ROWS):
            part = chunk.part(first, first + ROWS)
            part.keys = list(range(number, number + len(part)))
            yield Page(number, part)
            number += len(part)
