"""Sends this process' hints to brokers and routes in the background, so that no write waits for it.

Each has a thread, and one that hangs delays no other. While one is down its hints wait, merged; at the end of
the process what could not be sent within two seconds is lost.
"""

import atexit
import encodings.idna  # noqa: F401 - or a fork during the first look-up of a host leaves half of it
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

from ..clock import backoff, monotonic
from ..coherence.hints import Hint, PendingHints
from ..coherence.transport import Publisher
from ..events import django_logger as logger

FLUSH_PATIENCE = 2.0  # seconds that the end of the process waits
FIRST_RETRY = 0.5  # seconds
# As the workers' own: one that is back reads everything at once, and gets later hints only through this.
LAST_RETRY = 5.0


class HintSender:
    """Gives each hint to every destination."""

    def __init__(self, publishers: Callable[[], Sequence[Publisher]]) -> None:
        """Have ``publishers`` make the destinations, without connecting, when there is something to send."""
        self._publishers = publishers
        self._forget()
        os.register_at_fork(after_in_child=self._forget)
        atexit.register(self.flush)

    def put(self, hint: Hint) -> None:
        """Have a hint published. Returns at once and raises nothing."""
        for destination in self._made():
            destination.put(hint)

    def flush(self, patience: float = FLUSH_PATIENCE) -> bool:
        """Wait at most so many seconds until all is published, and return whether it is.

        What has failed is tried more often meanwhile.
        """
        end = monotonic() + patience
        destinations = self._destinations or []
        for destination in destinations:
            destination.hurry(1)
        try:
            return all(destination.wait(end - monotonic()) for destination in destinations)
        finally:
            for destination in destinations:
                destination.hurry(-1)

    def _forget(self) -> None:
        """Begin anew: a forked process has no threads, and its parent sends what waits."""
        self._making = threading.RLock()
        self._destinations: list[Destination] | None = None

    def _made(self) -> list["Destination"]:
        with self._making:
            if self._destinations is None:
                try:
                    self._destinations = [Destination(publisher) for publisher in self._publishers()]
                except Exception:
                    logger.error("FastAPI's workers cannot be told of writes", exc_info=True)
                    self._destinations = []
            return self._destinations


class Destination:
    """Publishes hints in a thread.

    Attributes:
        failures: how many times in a row it has failed.
    """

    def __init__(self, publisher: Publisher) -> None:
        """Take over a publisher, for the thread alone."""
        self.failures = 0
        self._publisher = publisher
        self._changed = threading.Condition()  # guards what follows
        self._pending = PendingHints()
        self._sending = False
        self._tried = 0.0  # when it was tried last, by the monotonic clock
        self._waited_for = 0  # by how many callers of flush()
        self._thread: threading.Thread | None = None

    def put(self, hint: Hint) -> None:
        """Have a hint published. Returns at once and raises nothing."""
        with self._changed:
            self._pending.add(hint)
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
        """Wait at most so many seconds until all is published, and return whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not (self._pending or self._sending), max(0.0, seconds))

    def _run(self) -> None:
        while True:
            with self._changed:
                while (seconds := self._until_due()) != 0:
                    self._changed.wait(seconds)
                self._sending = True
                unsent = self._pending.take()
            self._send(unsent)
            with self._changed:
                for hint in unsent:
                    self._pending.add(hint)
                self._sending = False
                self._changed.notify_all()

    def _until_due(self) -> float | None:
        """Seconds until there is something to send; None: nothing waits."""
        if not self._pending:
            return None
        if self.failures == 0:
            return 0.0
        due = self._tried + backoff(1 if self._waited_for else self.failures, FIRST_RETRY, LAST_RETRY)
        return max(0.0, due - monotonic())

    def _send(self, unsent: list[Hint]) -> None:
        """Publish hints, and remove them from the list. Any error counts: this thread must survive it."""
        name = self._publisher.name
        try:
            while unsent:
                self._publisher.publish(unsent[0])
                del unsent[0]
        except Exception as error:
            if self.failures == 0:
                text = "FastAPI's workers cannot be told of writes through %s; trying again: %s"
                logger.warning(text, name, error)
            self._tried = monotonic()
            self.failures += 1
        else:
            if self.failures:
                logger.warning("FastAPI's workers are told of writes through %s again", name)
            self.failures = 0
