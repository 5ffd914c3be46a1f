"""What is remembered of the pages of all repositories: those that were asked for last, in so many bytes."""

from collections.abc import Hashable
from sys import getsizeof
from threading import Lock
from typing import Any, Generic, TypeVar

from ..shared import renewed_at_fork

PageT = TypeVar("PageT")

OVERHEAD = 2 * 1024  # bytes that a page takes beside its body and keys: objects, headers


class RememberedPages(Generic[PageT]):
    """Pages by what was asked for; the one that was used longest ago is forgotten first.

    Attributes:
        size: how many bytes they take, counted generously.
    """

    def __init__(self, most: int) -> None:
        """Remember at most so many bytes."""
        self.size = 0
        self._most = most
        self._pages: dict[Hashable, tuple[PageT, int]] = {}
        self._lock = renewed_at_fork(Lock())  # handlers on threads ask, too

    def get(self, key: Hashable) -> PageT | None:
        """Return the page, if it is remembered."""
        with self._lock:
            if (found := self._pages.pop(key, None)) is None:
                return None
            self._pages[key] = found  # now the last to be forgotten
            return found[0]

    def keep(self, key: Hashable, page: PageT, size: int) -> None:
        """Remember a page of so many bytes, unless it takes all there are."""
        size += size_of(key) + OVERHEAD  # a client may ask for a list of thousands
        if size > self._most:
            return
        with self._lock:
            _, before = self._pages.pop(key, (None, 0))
            self._pages[key] = page, size
            self.size += size - before
            while self.size > self._most:
                _, gone = self._pages.pop(next(iter(self._pages)))
                self.size -= gone

    def __len__(self) -> int:
        return len(self._pages)


def size_of(value: Any) -> int:
    """How many bytes a value takes, with those in a tuple; classes are there anyway."""
    if isinstance(value, type):
        return 0
    return getsizeof(value) + (sum(map(size_of, value)) if isinstance(value, tuple) else 0)
