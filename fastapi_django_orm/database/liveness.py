"""Whether a connection works: its socket says so in microseconds, or the time that an answer takes.

A server that ends a connection closes its side, which makes the client's socket readable at a moment when
nothing can be due. Django itself would notice with a query of its own (``CONN_HEALTH_CHECKS``) or by failing
the next call. A network that dies without a word is noticed by the kernel's probes (see ``engines``), or by
``DJANGO_ORM_CALL_TIMEOUT``, which cuts a connection off that has waited too long for one answer.
"""

import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from weakref import WeakKeyDictionary

from django.db.backends.base.base import BaseDatabaseWrapper

from ..clock import monotonic

GOODBYE = 1.0  # seconds that a server has to end a session

_ACTIVE = 1  # a command is in progress: libpq's PQTRANS_ACTIVE, and psycopg2's


def died_idle(connection: BaseDatabaseWrapper) -> bool:
    """Whether an open, idle connection cannot be used any more."""
    descriptor = socket_of(connection)
    if descriptor is None:
        return False
    if descriptor < 0:
        return True
    # If something has come, it is the end, or a notice from the server. A query tells them apart.
    return _has_something_come(descriptor) and not connection.is_usable()


def is_ready(connection: Any) -> bool:
    """Whether a free connection is one of psycopg's that can be used at once, without a look at anything."""
    raw = connection.connection
    if not hasattr(raw, "pgconn") or raw.closed or raw.pgconn.transaction_status != 0:  # or not idle
        return False
    too_old = connection.close_at is not None and time.monotonic() >= connection.close_at
    wrapped = connection.execute_wrappers != connection.own_wrappers
    if too_old or wrapped or connection.loops or connection.errors_occurred or not connection.autocommit:
        return False
    return not _has_something_come(raw.fileno())


def _has_something_come(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


@contextmanager
def ended_by_server(connection: BaseDatabaseWrapper) -> Iterator[None]:
    """Close a connection inside, and return when the server has ended the session.

    A driver says goodbye and does not wait. Until the server has read that, there would be one connection
    more than the bound allows, and the session would keep its locks.
    """
    descriptor = socket_of(connection)
    if descriptor is None or descriptor < 0:
        yield
        return
    with socket.socket(fileno=os.dup(descriptor)) as duplicate:
        yield
        with suppress(OSError):
            duplicate.settimeout(GOODBYE)
            while duplicate.recv(1024):
                pass


def cut(connection: BaseDatabaseWrapper) -> None:
    """End a connection that another thread waits on, so that it fails there and now."""
    # The descriptor's number may belong to another socket as soon as the other thread closes this one. A
    # duplicate made while the connection still has it refers to the right one.
    with suppress(Exception):
        number: Any = socket_of(connection)
        if number is None or number < 0:
            return
        with socket.socket(fileno=os.dup(number)) as duplicate:
            if socket_of(connection) == number:
                duplicate.shutdown(socket.SHUT_RDWR)


def socket_of(connection: BaseDatabaseWrapper) -> int | None:
    """The file descriptor of a connection's socket; None if it has none that can be seen, -1 if closed."""
    raw: Any = connection.connection
    if hasattr(raw, "pgconn"):  # psycopg, which raises when it is closed
        return -1 if raw.closed else int(raw.fileno())
    sock = getattr(raw, "_sock", None)  # PyMySQL
    if sock is not None:
        return int(sock.fileno())
    fileno = getattr(raw, "fileno", None)  # psycopg2; mysqlclient has none
    return int(fileno()) if callable(fileno) else None


# How long a connection waits for one answer


def time_statements(connection: Any) -> None:
    """Note on a new connection when a statement begins and ends."""

    def timed(execute: Callable[..., Any], *statement: Any) -> Any:
        connection.statement_since = monotonic()
        try:
            return execute(*statement)
        finally:
            connection.statement_since = None
            connection.statements += 1

    connection.statement_since, connection.statements = None, 0
    connection.execute_wrappers.append(timed)
    connection.own_wrappers = [timed]


class Waits:
    """What connections have been waiting for, as far as ``look()`` has seen it."""

    def __init__(self) -> None:
        self._seen: WeakKeyDictionary[BaseDatabaseWrapper, tuple[int, float]] = WeakKeyDictionary()

    def look(self, connection: Any) -> float:
        """How long a connection has been waiting for one answer, in seconds.

        COMMIT and FETCH are not statements for Django. They count from when they were first seen here.
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
