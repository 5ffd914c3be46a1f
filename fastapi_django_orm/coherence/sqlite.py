"""SQLite announces no commit, but a connection can ask whether another has written: ``data_version``.

Asking takes some ten microseconds and no lock that outlives it. A thread asks, since a writer may make it
wait. It does not say what was written, so every change means everything.
https://www.sqlite.org/pragma.html#pragma_data_version
"""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from ..clock import pause
from ..database.sqlite_file import Files, files_at, path_of
from .hints import EVERYTHING
from .transport import Listener, TransportSupervisor, TransportUnavailable

LOCK_PATIENCE = 2.0  # seconds to wait for a writer's lock


class SQLiteListener(Listener):
    """Watches a database file."""

    def __init__(self, alias: str, database: str, interval: float) -> None:
        """Watch a file, or a ``file:`` URI, with ``interval`` seconds between two looks."""
        self.name = f"sqlite:{alias}"
        self.aliases = frozenset({alias})
        self._database = database
        self._interval = interval
        self._look: Callable[[], Awaitable[None]] | None = None

    async def listen(self, receiver: TransportSupervisor) -> None:
        """Watch until cancelled, or until another file has taken this one's place."""
        loop = asyncio.get_running_loop()
        # One thread, which does one thing after another: a caller that asks for a look during one may have
        # committed after it has read, and gets the next one.
        executor = ThreadPoolExecutor(1, "sqlite-watch")
        # Called from the thread, so that the hint comes before the caller of caught_up() goes on.
        watch = _Watch(self._database, partial(loop.call_soon_threadsafe, receiver.received, EVERYTHING))
        try:
            await loop.run_in_executor(executor, watch.open)
            self._look = partial(loop.run_in_executor, executor, watch.look)
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


class _Watch:
    """A read-only connection, used by one thread."""

    def __init__(self, database: str, changed: Callable[[], object]) -> None:
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

    def look(self) -> None:
        assert self._connection is not None, "opened first"
        self._check_files()
        before, self._version = self._version, _version(self._connection)
        if before != self._version:
            self._changed()

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


def _open(database: str) -> sqlite3.Connection:
    if not database.startswith("file:"):
        database = f"{Path(database).absolute().as_uri()}?mode=ro"
    return sqlite3.connect(database, timeout=LOCK_PATIENCE, uri=True)


def _version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA data_version").fetchone()
    return int(version)
