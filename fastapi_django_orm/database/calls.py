"""A call: one function that runs on some thread from its beginning to its end, and what it has borrowed.

Everything synchronous in an application is one: a ``def`` handler or dependency, each step of a streaming
generator, a ``sync_to_async`` function, a query of Django's async API. A call borrows a connection when it
first touches one, and gives it back when it ends, so none is held while a request waits for something else.
"""

import asyncio
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, TypeVar

from django.db.backends.base.base import BaseDatabaseWrapper

from ..clock import monotonic
from ..errors import TransactionLeftOpen
from .pool import Connections
from .state import is_open, left_behind
from .threads import end_thread

T = TypeVar("T")

_local = threading.local()
running_calls: set["Call"] = set()


class Call:
    """What one call has borrowed.

    Attributes:
        held: the connections that it has borrowed, by alias.
        ident: the thread that runs it; 0 if none does.
        started: when, on the monotonic clock.
        scope: its part of a transaction; see ``scopes``.
    """

    __slots__ = ("held", "ident", "pools", "scope", "started")

    def __init__(self, pools: Callable[[str], Connections]) -> None:
        """Borrow nothing yet.

        Args:
            pools: where to borrow, by alias.
        """
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
        """The call's connection to a database, borrowed at first use.

        Raises:
            DatabaseBusy: none came free in time.
        """
        connection = self.held.get(alias)
        if connection is None:
            connection = self.held[alias] = self.pools(alias).borrow()
        return connection

    def run(self, function: Callable[..., T], *args: Any) -> T:
        """Run the function as this call, and give back what it has borrowed.

        A connection with an open transaction stays in ``held``, for the caller to decide on.
        """
        self.ident = threading.get_ident()
        self.started = monotonic()
        before = current()  # a call inside a call: asgiref runs code of inner frames on outer threads
        _local.call = self
        running_calls.add(self)
        try:
            return function(*args)
        finally:
            _local.call = before
            running_calls.discard(self)
            if self.scope is not None:
                self.scope.call_ended(self)
            self.end()

    def look(self, function: Callable[..., T], *args: Any) -> T:
        """Run a function that finds this call's connections, and leave it to the caller to give them back."""
        before = current()
        _local.call = self
        try:
            return function(*args)
        finally:
            _local.call = before

    def give_back(self) -> None:
        """Give back what others may have while this call waits, and nothing that the rest of it counts on."""
        for connection in list(self.held.values()):
            if not is_open(connection) and left_behind(connection) is None:
                del self.held[connection.alias]
                self.pools(connection.alias).give_back(connection)

    def end(self) -> None:
        """Give back each connection without an open transaction."""
        for connection in list(self.held.values()):
            if not connection.in_atomic_block:
                del self.held[connection.alias]
                if not self.pools(connection.alias).give_back(connection):
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
        for alias, connection in list(self.held.items()):
            del self.held[alias]
            self.pools(alias).discard(connection)
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
    """Run the function as a call in which every transaction must end.

    Args:
        pools: where to borrow, by alias.
        function: what to run.
        *args: its arguments.
        scope: the call's part of a transaction, if it has one.

    Raises:
        TransactionLeftOpen: it has left one open, which was rolled back.
    """
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
