"""All rows of a repository as pages, and where each row is. Never changed: a refresh makes another one.

Whatever stays the same is shared between the two, so that a table with one changed row costs one page.
"""

from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any
from uuid import UUID

from ..reading.encoding import DIGEST_SIZE, digest
from .key_index import REMOVED, KeyIndex, Removed
from .pages import Page

# Equal keys of these types are the same; 1.0 and 1.00 would begin other pages.
_WRITTEN_ONE_WAY = frozenset({int, str, UUID})

MANY = 8  # rows of a page: from here on they are found together, and not one by one
FEW = 1 / 32  # of the pages: an index is changed by their keys in one step, and made anew in many


class Table:
    """Pages in order, with what is summed up over all of them.

    Attributes:
        pages: the pages.
        where: for each key the ``start`` of its page; None where rows have no keys and are numbered instead.
        size: the length of all rows' JSON with the commas between, in bytes.
        rows: the Python objects of all rows, once a snapshot has made them and may keep them.
        json: the bytes of the whole list, likewise.
    """

    def __init__(self, pages: Iterable[Page], where: KeyIndex[Hashable] | None) -> None:
        self.pages = list(pages)
        self.where = where
        self.size = sum(len(page.json) for page in self.pages) + max(0, len(self.pages) - 1)
        self.rows: tuple[Any, ...] | None = None
        self.json: bytes | None = None
        self._length = sum(map(len, self.pages))
        self._digests = bytearray(b"".join([page.digest for page in self.pages]))

    def replaced(self, changes: Iterable[tuple[int, Sequence[Page]]], where: KeyIndex[Hashable]) -> "Table":
        """Return a table of unique keys with other pages in the places of some, from the last to the first.

        A table of a million rows has four thousand pages: the sums are brought up to date with those that are
        replaced, without a look at the others.
        """
        table = Table((), where)
        table.pages, table._digests = self.pages.copy(), self._digests.copy()
        size, length = self.size - max(0, len(self.pages) - 1), len(self)
        in_place = True
        for position, new in changes:
            old = self.pages[position]
            table.pages[position : position + 1] = new
            length += sum(map(len, new)) - len(old)
            size += sum(len(page.json) for page in new) - len(old.json)
            digests = b"".join([page.digest for page in new])
            table._digests[position * DIGEST_SIZE : (position + 1) * DIGEST_SIZE] = digests
            in_place &= [page.start for page in new] == [old.start]
        table.size, table._length = size + max(0, len(table.pages) - 1), length
        table.has_unique_keys = True  # each of these saves a look at all pages
        if in_place:
            table.positions = self.positions
        return table

    def __len__(self) -> int:
        return self._length

    @cached_property
    def digest(self) -> bytes:
        """A digest of all rows' JSON, the same in every process that has the same rows."""
        return digest(self._digests)

    @cached_property
    def positions(self) -> dict[Hashable, int]:
        """For each page's ``start`` its position among the pages."""
        return {page.start: position for position, page in enumerate(self.pages)}

    @cached_property
    def has_unique_keys(self) -> bool:
        """Whether no two rows have one key, as a join with a to-many relation would make them."""
        return self.where is not None and len(self.where) == len(self)

    @cached_property
    def _ends(self) -> "array[int]":
        return array("Q", accumulate(map(len, self.pages)))

    def has_same_pages(self, other: "Table") -> bool:
        """Whether the other table is made of this one's pages."""
        same = (one is another for one, another in zip(self.pages, other.pages, strict=False))
        return len(self.pages) == len(other.pages) and all(same)

    def page(self, start: Hashable) -> Page | None:
        """Return the page of this name."""
        position = self.positions.get(start)
        return None if position is None else self.pages[position]

    def known(self, page: Page) -> Page:
        """Return the page of this table that equals a new one; else the new one, with this table's keys.

        Both tables are in memory until the new one is served, and what was made of a page is still good.
        """
        old = self.page(page.start)
        # The keys are compared as well as the JSON, since they need not be among the fields.
        if old is None or old.keys != page.keys:
            return page
        if old.objects is None and page.objects is None and old.digest == page.digest:
            return old
        if _WRITTEN_ONE_WAY.issuperset(map(type, old.keys)):
            page.keys = old.keys
        return page

    def index_of(self, pages: Sequence[Page]) -> KeyIndex[Hashable] | None:
        """Return where each key of other pages is, each from ``known()``, made of this table's index.

        An index of a million keys has 100 MB, and both tables have one until the new one is served. Returns
        None if too few keys are the same, or if the index would be wrong.
        """
        starts = {page.start for page in pages}
        # A join that has begun to double a row may have made two pages of one start.
        if self.where is None or not self.has_unique_keys or len(starts) < len(pages):
            return None
        new = [page for page in pages if (old := self.page(page.start)) is None or old.keys is not page.keys]
        if len(new) > len(pages) * FEW:
            return None
        kept = starts - {page.start for page in new}
        gone = (key for page in self.pages if page.start not in kept for key in page.keys)
        moves: dict[Hashable, Hashable | Removed] = dict.fromkeys(gone, REMOVED)
        moves |= {key: page.start for page in new for key in page.keys}
        where = self.where.changed(moves) if moves else self.where
        # Of a key that two rows have now, the last page counts, as in an index of all pages.
        return where if where.fits and len(where) == sum(map(len, pages)) else None

    def pieces(self) -> list[Any]:
        """Return all that it is made of, to be freed piece by piece."""
        return [*self.pages, *(() if self.where is None else self.where.shards)]

    def locate(self, key: Hashable) -> tuple[int, int]:
        """Return the position of the key's page, and that of its row in there.

        Raises:
            KeyError: there is no such row.
            TypeError: no key is of this kind (it cannot be hashed).
        """
        if self.where is None:
            if type(key) is not int:
                raise KeyError(key)
            return self.at(key)
        position = self.positions[self.where[key]]
        return position, self.pages[position].keys.index(key)

    def at(self, number: int) -> tuple[int, int]:
        """Return the same for the row with this number, counted from 0."""
        if not 0 <= number < len(self):
            raise KeyError(number)
        position = bisect_right(self._ends, number)
        return position, number - (self._ends[position - 1] if position else 0)

    def row_json(self, key: Hashable) -> bytes:
        """Return the JSON of the row with this key.

        Raises:
            KeyError: there is no such row.
        """
        position, index = self.locate(key)
        return self.pages[position].row_json(index)

    def rows_json(self, keys: Sequence[Hashable]) -> dict[Hashable, bytes]:
        """Return the JSON of those of these rows that there are, by key."""
        assert self.where is not None, "rows without keys are not asked for by key"
        starts = [(key, self.where[key]) for key in keys if key in self.where]
        numbers = Counter(start for _, start in starts)
        places: dict[Hashable, dict[Hashable, int]] = {}
        found: dict[Hashable, bytes] = {}
        for key, start in starts:
            page = self.pages[self.positions[start]]
            if numbers[start] < MANY:
                found[key] = page.row_json(page.keys.index(key))
                continue
            if (place := places.get(start)) is None:
                place = places[start] = {each: index for index, each in enumerate(page.keys)}
            found[key] = page.row_json(place[key])
        return found

    def slice_json(self, offset: int, limit: int) -> Iterator[bytes]:
        """Yield the JSON of some consecutive rows, in parts that want a comma between."""
        return (page.slice_json(first, last) for page, first, last in self._slices(offset, limit))

    def slice_size(self, offset: int, limit: int) -> int:
        """Return how many bytes that is, with the commas."""
        sizes = [page.slice_size(first, last) for page, first, last in self._slices(offset, limit)]
        return sum(sizes) + max(0, len(sizes) - 1)

    def _slices(self, offset: int, limit: int) -> Iterator[tuple[Page, int, int]]:
        last = min(len(self), offset + limit)
        if offset >= last:
            return
        position, index = self.at(offset)
        remaining = last - offset
        while remaining > 0:
            page = self.pages[position]
            taken = min(remaining, len(page) - index)
            yield page, index, index + taken
            position, index, remaining = position + 1, 0, remaining - taken
