"""Rows on their way from the database into memory, and back into Python when they are read.

A row of Python objects takes three times the memory of its JSON. The JSON is needed anyway, and for plain
values it is enough: a column of datetimes is a column of texts, each of which gives the same datetime again.
A row with anything else in it (a list, bytes, NaN, which JSON lacks) is kept as it came.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from itertools import repeat
from math import isfinite
from types import NoneType
from typing import Any, NamedTuple
from uuid import UUID

from pydantic_core import from_json

from .row import Row

Parse = Callable[[str], Any]

# What has to be made of the JSON's value; None where it is the value. It is made at import, since under a
# frozen clock `datetime` means another class later.
PARSERS: dict[type, Parse | None] = {
    int: None,
    str: None,
    bool: None,
    float: None,
    Decimal: Decimal,
    UUID: UUID,
    date: date.fromisoformat,
    time: time.fromisoformat,
    datetime: datetime.fromisoformat,
}
_MAY_NOT_SURVIVE = frozenset({float, datetime, time})  # values of these types that JSON does not keep whole


class RowCodec:
    """The types of a repository's columns, and with them how to read its rows' JSON.

    The first value of a column decides its type; a row with a value of another type is not exact.

    Attributes:
        names: the columns' names.
        types: for each column the type of its values; None if there was none yet, or JSON does not give it.
        surprises: how often a column that had values got one of a type that it had not had.
    """

    def __init__(self, names: Sequence[str], types: Sequence[type | None] | None = None) -> None:
        self.names = tuple(names)
        self.types: list[type | None] = [None] * len(self.names) if types is None else [*types]
        self.surprises = 0
        self._seen: list[set[type]] = [set() if kind is None else {kind} for kind in self.types]
        self._exact: dict[tuple[type, ...], bool] = {}
        self._watched: list[int] = []
        self._parsers: list[tuple[str, Parse]] = []
        self._update()

    def expect(self, types: Sequence[type | None]) -> bool:
        """Take these for the columns' types, None for an unknown one; False if others are known."""
        if len(types) != len(self.types):
            return False
        for known, seen, kind in zip(self.types, self._seen, types, strict=True):
            if kind is not None and (kind is not known if known is not None else seen and kind not in seen):
                return False
        for position, kind in enumerate(types):
            if kind is not None:
                self.types[position] = kind
                self._seen[position].add(kind)
        self._update()
        return True

    def is_exact(self, values: Sequence[Any]) -> bool:
        """Whether the JSON of these values gives the same values again."""
        signature = tuple(map(type, values))
        exact = self._exact.get(signature)
        if exact is None:
            exact = self._exact[signature] = self._learn(signature)
        return exact and all(_survives(values[position]) for position in self._watched)

    def _learn(self, signature: tuple[type, ...]) -> bool:
        exact = True
        for position, kind in enumerate(signature):
            if kind is NoneType:
                continue
            seen = self._seen[position]
            if not seen:
                self.types[position] = kind if kind in PARSERS else None
            elif kind not in seen:
                self.surprises += 1
            seen.add(kind)
            exact &= kind is self.types[position]
        self._update()
        return exact

    def _update(self) -> None:
        self._watched = [position for position, kind in enumerate(self.types) if kind in _MAY_NOT_SURVIVE]
        typed = zip(self.names, self.types, strict=True)
        parsers = ((name, PARSERS[kind]) for name, kind in typed if kind is not None)
        self._parsers = [(name, parse) for name, parse in parsers if parse is not None]

    def decode(self, row: bytes) -> Row:
        """Return the row that this JSON was made of."""
        return self._row(from_json(row))

    def decode_list(self, rows: bytes) -> list[Row]:
        """Return the rows that this JSON was made of, with commas between them."""
        return list(map(self._row, from_json(b"[" + rows + b"]")))

    def _row(self, values: dict[str, Any]) -> Row:
        for name, parse in self._parsers:
            value = values[name]
            if value is not None:
                values[name] = parse(value)
        return Row(values)


def _survives(value: Any) -> bool:
    """Whether JSON keeps all there is in a float or a time."""
    if type(value) is float:
        return isfinite(value)
    return value is None or ((value.tzinfo is None or value.tzinfo is UTC) and not value.fold)


class EncodedRow(NamedTuple):
    """A row that was read.

    Attributes:
        key: its primary key, or the value that it was asked for by.
        json: its JSON.
        row: the Python object; None if the JSON gives it.
        codec: reads that JSON.
    """

    key: Hashable
    json: bytes
    row: Any
    codec: RowCodec | None = None


@dataclass(slots=True, eq=False, repr=False)
class Chunk:
    """Some rows on their way into pages, as three lists of one length.

    Attributes:
        keys: the primary keys.
        json: the JSON of each row.
        objects: each row in Python; None where the JSON gives it.
        codec: reads such JSON; None if there is none.
    """

    keys: list[Hashable]
    json: list[bytes]
    objects: list[Any]
    codec: RowCodec | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def rows(self) -> list[EncodedRow]:
        """Return the rows one by one."""
        return list(map(EncodedRow, self.keys, self.json, self.objects, repeat(self.codec)))

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
        """Return the rows from ``first`` up to ``last``."""
        return Chunk(self.keys[first:last], self.json[first:last], self.objects[first:last])


def value_of(row: Any, field: str) -> Any:
    """Return a row's field, whether the row is a dict or a schema's instance."""
    return row[field] if isinstance(row, Mapping) else getattr(row, field)
