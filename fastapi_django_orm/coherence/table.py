"""Hints in a table of the database itself: triggers write them there, and workers read them at intervals.

That is for databases without NOTIFY, and for PostgreSQL with many writers, whose notifying commits wait for
each other. Like NOTIFY, a hint is part of the transaction that it is about. Unlike NOTIFY it comes when a
worker looks, so a worker looks often while something happens, and rarely while nothing does.

Each database has its own answer to one question: which rows have become visible since the last read? A
transaction may commit long after it has written its hint, so "those with a greater id" is wrong wherever two
transactions may write at once. The listeners say how they know.
"""

import random
from collections.abc import Iterable

from ..clock import monotonic
from .hints import CHANNEL, MOST_KEYS_OF_HINT, Hint, PendingHints, decode

TABLE = f"{CHANNEL}_hint"

# A reader that comes back after LAPSE reads everything again. By then no hint that it has missed was removed.
KEPT = 60.0  # seconds that a hint stays after every reader could read it
LAPSE = 30.0
BATCH = 10_000  # rows that one statement removes
BATCHES = 10  # of them at once, with each heartbeat

IDLE = 0.25  # seconds between two reads while no hints come
CALM = 1.0  # seconds after the last hint, during which reads stay frequent
SLOWER = 1.25


class Pace:
    """How long to wait between two reads.

    Attributes:
        idle: the most seconds while no hints come.
    """

    def __init__(self, shortest: float) -> None:
        """Wait ``shortest`` seconds at most while hints come."""
        self.idle = IDLE
        self._shortest = shortest
        self._interval = shortest
        self._busy_until = 0.0

    @property
    def is_calm(self) -> bool:
        """Whether no hints have come for a while."""
        return monotonic() >= self._busy_until

    def hurry(self) -> None:
        """Read often from now on, since hints come."""
        self._busy_until = monotonic() + CALM

    def next(self) -> float:
        """Seconds until the next read."""
        if self.is_calm:
            self._interval = max(self._shortest, min(self.idle, self._interval * SLOWER))
        else:
            self._interval = self._shortest
        return self._interval * random.uniform(0.5, 1.0)  # or all workers would read at the same moment


def merged(messages: Iterable[bytes | str]) -> list[Hint]:
    """The hints in these messages, at most one for each model: a row trigger writes one for each row."""
    pending = PendingHints(MOST_KEYS_OF_HINT)
    for message in messages:
        pending.add(decode(message))
    return pending.take()
