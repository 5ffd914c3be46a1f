"""How many commits wait for each other because they send NOTIFY.

PostgreSQL orders notifications as their transactions commit. So a transaction that has sent one takes a lock
of the whole server before its commit, and releases it after the flush: commits of many writers, of all
databases of the server, come one after the other.
https://www.postgresql.org/docs/current/sql-notify.html
"""

import time

from django.db import connections

LOOKS = 20
PAUSE = 0.005  # seconds between two looks, which is about what a commit takes
MANY = 1.0  # sessions that wait at any moment, on average: from here on writers feel it

# The lock is on "database 0", which does not exist (PreCommit_Notify() in PostgreSQL's async.c).
_WAITING = """
SELECT count(*) FROM pg_catalog.pg_locks
WHERE locktype = 'object' AND database = 0 AND classid = 'pg_catalog.pg_database'::regclass AND objid = 0
    AND NOT granted"""

ADVICE = (
    "{number:.0f} sessions at a time wait to commit, since PostgreSQL lets only one transaction with a "
    "NOTIFY commit at a time. Set DJANGO_ORM_COHERENCE=table for FastAPI's workers, and run "
    "`manage.py coherence install --table`."
)


def sessions_waiting(alias: str) -> float:
    """How many sessions wait for the lock, on average over a tenth of a second. Only on PostgreSQL."""
    found = 0
    with connections[alias].cursor() as cursor:
        for _ in range(LOOKS):
            cursor.execute(_WAITING)
            found += cursor.fetchone()[0]
            time.sleep(PAUSE)
    return found / LOOKS


def advice(alias: str) -> str | None:
    """What to do, if writers wait for each other; None if they do not, or if this is not PostgreSQL."""
    if connections[alias].vendor != "postgresql":
        return None
    number = sessions_waiting(alias)
    return ADVICE.format(number=number) if number >= MANY else None
