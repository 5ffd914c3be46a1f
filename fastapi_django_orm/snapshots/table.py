"""All rows of a repository as pages, and where each row is. Never changed: a refresh makes another one.

Whatever does not change is shared between the two, so that a table with one changed row costs one page.
"""

from array import array
from bisect import bisect_right
from collections.abc import Hashable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any

from ..rows.encoding import digest
from .key_index import KeyIndex
from .page_list import PageList
from .pages import Page


class Table:
    """Pages in order.

    Attributes:
        listed: the pages, with their sums.
        pages: the pages alone.
        where: for each key the ``start`` of its page; None where rows have no keys.
        rows: the Python objects of all rows, once a snapshot has made them and may keep them.
        json: the bytes of the whole list, likewise.
    """

    def __init__(self, listed: PageList, where: KeyIndex[Hashable] | None) -> None:
        """Take these pages, which nobody changes any more."""
        self.listed = listed
        self.pages: Sequence[Page] = listed.pages
        self.where = where
        self.rows: tuple[Any, ...] | None = None
        self.json: bytes | None = None

    def __len__(self) -> int:
        return self.listed.rows

    @property
    def size(self) -> int:
        """The length of all rows' JSON with the commas between, in bytes."""
        return self.listed.size

    @cached_property
    def digest(self) -> bytes:
        """A fingerprint of all rows' JSON, the same in every process that has the same rows."""
        return digest(self.listed.digests)

    def has_same_pages(self, other: "Table") -> bool:
        """Whether the other table is made of this one's pages."""
        same = (one is another for one, another in zip(self.pages, other.pages, strict=False))
        return len(self.pages) == len(other.pages) and all(same)

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

    def has_positions_of(self, other: "Table", changed: Iterable[Page]) -> bool:
        """Whether the other table's pages are where this one's are, given those that it has changed."""
        places = [(self.positions.get(page.start), page) for page in changed]
        return len(self.pages) == len(other.pages) and all(
            place is not None and other.pages[place] is page for place, page in places
        )

    def page(self, start: Hashable) -> Page | None:
        """The page of this name."""
        position = self.positions.get(start)
        return None if position is None else self.pages[position]

    def pieces(self) -> list[Any]:
        """All that it is made of, to be let go piece by piece."""
        return [*self.pages, *(() if self.where is None else self.where.shards)]

    def locate(self, key: Hashable) -> tuple[int, int]:
        """The position of the key's page, and that of its row in there.

        Raises:
            KeyError: there is no such row.
            TypeError: no key is of this kind (it cannot be hashed).
        """
        if self.where is None:  # a row's number
            return self.at(key) if type(key) is int else self._no(key)
        position = self.positions[self.where[key]]
        return position, self.pages[position].keys.index(key)

    def _no(self, key: Hashable) -> tuple[int, int]:
        raise KeyError(key)

    def at(self, number: int) -> tuple[int, int]:
        """The same for the row with this number, counted from 0."""
        if not 0 <= number < len(self):
            raise KeyError(number)
        position = bisect_right(self._ends, number)
        return position, number - (self._ends[position - 1] if position else 0)

    def row_json(self, key: Hashable) -> bytes:
        """The JSON of the row with this key.

        Raises:
            KeyError: there is no such row.
        """
        position, index = self.locate(key)
        return self.pages[position].row_json(index)

    def slice_json(self, offset: int, limit: int) -> Iterator[bytes]:
        """The JSON of some consecutive rows, in parts that want a comma between."""
        return (page.slice_json(first, last) for page, first, last in self._slices(offset, limit))

    def slice_size(self, offset: int, limit: int) -> int:
        """How many bytes that is, with the commas."""
        sizes = [page.slice_size(first, last) for page, first, last in self._slices(offset, limit)]
        return sum(sizes) + max(0, len(sizes) - 1)

    def _slices(self, offset: int, limit: int) -> Iterator[tuple[Page, int, int]]:
        """The pages that these rows are in, and where in each."""
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
