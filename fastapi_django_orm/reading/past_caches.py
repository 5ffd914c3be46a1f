"""Read what the database has, where a package answers queries from a cache of its own.

django-cachalot and django-cacheops answer queries, and look-ups of related objects, from what they remember
of earlier ones. They forget it after the commit, which is when a hint arrives here, or not at all if another
program has written. A repository loaded from such a cache would keep the old rows until the next hint.
"""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


@contextmanager
def past_caches(alias: str) -> Iterator[None]:
    """Have the running thread's queries reach the database in the block.

    Args:
        alias: the database's key in ``DATABASES``.
    """
    with ExitStack() as stack:
        if (cachalot := sys.modules.get("cachalot.api")) is not None:
            disabled = cachalot.cachalot_disabled()
            disabled.__enter__()
            # Never with the block's error: it has no `finally`, and would stay disabled.
            stack.callback(disabled.__exit__, None, None, None)
        if (cacheops := sys.modules.get("cacheops.transaction")) is not None:
            # It has no switch for one thread. It does ask the database in a transaction that has written.
            transaction = cacheops.transaction_states[alias]
            transaction.begin()
            transaction.mark_dirty()
            stack.callback(transaction.commit)
        yield
