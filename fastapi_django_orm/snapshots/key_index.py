"""Where each key's row is: a mapping that is never changed, and cheap to make a changed one of.

A dict of a million keys takes ten milliseconds to copy, in which nothing else runs. This one is a tuple of
small dicts; a changed one shares all of them but those with a changed key.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Generic, TypeVar

V = TypeVar("V")

_SHARD = 512  # keys, on average


class Absent:
    """What a key is changed to that is no longer there."""


ABSENT = Absent()


class KeyIndex(Generic[V]):
    """A mapping in shards.

    Attributes:
        shards: the parts of the mapping.
    """

    __slots__ = ("_mask", "shards")

    def __init__(self, shards: tuple[dict[Hashable, V], ...]) -> None:
        """Take these shards, a power of two of them."""
        self.shards = shards
        self._mask = len(shards) - 1

    @classmethod
    def of(cls, size: int, groups: Iterable[tuple[Iterable[Hashable], V]]) -> "KeyIndex[V]":
        """Make an index.

        Args:
            size: about how many keys there are.
            groups: keys, and the value that they share.
        """
        count = 1 << max(0, size // _SHARD).bit_length()
        shards: tuple[dict[Hashable, V], ...] = tuple({} for _ in range(count))
        mask = count - 1
        for keys, value in groups:
            for key in keys:
                shards[hash((key,)) & mask][key] = value
        return cls(shards)

    def __getitem__(self, key: Hashable) -> V:
        # The tuple's hash, since that of integers is the integer: multiples of 1,024 would share a shard.
        return self.shards[hash((key,)) & self._mask][key]

    def get(self, key: Hashable, default: V) -> V:
        """The key's value, or the default where there is none."""
        return self.shards[hash((key,)) & self._mask].get(key, default)

    def __contains__(self, key: Hashable) -> bool:
        return key in self.shards[hash((key,)) & self._mask]

    def __len__(self) -> int:
        return sum(map(len, self.shards))

    @property
    def fits(self) -> bool:
        """Whether the shards have about as many keys as they should: a change makes no more shards."""
        return len(self) <= 4 * _SHARD * len(self.shards)

    def __iter__(self) -> Iterator[Hashable]:
        for shard in self.shards:
            yield from shard

    def changed(self, changes: Mapping[Hashable, V | Absent]) -> "KeyIndex[V]":
        """The same mapping but for these keys."""
        by_shard: dict[int, list[Hashable]] = defaultdict(list)
        for key in changes:
            by_shard[hash((key,)) & self._mask].append(key)
        shards = list(self.shards)
        for number, keys in by_shard.items():
            shard = shards[number] = shards[number].copy()
            for key in keys:
                value = changes[key]
                if isinstance(value, Absent):
                    shard.pop(key, None)
                else:
                    shard[key] = value
        return KeyIndex(tuple(shards))
