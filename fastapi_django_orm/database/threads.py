"""The threads that run ORM code: few, and long-lived.

Not a ``ThreadPoolExecutor``: the interpreter waits for its threads at exit, for ever if a query hangs, and a
job that has waited too long for a thread could not be ended with an error that says so.
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any
from weakref import WeakSet

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
        self.submitted = time.monotonic()
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


class DatabaseThreads:
    """At most ``size`` threads for everybody, and one more for each open transaction."""

    def __init__(self, size: int, timeout: float, name: str = "database") -> None:
        """Start no thread yet.

        Args:
            size: the most threads that serve everybody.
            timeout: seconds that a job waits for one at most.
            name: what the threads are called.
        """
        self._size = size
        self._name = name
        self._timeout = timeout
        self.begin()
        _all.add(self)

    def begin(self) -> None:
        """Begin without threads and without jobs."""
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._waiting: deque[Job] = deque()
        self._shared: list[Worker] = []
        self._for_transactions: list[Worker] = []
        self._free: list[Worker] = []
        self._lock = threading.RLock()  # a collection inside may find an abandoned transaction
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
            # Now and not when a job needs it: with jobs that have waited, more threads count as idle than are.
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

    def give_back_worker(self, worker: Worker) -> None:
        """Let another transaction have the thread."""
        with self._lock:
            self._free.append(worker)

    def expire(self) -> None:
        """Give up the jobs that have waited for a thread longer than the timeout."""
        latest = time.monotonic() - self._timeout
        with self._lock:
            late = []
            while self._waiting and (not self._waiting[0].waits or self._waiting[0].submitted < latest):
                late.append(self._waiting.popleft())
        for job in late:
            if job.waits:
                job.expire(
                    DatabaseBusy(
                        f"No database thread came free within {self._timeout:g} s: all {self._size} are "
                        "busy. Look for calls that do not end (the log names them), or raise "
                        "DJANGO_ORM_THREADS."
                    )
                )

    def shutdown(self, timeout: float) -> None:
        """Drop what waits, and end the threads when they have done what they run.

        Args:
            timeout: seconds to wait for them at most.
        """
        with self._lock:
            self._closed = True
            for job in self._waiting:
                job.future.cancel()
            for _ in self._shared:
                self._jobs.put(None)
            for worker in self._for_transactions:
                worker.jobs.put(None)
        deadline = time.monotonic() + timeout
        for worker in (*self._shared, *self._for_transactions):
            worker.thread.join(max(0.0, deadline - time.monotonic()))

    @property
    def hanging(self) -> list[str]:
        """The names of the threads that still run."""
        workers = (*self._shared, *self._for_transactions)
        return [worker.thread.name for worker in workers if worker.thread.is_alive()]

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise RuntimeError("The application has shut down; its database threads have ended.")


def forget_threads() -> None:
    """Begin without threads in a forked child: those that ran were the parent's."""
    for threads in _all:
        threads.begin()
