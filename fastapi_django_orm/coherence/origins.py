"""Where the rows of a database come from now: which server answers Django, and whether it is a replica.

Hints and rows travel on two connections. If those lead to two servers, hints say nothing about the rows; and
the hint of a commit may reach a worker before a replica has the commit. Neither shows in an error. So
Django's own connection is asked at the start and with every heartbeat: a proxy, a name or a failover may lead
it elsewhere at any time.
"""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

from asgiref.sync import sync_to_async
from django.db import connections

from ..clock import cancel
from ..database.engines import kind_of

# When a server started, and its number of the database. Every role may read that, and no two servers have it
# in common, unlike the system identifier, which replicas and copies keep. As numbers, since how a text comes
# depends on the time zone and the encoding of a session.
SERVER = """
SELECT (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint, oid::bigint
FROM pg_database WHERE datname = current_database()"""

_QUERIES = {
    "postgresql": f"SELECT pg_is_in_recovery(), here.* FROM ({SERVER}) AS here",
    # A replica of MariaDB or MySQL need not be read-only. One that is not does not show, except to who may
    # administer it. Since MariaDB 12 the value is a word.
    "mysql": """
SELECT CONCAT(@@global.read_only) NOT IN ('0', 'OFF')
    OR CONCAT(@@global.innodb_read_only) NOT IN ('0', 'OFF')""",
}


@dataclass(frozen=True, slots=True)
class Origin:
    """Where rows come from.

    Attributes:
        server: identifies the server and database, as ``SERVER`` does; None: unknown.
        is_replica: whether rows come there from another server, and later.
    """

    server: tuple[int, ...] | None
    is_replica: bool


class Origins:
    """Watches where the rows of some databases come from.

    Attributes:
        known: the origins found last, by alias; none of databases that do not say.
        looked: set after the first look.
    """

    def __init__(self, aliases: Iterable[str], interval: float, moved: Callable[[str], None]) -> None:
        """Look every ``interval`` seconds. Call ``moved`` with an alias whose rows come from elsewhere."""
        self.known: dict[str, Origin] = {}
        self.looked = asyncio.Event()
        self._aliases = sorted(alias for alias in aliases if kind_of(alias) in _QUERIES)
        self._interval = interval
        self._moved = moved
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Look, until stopped."""
        self._task = asyncio.create_task(self._run(), name="where rows come from")

    async def stop(self) -> None:
        """Stop looking."""
        await cancel(self._task)

    async def _run(self) -> None:
        while self._aliases:
            await asyncio.gather(*map(self._look, self._aliases))
            self.looked.set()
            await asyncio.sleep(self._interval)
        self.looked.set()

    async def _look(self, alias: str) -> None:
        # A database that does not answer now is a matter for what reads it; what was known of it stays.
        with suppress(Exception):
            found = await sync_to_async(origin_of)(alias)
            before, self.known[alias] = self.known.get(alias), found
            if before not in (None, found):
                self._moved(alias)


def origin_of(alias: str) -> Origin:
    """Where the rows of a database come from, which is PostgreSQL, MariaDB or MySQL, or DatabaseError."""
    with connections[alias].cursor() as cursor:
        cursor.execute(_QUERIES[kind_of(alias) or ""])
        is_replica, *server = cursor.fetchone()
    return Origin(tuple(server) or None, bool(is_replica))
