"""One broker or route that is told of writes, by a thread of its own, so that it keeps no other waiting.

Hints wait while it is down, merged, and are sent when it is back.
"""

import threading
from contextlib import suppress

from ..clock import backoff, monotonic
from ..coherence.hints import Hint
from ..coherence.transport import Publisher
from ..events import django_logger as logger
from .waiting import Waiting

FIRST_RETRY = 0.5  # seconds
# As the workers' own: one that is back reads everything at once, and hears of later writes only through this.
LAST_RETRY = 5.0


class Destination:
    """Publishes hints in the background.

    Attributes:
        failures: how many times in a row it has failed.
    """

    def __init__(self, publisher: Publisher) -> None:
        """Start nothing yet.

        Args:
            publisher: used by the thread alone.
        """
        self.failures = 0
        self._publisher = publisher
        self._changed = threading.Condition()
        self._waiting = Waiting()
        self._sending = False
        self._tried = 0.0  # when it was tried last, by the monotonic clock
        self._waited_for = 0  # how many want it to be tried soon
        self._thread: threading.Thread | None = None

    def put(self, hint: Hint) -> None:
        """Have a hint published. Returns at once and raises nothing."""
        with self._changed:
            self._waiting.add(hint)
            self._changed.notify_all()
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="fastapi-coherence", daemon=True)
                # The interpreter ends; or there are too many threads now, and the next hint tries again.
                with suppress(RuntimeError):
                    thread.start()
                    self._thread = thread

    def hurry(self, more: int) -> None:
        """Note that so many more callers, or fewer, wait for all to be published: a retry comes sooner."""
        with self._changed:
            self._waited_for += more
            self._changed.notify_all()

    def wait(self, seconds: float) -> bool:
        """Wait until all is published, for so many seconds at most; returns whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not (self._waiting or self._sending), max(0.0, seconds))

    def _run(self) -> None:
        while True:
            self._send(self._next())

    def _next(self) -> list[Hint]:
        """What to send now; waits for it."""
        with self._changed:
            while (seconds := self._until_due()) != 0:
                self._changed.wait(seconds)
            self._sending = True
            return self._waiting.take()

    def _until_due(self) -> float | None:
        """Seconds until there is something to send; None: nothing waits."""
        if not self._waiting:
            return None
        if self.failures == 0:
            return 0.0
        due = self._tried + backoff(1 if self._waited_for else self.failures, FIRST_RETRY, LAST_RETRY)
        return max(0.0, due - monotonic())

    def _send(self, unsent: list[Hint]) -> None:
        """Publish all; what fails waits for the next time.

        Any error counts, since this thread must outlive what a client library comes up with.
        """
        try:
            while unsent:
                self._publisher.publish(unsent[0])
                del unsent[0]
        except Exception as error:
            self._failed(error)
        else:
            self._succeeded()
        with self._changed:
            for hint in unsent:
                self._waiting.add(hint)
            self._sending = False
            self._changed.notify_all()

    def _failed(self, error: Exception) -> None:
        if self.failures == 0:
            logger.warning(
                "FastAPI's workers cannot be told of writes through %s; trying again: %s",
                self._publisher.name,
                error,
            )
        self._tried = monotonic()
        self.failures += 1

    def _succeeded(self) -> None:
        if self.failures:
            logger.warning("FastAPI's workers are told of writes through %s again", self._publisher.name)
        self.failures = 0
