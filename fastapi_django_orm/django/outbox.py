"""What this process has to tell others, sent from one thread so that no write waits for it.

Hints that wait are merged by model, so there are never more of them than models. They wait while a transport
is down: who cannot be told now is told later, once, of everything.
"""

import atexit
import encodings.idna  # noqa: F401 - or a fork during the first look-up of a host leaves half of it
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

from ..coherence.hints import EVERYTHING, Hint
from ..coherence.transport import Publisher

# Not structlog's, whose default is standard output, where a management command writes what it was asked for.
logger = logging.getLogger("fastapi_django_orm")

MOST_KEYS = 1000  # of one model; beyond them a hint says "all"
FIRST_RETRY = 0.5  # seconds
# As the workers do: one that is back reads everything at once, and what is written then is told only by this.
LAST_RETRY = 5.0
FLUSH_PATIENCE = 2.0  # seconds that the end of the process waits


class Waiting:
    """Hints that wait, merged."""

    def __init__(self) -> None:
        self._keys: dict[str, set[Any] | None] = {}

    def add(self, hint: Hint) -> None:
        """Take a hint in."""
        keys = self._keys.setdefault(hint.label, set())
        if keys is None:
            return
        keys.update(hint.keys or ())
        if hint.keys is None or len(keys) > MOST_KEYS:
            self._keys[hint.label] = None

    def take(self) -> list[Hint]:
        """Give them away."""
        keys, self._keys = self._keys, {}
        if EVERYTHING.label in keys:
            return [EVERYTHING]
        return [Hint(label, None if found is None else tuple(found)) for label, found in keys.items()]

    def __bool__(self) -> bool:
        return bool(self._keys)


class _Line:
    """A transport, what it has yet to carry, and when to try.

    Attributes:
        failures: how many times it has failed since it worked last.
        tried: when it was tried last, by the monotonic clock.
    """

    def __init__(self, publisher: Publisher) -> None:
        self.publisher = publisher
        self.waiting = Waiting()
        self.failures = 0
        self.tried = 0.0

    def due(self, hurry: bool) -> float:
        """When to try, by the monotonic clock.

        Args:
            hurry: whether somebody waits for it.
        """
        if self.failures == 0:
            return 0.0
        exponent = 0 if hurry else min(self.failures - 1, 10)
        return self.tried + min(LAST_RETRY, FIRST_RETRY * 2.0**exponent)

    def send(self, hints: Iterable[Hint]) -> None:
        """Publish all; what fails waits for the next time.

        Any error counts, since this thread must outlive what a client library comes up with.
        """
        unsent = list(hints)
        try:
            while unsent:
                self.publisher.publish(unsent[0])
                del unsent[0]
        except Exception as error:
            self._failed(error)
            for hint in unsent:
                self.waiting.add(hint)
        else:
            self._succeeded()

    def _failed(self, error: Exception) -> None:
        if self.failures == 0:
            logger.warning(
                "FastAPI's workers cannot be told of writes through %s; trying again: %s",
                self.publisher.name,
                error,
            )
        self.tried = time.monotonic()
        self.failures += 1

    def _succeeded(self) -> None:
        if self.failures:
            logger.warning("FastAPI's workers are told of writes through %s again", self.publisher.name)
        self.failures = 0


class Outbox:
    """Publishes hints in the background, in the order of their models' first mention."""

    def __init__(self, publishers: Callable[[], Sequence[Publisher]]) -> None:
        """Start nothing yet.

        Args:
            publishers: makes them; called on the thread, when there is something to publish.
        """
        self._publishers = publishers
        self._changed = threading.Condition()
        self._waiting = Waiting()
        self._idle = threading.Event()  # nothing waits and nothing is being sent
        self._idle.set()
        self._waited_for = 0  # how many wait in flush()
        self._thread: threading.Thread | None = None
        self._lines: list[_Line] = []
        os.register_at_fork(after_in_child=self._forget)
        atexit.register(self.flush)

    def put(self, hint: Hint) -> None:
        """Have it published. Returns at once and raises nothing."""
        with self._changed:
            self._waiting.add(hint)
            self._idle.clear()
            self._changed.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="fastapi-coherence", daemon=True)
                with suppress(RuntimeError):  # the interpreter ends
                    self._thread.start()

    def flush(self, patience: float = FLUSH_PATIENCE) -> bool:
        """Wait until all is published. A transport that has failed is tried more often meanwhile.

        Args:
            patience: the most seconds to wait.

        Returns:
            Whether it is.
        """
        self._hurry(1)
        try:
            return self._idle.wait(patience)
        finally:
            self._hurry(-1)

    def _hurry(self, more: int) -> None:
        with self._changed:
            self._waited_for += more
            self._changed.notify()

    def _forget(self) -> None:
        """Begin anew: a forked process has no thread, and its parent sends what waits."""
        self._changed = threading.Condition()
        self._waiting = Waiting()
        self._idle = threading.Event()
        self._idle.set()
        self._waited_for = 0
        self._thread = None
        self._lines = []

    def _run(self) -> None:
        try:
            self._lines = [_Line(publisher) for publisher in self._publishers()]
        except Exception:
            logger.exception("FastAPI's workers cannot be told of writes")
        while True:
            for line, hints in self._next():
                line.send(hints)

    def _next(self) -> list[tuple[_Line, list[Hint]]]:
        """What to send through which transport now; waits for it."""
        with self._changed:
            while True:
                for hint in self._waiting.take():
                    for line in self._lines:
                        line.waiting.add(hint)
                wait = self._until_due()
                if wait == 0:
                    return [(line, line.waiting.take()) for line in self._lines if self._is_due(line)]
                if wait is None:
                    self._idle.set()
                self._changed.wait(wait)

    def _until_due(self) -> float | None:
        """Seconds until there is something to send; None: nothing waits."""
        dues = [self._due(line) for line in self._lines if line.waiting]
        return max(0.0, min(dues) - time.monotonic()) if dues else None

    def _is_due(self, line: _Line) -> bool:
        return bool(line.waiting) and self._due(line) <= time.monotonic()

    def _due(self, line: _Line) -> float:
        return line.due(hurry=self._waited_for > 0)
