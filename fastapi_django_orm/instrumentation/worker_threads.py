"""Where calls begin and end: in AnyIO's threads, and in those that asyncio uses.

All ``def`` handlers, dependencies, background tasks and streaming generators go through AnyIO's
``to_thread.run_sync``, which asks the backend; ``asyncio.to_thread``, ``loop.run_in_executor`` and
``sync_to_async(thread_sensitive=False)`` go through ``ThreadPoolExecutor.submit``. Both are instrumented
while a lifespan is open, as tracers do, at the place that is the same whatever name the function was imported
by. That is what tells where such a call ends. (A lease kept in the context copy of the thread outlives a call
that raises: the traceback holds the copy.)
"""

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import copy_context
from functools import partial, wraps
from typing import Any, TypeVar

import anyio.to_thread
from anyio import CancelScope, CapacityLimiter
from anyio._core._eventloop import get_async_backend
from asgiref.sync import SyncToAsync

from .. import running
from .atomic_scope import AdoptedScope, end_abandoned
from .calls import Call, run_call
from .pool import Pool
from .reentrancy import ReentrantScope, job_inside
from .requests import current_request
from .scopes import (
    Scope,
    State,
    current_scope,
    ended_meanwhile,
    enter_scope,
    entered_scope,
    rolled_back_before,
    scope_to_ask,
)
from .threads import Job
from .waits import replaced, waits_instrumented

T = TypeVar("T")

RunSync = Callable[..., Awaitable[Any]]

_threads = SyncToAsync.thread_sensitive_context


@contextmanager
def calls_instrumented(pools: Callable[[str], Pool]) -> Iterator[None]:
    """Give each call on those threads its connections, for the length of the block.

    Args:
        pools: the connections, by alias.
    """
    backend = get_async_backend("asyncio")
    on_anyio = _of_anyio(backend.run_sync_in_worker_thread, pools)
    on_executors = _of_executors(ThreadPoolExecutor.submit, pools)
    with (
        waits_instrumented(),
        replaced(backend, "run_sync_in_worker_thread", staticmethod(on_anyio)),
        replaced(ThreadPoolExecutor, "submit", on_executors),
    ):
        yield


# AnyIO


def _of_anyio(original: RunSync, pools: Callable[[str], Pool]) -> RunSync:
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
            return await _in_its_turn(run, parent, partial(func, *args), pools)
        call = _OnThread(pools, _close_of(args))
        work = run(call.run, (func, *args), limiter=limiter)
        manager = _entered_by(func)
        try:
            return await (work if manager is None else _enter_whole(work, call, manager))
        except BaseException:
            call.abandon()
            raise
        finally:
            if call.left_open is not None:
                enter_scope(call.left_open)

    return run_sync_in_worker_thread


async def _in_its_turn(
    run: RunSync, parent: Scope, function: Callable[[], Any], pools: Callable[[str], Pool]
) -> Any:
    """Wait for the turn on the event loop, and have a thread run the function then."""
    turn: Future[None] = Future()

    def begin(job: Job) -> bool:
        with suppress(InvalidStateError):  # it may be given up on another thread at this moment
            turn.set_result(None)
        return True

    def outside(job: Job) -> None:
        begin(job)

    job = job_inside(parent, lambda scope: run_call(_InTransaction(pools, scope), function), outside, begin)
    job.future.add_done_callback(lambda _: begin(job))  # given up
    try:
        if not turn.done():
            await asyncio.wrap_future(turn)
        await run(job.run, ())
        return job.future.result()
    finally:
        job.future.cancel()  # unless a thread has begun it


class _InTransaction(Call):
    """A call in a transaction; what it leaves open on other connections is part of that from then on."""

    __slots__ = ()

    def __init__(self, pools: Callable[[str], Pool], scope: ReentrantScope) -> None:
        super().__init__(pools)
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


def _entered_by(func: Any) -> Any:
    """The context manager, if the function is the ``__enter__`` of one, as FastAPI calls a dependency's."""
    method = getattr(func, "func", func)  # Starlette wraps it in a partial
    return method.__self__ if getattr(method, "__name__", None) == "__enter__" else None


def _close_of(args: tuple[Any, ...]) -> Callable[[], None] | None:
    """What closes the streaming handler, if the call is a step of one: Starlette's ``_next(iterator)``."""
    if len(args) == 1 and inspect.isgenerator(args[0]):
        return partial(copy_context().run, args[0].close)
    return None


