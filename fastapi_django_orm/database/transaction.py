"""What a transaction holds while it is open: a thread, and a connection to each database that it uses."""

import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Protocol

from django.db.backends.base.base import BaseDatabaseWrapper

from .. import running
from ..events import logger
from .pool import Connections
from .threads import Job, Worker


class Threads(Protocol):
    """Where a transaction takes its thread from."""

    def put(self, job: Job) -> None:
        """Let any thread run the job, when the transaction has ended."""

    def take_worker(self) -> Worker:
        """A thread for the transaction alone; give it back."""

    def give_back_worker(self, worker: Worker) -> None:
        """Give it back, when it has been taken."""


class Transaction:
    """Connections and a thread of their own for as long as the outermost block is open."""

    def __init__(
        self, threads: Threads, pools: Callable[[str], Connections], worker: Worker | None = None
    ) -> None:
        """Take nothing yet.

        Args:
            threads: where to take the thread.
            pools: where to take connections, by alias.
            worker: the thread, if it is known.
        """
        self.connections: dict[str, BaseDatabaseWrapper] = {}
        self.threads = threads
        self.lock = threading.RLock()
        self.ended = False
        self.pools = pools
        self._worker = worker

    def put(self, job: Job) -> None:
        """Let the transaction's thread run the job, or any when the transaction has ended."""
        with self.lock:
            if self.ended:
                self.threads.put(job)
                return
            if self._worker is None:
                self._worker = self.threads.take_worker()
            self._worker.jobs.put(job)

    @property
    def is_open(self) -> bool:
        """Whether a transaction is open on one of the connections."""
        return any(connection.in_atomic_block for connection in self.connections.values())

    def end(self) -> None:
        """Give everything back, on a thread that may close connections."""
        with self.lock:
            self.ended = True
            held, self.connections = self.connections, {}
            worker, self._worker = self._worker, None
        _release(self.pools, held)
        if worker is None:
            return
        # What is left comes from tasks that outlive the block, and may wait for connections; the next
        # transaction on this thread must not wait for that.
        with suppress(queue.Empty):
            while (job := worker.jobs.get_nowait()) is not None:
                _put_or_cancel(self.threads, job)
            worker.jobs.put(None)
        self.threads.give_back_worker(worker)

    def __del__(self) -> None:
        # Only one that a call has left open and nobody has closed comes here with connections.
        if self.connections:
            logger.error("transaction_abandoned", databases=sorted(self.connections))
            with suppress(RuntimeError):  # the application has shut down, and its connections with it
                self.threads.put(Job(partial(_release, self.pools, self.connections)))


def _put_or_cancel(threads: Threads, job: Job) -> None:
    try:
        threads.put(job)
    except RuntimeError:  # the application has shut down
        job.future.cancel()


def _release(pools: Callable[[str], Connections], held: dict[str, BaseDatabaseWrapper]) -> None:
    for alias, connection in held.items():
        if connection.in_atomic_block or connection.connection is None or not connection.autocommit:
            pools(alias).discard(connection)
        else:
            pools(alias).give_back(connection)


def new_transaction() -> Transaction:
    """A transaction of the application that this code runs under.

    Raises:
        NotStarted: it runs under none.
    """
    executor = running.find("atomic()").executor
    return Transaction(executor.threads, executor.pools)
