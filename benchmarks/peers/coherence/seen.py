"""When a worker shows each write: noted in memory, and told in a file of its own when it ends.

The clock is the system's monotonic one, which all processes of a machine share on Linux and macOS. Nothing is
asked of a worker meanwhile, since answering would delay what is measured.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STEP = (
    7_919  # a prime: the keys of successive writes are far apart, and all differ until each has had its turn
)


def key_of(number: int, rows: int) -> int:
    """Return the key of the row that a write changes."""
    return 1 + number * STEP % rows


def comment_of(number: int) -> str:
    """Return what a write puts there; an earlier run has put something else there."""
    return f"write {number} of {directory().name}"


def directory() -> Path:
    """Return where all workers of this run tell what they have seen."""
    return Path(os.environ["BENCHMARK_SEEN"])


class Seen:
    """The moments at which this worker had the writes, in their order."""

    def __init__(self) -> None:
        self.moments: list[float] = []
        self.reading: list[float] = []
        self._file = directory() / f"{os.getpid()}.json"

    @contextmanager
    def told(self) -> Iterator[None]:
        """Be listening for the length of the block, and tell afterwards."""
        self._file.touch()
        try:
            yield
        finally:
            self._file.write_text(json.dumps({"moments": self.moments, "reading": self.reading}))

    @property
    def next(self) -> int:
        """The number of the next write that is not here yet."""
        return len(self.moments)

    def note(self, moment: float | None = None, reading: float = 0.0) -> None:
        """Have the next write: since a moment, by default now, after so many milliseconds of reading."""
        self.moments.append(time.monotonic() if moment is None else moment)
        self.reading.append(reading)
