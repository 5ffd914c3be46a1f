"""The threads that run ORM code: few, and long-lived.

Not a ``ThreadPoolExecutor``: the interpreter waits for its threads at exit, for ever if a query hangs, and a
job that has waited too long for a thread could not be ended with an error that says so.

=================== ====================================================================================
a thread serves
=================== ====================================================================================
everybody           it takes jobs from the common queue; at most ``size``
one transaction     jobs from its own queue (``take_worker``); then another transaction
one request         jobs from its own queue (``take_when_possible``, ``take_running``); it ends with the
                    request, because of what that has left in a ``threading.local``
=================== ====================================================================================

Locking: ``_lock`` guards the fields of ``DatabaseThreads``. It is taken after a transaction's lock, so
nothing that takes one of these is called under it.
"""

import queue
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeAlias
from weakref import WeakSet

from ..clock import monotonic
from ..errors import DatabaseBusy


class Job:
    """A function that waits for a thread, and the future of its result."""

    __slots__ = ("_calls", "future", "submitted")

    def __init__(self, call: Callable[[], Any]) -> None:
        self.future: Future[Any] = Future()
        self.submitted = monotonic()
        self._calls = [call]  # a list, for pop(): a thread may begin it at the moment when it expires

    @property
    def waits(self) -> bool:
        """Whether no thread has begun it, and the caller has not given it up."""
        return bool(self._calls) and not self.future.done()

    def run(self) -> None:
        """Run the function, unless the job was given up."""
        call = self._claim()
        if call is None:
            return
        try:
            result = call()
        except StopIteration as error:
            # No asyncio future takes it, and the caller would wait for ever.
            stopped = RuntimeError("The function raised StopIteration; give next() a default.")
            stopped.__cause__ = error
            self.future.set_exception(stopped)
        except BaseException as error:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)

    def expire(self, error: Exception) -> None:
        """Give the job up with this error, unless a thread has begun it."""
        if self._claim() is not None:
            self.future.set_exception(error)

    def _claim(self) -> Callable[[], Any] | None:
        """Take the function, if no other has yet and the caller still waits."""
        try:
            call = self._calls.pop()
        except IndexError:
            return None
        return call if self.future.set_running_or_notify_cancel() else None


_local = threading.local()


class Worker:
    """A daemon thread that runs jobs one after the other.

    Attributes:
        jobs: where it takes them from; None ends it.
        idle: released whenever the thread waits for a job.
        threads: those that it belongs to while it serves everybody; None if it serves one.
        ends: whether it ends with the one that it serves.
    """

    ends = False

    def __init__(
        self,
        name: str,
        jobs: "queue.SimpleQueue[Job | None]",
        idle: threading.Semaphore | None = None,
        threads: "DatabaseThreads | None" = None,
    ) -> None:
        self.jobs = jobs
        self.idle = idle
        self.threads = threads
        self.thread = threading.Thread(target=self._work, name=name, daemon=True)
        self.thread.start()

    def _work(self) -> None:
        _local.worker = self
        while (job := self.jobs.get()) is not None:
            # A future that ends calls what waits for it; an error there is logged, and the log may raise.
            with suppress(Exception):
                job.run()
            del job  # or its result would live on until the next one comes
            if self.idle is not None:
                self.idle.release()


def end_thread() -> None:
    """End the running thread after its job, if it serves everybody: another takes its place.

    What its code has left in a ``threading.local`` ends with it.
    """
    worker: Worker | None = getattr(_local, "worker", None)
    if worker is not None and (threads := worker.threads) is not None and threads.take_running():
        threads.give_back_worker(worker)


_all: "WeakSet[DatabaseThreads]" = WeakSet()

# As many as AnyIO has for `def` handlers. A context has its thread for as long as its response is being sent;
# it needs more threads than connections, since many a request uses no connection.
MOST_KEPT = 40

# Jobs that wait, in the order of submission, and what makes the error of each.
_Waiting: TypeAlias = deque[tuple[Job, Callable[[], DatabaseBusy]]]


