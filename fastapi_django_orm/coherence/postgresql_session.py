"""A psycopg connection that hears notifications as they come and can be asked something at any time.

psycopg's own ``notifies()`` keeps the connection to itself for as long as it waits, so that nobody else could
test it or have a message sent. Here the event loop watches the socket between two questions.
"""

import asyncio
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from psycopg import AsyncConnection
from psycopg.pq import PGnotify
from psycopg.sql import Composed

SESSION_PATIENCE = 3.0  # seconds for an answer


class Session:
    """A connection in autocommit mode."""

    def __init__(self, connection: AsyncConnection[Any], hear: Callable[[PGnotify], None]) -> None:
        """Watch a connection; use it in ``async with``, which closes it.

        Args:
            connection: whose owner this becomes.
            hear: called on the event loop with each notification, as bytes: in a database without an encoding
                they may be anything.
        """
        self._connection = connection
        self._hear = hear
        self._loop = asyncio.get_running_loop()
        self._woken = asyncio.Event()
        # A descriptor of our own: psycopg watches its own while it waits for an answer, and libpq closes it
        # when the connection is lost, under the feet of whoever watches.
        self._socket = socket.socket(fileno=os.dup(connection.fileno()))

    async def __aenter__(self) -> Self:
        # For what comes together with the answer to a question; psycopg's own handler would decode it.
        self._connection.pgconn.notify_handler = self._hear
        self._loop.add_reader(self._socket, self._woken.set)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._loop.remove_reader(self._socket)
        self._socket.close()
        await self._connection.close()

    @property
    def is_lost(self) -> bool:
        """Whether the connection has ended, and not only a query of it failed."""
        return self._connection.closed

    def wake(self) -> None:
        """Have ``wait()`` return now."""
        self._woken.set()

    async def wait(self, seconds: float) -> None:
        """Return when notifications have come and were heard, when woken, or when the time is over.

        Raises:
            psycopg.OperationalError: the connection is lost.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, seconds)):
                await self._woken.wait()
        self._woken.clear()
        wire = self._connection.pgconn
        wire.consume_input()
        while (notify := wire.notifies()) is not None:
            self._hear(notify)

    async def execute(
        self, query: str | Composed, parameters: Sequence[Any] | None = None, *, seconds: float
    ) -> list[Any]:
        """The rows that a query gives; none if it gives no rows.

        Raises:
            psycopg.Error: it failed.
            TimeoutError: there is no answer. The connection is broken off then.
        """
        asking = self._loop.create_task(self._ask(query, parameters))
        try:
            done, _ = await asyncio.wait([asking], timeout=seconds)
            if not done:
                raise TimeoutError(f"no answer within {seconds:g} s")
        finally:
            if not asking.done():
                # Cancelling would have psycopg ask the server to cancel, and wait for that as well.
                with suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)
                await asyncio.wait([asking])
                asking.exception()
        self._woken.set()  # more may have been read than the answer
        return asking.result()

    async def _ask(self, query: str | Composed, parameters: Sequence[Any] | None) -> list[Any]:
        cursor = await self._connection.execute(query, parameters)
        return await cursor.fetchall() if cursor.description is not None else []
