"""Which transports there are, from ``DJANGO_ORM_COHERENCE`` and Django's ``DATABASES``."""

from collections.abc import Collection, Iterable, Iterator
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from django.db import connections

from ..database.engines import Kind, kind_of, name_of
from ..database.sqlite_file import database_of
from ..errors import InvalidSettings
from ..events import logger
from ..settings import ORMSettings
from .concerns import Concern
from .http import HTTPPublisher
from .postgresql_parameters import libpq_parameters, read_dsn, way_to
from .process import ProcessListener
from .sqlite import SQLiteListener, SQLitePublisher
from .transport import Listener, Publisher

_TELLING: tuple[Kind, ...] = ("postgresql", "sqlite")  # the kinds of databases that tell of writes themselves


def listeners(settings: ORMSettings, concerns: Collection[Concern]) -> list[Listener]:
    """What a worker listens to.

    Args:
        settings: the application's.
        concerns: of its repositories.

    Raises:
        InvalidSettings: a transport is named whose package is not installed, or that no database has.
    """
    if "off" in settings.coherence:
        return []
    check_databases(settings)
    found: list[Listener] = [ProcessListener()]
    aliases = sorted({concern.alias for concern in concerns})
    if wants(settings, "postgresql"):
        for alias in _of_kind("postgresql", aliases):
            found += _postgresql(alias, settings, [c for c in concerns if c.alias == alias])
    if wants(settings, "sqlite"):
        found += [
            SQLiteListener(alias, database_of(connections.create_connection(alias)), settings.coherence_poll)
            for alias in _of_kind("sqlite", aliases)
        ]
    found += [
        _redis().RedisListener(name, url, settings.coherence_heartbeat) for name, url in _brokers(settings)
    ]
    return found


def check_databases(settings: ORMSettings) -> None:
    """Refuse the name of a transport that none of Django's databases has.

    Raises:
        InvalidSettings: one is named; or more than one DSN, of which each would be for all databases.
    """
    if len(_dsns(settings)) > 1:
        raise InvalidSettings(
            "DJANGO_ORM_COHERENCE has more than one postgresql:// URL, and one is for all databases. Leave "
            "them out where DATABASES leads to the servers directly."
        )
    for kind in _TELLING:
        if _names(settings, kind) and not any(_of_kind(kind, connections.settings)):
            databases = ", ".join(f"{alias} is {name_of(alias)}" for alias in connections.settings)
            raise InvalidSettings(
                f"DJANGO_ORM_COHERENCE names {kind}, and DATABASES has no such database: {databases}. "
                "Use auto, which takes what there is, or redis://… for databases that do not announce writes."
            )


def is_named(settings: ORMSettings, listener: Listener) -> bool:
    """Whether a transport was asked for, and not chosen by ``auto``."""
    kind = listener.name.partition(":")[0]
    return "auto" not in settings.coherence or kind == "redis" or _names(settings, kind)


def has_route(settings: ORMSettings) -> bool:
    """Whether a refresh route is named, to which Django's processes post their writes."""
    return bool(_routes(settings))


def is_told_by_django(settings: ORMSettings) -> bool:
    """Whether a broker or a route is named, through which Django's processes tell of their writes."""
    return has_route(settings) or any(True for _ in _brokers(settings))


def announces(settings: ORMSettings, alias: str) -> bool:
    """Whether a database itself announces writes, and is listened to."""
    kind = kind_of(alias)
    return kind in _TELLING and wants(settings, kind) and (kind != "postgresql" or _why_no_psycopg() is None)


def how_to_hear(settings: ORMSettings, alias: str) -> str:
    """What to set where nothing announces the writes to a database.

    Args:
        settings: the application's.
        alias: the database's key in ``DATABASES``.
    """
    kind = kind_of(alias)
    if kind in _TELLING and not wants(settings, kind):
        return (
            f"Their database does tell, and DJANGO_ORM_COHERENCE leaves {kind} out. Use auto, or add {kind}; "
            "or off, if no other process writes."
        )
    if kind == "postgresql" and (reason := _why_no_psycopg()):
        return reason
    return (
        "Their database tells nobody. Set DJANGO_ORM_COHERENCE=redis://…, here and where Django writes, with "
        "fastapi_django_orm.django in INSTALLED_APPS; or give them a max_age; "
        "or off, if no other process writes."
    )