async def _enter_whole(work: Awaitable[Any], call: "_OnThread", manager: Any) -> Any:
    """Enter a context manager on a thread, and leave it again if the task is cancelled meanwhile.

    FastAPI does not leave what it has not seen entered. The generator would end where it is collected, and
    its transaction with it: on no connection, or on somebody else's.
    """
    entering = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(entering)
    except asyncio.CancelledError as cancelled:
        with CancelScope(shield=True):
            while not entering.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([entering])
            if not entering.cancelled() and entering.exception() is None:
                leaving = asyncio.ensure_future(_leave(manager, call.left_open, cancelled))
                while not leaving.done():
                    with suppress(asyncio.CancelledError):
                        await asyncio.wait([leaving])
                call.left_open = None
        raise


async def _leave(manager: Any, scope: Scope | None, cancelled: BaseException) -> None:
    enter_scope(scope)
    with suppress(BaseException):  # the cancellation that it is told of comes back, or what its end raises
        await anyio.to_thread.run_sync(
            manager.__exit__, type(cancelled), cancelled, None, limiter=CapacityLimiter(1)
        )


class _OnThread(Call):
    """A call whose open transaction is joined by what follows in the task; see ``AdoptedScope``.

    This is seen to on the thread, at the end of the call: the task may have been cancelled while it ran.
    """

    __slots__ = ("_abandoned", "_close", "_lock", "left_open")

    def __init__(self, pools: Callable[[str], Pool], close: Callable[[], None] | None) -> None:
        super().__init__(pools)
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
        """Note that nothing will join what the call still leaves open."""
        with self._lock:
            self._abandoned = True


# asyncio


class _OfExecutor(Call):
    """A function that asynchronous code has given to an executor.

    It takes part in the transaction around it when it first uses a connection of that. Many such functions
    use none, and some wait for other code of the same block.
    """

    __slots__ = ("_innermost", "_inside")

    def __init__(self, pools: Callable[[str], Pool], inside: Scope | None) -> None:
        super().__init__(pools)
        self._inside = inside
        self._innermost = inside.innermost if isinstance(inside, ReentrantScope) else {}

    def borrows(self) -> bool:
        """Whether the function runs in a context of the application: ``Context().run`` leads out of it."""
        return super().borrows() and running.entered() is not None

    def transaction_to_join(self) -> Scope | None:
        """The scope around the function.

        Raises:
            TransactionManagementError: the block in which it was started has ended. Its task was given up,
                and what it writes now would be kept though the block may have been rolled back.
        """
        scope, inside = current_scope(), self._inside  # in this order: the block may end in between
        if isinstance(inside, ReentrantScope) and inside.outlived(self._innermost):
            raise ended_meanwhile()  # a transaction.atomic() of the call that waited for the task
        while inside is not None and inside.state is State.ENDED:
            if inside.is_block:
                raise rolled_back_before() if inside.broken else ended_meanwhile()
            inside = inside.parent
        return scope


def _of_executors(original: Callable[..., Future[Any]], pools: Callable[[str], Pool]) -> Any:
    @wraps(original)
    def submit(self: ThreadPoolExecutor, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        # What synchronous code submits may be waited for with a connection in hand, and may never end.
        if asyncio._get_running_loop() is None:
            return original(self, fn, *args, **kwargs)
        scope = entered_scope()
        while scope is not None and scope.state is State.ENDED and not scope.broken:
            scope = scope.parent
        call = partial(run_call, _OfExecutor(pools, scope), partial(fn, *args, **kwargs))
        return original(self, _with_application(call, scope))

    return submit


def _with_application(call: Callable[[], T], scope: Scope | None) -> Callable[[], T]:
    """Have the function run under the caller's application and transaction; an executor passes no context.

    Not the whole context: a pool's initializer may have set variables (``decimal``'s) in the thread's own.
    """
    here, threads, request = running.entered(), _threads.get(None), current_request.get()

    def run() -> T:
        if here is None or threads is None:
            return call()
        before, entered, selected = entered_scope(), running.enter(here), _threads.set(threads)
        kept = current_request.set(request)
        enter_scope(scope)
        try:
            return call()
        finally:
            enter_scope(before)
            current_request.reset(kept)
            _threads.reset(selected)
            running.leave(entered)

    return run
