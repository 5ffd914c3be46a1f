"""What was loaded: rows, their bytes and the ways to look them up, never changed.

A refresh makes a new snapshot and swaps it in whole, so a reader never sees half a load.
"""

from collections.abc import Hashable, Iterable, Iterator, Mapping
from datetime import datetime
from functools import cached_property
from types import MappingProxyType
from typing import Any, Generic, cast

from typing_extensions import TypeVar

from ..rows.encoding import CLOSING, digest, opening
from ..rows.row import Row
from ..rows.sharing import CopiedRows, copied
from .row_cache import RowCache
from .table import Table
from .value_index import ValueIndex

# The default lets `class Topics(CachedRepository)` mean rows; typing.TypeVar has it from Python 3.13 on.
RowT = TypeVar("RowT", default=Row)

JOINED = 4 * 2**20  # bytes: a list up to this size is kept in one piece, too


class Snapshot(Generic[RowT]):
    """The rows of a repository at one time.

    Attributes:
        name: the key of the list in the JSON.
        version: 1 for the first load of this process, one more for each later one.
        loaded_at: when the last full load began to read, in UTC; what was committed before is in it.
        modified_at: when the load began that first gave this process these rows, in UTC.
        date_is_exact: whether this process had no other rows in the same second, which is all that HTTP's
            dates can tell. What another process had in that second is not known.
        table: the rows as they are kept.
    """

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
        indexes: Mapping[str, ValueIndex],
    ) -> None:
        """Show a table.

        Args:
            table: the rows.
            cache: makes Python objects of them.
            name: the key of the list in the JSON.
            copies: whether each reader needs a copy of a row.
            version: its number.
            loaded_at: when the full load began on which it is based.
            modified_at: when these rows were first seen.
            date_is_exact: whether this process had no other rows in that second.
            indexes: for each field of the repository's ``indexes``, keys by value.
        """
        self.table = table
        self.name = name
        self.version = version
        self.loaded_at = loaded_at
        self.modified_at = modified_at
        self.date_is_exact = date_is_exact
        self.cache = cache
        self.copies = copies
        self.keys_by_value = indexes

    def __len__(self) -> int:
        return len(self.table)

    def __bool__(self) -> bool:
        return True  # without rows it is still a snapshot

    def __repr__(self) -> str:
        loaded_at = self.loaded_at.isoformat(timespec="seconds")
        return f"<Snapshot of {self.name!r}: {len(self)} rows, version {self.version}, loaded at {loaded_at}>"

    def __iter__(self) -> Iterator[RowT]:
        """The rows in order, page by page."""
        for page in self.table.pages:
            rows = self.cache.rows(page)
            yield from map(copied, rows) if self.copies else rows

    # Rows

    @property
    def rows(self) -> tuple[RowT, ...]:
        """The rows in order. Of a table with more than ``max_decoded_rows`` they are made anew each time."""
        if (rows := self.table.rows) is None:
            made = [row for page in self.table.pages for row in self.cache.rows(page)]
            rows = CopiedRows(made) if self.copies else tuple(made)
            if len(self) <= self.cache.most:
                self.table.rows = rows
        return rows

    # Made anew for each caller: kept here, it and the snapshot would hold each other, and only the garbage
    # collector would free what a refresh has replaced.

    @property
    def by_key(self) -> Mapping[Hashable, RowT] | None:
        """The rows by primary key, or None where the rows have none."""
        return None if self.table.where is None else _ByKey(self)

    @property
    def indexes(self) -> Mapping[str, Mapping[Hashable, tuple[RowT, ...]]]:
        """For each field of the repository's ``indexes``, the rows by that field's value."""
        return MappingProxyType({field: _ByValue(self, keys) for field, keys in self.keys_by_value.items()})

    def row(self, key: Hashable) -> RowT:
        """The row with this key.

        Raises:
            KeyError: there is none.
            TypeError: no key is of this kind.
        """
        position, index = self.table.locate(key)
        return self._given(position, index)

    def rows_of(self, keys: Iterable[Hashable]) -> tuple[RowT, ...]:
        """The rows with these keys, in the list's order."""
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
        """The same bytes piece by piece."""
        yield opening(self.name)
        for number, page in enumerate(self.table.pages):
            if number:
                yield b","
            yield page.json
        yield CLOSING

    def window(self, offset: int, limit: int | None) -> bytes:
        """The bytes of ``{"name": [rows]}`` for some of the rows.

        Args:
            offset: how many rows to leave out, from 0.
            limit: how many to give at most; None for all that follow.
        """
        return b"".join(self.window_parts(offset, len(self) if limit is None else limit))

    def window_parts(self, offset: int, limit: int) -> Iterator[bytes]:
        """The same bytes piece by piece."""
        yield opening(self.name)
        for number, rows in enumerate(self.table.slice_json(offset, limit)):
            if number:
                yield b","
            yield rows
        yield CLOSING

    def window_size(self, offset: int, limit: int) -> int:
        """How many bytes these are."""
        return len(opening(self.name)) + self.table.slice_size(offset, limit) + len(CLOSING)

    def row_json(self, key: Hashable) -> bytes:
        """The bytes of the row with this key.

        Raises:
            KeyError: there is none.
        """
        return self.table.row_json(key)


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


def value_of(row: Any, field: str) -> Any:
    """A row's field, be the row a dict or a schema's instance."""
    return row[field] if isinstance(row, Mapping) else getattr(row, field)