def publishers(settings: ORMSettings) -> list[Publisher]:
    """What has to be told of every write that no database announces: brokers, and applications' routes.

    Raises:
        InvalidSettings: a transport is named whose package is not installed.
    """
    token = settings.refresh_token
    return [
        *(_redis().RedisPublisher(name, url) for name, url in _brokers(settings)),
        *(HTTPPublisher(url, token.get_secret_value() if token else None) for url in _routes(settings)),
    ]


def database_publishers(settings: ORMSettings, aliases: Iterable[str]) -> list[Publisher]:
    """What publishes through the databases: for hints that no write has caused.

    Args:
        settings: the application's.
        aliases: keys in ``DATABASES``; those of other kinds are left out.

    Raises:
        InvalidSettings: psycopg is not installed.
    """
    aliases = list(aliases)
    found: list[Publisher] = []
    if wants(settings, "postgresql"):
        found += [
            _psycopg().PostgreSQLPublisher(alias, partial(libpq_parameters, alias))
            for alias in _of_kind("postgresql", aliases)
        ]
    if wants(settings, "sqlite"):
        found += [
            SQLitePublisher(alias, database_of(connections.create_connection(alias)))
            for alias in _of_kind("sqlite", aliases)
        ]
    return found


def wants(settings: ORMSettings, kind: str) -> bool:
    """Whether the databases of this kind are listened to."""
    return "auto" in settings.coherence or _names(settings, kind)


def _names(settings: ORMSettings, kind: str) -> bool:
    schemes = {item.partition("://")[0] for item in settings.coherence}
    return not schemes.isdisjoint({kind, "postgres" if kind == "postgresql" else kind})


def _of_kind(kind: Kind, aliases: Iterable[str]) -> Iterator[str]:
    return (alias for alias in aliases if kind_of(alias) == kind)


def _postgresql(alias: str, settings: ORMSettings, concerns: Collection[Concern]) -> Iterator[Listener]:
    try:
        module = _psycopg()
    except InvalidSettings as error:
        if "auto" not in settings.coherence:
            raise
        logger.warning("transport_left_out", transport=f"postgresql:{alias}", hint=str(error))
        return
    quote = connections[alias].ops.quote_name
    tables = {quote(table): label for concern in concerns for table, label in concern.tables.items()}
    explained = frozenset[str]().union(*(concern.explained for concern in concerns))
    way = partial(way_to, alias, read_dsn(_direct_dsn(settings)))
    yield module.PostgreSQLListener(alias, way, tables, settings.coherence_heartbeat, explained)


def _direct_dsn(settings: ORMSettings) -> str | None:
    if settings.coherence_dsn is not None:
        return settings.coherence_dsn.get_secret_value()
    return next(iter(_dsns(settings)), None)


def _dsns(settings: ORMSettings) -> list[str]:
    return [url for url in settings.coherence if url.startswith(("postgres://", "postgresql://"))]


def _routes(settings: ORMSettings) -> list[str]:
    return [url for url in settings.coherence if urlsplit(url).scheme in ("http", "https")]


def _brokers(settings: ORMSettings) -> Iterator[tuple[str, str]]:
    """Names without passwords or hosts, since the health route shows them to everybody; and URLs."""
    names = (f"redis:{number}" if number else "redis" for number in range(len(settings.coherence)))
    for url in settings.coherence:
        scheme, _, rest = url.partition("://")
        if rest and scheme.startswith(("redis", "valkey")):
            yield next(names), f"{scheme.replace('valkey', 'redis')}://{rest}"


def _why_no_psycopg() -> str | None:
    try:
        _psycopg()
    except InvalidSettings as error:
        return str(error)
    return None


def _psycopg() -> Any:
    try:
        from . import postgresql
    except ImportError as error:
        raise InvalidSettings(
            f"Listening to PostgreSQL needs psycopg 3 ({error}). Install it: pip install 'psycopg[binary]'. "
            "Django's own connections may use another driver."
        ) from error
    return postgresql


def _redis() -> Any:
    try:
        from . import redis
    except ImportError as error:
        raise InvalidSettings(
            f"DJANGO_ORM_COHERENCE names a redis:// URL, which needs redis-py ({error}). Install it: "
            "pip install 'fastapi-django-orm[redis]'."
        ) from error
    return redis
