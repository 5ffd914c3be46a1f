"""PostgreSQL's NOTIFY: the hint is part of the transaction, sent when it commits and not when it rolls back.

Triggers in the database write the hints, so every writer counts. One connection of each worker LISTENs. The
server queues notifications in the order of commits, and a worker uses that: when a message that it sends to
itself comes back, all that was committed before has come too. And it shows that the connection lives.
https://www.postgresql.org/docs/current/sql-notify.html
"""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import psycopg
from asgiref.sync import sync_to_async
from psycopg import AsyncConnection, sql
from psycopg.pq import PGnotify

from ..clock import monotonic
from ..errors import text_of
from .hints import CHANNEL, Hint, decode, encode
from .origins import SERVER
from .postgresql_parameters import Way
from .postgresql_session import SESSION_PATIENCE, Session
from .postgresql_triggers import TriggerWatch
from .transport import Receiver, TransportUnavailable
from .workers import EVERY_WORKER, channel_of, is_worker, new_worker

USE_DIRECT_DSN = (
    "LISTEN needs a session of its own with the primary server. Set DJANGO_ORM_COHERENCE_DSN to a DSN that "
    "leads there directly, or DJANGO_ORM_COHERENCE to another transport."
)

# Every role may read application_name, whoever owns the session.
_WORKERS = """
SELECT convert_to(application_name, 'UTF8') FROM pg_catalog.pg_stat_activity
WHERE datname = current_database() AND starts_with(application_name, %s)"""
APPLICATION = "fastapi-django-orm "  # and the worker's name
POLL = 1.0  # seconds between two looks at materialized views, whose REFRESH notifies nobody


class PostgreSQLListener:
    """Hears what the triggers of a database, or anybody else, notify."""

    def __init__(
        self,
        alias: str,
        way: Callable[[], Way],
        tables: Mapping[str, str],
        heartbeat: float,
        explained: Collection[str] = (),
    ) -> None:
        """Connect to nothing yet.

        Args:
            alias: the database's key in ``DATABASES``.
            way: says how to connect, each time on a database thread.
            tables: the names, as SQL has them, of those that should have triggers, and their models' labels.
            heartbeat: seconds between two tests of the connection.
            explained: labels whose tables may be views, since what is behind them is among the tables.
        """
        self.name = f"postgresql:{alias}"
        self.aliases: frozenset[str] | None = frozenset({alias})
        self.worker = new_worker()
        self.server: tuple[int, ...] | None = None
        self._way = way
        self._watch = TriggerWatch(self.name, tables, explained)
        self._heartbeat = heartbeat
        self._private = f"{CHANNEL}_{uuid4().hex}"  # for messages to itself
        self._session: Session | None = None
        self._asking: list[asyncio.Future[bool]] = []
        self._errands: list[_Errand] = []
        self._beats = 0
        self._came = b""

    @property
    def unheard(self) -> frozenset[str]:
        """Labels of the models whose tables do not announce every write."""
        return self._watch.unheard

    async def listen(self, receiver: Receiver) -> None:
        """Listen, and pass on what comes.

        Raises:
            TransportUnavailable: the database cannot be reached or was lost, or something between does not
                let notifications through.
        """
        try:
            # Not on the event loop: an engine may ask a vault for a password.
            way = await sync_to_async(self._way)()
            connection = await AsyncConnection.connect(**way.parameters, autocommit=True)
            async with Session(connection, lambda notify: self._hear(notify, receiver)) as session:
                await self._subscribe(session, way, receiver)
                self._session = session
                await self._stay(session, receiver)
        except psycopg.errors.ReadOnlySqlTransaction as error:
            raise TransportUnavailable(f"{self.name} is a standby. {USE_DIRECT_DSN}") from error
        except (psycopg.Error, OSError) as error:
            raise TransportUnavailable(f"{self.name}: {str(error).strip()}") from error
        finally:
            self._session = self.server = None
            self._answer(False)
            self._give_up_errands()

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
        errand = _Errand(query, parameters, asyncio.get_running_loop().create_future())
        self._errands.append(errand)
        self._session.wake()
        return await errand.rows

    async def _subscribe(self, session: Session, way: Way, receiver: Receiver) -> None:
        for channel in (CHANNEL, self._private, EVERY_WORKER, channel_of(self.worker)):
            listen = sql.SQL("LISTEN {}").format(sql.Identifier(channel))
            await session.execute(listen, seconds=SESSION_PATIENCE)
        await self._test_from_elsewhere(session, way)
        await _look_where_django_looks(session, way)
        await self._watch.look(session)
        (self.server,) = await session.execute(SERVER, seconds=SESSION_PATIENCE)
        # Not before it hears: whoever is seen is expected to answer.
        name = sql.SQL("SET application_name TO {}").format(APPLICATION + self.worker)
        await session.execute(name, seconds=SESSION_PATIENCE)
        receiver.connected()

    async def _test_from_elsewhere(self, session: Session, way: Way) -> None:
        """Find out whether an idle session hears, which one behind PgBouncer's transaction mode does not."""
        connection = await AsyncConnection.connect(**way.parameters, autocommit=True)
        async with Session(connection, lambda notify: None) as other:
            await other.execute("SELECT pg_notify(%s, 'test')", [self._private], seconds=SESSION_PATIENCE)
        if not await self._comes(session, b"test"):
            raise TransportUnavailable(
                f"{self.name}: notifications do not come through, as behind PgBouncer in transaction mode. "
                f"{USE_DIRECT_DSN}"
            )

    async def _stay(self, session: Session, receiver: Receiver) -> None:
        due = monotonic() + self._interval
        while True:
            await session.wait(due - monotonic())
            await self._do_errands(session)
            if self._asking:
                if self._watch.polls:  # or who asks would not get what a REFRESH has committed
                    await self._look(session, receiver)
                await self._beat(session)
            if monotonic() >= due:
                await self._beat(session)
                await self._look(session, receiver)
                due = monotonic() + self._interval

    @property
    def _interval(self) -> float:
        return min(POLL, self._heartbeat) if self._watch.polls else self._heartbeat

    async def _look(self, session: Session, receiver: Receiver) -> None:
        for label in await self._watch.look(session):  # what was written meanwhile is unknown
            receiver.heard(Hint(label))

    async def _do_errands(self, session: Session) -> None:
        errands, self._errands = self._errands, []
        for errand in errands:
            if errand.rows.done():  # nobody waits any more
                continue
            try:
                rows = await session.execute(errand.query, errand.parameters, seconds=SESSION_PATIENCE)
            except psycopg.Error as error:
                if session.is_lost:
                    self._errands += errands  # listen() gives them up
                    raise
                # The server has refused this one query. Hints come on, and their way stays.
                errand.rows.set_exception(TransportUnavailable(f"{self.name}: {text_of(error)}"))
                continue
            except BaseException:
                self._errands += errands
                raise
            if not errand.rows.done():
                errand.rows.set_result(rows)

    def _give_up_errands(self) -> None:
        errands, self._errands = self._errands, []
        for errand in errands:
            if not errand.rows.done():
                errand.rows.set_exception(TransportUnavailable(f"{self.name} was lost."))

    async def _beat(self, session: Session) -> None:
        """Send a message to itself, and wait for it; whoever asks from now on waits for the next one."""
        asking, self._asking = self._asking, []
        self._beats += 1
        beat = b"%d" % self._beats
        try:
            limit = min(SESSION_PATIENCE, self._heartbeat)
            await session.execute("SELECT pg_notify(%s, %s)", [self._private, beat.decode()], seconds=limit)
            if not await self._comes(session, beat):
                raise TransportUnavailable(f"{self.name} no longer passes notifications on. {USE_DIRECT_DSN}")
        except BaseException:
            self._asking += asking  # listen() answers them
            raise
        _answer(asking, True)

    async def _comes(self, session: Session, message: bytes) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(SESSION_PATIENCE):
                while self._came != message:
                    await session.wait(SESSION_PATIENCE)
                return True
        return self._came == message

    def _hear(self, notify: PGnotify, receiver: Receiver) -> None:
        if notify.relname == self._private.encode():
            self._came = notify.extra
        elif notify.relname == CHANNEL.encode():
            receiver.heard(decode(notify.extra))
        else:
            receiver.said(notify.extra)

    def _answer(self, answer: bool) -> None:
        asking, self._asking = self._asking, []
        _answer(asking, answer)


