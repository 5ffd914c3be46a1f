"""What a transport is: a way for hints to get from where somebody writes to every worker that serves.

The two ends are apart, because they live in different programs. A Django process publishes, from a thread
that may wait. A FastAPI process listens on its event loop.
"""

from typing import Protocol

from ..errors import DjangoORMError
from .hints import Hint


class TransportUnavailable(DjangoORMError, ConnectionError):
    """A transport cannot carry hints now; the message says what to look at."""


class Publisher(Protocol):
    """The end that a writer holds. Made without I/O; used by one thread at a time.

    Attributes:
        name: for logs, without a password.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    def publish(self, hint: Hint) -> None:
        """Send it. Connects when it must, and anew after a failure; gives up within a few seconds.

        Raises:
            TransportUnavailable: it was not sent.
        """

    def check(self) -> None:
        """Find out whether something could be published.

        Raises:
            TransportUnavailable: nothing could be, now.
        """

    def close(self) -> None:
        """Let go of the connection; a later ``publish()`` opens another."""


class Receiver(Protocol):
    """What a listener reports to. Called on the event loop; returns at once."""

    def connected(self) -> None:
        """From now on no hint is missed. What was published before may have been."""

    def heard(self, hint: Hint) -> None:
        """A hint has come; one without a label means everything that this transport carries."""

    def said(self, message: bytes) -> None:
        """Another worker has said something, on a transport that connects workers."""


class Listener(Protocol):
    """The end that a worker holds. Made without I/O.

    Attributes:
        name: for logs and the health route, without a password.
        aliases: the databases whose writes it carries; None: any.
        unheard: labels of models whose writes should be heard and at present are not.
        server: the database that it listens to, as ``origins.SERVER`` tells it from others; None: it listens
            to none, or it is not connected.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def aliases(self) -> frozenset[str] | None: ...  # noqa: D102
    @property
    def unheard(self) -> frozenset[str]: ...  # noqa: D102
    @property
    def server(self) -> tuple[int, ...] | None: ...  # noqa: D102

    async def listen(self, receiver: Receiver) -> None:
        """Connect, say so, and pass on what comes, until cancelled or the connection is lost.

        Whoever calls it calls it again after an error, with growing delays.

        Raises:
            TransportUnavailable: it could not connect, or the connection was lost.
        """

    async def caught_up(self) -> bool:
        """Wait until all that was committed before this call has been passed on.

        Returns:
            Whether that can be told. If not, because this transport keeps no order between a commit and its
            hint or is down now, the caller has to read the database.
        """
