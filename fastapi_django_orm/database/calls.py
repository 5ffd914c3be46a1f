"""A call: one function that runs on some thread from its beginning to its end, and what it has borrowed.

Everything synchronous in an application is one: a ``def`` handler or dependency, each step of a streaming
generator, a ``sync_to_async`` function, a query of Django's async API. A call borrows a connection when it
first touches one, and gives it back when it ends, so none is held while a request waits for something else.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from django.db.backends.base.base import BaseDatabaseWrapper

from ..clock import monotonic
from ..errors import TransactionLeftOpen
from .pool import Connections
from .state import left_behind
from .threads import end_thread

T = TypeVar("T")

_local = threading.local()
running_calls: set["Call"] = set()


class Call:
    """What one call has borrowed.

    Attributes:
        held: the connections that it has borrowed, by alias.
        around: the connections that are kept for its request, by alias.
        ident: the thread that runs it; 0 if none does.
        started: when, on the monotonic clock.
    """

    __slots__ = ("around", "held", "ident", "pools", "started")

    def __init__(self, pools: Callable[[str], Connections]) -> None:
        """Borrow nothing yet.

        Args:
            pools: where to borrow, by alias.
        """
        self.pools = pools
        self.held: dict[str, BaseDatabaseWrapper] = {}
        self.around: Mapping[str, BaseDatabaseWrapper] = {}
        self.ident = 0
        self.started = 0.0

    def connection(self, alias: str) -> BaseDatabaseWrapper:
        """The call's connection to a database, borrowed at first use.

        Raises:
            DatabaseBusy: none came free in time.
        """
        connection = self.held.get(alias) or self.around.get(alias)
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
            if not connection.in_atomic_block and left_behind(connection) is None:
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
    pools: Callable[[str], Connections],
    function: Callable[..., T],
    *args: Any,
    around: Mapping[str, BaseDatabaseWrapper] | None = None,
) -> T:
    """Run the function as a call in which every transaction must end.

    Args:
        pools: where to borrow, by alias.
        function: what to run.
        *args: its arguments.
        around: connections that are kept for it.

    Raises:
        TransactionLeftOpen: it has left one open, which was rolled back.
    """
    call = Call(pools)
    if around is not None:
        call.around = around
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
        call.held, call.around = {}, {}
    running_calls.clear()
    _local.call = None
    return held
