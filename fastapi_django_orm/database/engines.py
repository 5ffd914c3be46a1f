"""Which kind of database an alias stands for, by Django's settings alone: nothing is connected to."""

from typing import Literal, TypeAlias

from django.db import connections

Kind: TypeAlias = Literal["mysql", "postgresql", "sqlite"]

# GIS engines are the same databases. An engine of a project's own is known by its last name.
_KINDS: dict[str, Kind] = {
    "mysql": "mysql",
    "postgis": "postgresql",
    "postgresql": "postgresql",
    "spatialite": "sqlite",
    "sqlite3": "sqlite",
}


def kind_of(alias: str) -> Kind | None:
    """The kind of a database; None if it is another one.

    Args:
        alias: the key in ``DATABASES``.
    """
    return _KINDS.get(connections.settings[alias]["ENGINE"].rpartition(".")[2])
