"""The threads that run ORM code: few, and long-lived.

Not a ``ThreadPoolExecutor``: the interpreter waits for its threads at exit, for ever if a query hangs, and a
job that has waited too long for a thread could not be ended with an error that says so.
"""

import queue
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any
from weakref import WeakSet

from ..clock import monotonic
from ..errors import DatabaseBusy


class Job:
    """A function that waits for a thread, and the future of its result.

    Attributes:
        future: what the caller waits for.
        submitted: when, on the monotonic clock.
    """

    __slots__ = ("_calls", "future", "submitted")

    def __init__(self, call: Callable[[], Any]) -> None:
        """Make a job that no thread has begun.

        Args:
            call: the function, its arguments bound.
        """
        self.future: Future[Any] = Future()
        self.submitted = monotonic()
        self._calls = [call]  # a list, for pop(): a thread may begin it at the moment when it expires

    @property
    def waits(self) -> bool:
        """Whether no thread has begun it, and nobody has given it up."""
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
        """Take the function, if nobody has yet and the caller still waits."""
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
        threads: those that it belongs to while it serves everybody.
    """

    def __init__(
        self,
        name: str,
        jobs: "queue.SimpleQueue[Job | None]",
        idle: threading.Semaphore | None = None,
        threads: "DatabaseThreads | None" = None,
    ) -> None:
        """Start the thread.

        Args:
            name: the thread's.
            jobs: where it takes them from; None ends it.
            idle: released whenever the thread waits for a job.
            threads: those that it belongs to, if it serves everybody.
        """
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


def take_over_thread() -> Worker | None:
    """Take the running thread from those that serve everybody: it runs only what is put into its own queue.

    Returns:
        The thread; None if it is none of those.
    """
    worker: Worker | None = getattr(_local, "worker", None)
    if worker is None or worker.threads is None or not worker.threads.give_up(worker):
        return None
    return worker


def end_thread() -> None:
    """Have another thread take the place of the running one, if it serves everybody; it ends after this job.

    What its code has left in a ``threading.local`` ends with it.
    """
    worker = take_over_thread()
    if worker is not None:
        worker.jobs.put(None)


_all: "WeakSet[DatabaseThreads]" = WeakSet()

# As many as AnyIO has for `def` handlers. A context has its thread for as long as its response is being sent;
# it needs more threads than connections, since many a request uses no connection.
MOST_KEPT = 40


class DatabaseThreads:
    """At most ``size`` threads for everybody, and one more for each transaction or request that needs one.

    Attributes:
        timeout: seconds that a job waits at most.
    """

    def __init__(self, size: int, timeout: float, name: str = "database") -> None:
        """Start no thread yet.

        Args:
            size: the most threads that serve everybody.
            timeout: seconds that a job waits for one at most.
            name: what the threads are called.
        """
        self._size = size
        self._name = name
        self.timeout = timeout
        self.begin()
        _all.add(self)

    def begin(self) -> None:
        """Begin without threads and without jobs."""
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._waiting: deque[Job] = deque()
        self._watched: deque[tuple[Job, Callable[[], DatabaseBusy]]] = deque()
        self._shared: list[Worker] = []
        self._for_transactions: list[Worker] = []
        self._free: list[Worker] = []
        self._kept: set[Worker] = set()  # each for one context or request, with which it ends
        self._number = 0
        self._waiting_to_keep: deque[Callable[[Worker], None]] = deque()
        self._lock = threading.RLock()  # a collection inside may find an abandoned transaction
        self._given_back = threading.Condition(self._lock)
        self._closed = False

    def put(self, job: Job) -> None:
        """Let the next free thread run the job."""
        with self._lock:
            self._refuse_if_closed()
            self._waiting.append(job)
            while self._waiting and not self._waiting[0].waits:
                self._waiting.popleft()
            self._jobs.put(job)
            if not self._idle.acquire(blocking=False) and len(self._shared) < self._size:
                self._start()

    def _start(self) -> None:
        name = f"{self._name}-{len(self._shared) + 1}"
        self._shared.append(Worker(name, self._jobs, self._idle, self))

    def give_up(self, worker: Worker) -> bool:
        """Let a thread go that serves everybody, on that thread; False if all are ending.

        From then on it takes jobs from a queue of its own.
        """
        with self._lock:
            if self._closed or worker not in self._shared:
                return False
            self._shared.remove(worker)
            worker.jobs, worker.idle, worker.threads = queue.SimpleQueue(), None, None
            # Now and not when a job needs it: with jobs that have waited, more threads count as idle than
            # there are.
            self._start()
            return True

    def take_worker(self) -> Worker:
        """A thread for one transaction alone; give it back."""
        with self._lock:
            self._refuse_if_closed()
            if self._free:
                return self._free.pop()
            name = f"transaction-{len(self._for_transactions) + 1}"
            worker = Worker(name, queue.SimpleQueue())
            self._for_transactions.append(worker)
            return worker

    def put_beside(self, job: Job) -> None:
        """Have a thread run the job that nothing else waits for."""
        worker = self.take_worker()
        worker.jobs.put(job)
        worker.jobs.put(Job(lambda: self.give_back_worker(worker)))

    def give_back_worker(self, worker: Worker) -> None:
        """Let another transaction have the thread."""
        with self._lock:
            self._free.append(worker)
            self._given_back.notify_all()

    def wait_for_transactions(self, deadline: float) -> None:
        """Return when no transaction and no request has a thread any more, or at the deadline.

        Args:
            deadline: on the monotonic clock.
        """
        with self._lock:
            while self._kept or len(self._free) < len(self._for_transactions):
                if not self._given_back.wait(deadline - monotonic()):
                    return

    # Threads that serve one context or request each, and end with it

    def request_kept(self, begin: Callable[[Worker], None]) -> None:
        """Have ``begin`` called with a thread that has run nothing yet, now or when others have ended."""
        with self._lock:
            self._refuse_if_closed()
            if len(self._kept) >= MOST_KEPT:
                self._waiting_to_keep.append(begin)
                return
            worker = self.new_kept()
        begin(worker)

    def new_kept(self) -> Worker:
        """A thread that has run nothing yet, at once."""
        with self._lock:
            self._refuse_if_closed()
            self._number += 1
            worker = Worker(f"request-{self._number}", queue.SimpleQueue())
            self._kept.add(worker)
            return worker

    def keep_running(self) -> Worker | None:
        """The running thread, taken from those that serve everybody; None if it is none of these."""
        worker = take_over_thread()
        if worker is not None:
            with self._lock:
                self._kept.add(worker)
        return worker

    def end_kept(self, worker: Worker) -> None:
        """End a thread when it has done what it runs, and let what waits for one have another."""
        worker.jobs.put(None)
        with self._lock:
            self._kept.discard(worker)
            self._given_back.notify_all()
            if self._closed or not self._waiting_to_keep or len(self._kept) >= MOST_KEPT:
                return
            begin, following = self._waiting_to_keep.popleft(), self.new_kept()
        begin(following)  # not under the lock: it takes another

    # What waits

    def watch(self, job: Job, busy: Callable[[], DatabaseBusy]) -> None:
        """Give a job up that waits longer than the timeout, wherever it waits.

        Args:
            job: it waits for its turn in a transaction, or for a thread that has to run it.
            busy: makes the error.
        """
        with self._lock:
            while self._watched and not self._watched[0][0].waits:
                self._watched.popleft()
            self._watched.append((job, busy))

    def expire(self) -> None:
        """Give up the jobs that have waited longer than the timeout."""
        latest = monotonic() - self.timeout
        with self._lock:
            overdue = []
            while self._watched and (not self._watched[0][0].waits or self._watched[0][0].submitted < latest):
                overdue.append(self._watched.popleft())
            late = []
            while self._waiting and (not self._waiting[0].waits or self._waiting[0].submitted < latest):
                late.append(self._waiting.popleft())
        for job, busy in overdue:
            if job.waits:
                job.expire(busy())
        for job in late:
            if job.waits:
                job.expire(
                    DatabaseBusy(
                        f"No database thread came free within {self.timeout:g} s: all {self._size} are "
                        "busy. Look for calls that do not end (the log names them), or raise "
                        "DJANGO_ORM_THREADS."
                    )
                )

    def shutdown(self, deadline: float) -> None:
        """Drop what waits, and end the threads when they have done what they run.

        Args:
            deadline: when to stop waiting for them, on the monotonic clock.
        """
        with self._lock:
            self._closed = True
            for job in (*self._waiting, *(job for job, _ in self._watched)):
                job.future.cancel()
            for _ in self._shared:
                self._jobs.put(None)
            for worker in (*self._for_transactions, *self._kept):
                worker.jobs.put(None)
            workers = self._workers()
        for worker in workers:
            worker.thread.join(max(0.0, deadline - monotonic()))

    @property
    def hanging(self) -> list[str]:
        """The names of the threads that still run."""
        return [worker.thread.name for worker in self._workers() if worker.thread.is_alive()]

    def _workers(self) -> list[Worker]:
        return [*self._shared, *self._for_transactions, *self._kept]

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise RuntimeError("The application has shut down; its database threads have ended.")


def forget_threads() -> None:
    """Begin without threads in a forked child: those that ran were the parent's."""
    for threads in _all:
        threads.begin()
