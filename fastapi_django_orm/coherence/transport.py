"""Transports: the ways by which hints travel from a writer to every worker.

The two ends live in different programs. A Django process publishes, on a thread that may wait. A FastAPI
process listens on its event loop, under a supervisor that connects again after every loss.
"""

import asyncio
import random
from collections.abc import Callable, Collection, Iterable
from datetime import UTC, datetime
from typing import ClassVar

from django.apps import apps

from .. import metrics
from ..clock import backoff, cancel, monotonic, pause
from ..errors import DjangoORMError, text_of
from ..events import logger
from .hints import EVERYTHING, Hint

FIRST_DELAY = 0.1  # seconds
LAST_DELAY = 5.0

APP = "fastapi_django_orm.django"  # which has the command that installs triggers


class TransportUnavailable(DjangoORMError, ConnectionError):
    """A transport cannot carry hints now; the message says what to look at."""


class Publisher:
    """The writer's end, used by one thread at a time.

    Attributes:
        name: for logs, without a password.
    """

    name: str

    def publish(self, hint: Hint) -> None:
        """Send a hint, or raise TransportUnavailable within a few seconds. Connects when necessary."""
        raise NotImplementedError

    def check(self) -> None:
        """Raise TransportUnavailable if nothing can be published now."""

    def close(self) -> None:
        """Disconnect, if a connection is kept; a later ``publish()`` connects again."""


class Listener:
    """The worker's end.

    Attributes:
        name: for logs and the health route, without a password.
        aliases: the databases whose writes it carries; None: any.
        unheard: labels of models whose writes it should carry and at present does not.
        server: the database that it listens to, as ``origins.SERVER`` identifies it; None: unknown.
        connects_workers: whether workers reach each other through it, by ``workers()`` and ``say()``.
        worker: the name under which it presents this worker; set before it listens.
    """

    name: str
    aliases: frozenset[str] | None = None
    unheard: frozenset[str] = frozenset()
    server: tuple[int, ...] | None = None
    connects_workers: ClassVar[bool] = False
    worker: str = ""

    async def listen(self, receiver: "TransportSupervisor") -> None:
        """Connect, call ``connected()``, and pass on what comes until cancelled, or TransportUnavailable."""
        raise NotImplementedError

    async def caught_up(self) -> bool:
        """Wait until all that was committed before this call has been passed on.

        False if the transport cannot tell, because it keeps no order between a commit and its hint, or is
        down. The caller has to read the database then.
        """
        return False

    async def workers(self) -> frozenset[str]:
        """The workers that listen now, or TransportUnavailable."""
        raise NotImplementedError

    async def say(self, channel: str, message: bytes) -> None:
        """Send at most ``MESSAGE_LIMIT`` bytes to other workers, or raise TransportUnavailable.

        The channel is ``EVERY_WORKER``, or one worker's ``channel_of()``.
        """
        raise NotImplementedError


def install_command(labels: Iterable[str], *options: str) -> str:
    """What to run for the triggers of these models, and what to do before."""
    command = " ".join(["python manage.py coherence install", *options, *labels])
    if not apps.is_installed(APP):
        return f"Put {APP} into INSTALLED_APPS first, then run: {command}"
    return command


class TransportSupervisor:
    """Keeps one listener connected, which reports to it on the event loop.

    After every loss all that was loaded before is distrusted.

    Attributes:
        connected_since: None while it is down.
        last_hint: when the last hint came.
        error: why it is down.
        tried: set once it is known whether it is up.
    """

    def __init__(
        self,
        listener: Listener,
        needed: Collection[str] | None,
        received: Callable[["TransportSupervisor", Hint], None],
        said: Callable[["TransportSupervisor", bytes], None],
    ) -> None:
        """Supervise a listener.

        Args:
            listener: what to keep connected.
            needed: labels of the models whose writes only this transport carries; None: all that it should
                carry, as for one that a setting names. Once it was complete, it is expected to stay so.
            received: called with each hint, and with ``EVERYTHING`` after connecting.
            said: called with each message of another worker.
        """
        self.listener = listener
        self.name = listener.name
        self.connected_since: datetime | None = None
        self.last_hint: datetime | None = None
        self.error: BaseException | None = None
        self.tried = asyncio.Event()
        self._received = received
        self._said = said
        self._failures = 0
        self._needed = None if needed is None else frozenset(needed)
        self._up_since = 0.0
        self._task: asyncio.Task[None] | None = None

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

    def carries(self, alias: str) -> bool:
        """Whether writes to a database come this way."""
        return self.listener.aliases is None or alias in self.listener.aliases

    def start(self) -> None:
        """Listen, until stopped."""
        metrics.transports.add(self)
        self._task = asyncio.create_task(self._run(), name=f"coherence {self.name}")

    async def stop(self) -> None:
        """Stop listening."""
        metrics.transports.discard(self)
        await cancel(self._task)

    def connected(self) -> None:
        """From now on no hint is missed. What was published before may have been: read everything again."""
        self.connected_since, self._up_since = datetime.now(UTC), monotonic()
        self.error = None
        self.tried.set()
        logger.info("coherence_connected", transport=self.name)
        self._pass_on(EVERYTHING)

    def received(self, hint: Hint) -> None:
        """Pass on a hint; one without a label means everything that this transport carries."""
        self.last_hint = datetime.now(UTC)
        metrics.count_hint(self.name)
        self._pass_on(hint)

    def said(self, message: bytes) -> None:
        """Pass on a message of another worker."""
        self._said(self, message)

    def _pass_on(self, hint: Hint) -> None:
        if not self.listener.unheard:
            self._needed = None
        self._received(self, hint)

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
