"""Rows that are kept as their JSON, and become values again when somebody reads them.

A row of Python objects takes three times the memory of its JSON. The JSON is needed anyhow, and for plain
values it says all: a column of datetimes is a column of texts of which each gives the same datetime
again. A row with anything else in it (a list, bytes, NaN, which JSON lacks) is kept as it came.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, time
from decimal import Decimal
from math import isfinite
from types import NoneType
from typing import Any
from uuid import UUID

from pydantic_core import from_json

from .row import Row

Parse = Callable[[str], Any]

# What has to be made of the JSON's value; None where it is the value.
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


# Of which JSON does not say all. Made here, since under a frozen clock `datetime` means another class later.
_OF_MORE_THAN_JSON = frozenset({float, datetime, time})


class RowCodec:
    """Knows which type each column of a repository has, and so how to read its rows' JSON.

    The first value of a column decides; rows that differ from it later are not exact.

    Attributes:
        names: the columns'.
        surprises: how often a column that had values got one of a type that it had not had.
    """

    def __init__(self, names: Sequence[str], types: Sequence[type] | None = None) -> None:
        """Read rows with these columns.

        Args:
            names: the columns' names, in order.
            types: of their values, if all are known; else they are learned.
        """
        self.names = tuple(names)
        self._types: list[type | None] = [None] * len(self.names) if types is None else [*types]
        self._exact: set[tuple[type, ...]] = set()
        self._watched: list[int] = []
        self._parsers: list[tuple[str, Parse]] = []
        self._kinds: list[set[type]] = [set() if kind is None else {kind} for kind in self._types]
        self._inexact: set[tuple[type, ...]] = set()
        self.surprises = 0
        self._learn()

    @property
    def types(self) -> dict[str, type | None]:
        """For each column the type of its values, None if there was none yet."""
        return dict(zip(self.names, self._types, strict=True))

    def expect(self, types: Sequence[type | None]) -> bool:
        """Take these for the columns' types, None for one that is not known; False if others are known."""
        if len(types) != len(self._types):
            return False
        for known, kinds, kind in zip(self._types, self._kinds, types, strict=True):
            if kind is not None and (kind is not known if known is not None else kinds and kind not in kinds):
                return False
        self._types = [kind or known for known, kind in zip(self._types, types, strict=True)]
        for kinds, kind in zip(self._kinds, types, strict=True):
            kinds.update(() if kind is None else (kind,))
        self._learn()
        return True

    def is_exact(self, values: Sequence[Any]) -> bool:
        """Whether the JSON of these values gives the same values again."""
        signature = tuple(map(type, values))
        if signature not in self._exact and not self._admit(signature):
            return False
        return all(_survives(values[position]) for position in self._watched)

    def _admit(self, signature: tuple[type, ...]) -> bool:
        if signature in self._inexact:
            return False
        exact = True
        for position, kind in enumerate(signature):
            kinds = self._kinds[position]
            if kind is NoneType or kind in kinds:
                exact &= kind is NoneType or kind is self._types[position]
            elif kinds or kind not in PARSERS:
                self.surprises += bool(kinds)
                kinds.add(kind)
                exact = False
            else:
                kinds.add(kind)
                self._types[position] = kind
                self._learn()
        (self._exact if exact else self._inexact).add(signature)
        return exact

    def _learn(self) -> None:
        self._watched = [position for position, kind in enumerate(self._types) if kind in _OF_MORE_THAN_JSON]
        parsers = ((name, PARSERS[kind]) for name, kind in self.types.items() if kind is not None)
        self._parsers = [(name, parse) for name, parse in parsers if parse is not None]

    def decode(self, row: bytes) -> Row:
        """The row that this JSON was made of."""
        return self._row(from_json(row))

    def decode_list(self, rows: bytes) -> list[Row]:
        """The rows that this JSON was made of, comma between."""
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
