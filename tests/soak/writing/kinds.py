"""The kinds of writes, by which counts are kept; each is a function that a decorator has put on the list."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.soak.writing.hand import Hand

Write = Callable[[Hand], None]
EVERYWHERE = ("postgresql", "sqlite", "mysql")

KINDS: list["Kind"] = []


@dataclass(frozen=True, slots=True)
class Kind:
    """One way to write.

    Attributes:
        write: does it once, in transactions of its own.
        weight: how often it is chosen, among the others.
        vendors: databases that can do it.
        unseen: labels of models whose rows it changes without a signal.
    """

    write: Write
    weight: float
    vendors: tuple[str, ...]
    unseen: tuple[str, ...]

    @property
    def name(self) -> str:
        """What the report calls it."""
        return self.write.__name__.replace("_", " ")


def kind(
    weight: float, *, on: tuple[str, ...] = EVERYWHERE, unseen: tuple[str, ...] = ()
) -> Callable[[Write], Write]:
    """Put a function on the list."""

    def listed(write: Write) -> Write:
        KINDS.append(Kind(write, weight, on, unseen))
        return write

    return listed
