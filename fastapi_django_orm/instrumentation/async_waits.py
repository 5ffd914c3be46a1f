"""Where calls wait for asynchronous code: ``async_to_sync``, ``anyio.from_thread.run``, ``asyncio.run``.

A call that waits releases its connections, or lends its transaction's; see ``database.reentrancy``. All
such waits go through three places:

- asgiref makes a ``CurrentThreadExecutor`` for each ``async_to_sync``, by the name in ``asgiref.sync``. It
  runs ``sync_to_async`` functions on the thread that waits, as soon as they are submitted. Ours lets them
  wait for their turn.
- AnyIO's ``from_thread.run`` uses ``asyncio.run_coroutine_threadsafe``, as other code does, and waits for the
  future that this returns.
- ``asyncio.run`` and ``uvloop.run`` use ``asyncio.Runner``, whose loop runs on the thread of the call.

At the end of a call, asgiref gives the caller what has changed in the context. A caller that was collected
ends in the middle of other code, which must not get it.
"""

import asyncio
import inspect
import queue
import sys
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import nullcontext
from contextvars import Context
from functools import partial
from typing import Any, TypeVar

import asgiref.sync
from asgiref.current_thread_executor import CurrentThreadExecutor
from asgiref.sync import AsyncToSync, SyncToAsync

from ..clock import monotonic
from ..database import calls, current
from ..database.reentrancy import entered_for, lend, lent, scope_of_waiting, submit_call, take_back
from ..database.scopes import Scope, current_scope, enter_scope, entered_scope, waiting_thread
from ..database.threads import Job
from ..errors import DatabaseBusy
from .replacing import Replacement

T = TypeVar("T")

INTERVAL = 1.0  # seconds between two looks whether the event loop still runs


def _run(original: Callable[..., Any]) -> Callable[..., Any]:
    def run(runner: asyncio.Runner, coro: Any, **options: Any) -> Any:
        call = calls.current()
        if call is not None and asyncio.iscoroutine(coro):
            coro = _inside(lend(call), coro)
        return original(runner, coro, **options)

    return run


def _close(original: Callable[..., Any]) -> Callable[..., Any]:
    # Taken back here and not at the end of run(): tasks that are left in the loop end in close().
    def close(runner: asyncio.Runner) -> None:
        try:
            original(runner)
        finally:
            if (call := calls.current()) is not None:
                take_back(call)

    return close


async def _inside(scope: Scope | None, coro: Coroutine[Any, Any, T]) -> T:
    if scope is not None:
        enter_scope(scope)
    AsyncToSync.executors.current = None  # it waits here, and runs no calls
    return await coro


def _threadsafe(original: Callable[..., Future[Any]]) -> Callable[..., Future[Any]]:
    def run_coroutine_threadsafe(coro: Any, loop: asyncio.AbstractEventLoop) -> Future[Any]:
        call = calls.current()
        if call is None:
            return original(coro, loop)
        around = waiting_thread()
        AsyncToSync.executors.current = None  # of a thread that will wait for the future, and run no calls
        try:
            with entered_for(call):
                future = original(coro, loop)
        finally:
            AsyncToSync.executors.current = around
        future.result = partial(_result, future, loop)  # type: ignore[method-assign]
        return future

    return run_coroutine_threadsafe


def _result(future: Future[T], loop: asyncio.AbstractEventLoop, timeout: float | None = None) -> T:
    call = calls.current()
    with nullcontext() if call is None else lent(call):
        return _result_of_running(future, loop, timeout)


def _result_of_running(future: Future[T], loop: asyncio.AbstractEventLoop, timeout: float | None = None) -> T:
    """Wait for code on a loop, but not for ever if that loop ends: the thread may have a transaction.

    Raises:
        RuntimeError: the loop has been closed, and the code will not go on.
        TimeoutError: of the code, or because there was no result after ``timeout`` seconds.
    """
    end = float("inf") if timeout is None else monotonic() + timeout
    while True:
        try:
            return type(future).result(future, max(0, min(INTERVAL, end - monotonic())))
        except TimeoutError:
            if future.done():
                return type(future).result(future)  # it came this moment, or the error is the code's
            if monotonic() >= end:
                raise
            if loop.is_closed():
                raise RuntimeError("The event loop has ended before the code that this waits for.") from None


