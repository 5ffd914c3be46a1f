"""How a load and requests give way to each other.

A thread that computes holds the interpreter, and another waits up to five milliseconds whenever it wants it
back (``sys.getswitchinterval()``): the event loop during a load, and a load under a busy event loop, once to
begin and once more for each answer of the database. So it changes hands sooner while anything is loaded.

Besides, a load works in short steps, and while requests are being answered it rests after each step until it
has had no more than its share of the time. What it did not use before is added, up to a few milliseconds, so
that a thousand rows are loaded at once. When nobody asks for anything a load runs at full speed.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..clock import monotonic
from ..shared import SharedContext

SHARE = 0.07  # of the time, while there are requests
LONGEST_PAUSE = 0.1  # seconds
SAVED = 0.01  # seconds of work

# Seconds. Requests are taken to go on for this long after the last one seen: a step often ends before those
# that arrived during it are counted.
ASKED = 0.1
SWITCH = 0.0005  # seconds


@contextmanager
def _switching_sooner() -> Iterator[None]:
    before = sys.getswitchinterval()
    if before <= SWITCH:
        yield
        return
    sys.setswitchinterval(SWITCH)
    shortened = sys.getswitchinterval()
    try:
        yield
    finally:
        if sys.getswitchinterval() == shortened:  # or somebody else has set it meanwhile
            # It is kept in whole microseconds, and cut off where half of one is not added.
            sys.setswitchinterval(before + 0.5e-6)


switching_sooner = SharedContext(_switching_sooner).entered


class Pace:
    """The rhythm of one repository's loads. Called between two steps, on the thread that loads."""

    def __init__(self, requests: Callable[[], int]) -> None:
        """Follow the requests; the function returns how many there have been."""
        self._requests = requests
        self._seen = requests()
        self._worked = self._asked_until = 0.0
        self._credit = SAVED  # seconds of work that requests do not notice; below 0: they have
        self._credited_at = monotonic()

    def begin(self) -> None:
        """Begin a load, after a rest if those before it have had too much."""
        self._worked = time.thread_time()
        self.rest()

    def rest(self) -> None:
        """Let requests go first, if there are any, between a step and the next."""
        if self._charge() and self._credit < 0:
            time.sleep(min(LONGEST_PAUSE, -self._credit / SHARE))

    def end(self) -> None:
        """Count the last step."""
        self._charge()

    def _charge(self) -> bool:
        """Count the work since the last time; returns whether there are requests."""
        now, worked = monotonic(), time.thread_time()
        seen, self._seen = self._seen, self._requests()
        if seen != self._seen:
            self._asked_until = now + ASKED
        self._credit = min(SAVED, self._credit + SHARE * (now - self._credited_at))
        asked = now < self._asked_until
        if asked:
            self._credit = max(-SHARE * LONGEST_PAUSE, self._credit - (worked - self._worked))
        self._credited_at, self._worked = now, worked
        return asked
