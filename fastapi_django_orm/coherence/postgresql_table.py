"""PostgreSQL's hints from a table, for servers on which many write at once.

PostgreSQL holds one lock of the whole server from before the commit until after its flush for every
transaction with a NOTIFY, so such commits wait for each other instead of sharing a flush. An INSERT into an
unlogged table has no such lock, and costs no WAL.

The cursor of a reader is a snapshot. Of two snapshots the server says exactly which transactions became
visible in between: those that had not begun (from ``xmax`` on), and those that were in progress (``xip``). So
a transaction that commits late is found when it commits, by its number, whatever has been read before it.
https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-PG-SNAPSHOT

The session is the same as for NOTIFY, and its loss means that everything is read again. A crash empties an
unlogged table, a standby has none of its rows, and a backup is restored under no session: each of these ends
the session as well. Workers still reach each other with it. So while nothing is written they share the work:
the more there are, the more rarely each reads, and the first that finds something wakes the others.
"""

from collections import deque
from collections.abc import Callable, Collection, Mapping

import psycopg
from psycopg import sql
from psycopg.pq import PGnotify

from ..clock import monotonic
from .hints import CHANNEL, EVERYTHING
from .postgresql import APPLICATION, PostgreSQLListener
from .postgresql_session import Session, Way
from .table import BATCH, BATCHES, KEPT, LAPSE, TABLE, Pace, merged
from .transport import TransportSupervisor, TransportUnavailable

_FIND = f"""
SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname)
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = to_regclass('{TABLE}')"""

# While nothing is written, each of n workers reads every n times SHARE seconds, within these bounds.
SHARE = 0.01
IDLE_FROM = 1.5  # times the shortest interval
IDLE_TO = 1.0  # seconds

_WAKE = f"{CHANNEL}_wake"  # the channel by which a worker that has found hints wakes others
_COUNT = """
SELECT count(*) FROM pg_catalog.pg_stat_activity
WHERE datname = current_database() AND starts_with(application_name, %s)"""

# One statement has one snapshot, so the rows are exactly those that the new cursor covers and the old one
# does not. Rows of a restored dump may have numbers that this server has not given out yet. TRUNCATE gives
# the table another file.
_READ = """
SELECT pg_catalog.pg_current_snapshot()::text, pg_catalog.pg_relation_filenode('{table}'),
    extract(epoch FROM pg_catalog.clock_timestamp())::float8,
    ARRAY(
        SELECT hint FROM {table}
        WHERE tx < pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())
            AND (tx >= %s::xid8 OR tx = ANY (%s::xid8[]))
    )"""

_REMOVE = f"""
DELETE FROM {{table}}
WHERE (SELECT pg_catalog.pg_try_advisory_xact_lock(pg_catalog.hashtext('{CHANNEL}_remove')))
    AND ctid = ANY (ARRAY(
        SELECT ctid FROM {{table}}
        WHERE tx < %s::xid8 AND pg_catalog.pg_visible_in_snapshot(tx, %s::pg_snapshot)
            OR tx >= pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())
        LIMIT {BATCH}
    ))
RETURNING 1"""


class PostgreSQLTableListener(PostgreSQLListener):
    """Reads what the triggers of a database write into the table."""

    def __init__(
        self,
        alias: str,
        way: Callable[[], Way],
        tables: Mapping[str, str],
        heartbeat: float,
        explained: Collection[str],
        interval: float,
    ) -> None:
        """As for ``PostgreSQLListener``, with ``interval`` seconds between two reads while hints come."""
        super().__init__(alias, way, tables, heartbeat, explained)
        self.name = self._watch.transport = f"table:{alias}"
        self._shortest = interval
        self._table = ""

    async def listen(self, receiver: TransportSupervisor) -> None:
        """Listen, and read until cancelled."""
        self._receiver = receiver
        self._pace = Pace(self._shortest)
        self._due = 0.0
        self._snapshot = ""
        self._file, self._read_at = 0, 0.0
        self._passed: deque[tuple[float, str]] = deque()  # snapshots, and when they were taken
        await super().listen(receiver)

    async def _prepare(self, session: Session) -> None:
        found = await session.execute(_FIND)
        if not found:
            raise TransportUnavailable(
                f"{self.name}: the table {TABLE} is missing. Run manage.py coherence install --table."
            )
        self._table = found[0][0]
        self._watch.destination = f" INTO {self._table} ("
        await session.execute(sql.SQL("LISTEN {}").format(sql.Identifier(_WAKE)))
        # New tables have no statistics, and a plan that reads all of this one is never right.
        await session.execute("SET enable_seqscan TO off")
        await session.execute("SET synchronous_commit TO off")  # for what this session removes
        await self._read(session)

    async def _heard_before(self, session: Session) -> None:
        # The answer proves that the session lives, and what it brings was committed before it was asked for.
        await self._read(session)

    async def _look(self, session: Session, receiver: TransportSupervisor | None = None) -> None:
        await super()._look(session, receiver)
        await self._remove(session)
        ((workers,),) = await session.execute(_COUNT, [APPLICATION])
        self._pace.idle = min(IDLE_TO, max(IDLE_FROM * self._shortest, SHARE * workers))

    async def _read_if_due(self, session: Session) -> float:
        if monotonic() >= self._due:
            was_calm = self._pace.is_calm
            if await self._read(session) and was_calm:
                await session.execute("SELECT pg_catalog.pg_notify(%s, '')", [_WAKE])
        return self._due

    def _notified(self, notify: PGnotify, receiver: TransportSupervisor) -> None:
        if notify.relname != _WAKE.encode():
            super()._notified(notify, receiver)
        elif self._pace.is_calm:  # which it is not for the worker that has found them
            self._pace.hurry()
            self._due = 0.0

    async def _read(self, session: Session) -> bool:
        """Pass on the hints of the transactions that have become visible since the last call, if any."""
        before = self._snapshot
        xmax, in_progress = _parts(before) if before else ("18446744073709551615", "")
        query = _READ.format(table=self._table)
        try:
            ((self._snapshot, file, now, messages),) = await session.execute(
                query, [xmax, f"{{{in_progress}}}"]
            )
        except psycopg.errors.UndefinedTable as error:
            raise TransportUnavailable(f"{self.name}: the table {self._table} was removed.") from error
        has_missed = bool(before) and (file != self._file or now - self._read_at > LAPSE)
        self._file, self._read_at = file, now
        if not self._passed or now - self._passed[-1][0] >= KEPT / 10:
            self._passed.append((now, self._snapshot))
        for hint in [EVERYTHING] if has_missed else merged(messages):
            self._receiver.received(hint)
        if messages:
            self._pace.hurry()
        self._due = monotonic() + self._pace.next()
        return bool(messages)

    async def _remove(self, session: Session) -> None:
        """Remove hints that every reader could read a while ago."""
        old = ""
        while self._passed and self._passed[0][0] <= self._read_at - KEPT:
            _, old = self._passed.popleft()
        # By what was visible then, and not by its age: what a long transaction has just committed stays.
        for _ in range(BATCHES if old else 0):
            removed = await session.execute(_REMOVE.format(table=self._table), [_parts(old)[0], old])
            if len(removed) < BATCH:
                break
            await self._read_if_due(session)


def _parts(snapshot: str) -> tuple[str, str]:
    """The first number that was not given out, and those in progress: of ``xmin:xmax:xip,xip``."""
    _, xmax, in_progress = snapshot.split(":")
    return xmax, in_progress
