"""SQLite announces no commit, but a connection can ask whether another has written: ``data_version``.

Asking takes some ten microseconds and no lock that outlives it. A thread asks, since a writer may make it
wait. It does not say what was written, so every change means everything, unless triggers have written that
into the table of hints (``manage.py coherence install --table``). Commits to a file are serialised, so what
is new there are the rows after the last one that was read.
https://www.sqlite.org/pragma.html#pragma_data_version
"""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from ..clock import pause
from ..database.sqlite_file import Files, files_at, path_of
from .hints import EVERYTHING, Hint
from .row_triggers import BEFORE, EVENTS, is_complete, sqlite_schemas, sqlite_triggers, sqlite_unique
from .table import TABLE, merged
from .transport import Listener, TransportSupervisor, TransportUnavailable

LOCK_PATIENCE = 2.0  # seconds to wait for a writer's lock

# A commit to tables that no repository is known to read. It concerns those of which that is not known.
ELSEWHERE = Hint("?")


class SQLiteListener(Listener):
    """Watches a database file."""

    def __init__(
        self, alias: str, database: str, interval: float, tables: Callable[[], Collection[tuple[str, str]]]
    ) -> None:
        """Watch a file, or a ``file:`` URI, with ``interval`` seconds between two looks.

        ``tables`` returns what repositories read: names of tables, each with the label of a model.
        """
        self.name = f"sqlite:{alias}"
        self.aliases = frozenset({alias})
        self._database = database
        self._interval = interval
        self._tables = tables
        self._look: Callable[[], Awaitable[None]] | None = None

    async def listen(self, receiver: TransportSupervisor) -> None:
        """Watch until cancelled, or until another file has taken this one's place."""
        loop = asyncio.get_running_loop()
        # One thread, which does one thing after another: a caller that asks for a look during one may have
        # committed after it has read, and gets the next one.
        executor = ThreadPoolExecutor(1, "sqlite-watch")
        # Called from the thread, so that the hint comes before the caller of caught_up() goes on.
        pass_on = partial(self._pass_on, receiver)
        watch = _Watch(self._database, partial(loop.call_soon_threadsafe, pass_on))
        try:
            await loop.run_in_executor(executor, watch.open)
            self._look = lambda: loop.run_in_executor(executor, watch.look, self._tables())
            receiver.connected()
            while True:
                await pause(self._interval)
                await self._look()
        except (sqlite3.Error, OSError) as error:
            raise TransportUnavailable(f"SQLite's file cannot be watched: {error}") from error
        finally:
            self._look = None
            await loop.run_in_executor(executor, watch.close)
            executor.shutdown()

    async def caught_up(self) -> bool:
        """Look now, and pass on what has changed."""
        if self._look is None:
            return False
        try:
            await self._look()
        except (sqlite3.Error, OSError):  # listen() ends with it, too
            return False
        return True

    def _pass_on(
        self, receiver: TransportSupervisor, hints: list[Hint], announced: set[tuple[str, str]]
    ) -> None:
        """Pass on hints, and one of all rows for each table that triggers do not announce.

        Args:
            receiver: who gets them.
            hints: what triggers have written.
            announced: tables with complete triggers, and the labels under which they announce.
        """
        if hints != [EVERYTHING]:
            # A load may have read a further table meanwhile, so they are asked for here, after the commit.
            silent = [Hint(label) for table, label in self._tables() if (table, label) not in announced]
            hints = [*hints, *silent] or [ELSEWHERE]
        for hint in hints:
            receiver.received(hint)


class _Watch:
    """A read-only connection, used by one thread."""

    def __init__(self, database: str, changed: Callable[[list[Hint], set[tuple[str, str]]], object]) -> None:
        self._database = database
        self._path = path_of(database)
        self._changed = changed
        self._connection: sqlite3.Connection | None = None

    def open(self) -> None:
        # Before it is opened: a file that takes this one's place in between is found at the first look.
        self._files = self._files_now()
        self._connection = _open(self._database)
        self._version = _version(self._connection)  # which makes -wal, if nothing else has
        self._files = self._check_files()
        self._hints = _Hints(self._connection)

    def look(self, tables: Collection[tuple[str, str]]) -> None:
        assert self._connection is not None, "opened first"
        self._check_files()
        before, self._version = self._version, _version(self._connection)
        if before != self._version:
            hints = self._hints.new()
            self._changed(hints, {each for each in tables if self._hints.announces(*each)})

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def _check_files(self) -> Files:
        now = self._files_now()
        if self._files.replaced_by(now):
            raise FileNotFoundError("another has taken its place")
        return now

    def _files_now(self) -> Files:
        return Files(None, None) if self._path is None else files_at(self._path)


class _Hints:
    """What the triggers of a file have written, and which tables have triggers."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Begin after the hints that are there."""
        self._connection = connection
        self._schema = -1
        self._has_table = False
        self.new()

    def new(self) -> list[Hint]:
        """The hints of the commits since the last call."""
        (schema,) = self._connection.execute("PRAGMA schema_version").fetchone()
        if schema == self._schema and self._has_table:
            return self._after_last()
        # Triggers may have come, or gone for a while.
        self._schema = schema
        self._announced: dict[tuple[str, str], bool] = {}
        query = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = ?"
        (self._has_table,) = self._connection.execute(query, [TABLE]).fetchone()
        self._last = (0, 0)
        if self._has_table:
            query = f'SELECT id, mark FROM "{TABLE}" ORDER BY id DESC LIMIT 1'
            self._last = self._connection.execute(query).fetchone() or self._last
        return [EVERYTHING]

    def announces(self, table: str, label: str) -> bool:
        """Whether all writes to a table are announced under this label."""
        if (table, label) not in self._announced:
            query = self._connection.execute
            events = (*EVENTS, *BEFORE) if sqlite_unique(query, table) else EVENTS
            schema = sqlite_schemas(query, [table]).get(table)
            self._announced[table, label] = schema is not None and is_complete(
                label, table, sqlite_triggers(query), schema, events
            )
        return self._announced[table, label]

    def _after_last(self) -> list[Hint]:
        query = f'SELECT id, mark, hint FROM "{TABLE}" WHERE id >= ? ORDER BY id'
        rows = self._connection.execute(query, [self._last[0]]).fetchall()
        # The last one that was read comes again. If it does not, a backup was restored into the file, or
        # there were more hints than the table keeps.
        is_known = rows and rows[0][:2] == self._last
        if self._last == (0, 0):
            is_known = not rows or rows[0][0] == 1
        last, self._last = self._last, rows[-1][:2] if rows else (0, 0)
        return merged(hint for number, _, hint in rows if number > last[0]) if is_known else [EVERYTHING]


def _open(database: str) -> sqlite3.Connection:
    if not database.startswith("file:"):
        database = f"{Path(database).absolute().as_uri()}?mode=ro"
    return sqlite3.connect(database, timeout=LOCK_PATIENCE, uri=True)


def _version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA data_version").fetchone()
    return int(version)
