"""What kind of database an alias stands for, and the options that its driver gets. Nothing is connected to.

An engine's name says nothing. ``psqlextra.backend``, ``django_tenants.postgresql_backend`` and
``django_prometheus.db.backends.postgresql`` are PostgreSQL; django-cockroachdb's engine is a subclass of
Django's for PostgreSQL and is not. Django's own word for what a database understands is ``vendor``.
"""

from contextlib import suppress
from functools import cache
from math import ceil
from typing import Any, Literal, TypeAlias

from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.utils import load_backend

from ..events import logger

Kind: TypeAlias = Literal["mysql", "postgresql", "sqlite"]

_KINDS: dict[str, Kind] = {"mysql": "mysql", "postgresql": "postgresql", "sqlite": "sqlite"}

# The modules of the drivers that Django's own engines use.
_DRIVERS = {"MySQLdb": "mysql", "pymysql": "mysql", "psycopg": "postgresql", "psycopg2": "postgresql"}

PSYCOPG_MIN_SIZE = 4  # the default of its pool

# Measured on one machine, in milliseconds: a query on a new connection, and on one that was kept.
COSTS = {"postgresql": "2.6 ms instead of 0.1", "sqlite": "0.1 to 0.3 ms instead of 0.01"}
_warned_of: set[str] = set()  # an application may start often in one process, as in tests


def kind_of(alias: str) -> Kind | None:
    """The kind of a database; None if it is another one, or if its driver is not installed."""
    return _KINDS.get(getattr(_engine(alias), "vendor", ""))


def is_configured(alias: str) -> bool:
    """Whether ``DATABASES`` names a database, and Django need not take its dummy."""
    return not connections.settings[alias]["ENGINE"].startswith("django.db.backends.dummy")


def takes_driver_options(alias: str, kind: Kind) -> bool:
    """Whether ``OPTIONS`` of a database go to a driver that Django's own engine of this kind uses.

    An engine may reach the same server through another driver, such as MySQL's own Connector, which refuses
    options that it does not know.
    """
    driver = getattr(getattr(_engine(alias), "Database", None), "__name__", "")
    return kind_of(alias) == kind and _DRIVERS.get(driver) == kind


def name_of(alias: str) -> str:
    """What to call a database in a message. Django's ``display_name`` connects to MariaDB and MySQL."""
    engine: Any = _engine(alias)
    if isinstance(name := getattr(engine, "display_name", None), str):
        return name
    named = {"mysql": "MariaDB or MySQL", None: connections.settings[alias]["ENGINE"]}
    return str(named.get(kind_of(alias), kind_of(alias)))


# libpq's parameters: seconds, but for the milliseconds of tcp_user_timeout. Together: 25 s at most.
# https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS
POSTGRESQL_PATIENCE = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}


def notice_dead_networks(call_timeout: float) -> None:
    """Have connections notice a network that dies without a word: no reset, no answer, nothing.

    The kernel probes the peer and ends the connection if nothing comes back, but by itself only after hours.
    What is written in ``OPTIONS`` stays.

    Args:
        call_timeout: seconds that a connection may wait for an answer; 0: as long as it likes.
    """
    for alias, settings in connections.settings.items():
        if takes_driver_options(alias, "postgresql"):
            settings["OPTIONS"] = {**POSTGRESQL_PATIENCE, **settings["OPTIONS"]}
        elif call_timeout and takes_driver_options(alias, "mysql"):
            # PyMySQL's connect_timeout is over when something has accepted; for the server's greeting it
            # waits for ever, and there is no connection yet that liveness.cut() could end.
            settings["OPTIONS"] = {"read_timeout": ceil(call_timeout), **settings["OPTIONS"]}


def fit_driver_pools(limit: int) -> None:
    """Keep psycopg's own pools (``OPTIONS["pool"]``) within the bound, and have them check what they lend.

    Django allows them with ``CONN_MAX_AGE = 0`` only, so a connection that our pool gets back goes on to
    psycopg's, which decides how many are open. By itself that opens at least four at once, and lends
    connections that the server has closed.

    Args:
        limit: the most connections to each database.

    Source: https://docs.djangoproject.com/en/stable/ref/databases/#connection-pool
    """
    for alias, settings in connections.settings.items():
        pool = settings["OPTIONS"].get("pool")
        if pool and takes_driver_options(alias, "postgresql"):  # Oracle's pool has other options
            options = {} if pool is True else pool
            most = min(options.get("max_size") or limit, limit)
            sizes = {"min_size": min(options.get("min_size", PSYCOPG_MIN_SIZE), most), "max_size": most}
            settings["OPTIONS"] = {**settings["OPTIONS"], "pool": {**options, **sizes}}
            settings["CONN_HEALTH_CHECKS"] = True


def warn_of_short_lives() -> None:
    """Say once for each database that ``CONN_MAX_AGE = 0``, Django's default, does not keep connections."""
    for alias, settings in connections.settings.items():
        if settings["CONN_MAX_AGE"] != 0 or alias in _warned_of or not is_configured(alias):
            continue
        # Django allows psycopg's own pool, which keeps them, with 0 only. One in memory is never closed.
        if not settings["OPTIONS"].get("pool") and "memory" not in str(settings["NAME"]):
            _warned_of.add(alias)
            cost = COSTS.get(kind_of(alias) or "", "several milliseconds")
            logger.warning(
                "connections_not_kept",
                database=alias,
                hint=f"CONN_MAX_AGE is 0, so each call opens a connection and closes it ({cost} for a "
                f"query): set DATABASES[{alias!r}]['CONN_MAX_AGE'] to 600, or to None",
            )


def _engine(alias: str) -> type[BaseDatabaseWrapper] | None:
    # A database that nothing uses may have an engine that is not installed here. What does use it asks
    # Django for a connection, whose error says more.
    with suppress(ImproperlyConfigured, ImportError):
        return _wrapper(connections.settings[alias]["ENGINE"])
    return None


@cache
def _wrapper(engine: str) -> type[BaseDatabaseWrapper]:
    wrapper: type[BaseDatabaseWrapper] = load_backend(engine).DatabaseWrapper
    return wrapper
