"""Hints from a table of MariaDB or MySQL, where a reader cannot see in which order transactions commit.

Rows get their ids in order and become visible in any: a transaction that commits late leaves a gap until
then. So a reader remembers the gaps, and asks for them again with each read. A transaction that is rolled
back leaves one for ever. Whether a gap is empty for good, only its locks say: the rows of an open transaction
are locked. After a while, which a row may take from getting its id to getting its lock, an unlocked gap is
given up.

A thread reads, with a connection as Django's engine opens it, since the drivers wait.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from functools import partial
from math import ceil
from typing import Any

from django.db import DatabaseError, InterfaceError, OperationalError, connections

from ..clock import monotonic, pause
from ..database.engines import takes_driver_options
from ..errors import text_of
from ..events import logger
from .hints import EVERYTHING, Hint
from .row_triggers import Trigger, is_complete, mysql_triggers
from .table import BATCH, BATCHES, KEPT, LAPSE, TABLE, Pace, merged
from .transport import Listener, TransportSupervisor, TransportUnavailable, install_command

PATIENCE = 5.0  # seconds for an answer
START_PATIENCE = 30.0  # and for the first ones, when no worker may have removed hints for long
GIVEN_UP = 60.0  # seconds after which a gap that no transaction has locked is given up
MOST_GAPS = 100  # that a query names; beyond them it reads all rows after the first one

_LOCKED = (1205, 3572)  # errors for NOWAIT: https://mariadb.com/kb/en/wait-and-nowait/

_MADE = """
SELECT TABLE_NAME, TABLE_TYPE, CONCAT(CREATE_TIME), AUTO_INCREMENT, TABLE_ROWS
FROM information_schema.TABLES WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME IN ({names})"""

# A cascade of the server's own fires no trigger of the table that it changes.
_CASCADES = """
SELECT DISTINCT TABLE_NAME FROM information_schema.REFERENTIAL_CONSTRAINTS
WHERE CONSTRAINT_SCHEMA = DATABASE() AND TABLE_NAME IN ({names})
    AND (UPDATE_RULE IN ('CASCADE', 'SET NULL') OR DELETE_RULE IN ('CASCADE', 'SET NULL'))"""

# Where other servers take writes as well, their open transactions hold no locks here.
_CLUSTER = """
SHOW GLOBAL VARIABLES WHERE (Variable_name = 'wsrep_on' AND Value = 'ON')
    OR (Variable_name = 'group_replication_single_primary_mode' AND Value = 'OFF')"""


class Gaps:
    """Which ids have been read of a table whose ids are given out in order and become visible in any.

    Attributes:
        last: the greatest id that was read.
        gaps: what was not there below it: the first and the last id of each, and when it was first noticed.
    """

    def __init__(self) -> None:
        self.last = 0
        self.gaps: list[tuple[int, int, float]] = []

    @property
    def low(self) -> int:
        """All rows before this id have been read, or will never be there."""
        return min((first for first, _, _ in self.gaps), default=self.last)

    def read(self, ids: Iterable[int], now: float) -> set[int]:
        """Note that these ids are visible, and return those that were not before."""
        new = {number for number in ids if number > self.last or self._is_gap(number)}
        gaps = [(first, last, since) for first, last, since in self.gaps]
        if new and (most := max(new)) > self.last:
            gaps.append((self.last + 1, most, now))
            self.last = most
        self.gaps = [rest for gap in gaps for rest in _without(gap, new)]
        return new

    def old(self, before: float) -> list[tuple[int, int, float]]:
        """The gaps that were noticed before a time."""
        return [gap for gap in self.gaps if gap[2] < before]

    def give_up(self, gaps: Collection[tuple[int, int, float]]) -> None:
        """Expect nothing of these any more."""
        self.gaps = [gap for gap in self.gaps if gap not in gaps]

    def condition(self) -> str:
        """SQL for all rows that may be new, and for the last one that was read."""
        if len(self.gaps) > MOST_GAPS:
            return f"id >= {self.low}"
        return " OR ".join([f"id >= {self.last}", *map(_between, self.gaps)])

    def _is_gap(self, number: int) -> bool:
        return any(first <= number <= last for first, last, _ in self.gaps)


class MySQLListener(Listener):
    """Reads what the triggers of a database write into the table."""

    def __init__(
        self,
        alias: str,
        tables: Mapping[str, str],
        explained: Collection[str],
        heartbeat: float,
        interval: float,
    ) -> None:
        """Listen to this database.

        Args:
            alias: its key in ``DATABASES``.
            tables: the names of those that should have triggers, and their models' labels.
            explained: labels whose tables may be views, since what is behind them is among the tables.
            heartbeat: seconds between two looks at the triggers.
            interval: seconds between two reads while hints come.
        """
        self.name = f"table:{alias}"
        self.aliases = frozenset({alias})
        self._alias = alias
        self._tables = tables
        self._explained = explained
        self._heartbeat = heartbeat
        self._interval = interval
        self._connected: _Connected | None = None

    async def listen(self, receiver: TransportSupervisor) -> None:
        """Read until cancelled."""
        reader = _Reader(self._alias, self._tables, self._explained)
        connected = _Connected(reader, partial(self._pass_on, receiver))
        try:
            await connected.run(reader.open, START_PATIENCE)
            await self._look(connected)
            self._connected = connected
            receiver.connected()
            await self._stay(connected)
        except (DatabaseError, InterfaceError, OSError) as error:
            raise TransportUnavailable(f"{self.name}: {text_of(error)}") from error
        finally:
            self._connected = None
            await connected.close()

    async def caught_up(self) -> bool:
        """Read now, and look whether a table was truncated."""
        if (connected := self._connected) is None:
            return False
        try:
            await connected.run(connected.reader.read)
            await self._look(connected)
        except (DatabaseError, InterfaceError, OSError):  # listen() ends with it, too
            return False
        return True

    async def _stay(self, connected: "_Connected") -> None:
        pace = Pace(self._interval)
        due = monotonic() + self._heartbeat
        while True:
            if await connected.run(connected.reader.read):
                pace.hurry()
            # While the table is missing, no more than a look from time to time.
            await pause(pace.next() if connected.reader.has_begun else self._heartbeat)
            if monotonic() >= due:
                await self._look(connected)
                await connected.run(connected.reader.remove)
                due = monotonic() + self._heartbeat

    async def _look(self, connected: "_Connected") -> None:
        await connected.run(connected.reader.look)
        before, self.unheard = self.unheard, frozenset(connected.reader.silent)
        self._warn(self.unheard - before, connected.reader.silent)

    def _pass_on(self, receiver: TransportSupervisor, hints: Iterable[Hint]) -> None:
        if self._connected is not None:  # else everything is read again
            for hint in hints:
                receiver.received(hint)

    def _warn(self, labels: frozenset[str], why: Mapping[str, str | None]) -> None:
        if missing := sorted(label for label in labels if why[label] is None):
            hint = install_command(missing, "--table")
            logger.warning("triggers_missing", transport=self.name, models=missing, hint=hint)
        for label in sorted(labels.difference(missing)):
            logger.warning(
                "writes_unannounced",
                transport=self.name,
                models=[label],
                hint=f"Its table {why[label]}, and no trigger announces that. Give the repository a max_age, "
                "or run `manage.py refresh` after each change.",
            )


class _Connected:
    """A reader, and the one thread on which it works."""

    def __init__(self, reader: "_Reader", pass_on: Callable[[list[Hint]], object]) -> None:
        self.reader = reader
        self._executor = ThreadPoolExecutor(1, "mysql-hints")
        self._loop = asyncio.get_running_loop()
        self._pass_on = pass_on

    async def run(self, function: Callable[[], list[Hint]], patience: float = PATIENCE) -> list[Hint]:
        """Have the reader do something, and pass on the hints that it returns."""

        def run() -> list[Hint]:
            hints = function()
            # From the thread, so that the hints come before the caller that waits goes on.
            self._loop.call_soon_threadsafe(self._pass_on, hints)
            return hints

        # One thread, so a caller that asks during a read gets the next one.
        asked = self._loop.run_in_executor(self._executor, run)
        done, _ = await asyncio.wait([asked], timeout=patience)
        if not done:
            asked.add_done_callback(lambda late: late.cancelled() or late.exception())
            raise TimeoutError(f"no answer within {patience:g} s")
        return asked.result()

    async def close(self) -> None:
        """Close the connection. A read that hangs ends by itself later."""
        closing = self._loop.run_in_executor(self._executor, self.reader.close)
        await asyncio.wait([closing], timeout=1.0)
        self._executor.shutdown(wait=False)


class _Reader:
    """A connection, used by one thread.

    Attributes:
        silent: labels of the models whose tables do not announce every write, and why; None: no triggers.
    """

    def __init__(self, alias: str, tables: Mapping[str, str], explained: Collection[str]) -> None:
        self._alias = alias
        self._connection: Any = None
        self.silent: dict[str, str | None] = {}
        self._tables = tables
        self._explained = explained
        self._gaps = Gaps()
        self._mark: Any = None  # of the last row, by which it is known again
        self._read_at: datetime | None = None  # by the server's clock
        self._lows: deque[tuple[float, int]] = deque()  # what all could be read before, and since when
        self._identities: dict[str, Any] = {}
        self._sizes: dict[str, Sequence[int | None]] = {}

    @property
    def has_begun(self) -> bool:
        """Whether the table is there, and is read."""
        return self._read_at is not None

    def open(self) -> list[Hint]:
        self._connection = connections.create_connection(self._alias)
        if takes_driver_options(self._alias, "mysql"):
            settings = self._connection.settings_dict
            options = {**settings["OPTIONS"], "read_timeout": ceil(START_PATIENCE)}
            self._connection.settings_dict = {**settings, "OPTIONS": options}
        self._connection.connect()
        self._connection.set_autocommit(True)
        with suppress(DatabaseError):  # MySQL may show sizes of yesterday; MariaDB has no such variable
            self._execute("SET SESSION information_schema_stats_expiry = 0")
        self._execute("SET SESSION innodb_lock_wait_timeout = 1")  # seconds: hints must not wait for long
        if self._rows(_CLUSTER):
            raise TransportUnavailable(
                f"table:{self._alias}: several servers of a cluster take writes, and hints in a table would "
                "be missed. Let DJANGO_ORM_COHERENCE name a Redis or Valkey, redis://host."
            )
        if self._has_table():
            self._start()
        return []

    def close(self) -> None:
        if self._connection is not None:
            with suppress(Exception):
                self._connection.close()

    def read(self) -> list[Hint]:
        """The hints of the transactions that were committed since the last call."""
        if self._read_at is None:
            if not self._has_table():
                return []
            self._start()
            return [EVERYTHING]
        try:
            rows = self._rows(
                f"SELECT id, written, hint, now FROM (SELECT SYSDATE(6) AS now) AS clock "
                f"LEFT JOIN {TABLE} ON {self._gaps.condition()} ORDER BY id"
            )
        except DatabaseError as error:
            if error.args and error.args[0] == 1146:
                raise TransportUnavailable(f"table:{self._alias}: the table {TABLE} was removed.") from error
            raise
        has_lapsed = self._has_lapsed(rows[0][3])
        rows = [row for row in rows if row[0] is not None]  # else there is none but the clock's
        marks = {number: written for number, written, _, _ in rows}
        if has_lapsed or marks.get(self._gaps.last) != self._mark:
            self._start()  # also after a backup was restored
            return [EVERYTHING]
        new = self._gaps.read(marks, monotonic())
        self._mark = marks.get(self._gaps.last)
        return merged(hint for number, _, hint, _ in rows if number in new)

    def look(self) -> list[Hint]:
        """Look at the triggers.

        Returns:
            Hints of the models whose triggers or tables have changed since the last call: what was written
            meanwhile may not have been announced.
        """
        names = ", ".join("'" + name.replace("\\", "\\\\").replace("'", "''") + "'" for name in self._tables)
        if not names:
            return []
        triggers = mysql_triggers(self._rows) if self._has_table() else []
        made = {str(name).casefold(): rest for name, *rest in self._rows(_MADE.format(names=names))}
        cascading = {str(name).casefold() for (name,) in self._rows(_CASCADES.format(names=names))}
        changed: list[Hint] = []
        self.silent = {}
        for table, label in self._tables.items():
            kind, since, *size = made.get(table.casefold(), ("", "", None, None))
            own = [each for each in triggers if each.table.casefold() == table.casefold()]
            identity = since, sorted(own)
            was_truncated = _has_shrunk(self._sizes.get(label, size), size)
            if self._identities.setdefault(label, identity) != identity or was_truncated:
                changed.append(Hint(label))
            self._identities[label], self._sizes[label] = identity, size
            if (reason := self._why_silent(table, label, kind, own, cascading)) != "":
                self.silent[label] = reason
        return changed

    def remove(self) -> list[Hint]:
        """Give up gaps that stay, and remove hints that every reader could read a while ago."""
        if self._read_at is None:
            return []
        now = monotonic()
        self._gaps.give_up(self._unlocked(self._gaps.old(now - GIVEN_UP)))
        self._lows.append((now, self._gaps.low))
        low = 0
        while self._lows[0][0] <= now - KEPT:
            _, low = self._lows.popleft()
        if low:
            self._remove_before(low)
        return []

    def _remove_before(self, low: int) -> None:
        """Remove the rows before this id, except for the last one of them.

        A DELETE also locks the row after those that it deletes. That may be one of a transaction that is open
        for long, so it has to be one that was read.
        """
        ((last,),) = self._rows(f"SELECT MAX(id) FROM {TABLE} WHERE id < {low}")
        for _ in range(BATCHES if last else 0):
            try:
                if self._execute(f"DELETE FROM {TABLE} WHERE id < {last} LIMIT {BATCH}") < BATCH:
                    return
            except OperationalError as error:
                if error.args[0] not in _LOCKED:
                    raise
                return  # another worker removes them

    def _start(self) -> None:
        """Begin after the rows that are there; those that are written now are gaps."""
        ids = [number for (number,) in self._rows(f"SELECT id FROM {TABLE} ORDER BY id")]
        self._gaps = Gaps()
        self._gaps.read(ids, monotonic())
        rows = self._rows(f"SELECT written FROM {TABLE} WHERE id = {self._gaps.last}")
        self._mark = rows[0][0] if rows else None
        ((self._read_at,),) = self._rows("SELECT SYSDATE(6)")
        self._lows.clear()

    def _has_lapsed(self, now: datetime) -> bool:
        """Whether the last read, by the server's clock, was so long ago that hints may be gone since."""
        before, self._read_at = self._read_at or now, now
        return (now - before).total_seconds() > LAPSE

    def _unlocked(self, gaps: list[tuple[int, int, float]]) -> list[tuple[int, int, float]]:
        """Those gaps in which no transaction has written a row that is still to come."""
        if not gaps:
            return []
        condition = " OR ".join(map(_between, gaps))
        try:
            rows = self._rows(f"SELECT id FROM {TABLE} WHERE {condition} LIMIT 1 FOR UPDATE NOWAIT")
        except OperationalError as error:
            if error.args[0] not in _LOCKED:
                raise
        else:
            if not rows:
                return gaps
        half = len(gaps) // 2  # one of them is not empty
        return [*self._unlocked(gaps[:half]), *self._unlocked(gaps[half:])] if half else []

    def _why_silent(
        self, table: str, label: str, kind: str, own: Sequence[Trigger], cascading: Collection[str]
    ) -> str | None:
        if "VIEW" in kind:
            return "" if label in self._explained else "is a view"
        if table.casefold() in cascading:
            return "is changed by the server itself (ON DELETE or ON UPDATE of a foreign key)"
        return "" if is_complete(label, table, own) else None

    def _has_table(self) -> bool:
        return bool(self._rows(f"SHOW TABLES LIKE '{TABLE}'"))

    def _rows(self, query: str) -> list[Any]:
        with self._connection.cursor() as cursor:
            cursor.execute(query)
            return list(cursor.fetchall())

    def _execute(self, statement: str) -> int:
        with self._connection.cursor() as cursor:
            cursor.execute(statement)
            return int(cursor.rowcount)


def _has_shrunk(before: Sequence[int | None], now: Sequence[int | None]) -> bool:
    """Whether TRUNCATE, which fires no trigger, may have emptied a table since.

    The server does not say. But it counts from 1 again, and the number of rows, an estimate, is 0.
    """
    (next_before, rows_before), (next_now, rows_now) = before, now
    return (next_now or 0) < (next_before or 0) or 2 * (rows_now or 0) < (rows_before or 0)


def _between(gap: tuple[int, int, float]) -> str:
    return f"id BETWEEN {gap[0]} AND {gap[1]}"


def _without(gap: tuple[int, int, float], ids: Collection[int]) -> Iterable[tuple[int, int, float]]:
    """What is left of a gap."""
    first, end, since = gap
    for number in sorted(number for number in ids if first <= number <= end):
        if first < number:
            yield first, number - 1, since
        first = number + 1
    if first <= end:
        yield first, end, since
