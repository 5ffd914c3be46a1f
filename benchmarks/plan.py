"""What a run measures and for how long, and what came of it: the same for every part."""

from __future__ import annotations

import http.client
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.peer import Way

Say = Callable[[str], None]


class PeerError(RuntimeError):
    """A peer did not start, or does not give what the others give."""


# What costs a peer its place in the tables, and nobody else's.
FAILURES = (
    PeerError,
    OSError,
    ValueError,  # what should be JSON is not
    http.client.HTTPException,
    subprocess.SubprocessError,
)


@dataclass(frozen=True)
class Sizes:
    """How large a run of one part is.

    Attributes:
        rows: of the table, a database for each figure.
        clients: of the load, where there is one.
        rounds: how often everything is measured, in turn.
        seconds: measured in each run, where there is a load.
    """

    rows: tuple[int, ...]
    clients: tuple[int, ...] = ()
    rounds: int = 3
    seconds: int = 2


# All of it takes less than 50 minutes; what is published is measured for longer (README.md says how).
DEFAULT = {
    "cached": Sizes((10, 100, 1_000, 10_000), (32,)),
    "live": Sizes((10_000,), (32, 256)),
    "loading": Sizes((100_000, 1_000_000)),
    "refreshing": Sizes((100_000, 1_000_000)),
    "calm": Sizes((100_000,), (1, 32), seconds=3),
    "coherence": Sizes((1_000,), (32,), seconds=6),
}

# To see that everything runs, in less than 10 minutes: figures of one short round prove nothing.
QUICK = {
    "cached": Sizes((10, 10_000), (32,), 1, 1),
    "live": Sizes((10_000,), (32,), 1, 1),
    "loading": Sizes((100_000,), (), 1),
    "refreshing": Sizes((100_000,), (), 1),
    "calm": Sizes((100_000,), (1, 32), 1, 2),
    "coherence": Sizes((1_000,), (32,), 1, 2),
}


@dataclass(frozen=True)
class Plan:
    """One part of a run."""

    part: str
    peers: tuple[Way, ...]
    rows: tuple[int, ...]
    clients: tuple[int, ...]
    rounds: int
    seconds: int
    warm_up: int = 1


@dataclass
class Results:
    """All that was measured, each part's own kind, and why peers are missing."""

    plan: Plan
    pinned: bool = False
    runs: list[Any] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def attempt(self, peer: Way, measure: Callable[[], Any], say: Say) -> None:
        """Measure a peer once, or note why that was not possible and leave it out from there on.

        Without the first peer there are no ratios: if that one fails, all end with what they have.
        """
        if {peer.name, self.plan.peers[0].name} & self.failed.keys():
            return
        try:
            run = measure()
        except FAILURES as error:
            self.failed[peer.name] = str(error) or repr(error)
            say(f"{peer.name} failed: {error}")
        else:
            self.runs.append(run)
            say(str(run))
