"""Immutable mappings by key that are cheap to change: where each row is, and which rows have a value.

A dict of a million keys takes ten milliseconds to copy, in which nothing else runs. A ``KeyIndex`` is a tuple
of small dicts; a changed one shares all of them but those with a changed key.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from enum import Enum
from typing import Generic, TypeVar

from ..errors import InvalidRow
from ..reading.row import Row, RowList

V = TypeVar("V")

_SHARD = 512  # keys, on average
_FEW = 64  # keys of one value that a tuple holds

_KINDS: dict[type, str] = {Row: "dict", RowList: "list"}


class Removed(Enum):
    """What a key is changed to that is no longer there."""

    REMOVED = "removed"


REMOVED = Removed.REMOVED


class KeyIndex(Generic[V]):
    """A mapping in shards.

    Attributes:
        shards: the parts of the mapping, a power of two of them.
    """

    __slots__ = ("_mask", "shards")

    def __init__(self, shards: tuple[dict[Hashable, V], ...]) -> None:
        self.shards = shards
        self._mask = len(shards) - 1

    @classmethod
    def of(cls, size: int, groups: Iterable[tuple[Iterable[Hashable], V]]) -> "KeyIndex[V]":
        """Make an index of about so many keys, given in groups that share a value."""
        count = 1 << max(0, size // _SHARD).bit_length()
        shards: tuple[dict[Hashable, V], ...] = tuple({} for _ in range(count))
        mask = count - 1
        for keys, value in groups:
            for key in keys:
                shards[hash((key,)) & mask][key] = value
        return cls(shards)

    def _shard(self, key: Hashable) -> dict[Hashable, V]:
        # The tuple's hash, since that of integers is the integer: multiples of 1,024 would share a shard.
        return self.shards[hash((key,)) & self._mask]

    def __getitem__(self, key: Hashable) -> V:
        return self._shard(key)[key]

    def get(self, key: Hashable, default: V) -> V:
        """Return the key's value, or the default where there is none."""
        return self._shard(key).get(key, default)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._shard(key)

    def __len__(self) -> int:
        return sum(map(len, self.shards))

    def __iter__(self) -> Iterator[Hashable]:
        for shard in self.shards:
            yield from shard

    @property
    def fits(self) -> bool:
        """Whether the shards have about as many keys as they should: a change makes no more shards."""
        return len(self) <= 4 * _SHARD * len(self.shards)

    def changed(self, changes: Mapping[Hashable, V | Removed]) -> "KeyIndex[V]":
        """Return the same mapping but for these keys."""
        by_shard: dict[int, list[Hashable]] = defaultdict(list)
        for key in changes:
            by_shard[hash((key,)) & self._mask].append(key)
        shards = list(self.shards)
        for number, keys in by_shard.items():
            shard = shards[number] = shards[number].copy()
            for key in keys:
                value = changes[key]
                if isinstance(value, Removed):
                    shard.pop(key, None)
                else:
                    shard[key] = value
        return KeyIndex(tuple(shards))


Pairs = Iterable[tuple[Hashable, Hashable]]  # of a value and a key
Keys = tuple[Hashable, ...] | KeyIndex[None]


class ValueIndex:
    """Keys by the value of one field.

    Most values have a few rows, and a tuple is smallest for those. A value that half of a large table has
    would make each change copy half of the keys, so its keys are in shards.
    """

    __slots__ = ("_keys",)

    def __init__(self, keys: KeyIndex[Keys]) -> None:
        self._keys = keys

    @classmethod
    def of(cls, keys: Mapping[Hashable, list[Hashable]]) -> "ValueIndex":
        """Make an index of lists of keys."""
        return cls(KeyIndex.of(len(keys), (((value,), _packed(found)) for value, found in keys.items())))

    def __getitem__(self, value: Hashable) -> Iterable[Hashable]:
        return self._keys[value]

    def __contains__(self, value: Hashable) -> bool:
        return value in self._keys

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def changed(self, gone: Pairs, new: Pairs) -> "ValueIndex":
        """Return the same index with some pairs taken out and others put in."""
        changes: dict[Hashable, dict[Hashable, Removed | None]] = {}
        for value, key in gone:
            changes.setdefault(value, {})[key] = REMOVED
        for value, key in new:
            changes.setdefault(value, {})[key] = None
        return ValueIndex(
            self._keys.changed({value: self._with(value, keys) for value, keys in changes.items()})
        )

    def _with(self, value: Hashable, changes: Mapping[Hashable, Removed | None]) -> Keys | Removed:
        before: Keys = self._keys.get(value, ())
        if isinstance(before, KeyIndex):
            after = before.changed(changes)
            return after if len(after) > _FEW else _packed(list(after)) or REMOVED
        put = [key for key, change in changes.items() if change is None]
        return _packed([*(key for key in before if key not in changes), *put]) or REMOVED


def _packed(keys: list[Hashable]) -> Keys:
    return tuple(keys) if len(keys) <= _FEW else KeyIndex.of(len(keys), [(keys, None)])


def check_values(field: str, pairs: list[tuple[Hashable, Hashable]]) -> list[tuple[Hashable, Hashable]]:
    """Return these pairs of a value and a key.

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
