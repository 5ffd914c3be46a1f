"""Rows in pages: the unit that is encoded, hashed and replaced when a row changes.

The rows' keys alone decide where a page begins. So any two processes that hold the same rows cut them into
the same pages, whatever happened before, and a list's entity tag can be made of its pages' digests. This is
content-defined chunking, with keys in the place of content.

A key must be found again, and be the same in every process. The keys that databases give are; a project's own
field may make anything of them, and what that lacks would show late: rows that a refresh doubles, entity tags
that differ between workers.
"""

from array import array
from collections.abc import Hashable, Iterable, Iterator, Sequence
from enum import Enum
from itertools import accumulate
from typing import Any
from zlib import crc32

from ..errors import InvalidRow
from ..reading.codec import Chunk
from ..reading.encoding import digest
from ..reading.row import SCALARS

ROWS = 256  # in a page, on average

# Fibonacci hashing: multiples of the golden ratio spread evenly, so consecutive keys make pages of even size.
_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1
_FIRST = 2**64 // ROWS

_ADDRESS = " at 0x"  # in the text of an object whose class has no text of its own


class Head(Enum):
    """The name of the first page when its first key is not one that begins a page."""

    HEAD = "head"


HEAD = Head.HEAD


class Page:
    """Some consecutive rows. Never changed once it is in a table.

    Attributes:
        start: the key that begins it, or ``HEAD``; its name among the pages.
        keys: the rows' keys.
        json: the rows' JSON, with commas between them.
        ends: the length of the rows' JSON up to and including each row, without the commas.
        objects: the rows in Python, None for those whose JSON gives them; or None if that is every row.
        digest: of ``json``.
        decoded: the rows in Python, for as long as a ``RowCache`` keeps them.
    """

    __slots__ = ("decoded", "digest", "ends", "json", "keys", "objects", "start")

    def __init__(self, start: Hashable, rows: Chunk) -> None:
        self.start = start
        self.keys = tuple(rows.keys)  # which the garbage collector need not look into, if they are plain
        self.json = b",".join(rows.json)
        self.ends = array("I", accumulate(map(len, rows.json)))
        self.objects = rows.objects if rows.objects.count(None) < len(rows) else None
        self.digest = digest(self.json)
        self.decoded: Sequence[Any] | None = None

    @classmethod
    def restored(cls, start: Hashable, keys: tuple[Hashable, ...], json: bytes, ends: "array[int]") -> "Page":
        """Return a page that another process has had, of rows whose JSON gives them."""
        page = cls(start, Chunk([], [], []))
        page.keys, page.json, page.ends, page.digest = keys, json, ends, digest(json)
        return page

    def apart(self) -> "Page":
        """Return the same page, of which nothing has been decoded."""
        page = Page.restored(self.start, self.keys, self.json, self.ends)
        page.objects = self.objects
        return page

    def __len__(self) -> int:
        return len(self.ends)

    def row_json(self, index: int) -> bytes:
        """Return one row's JSON."""
        return self.slice_json(index, index + 1)

    def slice_json(self, first: int, last: int) -> bytes:
        """Return the JSON of the rows from ``first`` up to ``last``, with commas between them."""
        begin, end = self._span(first, last)
        return self.json[begin:end]

    def slice_size(self, first: int, last: int) -> int:
        """Return how many bytes that is."""
        begin, end = self._span(first, last)
        return end - begin

    def _span(self, first: int, last: int) -> tuple[int, int]:
        if first >= last:
            return 0, 0
        # There is a comma before each row but the page's first.
        return (self.ends[first - 1] + first if first else 0), self.ends[last - 1] + last - 1

    def chunk(self) -> Chunk:
        """Return its rows, to make other pages of."""
        json = [self.row_json(index) for index in range(len(self))]
        return Chunk(list(self.keys), json, list(self.objects or [None] * len(self)))


def begins_page(key: Hashable) -> bool:
    """Whether the row with this key is the first of a page."""
    number = key if type(key) is int else crc32(_text_of(key).encode())
    return number * _GOLDEN & _MASK < _FIRST


def cut(chunks: Iterable[Chunk]) -> Iterator[Page]:
    """Cut rows into pages.

    Raises:
        InvalidRow: rows cannot be kept by one of the keys.
    """
    start: Hashable = HEAD
    rows = Chunk([], [], [])
    for chunk in chunks:
        done = 0
        for index in _beginnings(chunk.keys):
            rows.extend(chunk.part(done, index))
            if rows.keys:
                yield Page(start, rows)
            start, rows, done = chunk.keys[index], Chunk([], [], []), index
        rows.extend(chunk.part(done))
    if rows.keys:
        yield Page(start, rows)


def _beginnings(keys: Sequence[Any]) -> list[int]:
    kinds = set(map(type, keys))
    if kinds == {int}:  # no call for each
        return [index for index, key in enumerate(keys) if key * _GOLDEN & _MASK < _FIRST]
    if not kinds <= SCALARS:
        _check(keys)
    return [index for index, key in enumerate(keys) if begins_page(key)]


def _text_of(key: Hashable) -> str:
    """A key as text, the same in every process."""
    # Python shows a tuple's parts as repr() has them, and not as str() does.
    return "\n".join(map(_text_of, key)) if type(key) is tuple else str(key)


def _check(keys: Iterable[Any]) -> None:
    for key in keys:
        if (missing := _missing(key)) is not None:
            raise InvalidRow(
                f"Rows cannot be kept by a key that is a {type(key).__name__}: it has no {missing} of its "
                "own. Have the field's from_db_value() give something plain, such as a number, a text or a "
                "tuple of these; or give your class `__eq__`, `__hash__` and `__str__` that go by its value. "
                "Where the rows need no key, let queryset() end in .values() with the other columns.",
                key=key,
            )


def _missing(key: Any) -> str | None:
    for part in key if type(key) is tuple else (key,):
        try:
            hash(part)
        except TypeError:
            return "hash"
        if type(part) in SCALARS or isinstance(part, Enum):
            continue
        kind: Any = type(part)
        if kind.__eq__ is object.__eq__:
            return "equality"
        if _ADDRESS in _text_of(part):
            return "text"
    return None
