"""SQLite announces no commit, but a connection can ask whether another has written: ``data_version``.

Asking takes some ten microseconds and no lock that outlives it. A thread asks, since a writer may make it
wait. It does not say what was written, so every change means everything.
https://www.sqlite.org/pragma.html#pragma_data_version
"""

import asyncio
import sqlite3
import threading
from collections import deque
from contextlib import closing, suppress
from pathlib import Path

from ..database.sqlite_file import Files, files_at, path_of
from .hints import EVERYTHING, Hint
from .transport import Listener, Receiver, TransportUnavailable

LOCK_PATIENCE = 2.0  # seconds to wait for a writer's lock


class SQLiteListener(Listener):
    """Watches a database file."""

    def __init__(self, alias: str, database: str, interval: float) -> None:
        """Watch a file.

        Args:
            alias: the database's key in ``DATABASES``.
            database: its file, or a ``file:`` URI.
            interval: seconds between two looks.
        """
        self.name = f"sqlite:{alias}"
        self.aliases = frozenset({alias})
        self._database = database
        self._interval = interval
        self._watch: _Watch | None = None

    async def listen(self, receiver: Receiver) -> None:
        """Watch until cancelled, or until another file has taken this one's place."""
        watch = self._watch = _Watch(self._database, self._interval, receiver)
        try:
            await asyncio.shield(watch.ended)
        finally:
            self._watch = None
            watch.stop()
            await asyncio.wait([watch.ended])

    async def caught_up(self) -> bool:
        """Look now, and pass on what has changed."""
        return self._watch is not None and await self._watch.look()


class _Watch:
    """A thread with a read-only connection."""

    def __init__(self, database: str, interval: float, receiver: Receiver) -> None:
        self._database = database
        self._path = path_of(database)
        self._interval = interval
        self._receiver = receiver
        self._loop = asyncio.get_running_loop()
        self._woken = threading.Event()
        self._stopping = False
        self._asking: deque[asyncio.Future[bool]] = deque()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        threading.Thread(target=self._run, name="sqlite-watch", daemon=True).start()

    def stop(self) -> None:
        self._stopping = True
        self._woken.set()

    async def look(self) -> bool:
        """Have the thread look now, and return whether it has."""
        if self.ended.done():
            return False
        asking: asyncio.Future[bool] = self._loop.create_future()
        self._asking.append(asking)
        self._woken.set()
        return await asking

    def _run(self) -> None:
        error: Exception | None = None
        with suppress(RuntimeError):  # the loop has closed
            try:
                self._look_again_and_again()
            except Exception as failure:  # whatever it is, or listen() would wait for ever
                error = TransportUnavailable(f"SQLite's file cannot be watched: {failure}")
                error.__cause__ = failure
            self._loop.call_soon_threadsafe(self._end, error)

    def _look_again_and_again(self) -> None:
        # Before it is opened: one that takes the file's place in between is found at the first look.
        before = self._files()
        with closing(_open(self._database)) as connection:
            version = _version(connection)  # which makes -wal, if nothing else has
            files = self._files()
            if before.replaced_by(files):
                raise FileNotFoundError("another has taken its place")
            self._loop.call_soon_threadsafe(self._receiver.connected)
            while not self._stopping:
                self._woken.wait(self._interval)
                self._woken.clear()
                # Taken before the look: who asks during it may have committed after it.
                asking = [self._asking.popleft() for _ in range(len(self._asking))]
                if files.replaced_by(self._files()):
                    self._asking.extend(asking)
                    raise FileNotFoundError("another has taken its place")
                now = _version(connection)
                if now != version:
                    version = now
                    self._loop.call_soon_threadsafe(self._receiver.heard, EVERYTHING)
                for asked in asking:
                    self._loop.call_soon_threadsafe(_answer, asked, True)

    def _files(self) -> Files:
        return Files(None, None) if self._path is None else files_at(self._path)

    def _end(self, error: Exception | None) -> None:
        for asked in self._asking:
            _answer(asked, False)
        if error is None:
            self.ended.set_result(None)
        else:
            self.ended.set_exception(error)


class SQLitePublisher:
    """Makes every watcher of a database file believe that it was written to."""

    def __init__(self, alias: str, database: str) -> None:
        self.name = f"sqlite:{alias}"
        self._database = database

    def publish(self, hint: Hint) -> None:
        """Commit a change that changes nothing: the user's version of the schema, set to what it is."""
        try:
            with closing(_open(self._database, "rw")) as connection:
                connection.isolation_level = None
                connection.execute("BEGIN IMMEDIATE")
                (version,) = connection.execute("PRAGMA user_version").fetchone()
                connection.execute(f"PRAGMA user_version = {version}")
                connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise TransportUnavailable(f"{self.name} cannot be written to: {error}") from error

    def check(self) -> None:
        """Open the file."""
        try:
            with closing(_open(self._database)) as connection:
                _version(connection)
        except sqlite3.Error as error:
            raise TransportUnavailable(f"{self.name} cannot be read: {error}") from error

    def close(self) -> None:
        """Do nothing: no connection is kept."""


def _answer(asked: "asyncio.Future[bool]", answer: bool) -> None:
    if not asked.done():
        asked.set_result(answer)


def _open(database: str, mode: str = "ro") -> sqlite3.Connection:
    if not database.startswith("file:"):
        database = f"{Path(database).absolute().as_uri()}?mode={mode}"
    return sqlite3.connect(database, timeout=LOCK_PATIENCE, uri=True)


def _version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA data_version").fetchone()
    return int(version)
