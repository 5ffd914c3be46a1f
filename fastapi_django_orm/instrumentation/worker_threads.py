"""Where calls begin and end: in AnyIO's threads, and in those that asyncio uses.

A call acquires connections, and releases them when it ends. That end has to be seen: a lease kept in the
context copy of the thread would outlive a call that raises, whose traceback holds the copy. Both places are
the same whatever name a function was imported by:

- All ``def`` handlers, dependencies, background tasks and streaming generators go through AnyIO's
  ``to_thread.run_sync``, which asks its asyncio backend: ``run_sync_in_worker_thread()``.
- ``asyncio.to_thread``, ``loop.run_in_executor`` and ``sync_to_async(thread_sensitive=False)`` go through
  ``ThreadPoolExecutor.submit``.
"""

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable, Generator
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import Any, TypeVar

from anyio import CapacityLimiter
from anyio._core._eventloop import get_async_backend
from asgiref.sync import SyncToAsync

from ..database import current
from ..database.calls import Call, run_call
from ..database.current import current_executor
from ..database.keeping import AdoptedScope, end_abandoned
from ..database.lifecycle import pool
from ..database.pool import current_request
from ..database.reentrancy import ReentrantScope, job_inside
from ..database.scopes import (
    Scope,
    State,
    current_scope,
    ended_meanwhile,
    enter_scope,
    entered_scope,
    open_around,
    rolled_back_before,
    scope_to_ask,
)
from ..database.threads import Job
from .replacing import Replacement

T = TypeVar("T")

RunSync = Callable[..., Awaitable[Any]]

_threads = SyncToAsync.thread_sensitive_context


# AnyIO


def _run_sync(original: RunSync) -> RunSync:
    async def run_sync_in_worker_thread(
        func: Callable[..., Any],
        args: tuple[Any, ...],
        abandon_on_cancel: bool = False,
        limiter: CapacityLimiter | None = None,
    ) -> Any:
        run = partial(original, abandon_on_cancel=abandon_on_cancel)
        parent = scope_to_ask()
        if parent is not None:
            # A limiter of its own: with all threads of the common one waiting for connections, the
            # transaction that holds one would wait for a thread.
            run = partial(run, limiter=limiter or CapacityLimiter(1))
            return await _in_its_turn(run, parent, partial(func, *args))
        call = _OnThread(_close_of(func, args))
        try:
            return await run(call.run, (func, *args), limiter=limiter)
        except BaseException as error:
            if not isinstance(error, Exception):  # the task was cancelled, not the call
                call.abandon()
            raise
        finally:
            if call.left_open is not None:
                enter_scope(call.left_open)

    return run_sync_in_worker_thread


async def _in_its_turn(run: RunSync, parent: Scope, function: Callable[[], Any]) -> Any:
    """Wait for the turn on the event loop, and only then occupy a thread."""
    turn: Future[None] = Future()

    def begin(job: Job) -> bool:
        with suppress(InvalidStateError):  # it may be given up on another thread at this moment
            turn.set_result(None)
        return True

    def run_in(scope: ReentrantScope) -> Any:
        return run_call(_InTransaction(scope), function)

    job = job_inside(parent, run_in, begin, begin, asyncio.get_running_loop())
    job.future.add_done_callback(lambda _: begin(job))  # given up
    try:
        if not turn.done():
            await asyncio.wrap_future(turn)
        await run(job.run, ())
        return job.future.result()
    finally:
        job.future.cancel()  # unless a thread has begun it


class _InTransaction(Call):
    """A call in a transaction. What it leaves open on other connections is part of that from then on."""

    __slots__ = ()

    def __init__(self, scope: ReentrantScope) -> None:
        super().__init__(pool)
        self.scope = scope

    def run(self, function: Callable[..., T], *args: Any) -> T:
        result: T = super().run(self._leaving_open, function, *args)
        return result

    def _leaving_open(self, function: Callable[..., T], *args: Any) -> T:
        try:
            return function(*args)
        finally:  # before the turn ends, and the next call begins
            around: Scope | None = self.scope.parent
            for alias, connection in list(self.held.items()):
                if around is not None and connection.in_atomic_block:
                    around.connections[alias] = self.held.pop(alias)


