"""The thread and the lock that all scopes of one transaction share."""

import threading
from collections.abc import Callable

from django.db.backends.base.base import BaseDatabaseWrapper

from ..errors import DatabaseBusy
from ..events import logger
from . import current
from .pool import Connections, pool_of
from .state import is_open
from .threads import DatabaseThreads, Job, Worker


class Transaction:
    """A thread for as long as the outermost scope is open, so that ``threading.local`` works inside.

    Attributes:
        lock: guards all scopes of this transaction. Re-entrant: to end a scope lets the next one begin, whose
            work is handed to ``put()``.
        threads: the application's.
        pools: where connections come from, by alias.
    """

    ends_thread = False  # whether the thread must not serve another transaction

    def __init__(
        self,
        threads: DatabaseThreads,
        pools: Callable[[str], Connections],
        lock: "threading.RLock | None" = None,
    ) -> None:
        """Take nothing yet; share the lock of another transaction, if it is given."""
        self.lock = lock or threading.RLock()
        self.threads = threads
        self.pools = pools
        self._worker: Worker | None = None
        self._waits = 0  # calls on the worker's thread that wait for asynchronous code, one inside the other

    def another(self) -> "Transaction":
        """A transaction for what waited for this one in vain; it may be about to take the lock."""
        return Transaction(self.threads, self.pools, self.lock)

    def put(self, job: Job) -> None:
        """Have the transaction's thread run the job, or one more while that one waits for this very job.

        The lock is held meanwhile, or ``end()`` could return the thread between the question and the put.
        """
        with self.lock:
            try:
                if self._worker is None:
                    self._worker = self.threads.take_worker(ends=self.ends_thread)
                if not self._waits:
                    self._worker.jobs.put(job)
                else:
                    self.threads.put_beside(job)
            except RuntimeError:  # the threads have ended: what is left to do is to close connections
                job.run()

    def busy(self) -> DatabaseBusy:
        """The error of what has waited long enough for its turn, which is also in the log."""
        waited = self.threads.timeout
        logger.error("transaction_does_not_go_on", waited=waited)
        return DatabaseBusy(
            f"A call or a block inside atomic() has waited for {waited:g} s. One at a time uses the "
            "transaction's connection, and another call, or a nested atomic(), of the same transaction has "
            "not ended. Look for `call_does_not_end` in the log. Do not keep a nested atomic() open while "
            "you wait for its siblings. A function that waits for asynchronous code must do so by "
            "async_to_sync, anyio.from_thread.run or asyncio.run_coroutine_threadsafe(…).result(), which "
            "lend the connection meanwhile."
        )

    def thread_waits(self, by: int) -> None:
        """Count the calls that wait on the transaction's thread, if this is it.

        Args:
            by: 1 when a call begins to wait, -1 when it goes on.
        """
        mine = self._worker is not None and self._worker.thread is threading.current_thread()
        with self.lock:
            self._waits += by if mine else 0

    def end(self) -> None:
        """Return the thread. The lock is held; the thread may still be at the end of its last job."""
        worker, self._worker = self._worker, None
        if worker is not None:
            self.threads.give_back_worker(worker)


def release(held: dict[str, BaseDatabaseWrapper]) -> None:
    """Release connections that a transaction has used, on a thread that may close them."""
    while held:
        _, connection = held.popitem()
        if connection.connection is None or is_open(connection):
            pool_of(connection).discard(connection)
        else:
            pool_of(connection).release(connection)


def new_transaction(pools: Callable[[str], Connections] | None = None) -> Transaction:
    """A transaction of the application that this code runs under, with its connections or others.

    Raises:
        NotStarted: it runs under none.
    """
    executor = current.find("atomic()")
    return Transaction(executor.threads, pools or executor.pools)
