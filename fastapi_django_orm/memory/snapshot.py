"""What was loaded: rows, their bytes and the ways to look them up, never changed.

A refresh makes a new snapshot and swaps it in whole, so a reader never sees half a load. Rows are kept as
JSON. Those of a table of ordinary size are kept as Python objects as well, so that reading it costs what
reading a list costs; of a large one, those that were read last.
"""

import threading
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from types import MappingProxyType
from typing import Any, Generic, cast

from typing_extensions import TypeVar

from ..reading.codec import RowCodec
from ..reading.encoding import CLOSING, digest, opening
from ..reading.row import Row, copied
from ..shared import renewed_at_fork
from .key_index import ValueIndex
from .pages import Page
from .table import Table

# The default lets `class Topics(CachedRepository)` mean rows; typing.TypeVar has it from Python 3.13 on.
RowT = TypeVar("RowT", default=Row)

JOINED = 4 * 2**20  # bytes: a list up to this size is kept in one piece, too


class RowCache:
    """Gives pages' rows in Python, for all snapshots of a repository whose columns have the same types.

    Attributes:
        most: how many rows are kept.
        codec: reads the JSON; None if every row comes as an object.
    """

    def __init__(self, codec: RowCodec | None, most: int) -> None:
        self.most = most
        self.codec = codec
        self._kept: deque[tuple[Page, int]] = deque()
        self._count = 0
        self._lock = renewed_at_fork(threading.Lock())  # handlers read on many threads

    def rows(self, page: Page) -> Sequence[Any]:
        """Return the rows of a page."""
        if (kept := page.decoded) is not None:  # another thread may drop it meanwhile
            return kept
        if page.objects is not None and None not in page.objects:
            return page.objects
        if page.objects is None:
            assert self.codec is not None, "such rows come with a codec"
            rows: Sequence[Any] = self.codec.decode_list(page.json)
        else:
            rows = [self.row(page, index) for index in range(len(page))]
        self._keep(page, rows)
        return rows

    def row(self, page: Page, index: int) -> Any:
        """Return one row, without making the others of its page."""
        if (rows := page.decoded) is not None:  # another thread may drop it meanwhile
            return rows[index]
        row = None if page.objects is None else page.objects[index]
        return self.decode(page.row_json(index)) if row is None else row

    def decode(self, json: bytes) -> Any:
        """Return the row that this JSON was made of."""
        assert self.codec is not None, "such rows come with a codec"
        return self.codec.decode(json)

    def _keep(self, page: Page, rows: Sequence[Any]) -> None:
        with self._lock:
            page.decoded = rows
            self._kept.append((page, len(page)))
            self._count += len(page)
            while self._count > self.most and len(self._kept) > 1:
                oldest, count = self._kept.popleft()
                oldest.decoded = None
                self._count -= count


