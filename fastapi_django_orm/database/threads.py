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


class Worker:
    """A daemon thread that runs jobs one after the other."""

    def __init__(
        self, name: str, jobs: "queue.SimpleQueue[Job | None]", idle: threading.Semaphore | None = None
    ) -> None:
        """Start the thread.

        Args:
            name: the thread's.
            jobs: where it takes them from; None ends it.
            idle: released whenever the thread waits for a job.
        """
        self.jobs = jobs
        self._idle = idle
        self.thread = threading.Thread(target=self._work, name=name, daemon=True)
        self.thread.start()

    def _work(self) -> None:
        while (job := self.jobs.get()) is not None:
            job.run()
            del job  # or its result would live on until the next one comes
            if self._idle is not None:
                self._idle.release()


_all: "WeakSet[DatabaseThreads]" = WeakSet()


class DatabaseThreads:
    """At most ``size`` threads for everybody, and one more for each open transaction.

    Attributes:
        timeout: seconds that a job waits at most.
    """

    def __init__(self, size: int, timeout: float) -> None:
        """Start no thread yet.

        Args:
            size: the most threads that serve everybody.
            timeout: seconds that a job waits for one at most.
        """
        self._size = size
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
                name = f"database-{len(self._shared) + 1}"
                self._shared.append(Worker(name, self._jobs, self._idle))

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
        """Return when no transaction has a thread any more, or at the deadline on the monotonic clock."""
        with self._lock:
            while len(self._free) < len(self._for_transactions):
                if not self._given_back.wait(deadline - time.monotonic()):
                    return

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
        latest = time.monotonic() - self.timeout
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
            for worker in self._for_transactions:
                worker.jobs.put(None)
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
