"""Sessions with the PostgreSQL server that Django reads, for listeners and publishers.

Django's engine is asked how to connect whenever something connects, and nothing is taken from ``DATABASES``:
passwords may be tokens that expire (AWS IAM, Azure, Vault), made by its ``get_connection_params()``.

psycopg's own ``notifies()`` keeps the connection to itself for as long as it waits, so that nothing else
could test it or send a message. Here the event loop watches the socket between two queries.
"""

import asyncio
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

from django.db import connections
from psycopg import AsyncConnection, ProgrammingError, pq
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import PGnotify
from psycopg.sql import Composed

from ..database.engines import POSTGRESQL_PATIENCE
from ..errors import InvalidSettings, text_of
from .transport import TransportUnavailable

SESSION_PATIENCE = 3.0  # seconds for an answer

_LOOKS = """
SELECT current_setting('role'),
    array_to_string(ARRAY(SELECT quote_ident(name) FROM unnest(current_schemas(false)) AS name), ', ')"""


@dataclass(frozen=True, slots=True)
class Way:
    """How to have a session that finds the tables which Django's connections find.

    Attributes:
        parameters: libpq's, and among them a password.
        role: which Django's engine has set; None: the one that logs in.
        search_path: the schemas in which Django's connections look for tables.
    """

    parameters: Mapping[str, Any]
    role: str | None
    search_path: str


def read_dsn(dsn: str | None) -> dict[str, Any]:
    """The libpq parameters of a DSN."""
    try:
        return dict(conninfo_to_dict(dsn)) if dsn else {}
    except ProgrammingError:  # whose message may have the password
        raise InvalidSettings(
            "DJANGO_ORM_COHERENCE_DSN, or the postgresql:// in DJANGO_ORM_COHERENCE, cannot be read. Write "
            "it as for psql: host=db port=5432 dbname=site, or postgresql://user@db:5432/site."
        ) from None


def way_to(alias: str, direct: Mapping[str, Any]) -> Way:
    """How to reach a database now, with libpq parameters that replace the engine's.

    On a database thread: the engine may wait for a token. Raises TransportUnavailable if the engine does not
    say how to connect, and DatabaseError if Django's own connection does not work.
    """
    connection: Any = connections[alias]
    with connection.cursor() as cursor:
        cursor.execute(_LOOKS)
        role, search_path = cursor.fetchone()
    parameters = libpq_parameters(alias, direct)
    info = getattr(connection.connection, "info", None)  # psycopg's
    if "password" not in parameters and getattr(info, "password", None):
        parameters["password"] = _new_password(alias)
    # Another user who logs in need not be allowed to take the role.
    own_role = role != "none" and "user" not in direct
    return Way(parameters, role if own_role else None, search_path)


def _new_password(alias: str) -> str:
    """The password that an engine gives the driver only while it connects."""
    connection: Any = connections.create_connection(alias)
    try:
        connection.connect()
        return str(connection.connection.info.password)
    finally:
        connection.close()


def libpq_parameters(alias: str, direct: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """How a database's engine connects now, as in ``way_to()``. On a thread that may wait."""
    try:
        # An engine may keep what it was asked for, so it is not asked on a connection that is in use.
        given = dict(connections.create_connection(alias).get_connection_params())
        whole = conninfo_to_dict(given.pop("conninfo", None) or given.pop("dsn", None) or "")
    except Exception as error:  # whatever an engine, or a client of a vault that it uses, raises
        raise TransportUnavailable(
            f"postgresql:{alias}: the database's engine does not say how to connect: {text_of(error)}"
        ) from error
    # The rest is for Django's own driver and connections: cursor_factory, context, prepare_threshold.
    known = {option.keyword.decode() for option in pq.Conninfo.get_defaults()}
    given = {name: value for name, value in given.items() if name in known and value not in ("", None)}
    defaults = {"application_name": "fastapi-django-orm", **POSTGRESQL_PATIENCE}
    return {**defaults, **whole, **given, **(direct or {})}


class Session:
    """A connection in autocommit mode that receives notifications as they come. ``async with`` closes it."""

    def __init__(self, connection: AsyncConnection[Any], notified: Callable[[PGnotify], None]) -> None:
        """Take over a connection, and call ``notified`` on the event loop with each notification.

        They are bytes: in a database without an encoding they may be anything.
        """
        self._connection = connection
        self._notified = notified
        self._loop = asyncio.get_running_loop()
        self._woken = asyncio.Event()
        # A duplicate of the descriptor: psycopg watches its own while it waits for an answer, and libpq
        # closes that one when the connection is lost, while the event loop still watches it.
        self._socket = socket.socket(fileno=os.dup(connection.fileno()))

    async def __aenter__(self) -> Self:
        # For what comes together with the answer to a query; psycopg's own handler would decode it.
        self._connection.pgconn.notify_handler = self._notified
        self._loop.add_reader(self._socket, self._woken.set)
        return self

    async def __aexit__(self, *error: object) -> None:
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
        """Return when notifications have come and were passed on, when woken, or when the time is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, seconds)):
                await self._woken.wait()
        self._woken.clear()
        wire = self._connection.pgconn
        wire.consume_input()
        while (notify := wire.notifies()) is not None:
            self._notified(notify)

    async def execute(
        self,
        query: str | Composed,
        parameters: Sequence[Any] | None = None,
        *,
        seconds: float = SESSION_PATIENCE,
    ) -> list[Any]:
        """The rows that a query returns, if any. Without an answer, TimeoutError, and the connection ends."""
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
