"""A call: one function that runs on some thread from its beginning to its end, and its connections.

Everything synchronous in an application is one: a ``def`` handler or dependency, each step of a streaming
generator, a ``sync_to_async`` function, a query of Django's async API. A call acquires a connection when it
first needs one, and releases it when it ends, so none is held while a request waits for something else.

A call belongs to the thread that runs it. Only that thread touches its fields, and the connections in
``held``, so nothing here is locked.
"""

import asyncio
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from contextvars import Context, copy_context
from typing import Any, Generic, TypeVar

from asgiref.sync import SyncToAsync, _restore_context
from django.db.backends.base.base import BaseDatabaseWrapper

from ..clock import monotonic
from ..errors import TransactionLeftOpen
from .pool import Connections, pool_of
from .state import is_open, left_behind
from .threads import end_thread

T = TypeVar("T")

_local = threading.local()
running_calls: set["Call"] = set()


class Call:
    """One call, and the connections that it holds.

    Attributes:
        pools: where to acquire connections, by alias.
        held: the connections that it has acquired, by alias.
        ident: the thread that runs it; 0 if none does.
        started: when, on the monotonic clock.
        scope: its part of a transaction; see ``scopes``.
    """

    __slots__ = ("held", "ident", "pools", "scope", "started")

    def __init__(self, pools: Callable[[str], Connections]) -> None:
        self.pools = pools
        self.held: dict[str, BaseDatabaseWrapper] = {}
        self.scope: Any = None
        self.ident = 0
        self.started = 0.0

    def borrows(self) -> bool:
        """Whether the running code has the call's connections, not Django's own for each thread.

        Code on an event loop, which may run on a call's thread, could not query, nor check a connection.
        """
        return asyncio._get_running_loop() is None

    def transaction_to_join(self) -> Any:
        """The scope that the call asks for a part in its transaction when it first needs one, if any."""
        return None

    def connection(self, alias: str) -> BaseDatabaseWrapper:
        """The call's connection to a database, acquired at first use.

        Raises:
            DatabaseBusy: none became available in time.
        """
        connection = self.held.get(alias)
        if connection is None:
            connection = self.held[alias] = self.pools(alias).acquire()
        return connection

    def run(self, function: Callable[..., T], *args: Any) -> T:
        """Run the function as this call, and release what it has acquired.

        A connection with an open transaction stays in ``held``, for the caller to decide on.
        """
        self.ident = threading.get_ident()
        self.started = monotonic()
        before = current()  # a call inside a call: asgiref runs code of inner frames on outer threads
        _local.call = self
        running_calls.add(self)
        try:
            if self.scope is not None:
                self.scope.call_begins()
            return function(*args)
        finally:
            _local.call = before
            running_calls.discard(self)
            if self.scope is not None:
                self.scope.call_ended(self)
            self.end()

    def look(self, function: Callable[..., T], *args: Any) -> T:
        """Run a function that finds this call's connections, and leave it to the caller to release them."""
        before = current()
        _local.call = self
        try:
            return function(*args)
        finally:
            _local.call = before

    def give_back(self) -> None:
        """Release what others may have while this call waits, and nothing that the rest of it counts on."""
        for connection in list(self.held.values()):
            if not is_open(connection) and left_behind(connection) is None:
                del self.held[connection.alias]
                pool_of(connection).release(connection)

    def end(self) -> None:
        """Release each connection without an open transaction."""
        for connection in list(self.held.values()):
            if not connection.in_atomic_block:
                del self.held[connection.alias]
                if not pool_of(connection).release(connection):
                    # The thread may have been left with something as well, which belongs to the connection.
                    end_thread()

    @property
    def aliases(self) -> list[str]:
        """The databases to which it has a connection, its own or its transaction's, for the log."""
        of_scope = {} if self.scope is None else self.scope.all_connections()
        return sorted(of_scope | self.held)

    def discard_open(self) -> None:
        """Roll back what the call has left open.

        Raises:
            TransactionLeftOpen: there was something.
        """
        if not self.held:
            return
        aliases = list(self.held)
        for connection in map(self.held.pop, aliases):
            pool_of(connection).discard(connection)
        raise left_open(aliases)


def left_open(aliases: Iterable[str]) -> TransactionLeftOpen:
    """The error of a call that has left transactions open, which were rolled back."""
    return TransactionLeftOpen(
        f"A call has ended with a transaction on {', '.join(map(repr, aliases))} open; it was rolled back. "
        "Calls share their connections, so a transaction must end in the call that began it. Write "
        "`async with atomic():` from fastapi_django_orm, or take the dependency InTransaction."
    )


def run_as_call(
    pools: Callable[[str], Connections], function: Callable[..., T], *args: Any, scope: Any = None
) -> T:
    """Run the function as a call in which every transaction must end; see ``run_call()``."""
    call = Call(pools)
    call.scope = scope
    return run_call(call, function, *args)


def run_call(call: Call, function: Callable[..., T], *args: Any) -> T:
    """Run the function as this call, in which every transaction must end.

    Raises:
        TransactionLeftOpen: it has left one open, which was rolled back.
    """
    try:
        result = call.run(function, *args)
    except BaseException:
        with suppress(TransactionLeftOpen):  # the error that is on its way says more
            call.discard_open()
        raise
    call.discard_open()
    return result


def current() -> Call | None:
    """The call that runs on this thread."""
    return getattr(_local, "call", None)


def forget_all() -> list[dict[str, BaseDatabaseWrapper]]:
    """Forget the calls that the parent was running, in a forked child.

    Returns:
        The parent's connections, which must be kept alive.
    """
    held = [call.held for call in running_calls]
    for call in running_calls:
        call.held = {}
    running_calls.clear()
    _local.call = None
    return held


# The caller's context. A context variable goes along with a copy of the context. asgiref's ``Local``
# (Django's language and time zone, django-simple-history's user) does not: it belongs to a thread, and
# asgiref hands it over where it moves work between threads. Where this package moves work it does the same,
# by asgiref's own function.


class Carried(Generic[T]):
    """A function that a thread calls in the context of the task that has made this object.

    Attributes:
        context: the copy in which it runs.
    """

    def __init__(self, function: Callable[[], T]) -> None:
        """Copy the context of the running task."""
        self.context = copy_context()
        self._function = function
        self._loop = asyncio.get_running_loop()

    def __call__(self) -> T:
        """Call the function, on a thread whose ``async_to_sync`` then finds the task's event loop."""
        result: T = _asgiref.thread_handler(self._loop, (None, None, None), [], self.context.run, self._work)
        return result

    def _work(self) -> T:
        _restore_context(self.context)
        return self._function()

    def bring_back(self) -> None:
        """Give the task what the function has changed."""
        give_over(self.context)


def take_over() -> None:
    """Let the running thread see the ``Local``s of its context, which another thread has set."""
    _restore_context(copy_context())


def give_over(context: Context) -> None:
    """Give the running code what has changed in a context that another thread ran."""
    _restore_context(context)


_asgiref: Any = SyncToAsync(lambda: None)  # for what its calls set up on a thread
