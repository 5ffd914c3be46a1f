"""PostgreSQL's NOTIFY: the hint is part of the transaction, sent when it commits and not when it rolls back.

Triggers in the database write the hints, so every writer counts. One connection of each worker LISTENs. The
server queues notifications in the order of commits, and a worker uses that: when a message that it sends to
itself comes back, everything committed before has come too. This also shows that the connection lives.
https://www.postgresql.org/docs/current/sql-notify.html
"""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from math import inf
from typing import Any
from uuid import uuid4

import psycopg
from asgiref.sync import sync_to_async
from psycopg import AsyncConnection, sql
from psycopg.pq import PGnotify

from ..clock import monotonic
from ..errors import text_of
from .hints import CHANNEL, Hint, decode
from .origins import SERVER
from .postgresql_session import SESSION_PATIENCE, Session, Way
from .postgresql_triggers import TriggerWatch
from .roll_call import EVERY_WORKER, channel_of, is_worker
from .transport import Listener, TransportSupervisor, TransportUnavailable

USE_DIRECT_DSN = (
    "LISTEN needs a session of its own with the primary server. Set DJANGO_ORM_COHERENCE_DSN to a DSN that "
    "leads there directly, or DJANGO_ORM_COHERENCE to another transport."
)

# Every role may read application_name, whoever owns the session.
_WORKERS = """
SELECT convert_to(application_name, 'UTF8') FROM pg_catalog.pg_stat_activity
WHERE datname = current_database() AND starts_with(application_name, %s)"""
APPLICATION = "fastapi-django-orm "  # and the worker's name
POLL = 1.0  # seconds between two looks at materialized views, whose REFRESH notifies nothing


