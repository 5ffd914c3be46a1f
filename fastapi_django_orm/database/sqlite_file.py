"""Whether an SQLite connection still has the file that is at its path.

A restored backup, or a database that a developer makes anew, is another file under the same name. An open
connection keeps the old one, which no other connection sees any more: SQLite writes there without an error,
and what was written is gone with the last connection. In WAL mode, writes go to the file beside it first.
"""

import os
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from django.db.backends.base.base import BaseDatabaseWrapper


@dataclass(frozen=True, slots=True)
class Files:
    """Which files are at a path, as the file system numbers them; None: none.

    Attributes:
        database: the database itself.
        wal: where writes go first (``-wal``), while it is open anywhere.
    """

    database: tuple[int, int] | None
    wal: tuple[int, int] | None

    def replaced_by(self, now: "Files") -> bool:
        """Whether what has these files open has not what is at the path now.

        The first connection that opens the database makes ``-wal``, and the last one that closes it removes
        it; in between it stays.
        """
        return now.database != self.database or (self.wal is not None and now.wal != self.wal)


def database_of(connection: BaseDatabaseWrapper) -> str:
    """What a connection opens: a path or a ``file:`` URI, as its engine says."""
    parameters: Any = connection.get_connection_params()
    return str(parameters.get("database") or connection.settings_dict["NAME"])


def path_of(database: str) -> str | None:
    """The file of a database, a path or a ``file:`` URI; None if it is in memory."""
    if not database.startswith("file:"):
        return None if database in ("", ":memory:") else database
    uri = urlsplit(database)
    return None if "mode=memory" in uri.query or ":memory:" in uri.path else unquote(uri.path)


def files_at(path: str) -> Files:
    """Which files are at a path now."""
    return Files(_identity(path), _identity(f"{path}-wal"))


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


class OpenedFiles:
    """Which files a connection to SQLite has open. For any other database nothing is looked at."""

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        """Look at nothing yet: the connection is not open."""
        self._connection = connection
        self._path = path_of(database_of(connection)) if connection.vendor == "sqlite" else None
        self._expected = Files(None, None)

    def were_replaced(self) -> bool:
        """Whether the connection is open, and writes into a file that was replaced; close it then.

        Asked before each use, since what is found is what the connection is expected to open in that use. So
        a file that is replaced before it is opened is taken for replaced once more; looked at afterwards, it
        would be taken for the one that is open.
        """
        if self._path is None:
            return False
        before, now = self._expected, files_at(self._path)
        replaced = self._connection.connection is not None and before.replaced_by(now)
        # The last connection that closes a database removes its -wal, and this may be the last.
        self._expected = Files(now.database, None) if replaced else now
        return replaced