class Snapshot(Generic[RowT]):
    """The rows of a repository at one time.

    Attributes:
        name: the key of the list in the JSON.
        version: 1 for the first load of this process, one more for each later one.
        loaded_at: when the last full load began to read, in UTC; what was committed before is in it.
        modified_at: when the load began that first gave this process these rows, in UTC.
        date_is_exact: whether this process had no other rows in the same second, which is as exact as HTTP's
            dates are. What another process had in that second is not known.
        table: the rows as they are kept.
        cache: makes Python objects of them.
        copies: whether each reader needs a copy of a row.
        keys_by_value: for each field of the repository's ``indexes``, keys by value.
    """

    # Not a dataclass: where a handler returns one inside of something else, FastAPI would send its fields.
    def __init__(
        self,
        table: Table,
        cache: RowCache,
        *,
        name: str,
        copies: bool,
        version: int,
        loaded_at: datetime,
        modified_at: datetime,
        date_is_exact: bool,
        keys_by_value: Mapping[str, ValueIndex],
    ) -> None:
        self.table = table
        self.cache = cache
        self.name = name
        self.copies = copies
        self.version = version
        self.loaded_at = loaded_at
        self.modified_at = modified_at
        self.date_is_exact = date_is_exact
        self.keys_by_value = keys_by_value

    def __len__(self) -> int:
        return len(self.table)

    def __bool__(self) -> bool:
        return True  # without rows it is still a snapshot

    def __repr__(self) -> str:
        loaded_at = self.loaded_at.isoformat(timespec="seconds")
        return f"<Snapshot of {self.name!r}: {len(self)} rows, version {self.version}, loaded at {loaded_at}>"

    def __iter__(self) -> Iterator[RowT]:
        """Iterate over the rows in order, page by page."""
        for page in self.table.pages:
            rows = self.cache.rows(page)
            yield from map(copied, rows) if self.copies else rows

    # Rows

    @property
    def rows(self) -> tuple[RowT, ...]:
        """The rows in order. Of a table with more than ``max_decoded_rows`` they are made anew each time."""
        if (rows := self.table.rows) is None:
            rows = tuple(row for page in self.table.pages for row in self.cache.rows(page))
            if len(self) <= self.cache.most:
                self.table.rows = rows
        return tuple(map(copied, rows)) if self.copies else rows

    # Made anew for each caller: kept here, it and the snapshot would reference each other, and only the
    # garbage collector would free what a refresh has replaced.

    @property
    def by_key(self) -> Mapping[Hashable, RowT] | None:
        """The rows by primary key, or None where the rows have none."""
        return None if self.table.where is None else _ByKey(self)

    @property
    def indexes(self) -> Mapping[str, Mapping[Hashable, tuple[RowT, ...]]]:
        """For each field of the repository's ``indexes``, the rows by that field's value."""
        return MappingProxyType({field: _ByValue(self, keys) for field, keys in self.keys_by_value.items()})

    def row(self, key: Hashable) -> RowT:
        """Return the row with this key.

        Raises:
            KeyError: there is none.
            TypeError: no key is of this kind.
        """
        position, index = self.table.locate(key)
        return self._given(position, index)

    def rows_of(self, keys: Iterable[Hashable]) -> tuple[RowT, ...]:
        """Return the rows with these keys, in the list's order."""
        places = sorted(map(self.table.locate, keys))
        return tuple(self._given(position, index) for position, index in places)

    def _given(self, position: int, index: int) -> RowT:
        page = self.table.pages[position]
        # A small table is kept whole, and the same row is the same object.
        small = len(self.table) <= self.cache.most
        row = self.cache.rows(page)[index] if small else self.cache.row(page, index)
        return cast("RowT", copied(row) if self.copies else row)

    # Bytes

    @cached_property
    def etag(self) -> str:
        """A digest of the bytes, quoted for HTTP; the same in every worker for the same rows."""
        return f'"{digest(opening(self.name) + self.table.digest).hex()}"'

    @cached_property
    def size(self) -> int:
        """How many bytes ``json`` has."""
        return len(opening(self.name)) + self.table.size + len(CLOSING)

    @property
    def json(self) -> bytes:
        """The bytes of ``{"name": [rows]}``; those of a large list are joined anew each time."""
        if (whole := self.table.json) is None:
            whole = b"".join(self.parts())
            if self.size <= JOINED:
                self.table.json = whole
        return whole

    def parts(self) -> Iterator[bytes]:
        """Yield the same bytes piece by piece."""
        return in_parts(self.name, (page.json for page in self.table.pages))

    def window(self, offset: int, limit: int | None) -> bytes:
        """Return the bytes of ``{"name": [rows]}`` for some of the rows; all that follow without a limit."""
        return b"".join(self.window_parts(offset, len(self) if limit is None else limit))

    def window_parts(self, offset: int, limit: int) -> Iterator[bytes]:
        """Yield the same bytes piece by piece."""
        return in_parts(self.name, self.table.slice_json(offset, limit))

    def window_size(self, offset: int, limit: int) -> int:
        """Return how many bytes these are."""
        return len(opening(self.name)) + self.table.slice_size(offset, limit) + len(CLOSING)

    def row_json(self, key: Hashable) -> bytes:
        """Return the bytes of the row with this key.

        Raises:
            KeyError: there is none.
        """
        return self.table.row_json(key)


def in_parts(name: str, rows: Iterable[bytes]) -> Iterator[bytes]:
    """Yield ``{"name": [rows]}`` piece by piece, of pieces that want a comma between."""
    yield opening(name)
    for number, piece in enumerate(rows):
        if number:
            yield b","
        yield piece
    yield CLOSING


class _ByKey(Mapping[Hashable, RowT]):
    """A snapshot's rows by key."""

    __slots__ = ("_snapshot",)

    def __init__(self, snapshot: Snapshot[RowT]) -> None:
        self._snapshot = snapshot

    def __getitem__(self, key: Hashable) -> RowT:
        return self._snapshot.row(key)

    def __contains__(self, key: object) -> bool:
        where = self._snapshot.table.where
        return where is not None and key in where

    def __iter__(self) -> Iterator[Hashable]:
        for page in self._snapshot.table.pages:
            yield from page.keys

    def __len__(self) -> int:
        return len(self._snapshot)


class _ByValue(Mapping[Hashable, tuple[RowT, ...]]):
    """A snapshot's rows by the value of a field."""

    __slots__ = ("_keys", "_snapshot")

    def __init__(self, snapshot: Snapshot[RowT], keys: ValueIndex) -> None:
        self._snapshot = snapshot
        self._keys = keys

    def __getitem__(self, value: Hashable) -> tuple[RowT, ...]:
        return self._snapshot.rows_of(self._keys[value])

    def __contains__(self, value: object) -> bool:
        return value in self._keys

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)
