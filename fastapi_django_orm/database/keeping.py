"""Connections and a thread that stay together for longer than a call.

Django gives a thread one connection, and an ASGI request one thread (``ThreadSensitiveContext``). Here a
connection is lent to a call, which is enough for most code. Two kinds need more:

- *A context of its own*, as Django's ``get_asgi_application()`` enters for each request: all its calls have
  one thread and one connection to each database from their first use until it ends. Both are new and end with
  it, so that nothing of one request can reach another: what middleware leaves in a ``threading.local``, a
  tenant's schema, session variables, locks.
- *A request that has left something on a connection* (see ``state``), as ``async with pghistory.context()``
  does: the connection and the thread serve the request's later calls, one at a time, until the connection is
  clean, or the request has ended, and the connection is closed.

Both are blocks without a transaction (see ``blocks``): calls are sent to their thread, ``atomic()`` nests in
them.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Protocol, TypeVar
from weakref import WeakSet

from django.db.backends.base.base import BaseDatabaseWrapper

from ..errors import DatabaseBusy
from .blocks import Block
from .calls import Call, run_as_call
from .pool import Pool
from .state import left_behind
from .threads import DatabaseThreads, Job, Worker, take_over_thread
from .transaction import Transaction

T = TypeVar("T")

# As many as AnyIO has for `def` handlers. A context has its thread for as long as its response is being sent;
# it needs more threads than connections, since many a request uses no connection.
MOST_CONTEXTS = 40


class KeptThreads:
    """The threads of one application that serve a block of this module each, and end with it."""

    def __init__(self, application: DatabaseThreads, timeout: float) -> None:
        """Start no thread yet.

        Args:
            application: runs what is left when a block has ended.
            timeout: seconds that a context waits for its thread at most.
        """
        self.put = application.put
        self._timeout = timeout
        self.begin()
        _all.add(self)

    def begin(self) -> None:
        """Begin without threads and without contexts that wait."""
        self._lock = threading.Lock()
        self._workers: set[Worker] = set()
        self._contexts = 0
        self._waiting: deque[ContextBlock] = deque()
        self._number = 0

    # As a transaction takes threads

    def take_worker(self) -> Worker:
        """A thread that has run nothing yet."""
        with self._lock:
            self._number += 1
            worker = Worker(f"context-{self._number}", SimpleQueue())
            self._workers.add(worker)
            return worker

    def adopt(self, worker: Worker) -> None:
        """Have a thread that served everybody among these."""
        with self._lock:
            self._workers.add(worker)

    def give_back_worker(self, worker: Worker) -> None:
        """End a thread when it has done what it runs."""
        worker.jobs.put(None)
        with self._lock:
            self._workers.discard(worker)

    # For contexts

    def enter(self, context: "ContextBlock") -> bool:
        """Let a context have a thread, now or when others have ended: then it is told to begin."""
        with self._lock:
            if self._contexts >= MOST_CONTEXTS:
                self._waiting.append(context)
                return False
            self._contexts += 1
            return True

    def leave(self) -> None:
        """Let the context that has waited longest have a thread."""
        with self._lock:
            following = self._waiting.popleft() if self._waiting else None
            if following is None:
                self._contexts -= 1
        if following is not None:
            following.begin()

    def expire(self) -> None:
        """Give up what has waited for a thread longer than the timeout."""
        latest = time.monotonic() - self._timeout
        with self._lock:
            waiting = list(self._waiting)
        for context in waiting:
            context.expire(latest, self._timeout)

    def shutdown(self, timeout: float) -> None:
        """End the threads when they have done what they run.

        Args:
            timeout: seconds to wait for them at most.
        """
        deadline = time.monotonic() + timeout
        with self._lock:
            workers = list(self._workers)
        for worker in workers:
            worker.jobs.put(None)
        for worker in workers:
            worker.thread.join(max(0.0, deadline - time.monotonic()))

    @property
    def hanging(self) -> list[str]:
        """The names of the threads that still run."""
        return [worker.thread.name for worker in self._workers if worker.thread.is_alive()]


_all: "WeakSet[KeptThreads]" = WeakSet()


def forget_kept() -> None:
    """Begin without threads in a forked child: those that ran were the parent's."""
    for threads in _all:
        threads.begin()


class KeptBlock(Block):
    """A block without a transaction: a thread, and what is kept with it."""

    def run(self, function: Callable[[], T]) -> T:
        """Run a function as a call of this block, on its thread."""
        raise NotImplementedError

    def finish(self) -> None:
        """Roll back what is open inside, and give everything up. On the thread."""
        self.break_nested()
        self.end()

    def end_soon(self) -> None:
        """Have the thread finish, after what it still runs."""
        job = Job(partial(run_as_call, self.transaction.pools, self.finish))
        with suppress(RuntimeError):  # the application has shut down, and has ended it
            self.put(job)


