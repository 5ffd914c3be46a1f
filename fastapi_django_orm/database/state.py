"""What code has left on a connection: the one place that says whether another may have it as it is.

Django gives a thread one connection, and packages count on that: they put wrappers around its queries
(django-pghistory), a tenant on it (django-tenants), or set a search path. Here a connection is lent to one
call after the other, so what a call leaves there would meet others' queries. What can be seen is compared,
when a connection comes back, with the state in which its engine leaves one that it has just opened.

What cannot be seen: settings that PostgreSQL does not report (``set_config('app.user', …)``, ``SET ROLE``,
and search paths before version 18), temporary tables, advisory locks.
"""

from collections.abc import Callable
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from functools import cache
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils.functional import cached_property

# Those that change what a query means or who asks. Before version 18 the search path is not among the
# reported. https://www.postgresql.org/docs/current/libpq-status.html#LIBPQ-PQPARAMETERSTATUS
REPORTED = (
    *("search_path", "TimeZone", "DateStyle", "IntervalStyle", "client_encoding", "application_name"),
    *("session_authorization", "is_superuser", "default_transaction_read_only"),
    "standard_conforming_strings",
)
_REPORTED_BYTES = tuple(name.encode() for name in REPORTED)

# Attributes that say nothing: what Django's own wrappers add to themselves after __init__ (beside their
# cached properties), and what this package adds.
_HARMLESS = frozenset(
    {
        *("_named_cursor_idx", "isolation_level"),
        *("chunked_cursor", "clean", "connect", "lender", "loops", "opened_files", "own_wrappers", "request"),
        *("statement_since", "statements"),
    }
)


@dataclass(frozen=True, slots=True)
class Clean:
    """The state in which a connection may be lent.

    Attributes:
        wrappers: what stands around every query.
        own: the attributes that are the engine's own, not Django's.
        reported: what the server reports of the session; None before there is one.
    """

    wrappers: list[Any]
    own: dict[str, Any]
    reported: tuple[Any, ...] | None


class Watched:
    """Notes when one database's connections are clean."""

    def __init__(self) -> None:
        self._latest: Clean | None = None  # of a connection that was clean when it was opened

    def watch(self, connection: Any) -> None:
        """Note the state of a connection that has just been made, and again whenever it is opened."""
        connection.clean = _state_of(connection)
        connect = connection.connect
        connection.connect = lambda: self._connect(connection, connect)

    def _connect(self, connection: Any, connect: Callable[[], None]) -> None:
        untouched = left_behind(connection) is None
        connect()
        if untouched:
            if connection.clean.own:
                # An engine may set something up with the first cursor (django-tenants: the search path).
                with suppress(Exception), connection.cursor():
                    pass
            # A tracer may have put its wrapper on it when it was opened (``connection_created``).
            self._latest = connection.clean = _state_of(connection)
        elif self._latest is not None:
            # A tenant was chosen before the first query: what it looks like without one, others have shown.
            connection.clean = self._latest


def is_open(connection: BaseDatabaseWrapper) -> bool:
    """Whether there is a transaction on a connection, or what is left of one that has broken."""
    return connection.in_atomic_block or (connection.connection is not None and not connection.autocommit)


def left_behind(connection: BaseDatabaseWrapper) -> str | None:
    """What keeps a connection from being lent to others as it is; None if nothing does.

    Args:
        connection: one of ours, in no transaction of Django's.
    """
    clean: Clean = connection.clean  # type: ignore[attr-defined]
    if connection.execute_wrappers != clean.wrappers:
        return "execute_wrappers"
    if connection.force_debug_cursor:
        return "force_debug_cursor"
    own = _own(connection)
    for name in own.keys() | clean.own.keys():
        if not _is_same(own.get(name), clean.own.get(name)):
            return name
    raw = connection.connection
    if raw is None:
        return None
    if is_in_transaction(raw):
        return "a transaction that Django does not know of"
    now = reported_by(raw)
    if now == clean.reported:
        return None
    if now is None or clean.reported is None:
        return "settings of the session"
    return next(name for name, one, other in zip(REPORTED, now, clean.reported, strict=True) if one != other)


def reported_by(raw: Any) -> tuple[Any, ...] | None:
    """What PostgreSQL says of a session, as the driver remembers it; None for other databases."""
    pgconn = getattr(raw, "pgconn", None)
    if pgconn is not None:
        return tuple(map(pgconn.parameter_status, _REPORTED_BYTES))
    of_psycopg2 = getattr(raw, "get_parameter_status", None)
    return None if of_psycopg2 is None else tuple(map(of_psycopg2, REPORTED))


def _state_of(connection: BaseDatabaseWrapper) -> Clean:
    # Copies, since what code changes later must not change here as well.
    own = {
        name: copy(value) if isinstance(value, list | dict | set) else value
        for name, value in _own(connection).items()
    }
    raw = connection.connection
    return Clean(list(connection.execute_wrappers), own, None if raw is None else reported_by(raw))


def _own(connection: BaseDatabaseWrapper) -> dict[str, Any]:
    kind: Any = type(connection)
    values = vars(connection)
    return {name: values[name] for name in values.keys() - _of_django(kind, connection.alias)}


@cache
def _of_django(kind: Any, alias: str) -> frozenset[str]:
    """The names of attributes that a connection has from Django's own class, and of harmless ones."""
    django = next(cls for cls in kind.__mro__ if cls.__module__.startswith("django."))
    cached = {
        name
        for cls in kind.__mro__
        for name, value in vars(cls).items()
        if isinstance(value, cached_property)
    }
    return frozenset(vars(django(connections.settings[alias], alias))) | cached | _HARMLESS


def _is_same(now: Any, then: Any) -> bool:
    if now is then:
        return True
    if type(now) is not type(then):
        return False
    # Objects that are compared by identity may say the same, such as django-tenants' FakeTenant.
    return bool(now == then or getattr(now, "__dict__", now) == getattr(then, "__dict__", None))


def is_in_transaction(raw: Any) -> bool:
    """Whether the driver sees an open transaction: a BEGIN in plain SQL."""
    pgconn = getattr(raw, "pgconn", None)
    if pgconn is not None:
        return bool(pgconn.transaction_status != 0 and not raw.closed)
    if hasattr(raw, "in_transaction"):  # sqlite3
        return bool(raw.in_transaction)
    return bool(getattr(raw, "server_status", 0) & 1)  # PyMySQL: SERVER_STATUS_IN_TRANS
