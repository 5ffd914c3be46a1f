"""What was loaded: rows, their bytes and the ways to look them up, made once and never changed.

A refresh makes a new snapshot and swaps it in whole, so a reader never sees half a load.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any, Generic

from typing_extensions import TypeVar

from .errors import InvalidRow
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

    def __bool__(self) -> bool:
        return True  # without rows it still is one


def value_of(row: Any, field: str) -> Any:
    """A row's field, be the row a dict or a schema's instance."""
    return row[field] if isinstance(row, Mapping) else getattr(row, field)


def index_rows(
    rows: Sequence[RowT], fields: Iterable[str], given: Callable[[list[RowT]], tuple[RowT, ...]] = tuple
) -> Mapping[str, "Index[RowT]"]:
    """For each field, the rows by its value, in their order.

    Args:
        rows: what to index.
        fields: what to index by.
        given: makes the tuples that readers get.

    Raises:
        InvalidRow: a value cannot be looked up by.
    """
    indexes: dict[str, Index[RowT]] = {}
    for field in fields:
        index: dict[Hashable, list[RowT]] = {}
        for row in rows:
            value = value_of(row, field)
            try:
                index.setdefault(value, []).append(row)
            except TypeError:
                raise InvalidRow(
                    f"A row cannot be looked up by {field!r}, which holds {value!r}: "
                    "leave the field out of `indexes`."
                ) from None
        indexes[field] = MappingProxyType({value: given(found) for value, found in index.items()})
    return MappingProxyType(indexes)
