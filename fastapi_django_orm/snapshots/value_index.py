"""Which rows have a value: the keys by the value of one field, never changed.

Most values have a few rows, and a tuple is smallest for those. A value that half of a large table has
would make each change copy half of the keys; its keys are in shards.
"""

from collections.abc import Hashable, Iterable, Iterator, Mapping

from ..errors import InvalidRow
from ..rows.row import Row, RowList
from .key_index import ABSENT, Absent, KeyIndex

_FEW = 64

_KINDS: dict[type, str] = {Row: "dict", RowList: "list"}

Pairs = list[tuple[Hashable, Hashable]]  # of a value and a key
Keys = tuple[Hashable, ...] | KeyIndex[None]


class ValueIndex:
    """Keys by value."""

    __slots__ = ("_keys",)

    def __init__(self, keys: KeyIndex[Keys]) -> None:
        """Take this mapping."""
        self._keys = keys

    @classmethod
    def of(cls, keys: Mapping[Hashable, list[Hashable]]) -> "ValueIndex":
        """Make one of lists of keys."""
        return cls(KeyIndex.of(len(keys), (((value,), _packed(found)) for value, found in keys.items())))

    def __getitem__(self, value: Hashable) -> Iterable[Hashable]:
        return self._keys[value]

    def __contains__(self, value: Hashable) -> bool:
        return value in self._keys

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def changed(
        self, gone: Iterable[tuple[Hashable, Hashable]], new: Iterable[tuple[Hashable, Hashable]]
    ) -> "ValueIndex":
        """The same index with some pairs of a value and a key taken out and others put in."""
        changes: dict[Hashable, dict[Hashable, Absent | None]] = {}
        for value, key in gone:
            changes.setdefault(value, {})[key] = ABSENT
        for value, key in new:
            changes.setdefault(value, {})[key] = None
        return ValueIndex(
            self._keys.changed({value: self._with(value, keys) for value, keys in changes.items()})
        )

    def _with(self, value: Hashable, changes: Mapping[Hashable, Absent | None]) -> Keys | Absent:
        before: Keys = self._keys.get(value, ())
        if isinstance(before, KeyIndex):
            after = before.changed(changes)
            return after if len(after) > _FEW else _packed(list(after)) or ABSENT
        put = [key for key, change in changes.items() if change is None]
        return _packed([*(key for key in before if key not in changes), *put]) or ABSENT


def lookup_pairs(field: str, pairs: Pairs) -> Pairs:
    """These pairs of a value and a key, if rows can be looked up by the values.

    Raises:
        InvalidRow: rows cannot be looked up by one of the values.
    """
    for value, key in pairs:
        try:
            hash(value)
        except TypeError:
            kind = _KINDS.get(type(value), type(value).__name__)
            raise InvalidRow(
                f"A row cannot be looked up by {field!r}, which holds a {kind}: "
                "leave the field out of `indexes`.",
                key=key,
            ) from None
    return pairs


def _packed(keys: list[Hashable]) -> Keys:
    return tuple(keys) if len(keys) <= _FEW else KeyIndex.of(len(keys), [(keys, None)])