@dataclass(frozen=True, slots=True)
class _Errand:
    """A query for somebody else than the one task that may use the session."""

    query: str
    parameters: Sequence[Any]
    rows: "asyncio.Future[list[Any]]"


class PostgreSQLPublisher:
    """Notifies without triggers: for ``manage.py refresh``, and for those who may not create any."""

    def __init__(self, alias: str, parameters: Callable[[], Mapping[str, Any]]) -> None:
        """Connect to nothing yet.

        Args:
            alias: the database's key in ``DATABASES``.
            parameters: gives libpq's, whenever it connects.
        """
        self.name = f"postgresql:{alias}"
        self._parameters = parameters
        self._connection: psycopg.Connection | None = None

    def publish(self, hint: Hint) -> None:
        """Notify.

        Raises:
            TransportUnavailable: the database does not take it.
        """
        messages = [message.decode() for message in encode(hint)]
        try:
            self._notify(messages)
        except psycopg.OperationalError:  # the server has closed a connection that was used before
            self.close()
            self._notify_or_explain(messages)

    def check(self) -> None:
        """Connect.

        Raises:
            TransportUnavailable: that is not possible.
        """
        self._notify_or_explain([])

    def close(self) -> None:
        """Disconnect."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _notify_or_explain(self, messages: list[str]) -> None:
        try:
            self._notify(messages)
        except psycopg.Error as error:
            self.close()
            raise TransportUnavailable(f"{self.name}: {str(error).strip()}") from error

    def _notify(self, messages: list[str]) -> None:
        if self._connection is None:
            self._connection = psycopg.connect(**self._parameters(), autocommit=True)
        self._connection.execute(
            "SELECT pg_notify(%s, message) FROM unnest(%s::text[]) AS message", [CHANNEL, messages]
        )


async def _look_where_django_looks(session: Session, way: Way) -> None:
    """Have the session find the tables that Django's connections find."""
    with suppress(psycopg.errors.InsufficientPrivilege, psycopg.errors.InvalidParameterValue):
        # Else the search path alone has to do.
        if way.role is not None:
            role = sql.SQL("SET ROLE {}").format(sql.Identifier(way.role))
            await session.execute(role, seconds=SESSION_PATIENCE)
    path = "SELECT set_config('search_path', %s, false)"
    await session.execute(path, [way.search_path], seconds=SESSION_PATIENCE)


def _answer(asking: list["asyncio.Future[bool]"], answer: bool) -> None:
    for asked in asking:
        if not asked.done():
            asked.set_result(answer)
