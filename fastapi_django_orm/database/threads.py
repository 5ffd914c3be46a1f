"""Who runs ORM code: a few long-lived threads, so that connections persist and their number is bounded.

asgiref has one thread for all ``sync_to_async`` calls of a process, and with a ``ThreadSensitiveContext``
one for each context. Given this executor, the context of an application spreads its calls over ``size``
threads instead: Django's own async API becomes concurrent without a line in the handler. asgiref asks for
an executor that runs one call at a time; that rule keeps a request's calls on one thread, for connections
that belong to a thread and for open transactions. Here a call finds its connection by other means.

Not a ``ThreadPoolExecutor``: the interpreter waits for its threads at exit, for ever if a call hangs.
"""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any, ParamSpec, TypeVar

from django.conf import settings
from django.db import close_old_connections, connections

P = ParamSpec("P")
T = TypeVar("T")


class _Job:
    __slots__ = ("_call", "future")

    def __init__(self, call: Callable[[], Any]) -> None:
        self.future: Future[Any] = Future()
        self._call = call

    def run(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self._call()
        except BaseException as error:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


class DatabaseThreads(Executor):
    """At most ``size`` daemon threads that run ORM code."""

    def __init__(self, size: int) -> None:
        """Start no thread yet.

        Args:
            size: the most threads, and so the most connections to each database.
        """
        self._size = size
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._closed = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run the function on one of the threads."""
        job = _Job(partial(fn, *args, **kwargs))
        with self._lock:
            if self._closed:
                raise RuntimeError("The application has shut down; its database threads have ended.")
            self._jobs.put(job)
            if not self._idle.acquire(blocking=False) and len(self._threads) < self._size:
                self._start_thread()
        return job.future

    def _start_thread(self) -> None:
        name = f"database-{len(self._threads) + 1}"
        thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _work(self) -> None:
        try:
            while (job := self._jobs.get()) is not None:
                if settings.configured:
                    close_old_connections()
                job.run()
                del job  # or its result would live on until the next one comes
                self._idle.release()
        finally:
            if settings.configured:
                connections.close_all()

    def shutdown(
        self, wait: bool = True, *, cancel_futures: bool = False, timeout: float | None = None
    ) -> None:
        """End the threads when they have done what they were given; each closes its connections.

        Args:
            wait: return when they have ended.
            cancel_futures: as in ``Executor``; jobs that no thread has begun are dropped.
            timeout: seconds to wait at most.
        """
        with self._lock:
            self._closed = True
            if cancel_futures:
                self._cancel_waiting()
            for _ in self._threads:
                self._jobs.put(None)
        if wait:
            deadline = None if timeout is None else time.monotonic() + timeout
            for thread in self._threads:
                thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))

    def _cancel_waiting(self) -> None:
        while True:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return
            if job is not None:
                job.future.cancel()

    @property
    def hanging(self) -> list[str]:
        """The names of the threads that still run."""
        return [thread.name for thread in self._threads if thread.is_alive()]
