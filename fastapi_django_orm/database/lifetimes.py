"""A warning of ``CONN_MAX_AGE = 0``, Django's default, under which every call opens a connection."""

from typing import Any

from django.db import connections

from ..events import logger
from .engines import kind_of

# Measured on one machine, in milliseconds: a query on a new connection, and on one that was kept.
COSTS = {"postgresql": "2.6 ms instead of 0.1", "sqlite": "0.1 to 0.3 ms instead of 0.01"}

_told_of: set[str] = set()  # an application may start often in one process, as in tests


def warn_of_short_lives() -> None:
    """Say once for each database that its connections are not kept, and what that costs."""
    for alias, settings in connections.settings.items():
        if alias not in _told_of and _opens_for_each_call(settings):
            _told_of.add(alias)
            cost = COSTS.get(kind_of(alias) or "", "several milliseconds")
            logger.warning(
                "connections_not_kept",
                database=alias,
                hint=f"CONN_MAX_AGE is 0, so each call opens a connection and closes it ({cost} for a "
                f"query): set DATABASES[{alias!r}]['CONN_MAX_AGE'] to 600, or to None",
            )


def _opens_for_each_call(settings: dict[str, Any]) -> bool:
    if settings["CONN_MAX_AGE"] != 0 or settings["ENGINE"] == "django.db.backends.dummy":
        return False
    # psycopg's own pool keeps them, and Django allows it with 0 only. A database in memory is never closed.
    return not settings["OPTIONS"].get("pool") and "memory" not in str(settings["NAME"])