class _OnThread(Call):
    """A call whose open transaction is joined by what follows in the task; see ``AdoptedScope``.

    The thread sees to this at the end of the call, when the task may have been cancelled. ``_lock`` is held
    while one of the two decides: the call adopts what is open, or the task has given it up.
    """

    __slots__ = ("_abandoned", "_close", "_lock", "left_open")

    def __init__(self, close: Callable[[], None] | None) -> None:
        super().__init__(pool)
        self._close = close
        self.left_open: AdoptedScope | None = None
        self._abandoned = False
        self._lock = threading.Lock()

    def run(self, function: Callable[..., T], *args: Any) -> T:
        try:
            return super().run(function, *args)
        finally:
            if self.held:
                self._leave_open()

    def _leave_open(self) -> None:
        held, self.held = self.held, {}
        request = current_request.get()
        with self._lock:
            if not self._abandoned:
                scope = AdoptedScope(dict(held), self._close)
                if request is None or request.adopt(scope):
                    self.left_open = scope
                    return
                scope.connections = {}
        end_abandoned(self.pools, held, self._close)

    def abandon(self) -> None:
        """Have what the call leaves open ended: by its thread, or here if that has adopted it already."""
        with self._lock:
            self._abandoned = True
            adopted, self.left_open = self.left_open, None
        if adopted is not None:
            adopted.break_off()


def _close_of(func: Any, args: tuple[Any, ...]) -> Callable[[], None] | None:
    """What ends the code that the call is a step of, if the steps that follow may never come.

    FastAPI enters a ``def`` dependency that yields by a call of its ``__enter__``, and does not leave it if
    the task was cancelled meanwhile. Starlette reads a streaming handler by calls of its ``_next(iterator)``.
    Both would end where they are collected, and their transaction with them: on no connection, or on another
    call's.
    """
    method = getattr(func, "func", func)  # Starlette wraps it in a partial
    if getattr(method, "__name__", None) == "__enter__":
        close: Callable[[], None] = partial(_leave, method.__self__)
    elif len(args) == 1 and inspect.isgenerator(args[0]):
        close = partial(_close_stream, args[0])
    else:
        return None
    return partial(copy_context().run, close)


def _close_stream(generator: Generator[Any, Any, Any]) -> None:
    """Close a streaming handler, also where FastAPI's generator of JSON lines is around it."""
    inside = [each for each in inspect.getgeneratorlocals(generator).values() if inspect.isgenerator(each)]
    generator.close()
    for each in inside:  # else it would end where it is collected
        each.close()


def _leave(manager: Any) -> None:
    cancelled = asyncio.CancelledError()
    with suppress(BaseException):  # the cancellation, which may come back, or what the manager's end raises
        manager.__exit__(asyncio.CancelledError, cancelled, None)


# asyncio


class _OfExecutor(Call):
    """A function that asynchronous code has given to an executor.

    It takes part in the transaction around it when it first uses a connection of that. Many such functions
    use none, and some wait for other code of the same block.
    """

    __slots__ = ("_innermost", "_inside")

    def __init__(self, inside: Scope | None) -> None:
        super().__init__(pool)
        self._inside = inside
        self._innermost = inside.innermost if isinstance(inside, ReentrantScope) else {}

    def borrows(self) -> bool:
        """Whether the function runs in a context of the application: ``Context().run`` leads out of it."""
        return super().borrows() and current.entered() is not None

    def transaction_to_join(self) -> Scope | None:
        """The scope around the function.

        If the block that it was started in has ended, its task was given up, and what it writes now would be
        kept though the block may have been rolled back: TransactionManagementError.
        """
        scope, inside = current_scope(), self._inside  # in this order: the block may end in between
        if isinstance(inside, ReentrantScope) and inside.outlived(self._innermost):
            raise ended_meanwhile()  # a transaction.atomic() of the call that waited for the task
        while inside is not None and inside.state is State.ENDED:
            if inside.is_block:
                raise rolled_back_before() if inside.broken else ended_meanwhile()
            inside = inside.parent
        return scope


def _submit(original: Callable[..., Future[Any]]) -> Callable[..., Future[Any]]:
    def submit(self: ThreadPoolExecutor, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        # What synchronous code submits may be waited for with a connection in hand, and may never end.
        if asyncio._get_running_loop() is None:
            return original(self, fn, *args, **kwargs)
        scope = open_around(entered_scope())
        call = partial(run_call, _OfExecutor(scope), partial(fn, *args, **kwargs))
        return original(self, _with_application(call, scope))

    return submit


def _with_application(call: Callable[[], T], scope: Scope | None) -> Callable[[], T]:
    """Have the function run under the caller's application and transaction; an executor passes no context.

    Not the whole context: a pool's initializer may have set variables (``decimal``'s) in the thread's own.
    """
    executor, threads, request = current.entered(), _threads.get(None), current_request.get()

    def run() -> T:
        if executor is None or threads is None:
            return call()
        before, entered, selected = entered_scope(), current_executor.set(executor), _threads.set(threads)
        kept = current_request.set(request)
        enter_scope(scope)
        try:
            return call()
        finally:
            enter_scope(before)
            current_request.reset(kept)
            _threads.reset(selected)
            current_executor.reset(entered)

    return run


REPLACED = (
    Replacement(get_async_backend("asyncio"), "run_sync_in_worker_thread", _run_sync),
    Replacement(ThreadPoolExecutor, "submit", _submit),
)
