"""A transport kept up: listen, and after every loss connect again and distrust all that was loaded before."""

import asyncio
import random
from collections.abc import Callable, Collection
from datetime import UTC, datetime

from .. import metrics
from ..clock import backoff, monotonic, pause
from ..errors import text_of
from ..events import logger
from .hints import EVERYTHING, Hint
from .transport import Listener

FIRST_DELAY = 0.1  # seconds
LAST_DELAY = 5.0


class Link:
    """One listener and its state.

    Attributes:
        listener: the transport's end.
        connected_since: None while it is down.
        last_hint: when one has come, whatever it was about.
        error: why it is down.
    """

    def __init__(
        self,
        listener: Listener,
        needed: Collection[str] | None,
        heard: Callable[["Link", Hint], None],
        said: Callable[["Link", bytes], None],
    ) -> None:
        """Connect to nothing yet.

        Args:
            listener: what to keep up.
            needed: labels of the models of whose writes nothing else tells; None: of all it is expected to
                tell, as of a transport that was asked for by name. Of any that has once missed nothing, the
                same is expected from then on.
            heard: called on the event loop with what it hears, and with ``EVERYTHING`` when it connects.
            said: called on the event loop with what other workers say.
        """
        self.listener = listener
        self.connected_since: datetime | None = None
        self.last_hint: datetime | None = None
        self.error: BaseException | None = None
        self.tried = asyncio.Event()  # set once it is known whether it is up
        self._heard = heard
        self._said = said
        self._failures = 0
        self._needed = None if needed is None else frozenset(needed)
        self._up_since = 0.0
        self._task: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """The transport's."""
        return self.listener.name

    @property
    def degraded(self) -> bool:
        """Whether hints are missed that should come."""
        unheard = self.listener.unheard
        if self.connected_since is None:
            return self.has_been_up or self._needed is None or bool(self._needed)
        return bool(unheard if self._needed is None else unheard & self._needed)

    @property
    def has_been_up(self) -> bool:
        """Whether it has ever been connected."""
        return bool(self._up_since)

    def start(self) -> None:
        """Listen, until stopped."""
        metrics.show_transport(self)
        self._task = asyncio.create_task(self._run(), name=f"coherence {self.listener.name}")

    async def stop(self) -> None:
        """Stop listening."""
        metrics.hide_transport(self)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def connected(self) -> None:
        """Note the connection, and have everything read anew."""
        self.connected_since, self._up_since = datetime.now(UTC), monotonic()
        self.error = None
        self.tried.set()
        logger.info("coherence_connected", transport=self.name)
        self._pass_on(EVERYTHING)

    def heard(self, hint: Hint) -> None:
        """Pass a hint on."""
        self.last_hint = datetime.now(UTC)
        metrics.count_hint(self.name)
        self._pass_on(hint)

    def said(self, message: bytes) -> None:
        """Pass on what another worker has said."""
        self._said(self, message)

    def _pass_on(self, hint: Hint) -> None:
        if not self.listener.unheard:
            self._needed = None
        self._heard(self, hint)

    async def _run(self) -> None:
        while True:
            try:
                await self.listener.listen(self)
            except Exception as error:
                self._lost(error)
            delay = backoff(self._failures, FIRST_DELAY, LAST_DELAY)
            await pause(delay * random.uniform(0.5, 1.0))  # or all workers would come back at once

    def _lost(self, error: Exception) -> None:
        was_up, self.connected_since = self.connected_since is not None, None
        if was_up or self._failures == 0:  # one line, however long it lasts
            event = "coherence_lost" if self.has_been_up else "coherence_unavailable"
            logger.error(event, transport=self.name, error=type(error).__name__, cause=text_of(error))
        if was_up and monotonic() - self._up_since > LAST_DELAY:
            self._failures = 0
        self._failures += 1
        self.error = error
        self.tried.set()
