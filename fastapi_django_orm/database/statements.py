"""Since when a connection waits for its database: what ``DJANGO_ORM_CALL_TIMEOUT`` counts."""

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from django.db.backends.base.base import BaseDatabaseWrapper

from ..clock import monotonic

_ACTIVE = 1  # a command is in progress: libpq's PQTRANS_ACTIVE, and psycopg2's


def time_statements(connection: Any) -> None:
    """Note on a new connection when a statement begins and ends."""
    connection.statement_since = None

    def timed(execute: Callable[..., Any], *statement: Any) -> Any:
        connection.statement_since = monotonic()
        try:
            return execute(*statement)
        finally:
            connection.statement_since = None
            connection.statements += 1

    connection.statements = 0
    connection.execute_wrappers.append(timed)
    connection.own_wrappers = [timed]


class Waits:
    """What connections have been waiting for, as far as it was seen."""

    def __init__(self) -> None:
        self._seen: WeakKeyDictionary[BaseDatabaseWrapper, tuple[int, float]] = WeakKeyDictionary()

    def look(self, connection: Any) -> float:
        """How long a connection has been waiting for one answer, in seconds.

        COMMIT and FETCH are no statements for Django. They count from when they were first seen here.
        """
        if not _is_waiting(connection):
            self._seen.pop(connection, None)
            return 0.0
        now = monotonic()
        number, since = self._seen.get(connection, (-1, now))
        if number != connection.statements:
            since = now
        self._seen[connection] = connection.statements, since
        return now - (connection.statement_since or since)


def _is_waiting(connection: Any) -> bool:
    raw = connection.connection
    pgconn = getattr(raw, "pgconn", None)
    if pgconn is not None:
        return bool(pgconn.transaction_status == _ACTIVE)
    of_psycopg2 = getattr(raw, "get_transaction_status", None)
    if of_psycopg2 is not None:
        return bool(of_psycopg2() == _ACTIVE)
    return raw is not None and connection.statement_since is not None
