"""Writes at random, at its own pace and now and then without any, and counts what it has done."""

import time
from collections import defaultdict
from collections.abc import Iterable
from io import StringIO

from django.core.management import CommandError, call_command
from django.db import IntegrityError, OperationalError

from tests.soak.writing import bulk, orm, sql, transactions  # noqa: F401 - they fill the list of kinds
from tests.soak.writing.hand import Hand, NothingToDo, RolledBack
from tests.soak.writing.kinds import KINDS, Kind

HURRY = 0.005  # how often a writer forgets to pause
HURRIED = 40  # for so many writes
TELL_SECONDS = 60.0


class Writer:
    """One writer.

    Attributes:
        counts: of writes, by kind (each that the database can do) and by what became of them.
    """

    def __init__(self, hand: Hand, pause: float, turn: tuple[int, int] = (0, 1)) -> None:
        """Write nothing yet.

        Args:
            hand: what it writes with.
            pause: seconds between two writes, on average.
            turn: which writer it is, and of how many: between them they begin with each kind once.
        """
        self._hand = hand
        self._pause = pause
        self._kinds = [kind for kind in KINDS if hand.vendor in kind.vendors]
        self.counts: dict[str, dict[str, int]] = {kind.name: defaultdict(int) for kind in self._kinds}
        number, count = turn
        self._first = self._kinds[number::count]

    def write(self) -> None:
        """Write until it is time to end."""
        hurried = 0
        weights = [kind.weight for kind in self._kinds]
        while not self._hand.stopping.is_set():
            (kind,) = self._first[-1:] or self._hand.rng.choices(self._kinds, weights)
            self._first = self._first[:-1]
            self.counts[kind.name][self._write(kind)] += 1
            hurried = HURRIED if self._hand.rng.random() < HURRY else hurried - 1
            if hurried <= 0:
                self._hand.stopping.wait(self._hand.rng.expovariate(1 / self._pause))

    def _write(self, kind: Kind) -> str:
        """Write once; what became of it."""
        try:
            kind.write(self._hand)
        except NothingToDo:
            return "nothing to do"
        except RolledBack:
            return "rolled back"
        except (IntegrityError, OperationalError):
            return "refused"
        if kind.unseen and self._hand.vendor == "mysql":
            announce(kind.unseen)
        return "committed"


def announce(labels: Iterable[str]) -> None:
    """Say what no signal has said, also when the broker is away for a while."""
    end = time.monotonic() + TELL_SECONDS
    while True:
        try:
            call_command("refresh", *labels, stdout=StringIO())
        except CommandError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
        else:
            return
