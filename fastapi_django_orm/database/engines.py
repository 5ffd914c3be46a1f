"""What kind of database an alias stands for, by the class of its engine: nothing is connected to.

An engine's name says nothing. ``psqlextra.backend``, ``django_tenants.postgresql_backend`` and
``django_prometheus.db.backends.postgresql`` are PostgreSQL; django-cockroachdb's engine is a subclass of
Django's for PostgreSQL and is not. Django's own word for what a database understands is ``vendor``.
"""

from contextlib import suppress
from functools import cache
from typing import Any, Literal, TypeAlias

from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.utils import load_backend

Kind: TypeAlias = Literal["mysql", "postgresql", "sqlite"]

_KINDS: dict[str, Kind] = {"mysql": "mysql", "postgresql": "postgresql", "sqlite": "sqlite"}

# The modules of the drivers that Django's own engines use.
_DRIVERS = {"MySQLdb": "mysql", "pymysql": "mysql", "psycopg": "postgresql", "psycopg2": "postgresql"}


def kind_of(alias: str) -> Kind | None:
    """The kind of a database; None if it is another one, or if its driver is not installed.

    Args:
        alias: the key in ``DATABASES``.
    """
    return _KINDS.get(getattr(_engine(alias), "vendor", ""))


def is_configured(alias: str) -> bool:
    """Whether ``DATABASES`` names a database, and Django need not take its dummy."""
    return not connections.settings[alias]["ENGINE"].startswith("django.db.backends.dummy")


def takes_driver_options(alias: str, kind: Kind) -> bool:
    """Whether ``OPTIONS`` of a database go to a driver that Django's own engine of this kind uses.

    Args:
        alias: the key in ``DATABASES``.
        kind: which one. An engine may reach the same server through another driver, such as MySQL's own
            Connector, which refuses options that it does not know.
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
