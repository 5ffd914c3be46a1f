"""psycopg's own pool, ``OPTIONS["pool"]``, under ours.

Ours lends connections to calls. One that is given back goes on to psycopg's pool, since Django allows that
pool only with ``CONN_MAX_AGE = 0``. So psycopg's pool decides how many are open and whether they work; by
itself it opens at least four at once, and hands out connections that the server has closed meanwhile.
"""

from django.db import connections

from .engines import takes_driver_options

MIN_SIZE = 4  # psycopg's default


def fit_driver_pools(limit: int) -> None:
    """Keep psycopg's pools within the bound, and have them check what they hand out.

    Args:
        limit: the most connections to each database.

    Source: https://docs.djangoproject.com/en/stable/ref/databases/#connection-pool
    """
    for alias, settings in connections.settings.items():
        pool = settings["OPTIONS"].get("pool")
        if pool and takes_driver_options(alias, "postgresql"):  # Oracle's pool has other options
            options = {} if pool is True else pool
            most = min(options.get("max_size") or limit, limit)
            least = min(options.get("min_size", MIN_SIZE), most)
            sizes = {"min_size": least, "max_size": most}
            settings["OPTIONS"] = {**settings["OPTIONS"], "pool": {**options, **sizes}}
            settings["CONN_HEALTH_CHECKS"] = True
