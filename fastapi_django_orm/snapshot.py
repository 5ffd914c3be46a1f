"""What was loaded: rows, their bytes and the ways to look them up, made once and never changed.

A refresh makes a new snapshot and swaps it in whole, so a reader never sees half a load.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any, Generic

from typing_extensions import TypeVar

from .rows import Row

# The default lets `class Topics(CachedRepository)` mean rows; typing.TypeVar has it from Python 3.13 on.
RowT = TypeVar("RowT", default=Row)

Index = Mapping[Hashable, tuple[RowT, ...]]


@dataclass(frozen=True, slots=True)
class Snapshot(Generic[RowT]):
    """The rows of a repository as one load has read them.

    Attributes:
        rows: the rows in order.
        version: 1 for the first load of this process, one more for each later one.
        loaded_at: when the load began to read, in UTC; what was committed before is in it.
        etag: a digest of the bytes, quoted for HTTP; the same in every worker for the same rows.
        json: the bytes of ``{"name": [rows]}``.
        by_key: the rows by primary key, or None where the rows have none.
        indexes: for each field of the repository's ``indexes``, the rows by that field's value.
    """

    rows: tuple[RowT, ...]
    version: int
    loaded_at: datetime
    etag: str
    json: bytes
    by_key: Mapping[Hashable, RowT] | None
    indexes: Mapping[str, "Index[RowT]"]

    def __len__(self) -> int:
        return len(self.rows)


def value_of(row: Any, field: str) -> Any:
    """A row's field, be the row a dict or a schema's instance."""
    return row[field] if isinstance(row, Mapping) else getattr(row, field)


def index_rows(rows: Sequence[RowT], fields: Iterable[str]) -> Mapping[str, "Index[RowT]"]:
    """For each field, the rows by its value, in their order."""
    indexes: dict[str, dict[Hashable, Any]] = {}
    for field in fields:
        index: dict[Hashable, Any] = {}
        for row in rows:
            index.setdefault(value_of(row, field), []).append(row)
        indexes[field] = {value: tuple(found) for value, found in index.items()}
    return MappingProxyType(indexes)
