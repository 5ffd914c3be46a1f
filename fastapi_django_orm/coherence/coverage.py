"""Whether every write that concerns a repository reaches it, and why not.

One rule for all databases: some transport that is up carries the writes to every table that the repository
reads, from the server that it reads; or its ``max_age`` refreshes it. Everything else is shown as degraded.
"""

from collections.abc import Iterable

from ..settings import ORMSettings
from .choice import has_route, how_to_hear
from .concerns import Concern
from .link import Link
from .origins import Origin
from .process import ProcessListener

REPLICA = (
    "Its rows are read from a replica, {alias!r}, which may have a change later than the hint of it comes. "
    "Read them from the primary (by a database router, or .using() in queryset()), or give the repository a "
    "max_age."
)
ELSEWHERE = (
    "{transport} listens at another server or database than the one that its rows are read from. "
    "Correct DJANGO_ORM_COHERENCE_DSN, or leave it out where DATABASES leads there directly; or give the "
    "repository a max_age."
)
DOWN = "{transport} is down. It is tried again; the log says why."
UNANNOUNCED = "{transport} does not carry the writes to {labels}. Run manage.py coherence install."


def why_unheard(
    settings: ORMSettings, concern: Concern, links: Iterable[Link], origin: Origin | None
) -> str | None:
    """Why a write elsewhere may not reach a repository without a ``max_age``; None if it does.

    Args:
        settings: the application's.
        concern: what the repository reads.
        links: the application's transports.
        origin: where the rows come from now, if that is known.
    """
    if origin is not None and origin.is_replica:
        return REPLICA.format(alias=concern.alias)
    carrying = [link for link in links if carries(link, concern.alias)]
    reasons = [_why_not(link, concern, origin) for link in carrying]
    if has_route(settings) or None in reasons:
        return None
    return next((reason for reason in reasons if reason), how_to_hear(settings, concern.alias))


def carries(link: Link, alias: str) -> bool:
    """Whether writes of other processes to a database come this way."""
    aliases = link.listener.aliases
    return not isinstance(link.listener, ProcessListener) and (aliases is None or alias in aliases)


def is_elsewhere(link: Link, origin: Origin | None) -> bool:
    """Whether a transport is connected to another server than the rows come from."""
    listening = link.listener.server
    return None not in (listening, origin) and listening != origin.server  # type: ignore[union-attr]


def _why_not(link: Link, concern: Concern, origin: Origin | None) -> str | None:
    if link.connected_since is None:
        return DOWN.format(transport=link.name)
    if is_elsewhere(link, origin):
        return ELSEWHERE.format(transport=link.name)
    if unheard := sorted(link.listener.unheard.intersection(concern.tables.values())):
        return UNANNOUNCED.format(transport=link.name, labels=", ".join(unheard))
    return None
