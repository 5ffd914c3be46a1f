"""How a load and requests give way to each other.

A thread that computes holds the interpreter, and another waits up to five milliseconds whenever it wants it
back (``sys.getswitchinterval()``): the event loop during a load, and a load under a busy event loop, once to
begin and once more for each answer of the database. So it changes hands sooner while anything is loaded.

Besides, a load works in short steps, and while requests are being answered it rests after each step for
several times as long as the step took. When nobody asks for anything it runs at full speed, and so it does
at first: a load of a thousand rows is over before requests have noticed.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..shared import SharedContext

SHARE = 0.1  # of the time, while there are requests
LONGEST = 0.1  # seconds
UNNOTICED = 0.01  # seconds of work before the first rest
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
        """Follow the requests.

        Args:
            requests: how many there have been.
        """
        self._requests = requests
        self._seen = requests()
        self._begun = self._worked = 0.0

    def begin(self) -> None:
        """A load begins."""
        self._seen = self._requests()
        self._begun = self._worked = time.thread_time()

    def rest(self) -> None:
        """A step is done, and another will follow: let others go first, if there are any."""
        seen, self._seen = self._seen, self._requests()
        now = time.thread_time()
        if seen != self._seen and now - self._begun > UNNOTICED:
            time.sleep(min(LONGEST, (now - self._worked) * (1 / SHARE - 1)))
            now = time.thread_time()
        self._worked = now