class PostgreSQLListener(Listener):
    """Receives what the triggers of a database, or any other session, notify."""

    connects_workers = True

    def __init__(
        self,
        alias: str,
        way: Callable[[], Way],
        tables: Mapping[str, str],
        heartbeat: float,
        explained: Collection[str] = (),
    ) -> None:
        """Listen to this database.

        Args:
            alias: its key in ``DATABASES``.
            way: returns how to connect, each time on a database thread.
            tables: the names, as SQL has them, of those that should have triggers, and their models' labels.
            heartbeat: seconds between two tests of the connection.
            explained: labels whose tables may be views, since what is behind them is among the tables.
        """
        self.name = f"postgresql:{alias}"
        self.aliases = frozenset({alias})
        self._way = way
        self._watch = TriggerWatch(self.name, tables, explained)
        self._heartbeat = heartbeat
        self._private = f"{CHANNEL}_{uuid4().hex}"  # for messages to itself
        self._session: Session | None = None
        self._asking: list[asyncio.Future[Any]] = []  # those who wait to be caught up
        # Queries for others than the one task that may use the session, and their rows.
        self._errands: list[tuple[str, Sequence[Any], asyncio.Future[Any]]] = []
        self._beats = 0
        self._came = b""

    async def listen(self, receiver: TransportSupervisor) -> None:
        """Listen, and pass on what comes."""
        try:
            # Not on the event loop: an engine may ask a vault for a password.
            way = await sync_to_async(self._way)()
            connection = await AsyncConnection.connect(**way.parameters, autocommit=True)
            async with Session(connection, lambda notify: self._notified(notify, receiver)) as session:
                await self._subscribe(session, way, receiver)
                self._session = session
                await self._stay(session, receiver)
        except psycopg.errors.ReadOnlySqlTransaction as error:
            raise TransportUnavailable(f"{self.name} is a standby. {USE_DIRECT_DSN}") from error
        except (psycopg.Error, OSError) as error:
            raise TransportUnavailable(f"{self.name}: {str(error).strip()}") from error
        finally:
            self._session = self.server = None
            asking, self._asking = self._asking, []
            errands, self._errands = self._errands, []
            for asked in asking:
                _settle(asked, False)
            for *_, rows in errands:
                _settle(rows, TransportUnavailable(f"{self.name} was lost."))

    async def caught_up(self) -> bool:
        """Wait until what was committed before this call has been passed on."""
        if self._session is None:
            return False
        asking: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._asking.append(asking)
        self._session.wake()
        return await asking

    async def workers(self) -> frozenset[str]:
        """The workers that have a session in this database, on whatever machine they run."""
        rows = await self._run_errand(_WORKERS, [APPLICATION])
        names = (bytes(name).decode("ascii", "replace").removeprefix(APPLICATION) for (name,) in rows)
        return frozenset(filter(is_worker, names))

    async def say(self, channel: str, message: bytes) -> None:
        """Notify this channel."""
        await self._run_errand("SELECT pg_notify(%s, %s)", [channel, message.decode()])

    async def _run_errand(self, query: str, parameters: Sequence[Any]) -> list[Any]:
        if self._session is None:
            raise TransportUnavailable(f"{self.name} is not connected.")
        rows: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self._errands.append((query, parameters, rows))
        self._session.wake()
        return await rows

    async def _subscribe(self, session: Session, way: Way, receiver: TransportSupervisor) -> None:
        for channel in (CHANNEL, self._private, EVERY_WORKER, channel_of(self.worker)):
            await session.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
        await self._test_from_elsewhere(session, way)
        await _look_where_django_looks(session, way)
        await self._prepare(session)
        await self._look(session)
        (self.server,) = await session.execute(SERVER)
        # Not before it listens: a worker with this name is expected to answer.
        await session.execute(sql.SQL("SET application_name TO {}").format(APPLICATION + self.worker))
        receiver.connected()

    async def _prepare(self, session: Session) -> None:
        """Begin to receive hints that do not come by themselves."""

    async def _read_if_due(self, session: Session) -> float:
        """Read hints that do not come by themselves, and return when to do it again."""
        return inf

    async def _test_from_elsewhere(self, session: Session, way: Way) -> None:
        """Test whether notifications reach an idle session, as not behind PgBouncer in transaction mode."""
        connection = await AsyncConnection.connect(**way.parameters, autocommit=True)
        async with Session(connection, lambda notify: None) as other:
            await other.execute("SELECT pg_notify(%s, 'test')", [self._private])
        if not await self._comes(session, b"test"):
            raise TransportUnavailable(
                f"{self.name}: notifications do not come through, as behind PgBouncer in transaction mode. "
                f"{USE_DIRECT_DSN}"
            )

    async def _stay(self, session: Session, receiver: TransportSupervisor) -> None:
        due = monotonic() + self._interval
        while True:
            await session.wait(min(due, await self._read_if_due(session)) - monotonic())
            await self._do_errands(session)
            if self._asking:
                if self._watch.polls:  # or a caller would not get what a REFRESH has committed
                    await self._look(session, receiver)
                await self._beat(session)
            if monotonic() >= due:
                await self._beat(session)
                await self._look(session, receiver)
                due = monotonic() + self._interval

    @property
    def _interval(self) -> float:
        return min(POLL, self._heartbeat) if self._watch.polls else self._heartbeat

    async def _look(self, session: Session, receiver: TransportSupervisor | None = None) -> None:
        changed = await self._watch.look(session)
        self.unheard = self._watch.unheard
        if receiver is not None:  # else everything is read again
            for label in changed:  # what was written meanwhile is unknown
                receiver.received(Hint(label))

    async def _do_errands(self, session: Session) -> None:
        while self._errands:
            query, parameters, rows = self._errands[0]  # it stays there for listen(), which may give it up
            if not rows.done():  # its caller still waits
                try:
                    _settle(rows, await session.execute(query, parameters))
                except psycopg.Error as error:
                    if session.is_lost:
                        raise
                    # The server has refused this one query. Notifications still come.
                    _settle(rows, TransportUnavailable(f"{self.name}: {text_of(error)}"))
            del self._errands[0]

    async def _beat(self, session: Session) -> None:
        """Receive what was committed before. Callers that come meanwhile wait for the next call."""
        asking = list(self._asking)
        await self._heard_before(session)
        del self._asking[: len(asking)]
        for asked in asking:
            _settle(asked, True)

    async def _heard_before(self, session: Session) -> None:
        """Send a message to itself, and wait for it: it comes after all that was committed before."""
        self._beats += 1
        beat = b"%d" % self._beats
        limit = min(SESSION_PATIENCE, self._heartbeat)
        await session.execute("SELECT pg_notify(%s, %s)", [self._private, beat.decode()], seconds=limit)
        if not await self._comes(session, beat):
            raise TransportUnavailable(f"{self.name} no longer passes notifications on. {USE_DIRECT_DSN}")

    async def _comes(self, session: Session, message: bytes) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(SESSION_PATIENCE):
                while self._came != message:
                    await session.wait(SESSION_PATIENCE)
        return self._came == message

    def _notified(self, notify: PGnotify, receiver: TransportSupervisor) -> None:
        if notify.relname == self._private.encode():
            self._came = notify.extra
        elif notify.relname == CHANNEL.encode():
            receiver.received(decode(notify.extra))
        else:
            receiver.said(notify.extra)


async def _look_where_django_looks(session: Session, way: Way) -> None:
    """Have the session find the tables that Django's connections find."""
    with suppress(psycopg.errors.InsufficientPrivilege, psycopg.errors.InvalidParameterValue):
        # Else the search path alone has to do.
        if way.role is not None:
            await session.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(way.role)))
    await session.execute("SELECT set_config('search_path', %s, false)", [way.search_path])


def _settle(future: "asyncio.Future[Any]", result: Any) -> None:
    """Give a caller that still waits its result, or an error to raise."""
    if future.done():
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