class ContextBlock(KeptBlock):
    """What serves the calls of one ``ThreadSensitiveContext``."""

    def __init__(self, threads: KeptThreads, pools: Callable[[str], Pool]) -> None:
        """Take nothing yet.

        Args:
            threads: the application's.
            pools: the connections, by alias.
        """
        super().__init__(Transaction(threads, lambda alias: pools(alias).fresh), None)
        self._threads = threads
        self._has_thread = False
        self._before: deque[Job] = deque()  # that wait for a thread

    def put(self, job: Job) -> None:
        """Run the job on the context's thread, which is taken for the first one."""
        with self.transaction.lock:
            if not self._has_thread and not self._ended:
                self._before.append(job)
                if len(self._before) == 1 and self._threads.enter(self):
                    self.begin()
            else:
                super().put(job)

    def begin(self) -> None:
        """Run what has waited for a thread."""
        with self.transaction.lock:
            self._has_thread = True
            before, self._before = self._before, deque()
            for job in before:
                super().put(job)

    def expire(self, latest: float, timeout: float) -> None:
        """Give up the jobs that have waited for a thread since before this moment."""
        for job in tuple(self._before):
            if job.submitted < latest:
                job.expire(
                    DatabaseBusy(
                        "No thread for a request of a mounted application became available within "
                        f"{timeout:g} s: all {MOST_CONTEXTS} are in use, each until its response is sent."
                    )
                )

    def run(self, function: Callable[[], T]) -> T:
        """Run a function as a call; what it borrows is the context's from then on."""
        return _ContextCall(self.transaction).run(function)

    def end_soon(self) -> None:
        """Have the thread finish, if the context has used one."""
        with self.transaction.lock:
            if self._has_thread or self._before:
                super().end_soon()
            else:
                self.end()

    def end(self) -> None:
        """Close the connections, and end the thread."""
        super().end()
        if self._has_thread:
            self._threads.leave()


class _ContextCall(Call):
    """A call that leaves what it has borrowed to the calls after it."""

    __slots__ = ("_of",)

    def __init__(self, of: Transaction) -> None:
        super().__init__(of.pools)
        self._of = of

    def give_back(self) -> None:
        """Keep all: code after the wait counts on them."""

    def end(self) -> None:
        with self._of.lock:
            if not self._of.ended:
                self._of.connections.update(self.held)
                self.held.clear()
        super().end()


class _Executor(Protocol):
    """What an application runs calls with; ``executor.DatabaseExecutor`` is one."""

    kept: KeptThreads
    pools: Callable[[str], Pool]


class RequestConnections:
    """What the calls of one request have left on connections.

    Attributes:
        block: serves the request's calls while there is something.
    """

    __slots__ = ("_ended", "_executor", "block")

    def __init__(self, executor: _Executor) -> None:
        """Keep nothing yet.

        Args:
            executor: the application's.
        """
        self.block: _RequestBlock | None = None
        self._executor = executor
        self._ended = False

    def keep(self, connection: BaseDatabaseWrapper) -> bool:
        """Keep a connection for the calls that follow in the request, on the thread whose call has ended.

        Returns:
            False if the request has ended, or has another connection to the same database already.
        """
        with _lock:
            if self._ended:
                return False
            if self.block is None or self.block.ended:
                self.block = _RequestBlock(self._executor.kept, self._executor.pools)
            kept = self.block.transaction.connections
            return kept.setdefault(connection.alias, connection) is connection

    def end(self) -> None:
        """Close what has been left, when the request has ended. In the event loop."""
        with _lock:  # or a call that ends now could keep something that nobody closes
            self._ended = True
            block = self.block
        if block is not None:
            block.end_soon()


class _RequestBlock(KeptBlock):
    """What serves a request's calls after one of them has left something on a connection."""

    def __init__(self, threads: KeptThreads, pools: Callable[[str], Pool]) -> None:
        worker = take_over_thread()
        if worker is not None:
            threads.adopt(worker)
        super().__init__(Transaction(threads, pools, worker), None)

    def run(self, function: Callable[[], T]) -> T:
        """Run a function as a call that finds the connections that are kept."""
        try:
            return run_as_call(self.transaction.pools, function, around=self.transaction.connections)
        finally:
            self.after_call()

    def after_call(self) -> None:
        """End, if everything is clean by now."""
        with self.transaction.lock:
            if self.ended or self._nested_is_open:
                return
            kept = self.transaction.connections.values()
            if any(connection.in_atomic_block or left_behind(connection) for connection in kept):
                return
        self.end()

    def end_soon(self) -> None:
        if not self.ended:
            super().end_soon()


_lock = threading.Lock()


def kept_block(block: Block | None) -> KeptBlock | None:
    """The block of this module around a block, if there is one."""
    while block is not None and block.parent is not None:
        block = block.parent
    return block if isinstance(block, KeptBlock) else None
