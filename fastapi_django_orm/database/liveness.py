"""Whether a connection died while nobody used it, told by its socket in microseconds.

A server that ends a connection closes its side, which makes the client's socket readable at a moment when
nothing can be due. Django itself would notice with a query of its own (``CONN_HEALTH_CHECKS``) or by failing
the next call.
"""

import select
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper


def died_idle(connection: BaseDatabaseWrapper) -> bool:
    """Whether an open, idle connection cannot be used any more."""
    descriptor = socket_of(connection)
    if descriptor is None:
        return False
    if descriptor < 0:
        return True
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    if not poll.poll(0):
        return False
    # Something has come: the end, or a notice from the server. A query tells them apart.
    return not connection.is_usable()


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