class DatabaseThreads:
    """At most ``size`` threads for everybody, and one more for each transaction or request that needs one.

    Attributes:
        timeout: seconds that a job waits at most.
    """

    def __init__(self, size: int, timeout: float, name: str = "database") -> None:
        self._size = size
        self._name = name
        self.timeout = timeout
        self.begin()
        _all.add(self)

    def begin(self) -> None:
        """Begin without threads and without jobs."""
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._waiting: _Waiting = deque()  # for a thread that serves everybody
        self._watched: _Waiting = deque()  # for something else
        self._shared: list[Worker] = []
        self._taken: set[Worker] = set()  # each by one transaction, context or request
        self._for_requests = 0  # how many of them end with their request
        self._unused: list[Worker] = []  # what transactions have returned
        self._number = 0
        self._waiting_to_begin: deque[Callable[[Worker], None]] = deque()
        self._lock = threading.RLock()  # a collection inside may find an abandoned transaction
        self._given_back = threading.Condition(self._lock)
        self._closed = False

    def put(self, job: Job) -> None:
        """Let the next free thread run the job."""
        with self._lock:
            self._refuse_if_closed()
            self._waiting.append((job, self._busy))
            _pop_until(self._waiting)
            self._jobs.put(job)
            # ``_idle`` counts the threads that wait in get(), less the jobs that were put for them. It counts
            # too many once jobs have waited, but then all ``size`` threads run already.
            if not self._idle.acquire(blocking=False) and len(self._shared) < self._size:
                self._start()

    def _start(self) -> None:
        name = f"{self._name}-{len(self._shared) + 1}"
        self._shared.append(Worker(name, self._jobs, self._idle, self))

    # Threads that serve one transaction, context or request each

    def take_worker(self, *, ends: bool = False) -> Worker:
        """A thread for one transaction, or a new one for one request; return it by ``give_back_worker()``.

        Args:
            ends: whether it is for a request, with which it ends.
        """
        with self._lock:
            self._refuse_if_closed()
            if self._unused and not ends:
                worker = self._unused.pop()
            else:
                self._number += 1
                worker = Worker(f"{'request' if ends else 'transaction'}-{self._number}", queue.SimpleQueue())
                worker.ends = ends
            self._for_requests += ends
            self._taken.add(worker)
            return worker

    def take_when_possible(self, begin: Callable[[Worker], None]) -> None:
        """Have ``begin`` called with a new thread for a request, now or when others have ended."""
        with self._lock:
            self._refuse_if_closed()
            if self._for_requests >= MOST_KEPT:
                self._waiting_to_begin.append(begin)
                return
            worker = self.take_worker(ends=True)
        begin(worker)

    def take_running(self) -> Worker | None:
        """The running thread for one request, if it serves everybody here: another takes its place."""
        worker: Worker | None = getattr(_local, "worker", None)
        with self._lock:
            if self._closed or worker is None or worker not in self._shared:
                return None
            self._shared.remove(worker)
            # From now on it takes jobs from a queue of its own. It runs this, so it waits in no other.
            worker.jobs, worker.idle, worker.threads = queue.SimpleQueue(), None, None
            worker.ends = True
            self._for_requests += 1
            self._taken.add(worker)
            # Now and not when a job needs it: with jobs that have waited, more threads count as idle than
            # there are.
            self._start()
            return worker

    def give_back_worker(self, worker: Worker) -> None:
        """Let another transaction have the thread; or end it when it has done what it runs."""
        with self._lock:
            self._taken.discard(worker)
            self._given_back.notify_all()
            if not worker.ends:
                self._unused.append(worker)
                return
            self._for_requests -= 1
            worker.jobs.put(None)
            if self._closed or not self._waiting_to_begin or self._for_requests >= MOST_KEPT:
                return
            begin, following = self._waiting_to_begin.popleft(), self.take_worker(ends=True)
        begin(following)  # not under the lock: it takes a transaction's

    def put_beside(self, job: Job) -> None:
        """Have a thread run the job that nothing else waits for."""
        worker = self.take_worker()
        worker.jobs.put(job)
        worker.jobs.put(Job(lambda: self.give_back_worker(worker)))

    def wait_for_transactions(self, deadline: float) -> None:
        """Return when no transaction and no request has a thread any more, or at the deadline."""
        with self._lock:
            while self._taken:
                if not self._given_back.wait(deadline - monotonic()):
                    return

    # What waits

    def watch(self, job: Job, busy: Callable[[], DatabaseBusy]) -> None:
        """Give a job up with this error if it waits longer than the timeout, wherever it waits."""
        with self._lock:
            _pop_until(self._watched)
            self._watched.append((job, busy))

    def expire(self) -> None:
        """Give up the jobs that have waited longer than the timeout."""
        latest = monotonic() - self.timeout
        with self._lock:
            late = [*_pop_until(self._watched, latest), *_pop_until(self._waiting, latest)]
        for job, busy in late:  # not under the lock: what waits for a future may take others
            if job.waits:
                job.expire(busy())

    def _busy(self) -> DatabaseBusy:
        return DatabaseBusy(
            f"No database thread became available within {self.timeout:g} s: all {self._size} are busy. Look "
            "for `call_does_not_end` in the log, or raise DJANGO_ORM_THREADS."
        )

    def shutdown(self, deadline: float) -> None:
        """Drop what waits, and end the threads when they have done what they run, or at the deadline."""
        with self._lock:
            self._closed = True
            dropped = [job for job, _ in (*self._waiting, *self._watched)]
        for job in dropped:  # not under the lock: what waits for a future may take others
            job.future.cancel()
        with self._lock:
            for _ in self._shared:
                self._jobs.put(None)
            for worker in (*self._taken, *self._unused):
                worker.jobs.put(None)
            workers = self._workers()
        for worker in workers:
            worker.thread.join(max(0.0, deadline - monotonic()))

    @property
    def hanging(self) -> list[str]:
        """The names of the threads that still run."""
        return [worker.thread.name for worker in self._workers() if worker.thread.is_alive()]

    def _workers(self) -> list[Worker]:
        return [*self._shared, *self._taken, *self._unused]

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise RuntimeError("The application has shut down; its database threads have ended.")


def _pop_until(waiting: _Waiting, latest: float = 0.0) -> list[tuple[Job, Callable[[], DatabaseBusy]]]:
    """Remove from the front what waits no more, and what was submitted before ``latest``."""
    popped = []
    while waiting and (not waiting[0][0].waits or waiting[0][0].submitted < latest):
        popped.append(waiting.popleft())
    return popped


def forget_threads() -> None:
    """Begin without threads in a forked child: those that ran were the parent's."""
    for threads in _all:
        threads.begin()
