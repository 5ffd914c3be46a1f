"""How a load gives way to requests.

A thread that computes holds the interpreter, and the event loop waits up to five milliseconds whenever it
wants it back (``sys.getswitchinterval()``). So a load works in short steps, and while requests are being
answered it rests after each step for several times as long as the step took. When nobody asks for
anything it runs at full speed.
"""

import time
from collections.abc import Callable

SHARE = 0.1  # of the time, while there are requests
LONGEST = 0.1  # seconds


class Pace:
    """The rhythm of one repository's loads. Called between two steps, on the thread that loads."""

    def __init__(self, requests: Callable[[], int]) -> None:
        """Follow the requests.

        Args:
            requests: how many there have been.
        """
        self._requests = requests
        self._seen = requests()
        self._worked = 0.0

    def begin(self) -> None:
        """A load begins."""
        self._seen = self._requests()
        self._worked = time.thread_time()

    def rest(self) -> None:
        """A step is done: let others go first, if there are any."""
        seen, self._seen = self._seen, self._requests()
        if seen != self._seen:
            step = time.thread_time() - self._worked
            time.sleep(min(LONGEST, step * (1 / SHARE - 1)))
        self._worked = time.thread_time()