class WaitingThread(CurrentThreadExecutor):
    """A thread that waits in ``async_to_sync``, and runs calls meanwhile.

    That thread makes it and waits in it. Event loops submit to it, and in a transaction the thread on which
    the turn before has ended hands the next job over. ``_lock`` is held while a job is put, or the thread
    stops waiting; it is taken last of all.
    """

    def __init__(self, old_executor: Any) -> None:
        super().__init__(old_executor)
        self._broken = True  # asgiref would walk up to this one otherwise, and put work where none looks
        self._call = calls.current()
        self._before = entered_scope()
        # Looked at before asgiref hands the code over: the loop may have ended when this begins to wait.
        loop = getattr(SyncToAsync.threadlocal, "main_event_loop", None)
        self._loop = None if loop is None or loop.is_closed() else loop  # a closed one is an earlier call's
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._waits = True
        # asgiref copies the context next, so that the code that is waited for is inside of the call's
        # transactions. Of an error until then nothing is left but the call's own scope.
        if self._call is not None and (scope := scope_of_waiting(self._call)) is not None:
            enter_scope(scope)

    def run_until_future(self, future: "Future[Any]") -> None:
        """Run calls until the future is done; RuntimeError if the event loop that was to do it has ended."""
        future.add_done_callback(lambda _: self._jobs.put(None))
        try:
            with nullcontext() if self._call is None else lent(self._call):
                try:
                    self._run_all(future)
                finally:
                    self._stop()
        finally:
            enter_scope(self._before)

    def _run_all(self, future: "Future[Any]") -> None:
        while True:
            try:
                job = self._jobs.get(timeout=INTERVAL)
            except queue.Empty:
                # asgiref hands the code to the loop that the calling task was in, or to one of its own (which
                # makes the future a running one). Where the first has ended meanwhile, the code never runs.
                if self._loop is not None and self._loop.is_closed() and not future.running():
                    raise RuntimeError("The event loop of async_to_sync has ended before its code.") from None
                continue
            if job is None:
                return
            job.run()
            del job  # or its result would live on until the next one comes

    def _stop(self) -> None:
        with self._lock:
            self._waits = False
        while not self._jobs.empty():
            if (late := self._jobs.get()) is not None:
                late.run()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """Run the function on the waiting thread, as a call, in its turn."""
        function = partial(fn, *args, **kwargs)
        scope = current_scope()
        if scope is not None:
            return submit_call(scope.transaction.pools, function, self._put_around, self._put).future
        if self._call is None:  # a thread of the application's own, which has Django's own connections
            job = Job(function)
            self._put_around(job)
        else:
            job = submit_call(self._call.pools, function, self._put_around)
        if (executor := current.entered()) is not None:
            executor.threads.watch(job, partial(_busy, executor.threads.timeout))
        return job.future

    def _put(self, job: Job) -> bool:
        with self._lock:
            if self._waits:
                self._jobs.put(job)
            return self._waits

    def _put_around(self, job: Job) -> None:
        """Run the job here, or on the thread that waits around this one; RuntimeError if none waits."""
        if self._put(job):
            return
        around: Any = self._old_executor
        if around is None:
            raise RuntimeError("The thread that waited in async_to_sync for this code waits no more.")
        if isinstance(around, WaitingThread):
            around._put_around(job)
        else:
            around.submit(job.run)


def _busy(timeout: float) -> DatabaseBusy:
    return DatabaseBusy(
        f"A call has waited for {timeout:g} s for the thread that has to run it, which is in async_to_sync "
        "and does something else. Look for `call_does_not_end` in the log."
    )


_CALL = inspect.unwrap(SyncToAsync.__call__).__code__


def _restore_context(original: Callable[[Context], None]) -> Callable[[Context], None]:
    def restore_context(context: Context) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, GeneratorExit):
            # The call is being closed if the error has come to its frame. If it has come to one around that,
            # an asynchronous generator is being closed, and awaits the call.
            trace = error.__traceback__
            if trace is not None and trace.tb_frame.f_code is _CALL:
                return
        original(context)

    return restore_context


REPLACED = (
    Replacement(asgiref.sync, "_restore_context", _restore_context),
    Replacement(asgiref.sync, "CurrentThreadExecutor", lambda _: WaitingThread),
    # Two names of one function.
    Replacement(asyncio, "run_coroutine_threadsafe", _threadsafe),
    Replacement(asyncio.tasks, "run_coroutine_threadsafe", _threadsafe),
    Replacement(asyncio.Runner, "run", _run),
    Replacement(asyncio.Runner, "close", _close),
)
