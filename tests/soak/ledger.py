"""Which bytes an entity tag stands for: the same for all workers, and for all time."""

import hashlib
from dataclasses import dataclass

from tests.soak.errors import Wrong

MOST = 50_000  # tags


@dataclass(frozen=True, slots=True)
class Judged:
    """Bytes that were found to be right.

    Attributes:
        digest: theirs.
        beacon: the number to which the beacon had counted, if it is in them.
    """

    digest: bytes
    beacon: int | None


class Ledger:
    """What all workers have answered."""

    def __init__(self) -> None:
        self._judged: dict[tuple[str, ...], Judged] = {}

    def find(self, asked: tuple[str, ...], body: bytes | None) -> Judged | None:
        """What is known of an answer.

        Args:
            asked: for what, and the entity tag of the answer.
            body: the bytes; None for a 304.

        Raises:
            Wrong: the tag stands for other bytes.
        """
        found = self._judged.get(asked)
        if found is not None and body is not None and found.digest != _digest(body):
            raise Wrong(f"{asked[0]}: the ETag {asked[-1]} for different bytes")
        return found

    def add(self, asked: tuple[str, ...], body: bytes, beacon: int | None) -> Judged:
        """Note bytes that are right; the oldest make room for them."""
        judged = self._judged[asked] = Judged(_digest(body), beacon)
        if len(self._judged) > MOST:
            del self._judged[next(iter(self._judged))]
        return judged


def _digest(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()
