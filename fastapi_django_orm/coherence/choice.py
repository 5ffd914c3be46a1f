"""Which transports there are, from ``DJANGO_ORM_COHERENCE`` and Django's ``DATABASES``."""

from collections.abc import Collection, Iterable, Iterator
from functools import partial
from typing import Any

from django.db import connections

from ..database.engines import Kind, kind_of, name_of
from ..database.sqlite_file import database_of
from ..errors import InvalidSettings
from ..events import logger
from ..settings import ORMSettings
from .concerns import Concern
from .mysql import MySQLListener
from .process import ProcessListener
from .publishers import DatabasePublisher, HTTPPublisher
from .sqlite import SQLiteListener
from .transport import Listener, Publisher

# The databases that each of these transports is for. With ``auto``, NOTIFY is for PostgreSQL, where both are
# possible.
_ANNOUNCING: dict[str, tuple[Kind, ...]] = {
    "postgresql": ("postgresql",),
    "sqlite": ("sqlite",),
    "table": ("mysql", "postgresql", "sqlite"),
}


def listeners(settings: ORMSettings, concerns: Collection[Concern]) -> list[Listener]:
    """What a worker with these repositories listens to.

    Raises:
        InvalidSettings: a setting names a transport whose package is not installed, or that no database has.
    """
    if "off" in settings.coherence:
        return []
    check_databases(settings)
    found: list[Listener] = [ProcessListener()]
    aliases = sorted({concern.alias for concern in concerns})
    for alias in aliases:
        found += _database_listener(alias, settings, [c for c in concerns if c.alias == alias])
    heartbeat = settings.coherence_heartbeat
    return [*found, *(_redis().RedisListener(name, url, heartbeat) for name, url in _brokers(settings))]


def publishers(settings: ORMSettings) -> list[Publisher]:
    """What must receive every write that no database announces: brokers, and applications' routes."""
    token = settings.refresh_token.get_secret_value() if settings.refresh_token else None
    return [
        *(_redis().RedisPublisher(name, url) for name, url in _brokers(settings)),
        *(HTTPPublisher(url, token) for url in _urls(settings, "http", "https")),
    ]


def database_publishers(settings: ORMSettings, aliases: Iterable[str]) -> list[Publisher]:
    """What publishes through databases, for hints that no write has caused; none for those of other kinds."""
    return [DatabasePublisher(alias) for alias in aliases if announces(settings, alias)]


def check_databases(settings: ORMSettings) -> None:
    """Refuse a transport that none of Django's databases has, and more than one DSN for all databases."""
    if len(_dsns(settings)) > 1:
        raise InvalidSettings(
            "DJANGO_ORM_COHERENCE has more than one postgresql:// URL, and one is for all databases. Leave "
            "them out where DATABASES leads to the servers directly."
        )
    for transport, kinds in _ANNOUNCING.items():
        if _names(settings, transport) and not any(kind_of(alias) in kinds for alias in connections.settings):
            databases = ", ".join(f"{alias} is {name_of(alias)}" for alias in connections.settings)
            raise InvalidSettings(
                f"DJANGO_ORM_COHERENCE names {transport}, and DATABASES has no such database: {databases}. "
                "Use auto, which takes what there is, or redis://… for databases that do not announce writes."
            )


def is_named(settings: ORMSettings, listener: Listener) -> bool:
    """Whether the setting names a transport, and not only ``auto``."""
    kind = listener.name.partition(":")[0]
    return "auto" not in settings.coherence or kind == "redis" or _names(settings, kind)


def has_route(settings: ORMSettings) -> bool:
    """Whether the setting names a refresh route, to which Django's processes post their writes."""
    return bool(_urls(settings, "http", "https"))


def django_announces(settings: ORMSettings) -> bool:
    """Whether the setting names a broker or a route, through which Django's processes announce writes."""
    return has_route(settings) or bool(_brokers(settings))


def announces(settings: ORMSettings, alias: str) -> bool:
    """Whether a database itself announces writes, or does with triggers, and workers listen to it."""
    transport = transport_of(settings, alias)
    return transport is not None and (kind_of(alias) != "postgresql" or _why_no_psycopg() is None)


def how_to_announce(settings: ORMSettings, alias: str) -> str:
    """What to set where nothing announces the writes to a database."""
    kind = kind_of(alias)
    if kind in ("postgresql", "sqlite") and transport_of(settings, alias) is None:
        return (
            f"Their database does announce writes, and DJANGO_ORM_COHERENCE leaves {kind} out. Use auto, or "
            f"add {kind}; or off, if no other process writes."
        )
    if kind == "postgresql" and (reason := _why_no_psycopg()):
        return reason
    table = "Add table, and run manage.py coherence install --table; or set" if kind == "mysql" else "Set"
    return (
        f"Their database does not announce writes. {table} DJANGO_ORM_COHERENCE=redis://…, here and where "
        "Django writes, with fastapi_django_orm.django in INSTALLED_APPS; or give them a max_age; "
        "or off, if no other process writes."
    )


