"""Pages in order, with what is summed up over all of them.

A table of a million rows has four thousand pages. The sums are kept up to date with each page that is
replaced, and need no look at the others.
"""

from collections.abc import Iterable, Sequence

from ..rows.encoding import DIGEST_SIZE
from .pages import Page


class PageList:
    """A list of pages. Belongs to its maker; a copy is cheap.

    Attributes:
        pages: the pages.
        rows: how many rows they have.
        size: how many bytes of JSON, with the commas between pages.
        digests: the pages' digests, one after the other.
    """

    __slots__ = ("digests", "pages", "rows", "size")

    def __init__(self, pages: Iterable[Page]) -> None:
        """List these pages."""
        self.pages = list(pages)
        self.rows = sum(map(len, self.pages))
        self.size = sum(len(page.json) for page in self.pages) + max(0, len(self.pages) - 1)
        self.digests = bytearray(b"".join([page.digest for page in self.pages]))

    def __len__(self) -> int:
        return len(self.pages)

    def copy(self) -> "PageList":
        """A list of the same pages, in which some may be replaced."""
        copy = PageList(())
        copy.pages, copy.rows, copy.size = self.pages.copy(), self.rows, self.size
        copy.digests = self.digests.copy()
        return copy

    def replace(self, position: int, new: Sequence[Page]) -> None:
        """Put these pages in the place of one."""
        old = self.pages[position]
        commas = max(0, len(self.pages) - 1)
        self.pages[position : position + 1] = new
        self.rows += sum(map(len, new)) - len(old)
        self.size += sum(len(page.json) for page in new) - len(old.json)
        self.size += max(0, len(self.pages) - 1) - commas
        begin = position * DIGEST_SIZE
        self.digests[begin : begin + DIGEST_SIZE] = b"".join([page.digest for page in new])
