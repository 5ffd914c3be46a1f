"""What this process has to tell others, told in the background, so that no write waits for it."""

import atexit
import encodings.idna  # noqa: F401 - or a fork during the first look-up of a host leaves half of it
import os
import threading
from collections.abc import Callable, Sequence

from ..clock import monotonic
from ..coherence.hints import Hint
from ..coherence.transport import Publisher
from ..events import django_logger as logger
from .destination import Destination

FLUSH_PATIENCE = 2.0  # seconds that the end of the process waits


class Outbox:
    """Gives each hint to every destination; those that keep silent hold up no other."""

    def __init__(self, publishers: Callable[[], Sequence[Publisher]]) -> None:
        """Start nothing yet.

        Args:
            publishers: makes them, without connecting; called when there is something to publish.
        """
        self._publishers = publishers
        self._forget()
        os.register_at_fork(after_in_child=self._forget)
        atexit.register(self.flush)

    def put(self, hint: Hint) -> None:
        """Have a hint published. Returns at once and raises nothing."""
        for destination in self._made():
            destination.put(hint)

    def flush(self, patience: float = FLUSH_PATIENCE) -> bool:
        """Wait until all is published. What has failed is tried more often meanwhile.

        Args:
            patience: the most seconds to wait.

        Returns:
            Whether all is published.
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

    def _made(self) -> list[Destination]:
        with self._making:
            if self._destinations is None:
                self._destinations = self._make()
            return self._destinations

    def _make(self) -> list[Destination]:
        try:
            return [Destination(publisher) for publisher in self._publishers()]
        except Exception:
            logger.error("FastAPI's workers cannot be told of writes", exc_info=True)
            return []