def transport_of(settings: ORMSettings, alias: str) -> str | None:
    """How workers listen to a database: ``"postgresql"``, ``"sqlite"`` or ``"table"``; None: they do not."""
    kind = kind_of(alias)
    if kind is None or not ({"auto", "table"} & {*settings.coherence} or _names(settings, kind)):
        return None
    if kind == "sqlite":  # its listener also reads the table
        return "sqlite"
    return "postgresql" if kind == "postgresql" and "table" not in settings.coherence else "table"


def _names(settings: ORMSettings, kind: str) -> bool:
    schemes = {item.partition("://")[0] for item in settings.coherence}
    return kind in schemes or (kind == "postgresql" and "postgres" in schemes)


def _database_listener(
    alias: str, settings: ORMSettings, concerns: Collection[Concern]
) -> Iterator[Listener]:
    transport, kind = transport_of(settings, alias), kind_of(alias)
    if transport == "sqlite":
        file = database_of(connections.create_connection(alias))
        read = lambda: {pair for concern in concerns for pair in concern.all_tables()}  # noqa: E731
        yield SQLiteListener(alias, file, settings.coherence_poll, read)
    elif kind == "mysql" and transport is not None:
        tables = _tables(concerns)
        beat, interval = settings.coherence_heartbeat, settings.coherence_interval
        yield MySQLListener(alias, tables, _explained(concerns), beat, interval)
    elif transport is not None:
        yield from _postgresql_listener(alias, settings, concerns, transport)


def _tables(concerns: Collection[Concern]) -> dict[str, str]:
    """The tables that are listened to, and their models' labels."""
    return {name: label for each in concerns for name, label in {**each.tables, **each.filtered}.items()}


def _explained(concerns: Collection[Concern]) -> frozenset[str]:
    return frozenset[str]().union(*(concern.explained for concern in concerns))


def _postgresql_listener(
    alias: str, settings: ORMSettings, concerns: Collection[Concern], transport: str
) -> Iterator[Listener]:
    try:
        postgresql, session, table = _psycopg()
    except InvalidSettings as error:
        if "auto" not in settings.coherence:
            raise
        logger.warning("transport_left_out", transport=f"{transport}:{alias}", hint=str(error))
        return
    quote = connections[alias].ops.quote_name
    tables = {quote(name): label for name, label in _tables(concerns).items()}
    secret = settings.coherence_dsn
    dsn = secret.get_secret_value() if secret else next(iter(_dsns(settings)), None)
    way = partial(session.way_to, alias, session.read_dsn(dsn))
    beat, explained = settings.coherence_heartbeat, _explained(concerns)
    if transport == "table":
        interval = settings.coherence_interval
        yield table.PostgreSQLTableListener(alias, way, tables, beat, explained, interval)
    else:
        yield postgresql.PostgreSQLListener(alias, way, tables, beat, explained)


def _urls(settings: ORMSettings, *schemes: str) -> list[str]:
    return [url for url in settings.coherence if "://" in url and url.partition("://")[0] in schemes]


def _dsns(settings: ORMSettings) -> list[str]:
    return _urls(settings, "postgres", "postgresql")


def _brokers(settings: ORMSettings) -> list[tuple[str, str]]:
    """Names without passwords or hosts, since the health route shows them to everybody; and URLs."""
    urls = _urls(settings, "redis", "rediss", "valkey", "valkeys")
    return [
        (
            f"redis:{number}" if number else "redis",
            url.replace("valkey", "redis", 1) if url[0] == "v" else url,
        )
        for number, url in enumerate(urls)
    ]


def _why_no_psycopg() -> str | None:
    try:
        _psycopg()
    except InvalidSettings as error:
        return str(error)
    return None


def _psycopg() -> tuple[Any, Any, Any]:
    try:
        from . import postgresql, postgresql_session, postgresql_table
    except ImportError as error:
        raise InvalidSettings(
            f"Listening to PostgreSQL needs psycopg 3 ({error}). Install it: pip install 'psycopg[binary]'. "
            "Django's own connections may use another driver."
        ) from error
    return postgresql, postgresql_session, postgresql_table


def _redis() -> Any:
    try:
        from . import redis
    except ImportError as error:
        raise InvalidSettings(
            f"DJANGO_ORM_COHERENCE names a redis:// URL, which needs redis-py ({error}). Install it: "
            "pip install 'fastapi-django-orm[redis]'."
        ) from error
    return redis
