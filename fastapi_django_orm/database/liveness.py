"""Whether a connection died while nobody used it, told by its socket in microseconds.

A server that ends a connection closes its side, which makes the client's socket readable at a moment when
nothing can be due. Django itself would notice with a query of its own (``CONN_HEALTH_CHECKS``) or by failing
the next call.
"""

import os
import select
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from .cursors import loops_of

GOODBYE = 1.0  # seconds that a server has to end a session


def died_idle(connection: BaseDatabaseWrapper) -> bool:
    """Whether an open, idle connection cannot be used any more."""
    descriptor = socket_of(connection)
    if descriptor is None:
        return False
    if descriptor < 0:
        return True
    # If something has come, it is the end, or a notice from the server. A query tells them apart.
    return _has_something_come(descriptor) and not connection.is_usable()


def is_ready(connection: BaseDatabaseWrapper) -> bool:
    """Whether a connection is one of psycopg's that can be used at once, without a look at anything."""
    raw: Any = connection.connection
    if not hasattr(raw, "pgconn") or raw.closed or raw.pgconn.transaction_status != 0:  # or not idle
        return False
    too_old = connection.close_at is not None and time.monotonic() >= connection.close_at
    in_use = connection.in_atomic_block or not connection.autocommit or bool(loops_of(connection))
    wrapped = connection.execute_wrappers != connection.own_wrappers  # type: ignore[attr-defined]
    if too_old or in_use or connection.errors_occurred or wrapped:
        return False
    return not _has_something_come(raw.fileno())


def _has_something_come(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


@contextmanager
def ended_by_server(connection: BaseDatabaseWrapper) -> Iterator[None]:
    """Close a connection inside, and return when the server has ended the session.

    A driver says goodbye and does not wait. Until the server has heard it there would be one connection more
    than the bound allows, and the session would have its locks.
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
