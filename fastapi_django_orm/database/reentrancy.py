"""A call's part of a transaction, and asynchronous code that the call waits for.

A ``def`` handler may use ``anyio.from_thread.run``, a function ``async_to_sync``. What runs there is inside
the transaction that the call is in, and inside one that the call has opened itself (``with
transaction.atomic()``). Its own calls cannot wait for the call that waits for them, so the call lends them
the connections meanwhile.

A call's connections belong to the thread that runs it. It takes them back on that thread, before the function
that has waited goes on: a cursor that it holds does not ask again.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from ..errors import NotStarted
from .calls import Call, run_as_call
from .pool import Connections
from .scopes import (
    Scope,
    State,
    current_scope,
    ended_meanwhile,
    enter_scope,
    entered_scope,
    rolled_back_before,
    scope_to_ask,
    waiting_thread,
)
from .state import is_open
from .threads import Job
from .transaction import Transaction, new_transaction


class ReentrantScope(Scope):
    """What one call does inside a transaction, and all that it waits for.

    Attributes:
        innermost: by alias, the ``transaction.atomic()`` that the call was in when it last began to wait.
        loop: the event loop whose task has the job run on a thread when its turn comes, if one has.
        job: what the call runs.
    """

    def __init__(self, transaction: Transaction, parent: Scope | None) -> None:
        self.innermost: dict[str, Any] = {}
        self.loop: asyncio.AbstractEventLoop | None = None
        self.job: Job | None = None
        super().__init__(transaction, parent)

    def break_off(self) -> None:
        """Give the call up if no thread has begun it and none will: the event loop of its task has ended."""
        if self.loop is not None and self.job is not None and self.loop.is_closed():
            self.job.future.cancel()

    def note_innermost(self) -> None:
        """Note inside of which blocks the asynchronous code is that the call is about to wait for."""
        self.innermost = {
            alias: connection.atomic_blocks[-1]
            for alias, connection in self.all_connections().items()
            if connection.atomic_blocks
        }

    def outlived(self, innermost: dict[str, Any]) -> bool:
        """Whether a block that was noted has ended.

        Args:
            innermost: the attribute, when asynchronous code inside has started something.
        """
        here = self.all_connections()
        return any(
            alias not in here or block not in here[alias].atomic_blocks for alias, block in innermost.items()
        )

    def call_begins(self) -> None:
        """Give Django the ``on_commit`` callbacks that were noted before, before the call has a savepoint."""
        if self.parent is not None:
            self.parent.register_hooks()

    def call_ended(self, call: Call) -> None:
        """End with the call, and take its connections from it that something else still uses."""
        if self.state is State.LENDING:  # it has not been able to take them back
            self.transaction.thread_waits(-1)
        with self.transaction.lock:
            if self.parent is None and self._child is not None:
                for alias in self.connections:
                    call.held.pop(alias, None)
                self.take_back(self.release_on_thread)
                return
        if self.parent is not None and self._child is None and self.state is not State.ENDED:
            self.parent.child_ends()  # before the next one can begin
        self.end()


def submit_call(
    pools: Callable[[str], Connections],
    function: Callable[[], Any],
    outside: Callable[[Job], object],
    inside: Callable[[Job], bool] = lambda job: False,
) -> Job:
    """Run a function as a call: in its turn in the transaction around, or at once where there is none.

    Args:
        pools: where to acquire connections outside of transactions.
        function: what to run.
        outside: runs the job where there is no transaction.
        inside: runs the job in a transaction; False to have the transaction's thread run it. Called with the
            transaction's lock, on whichever thread has made room.
    """
    parent = scope_to_ask()
    if parent is None:
        job = Job(partial(run_as_call, pools, function))
        outside(job)
        return job
    return job_inside(parent, lambda scope: run_as_call(pools, function, scope=scope), outside, inside)


def job_inside(
    parent: Scope,
    run: Callable[[ReentrantScope], Any],
    outside: Callable[[Job], object],
    inside: Callable[[Job], bool],
    loop: asyncio.AbstractEventLoop | None = None,
) -> Job:
    """A job that is handed over in its turn. The turn ends with it, also if it is given up.

    Args:
        parent: the scope to ask.
        run: the job; it is given its scope.
        outside: as for ``submit_call``.
        inside: as for ``submit_call``.
        loop: whose task has the job run, once its turn has come.
    """
    scope = ReentrantScope(parent.transaction, parent)
    job = Job(lambda: run(scope))
    scope.job, scope.loop = job, loop

    def over(_: object) -> None:
        scope.job = None  # it refers to the scope: neither should have to wait for a garbage collection
        scope.end()

    job.future.add_done_callback(over)  # the first: a caller that has the result finds the turn over

    def begin() -> None:
        try:
            if scope.broken:
                job.expire(rolled_back_before())
            elif loop is not None and loop.is_closed():
                job.future.cancel()
            elif scope.parent is None:
                outside(job)
            elif not inside(job):
                scope.transaction.put(job)
        except RuntimeError:  # the application has shut down
            job.future.cancel()

    scope.ask(begin)
    if job.waits:
        scope.transaction.threads.watch(job, scope.transaction.busy)
    return job


def transaction_connection(call: Call, alias: str) -> BaseDatabaseWrapper | None:
    """The connection of the transaction that a call is in, if that has one to this database.

    Raises:
        DatabaseBusy: the call may not use it now.
    """
    scope: Scope | None = call.scope
    if scope is None:
        parent: Scope | None = call.transaction_to_join()
        if parent is None:
            return None
        # A function on a thread of its own takes part in a transaction, not in what is kept without one.
        if (around := parent.connection(alias)) is None or not is_open(around):
            if parent.state is State.ENDED:
                return transaction_connection(call, alias)
            if parent.is_block and parent.ending:
                # It has committed or rolled back a moment ago, and its connection is about to be released.
                raise ended_meanwhile()
            return None
        scope = ReentrantScope(parent.transaction, parent)
        scope.wait_for(scope.ask)
        try:
            call.transaction_to_join()  # raises if the block has ended while this waited
        except BaseException:
            scope.end()
            raise
        call.scope = scope
        scope.call_begins()
    keeper = scope.keeper()
    if scope.connection(alias) is None and keeper is scope:
        return None
    if scope.state is State.LENDING:
        take_back(call)
    connection = scope.connection(alias)
    if connection is None:
        connection = keeper.connections[alias] = keeper.transaction.pools(alias).acquire()
    return connection


def transaction_connection_on_loop(alias: str) -> Any:
    """The connection of the transaction around asynchronous code, for what it may do on the event loop.

    Django refuses queries there; ``transaction.on_commit()`` and ``in_atomic_block`` need none. A thread that
    is not a call (``threading.Thread`` with a copied context) does not get it: nothing says when it is done.
    """
    if entered_scope() is None or asyncio._get_running_loop() is None:
        return None
    scope = current_scope()
    connection = None if scope is None else scope.connection(alias)
    return None if scope is None or connection is None else _OnLoop(connection, scope)


class _OnLoop:
    """A transaction's connection for code on an event loop, which cannot wait for its turn.

    A sibling's savepoint may be open on the connection, and Django would keep a callback with that.
    """

    def __init__(self, connection: BaseDatabaseWrapper, scope: Scope) -> None:
        vars(self).update(_connection=connection, _scope=scope)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._connection, name, value)

    def on_commit(self, func: Callable[[], object], robust: bool = False) -> None:
        if not callable(func):
            raise TypeError("on_commit()'s callback must be a callable.")
        self._scope.on_commit(partial(self._connection.on_commit, func, robust))


def scope_of_waiting(call: Call) -> Scope | None:
    """The scope of what a call is about to wait for; releases the connections that it does not need.

    Connections that it needs have a transaction open, Django's own or one without autocommit, or something
    else that the rest of the call counts on.
    """
    call.give_back()
    if call.scope is None and call.held:
        try:
            call.scope = ReentrantScope(new_transaction(call.pools), None)
        except NotStarted:
            return None
        call.scope.ask(lambda: None)
    scope: Scope | None = call.scope
    if isinstance(scope, ReentrantScope):
        scope.connections = dict(call.held)
        scope.note_innermost()
    return scope


@contextmanager
def lent(call: Call) -> Iterator[None]:
    """Lend a call's transactions to the asynchronous code that its thread waits for in the block."""
    lend(call)
    try:
        yield
    finally:
        take_back(call)


def lend(call: Call) -> Scope | None:
    """Lend a call's transactions to asynchronous code, until ``take_back()``.

    Returns:
        The scope that this code must be in, if there is a transaction.
    """
    scope = scope_of_waiting(call)
    if scope is not None and scope.state is State.RUNNING:
        scope.transaction.thread_waits(1)
        scope.lend()
    return scope


def take_back(call: Call) -> None:
    """Wait until nothing of what the call has waited for uses its transactions any more.

    Raises:
        DatabaseBusy: something still did after ``DJANGO_ORM_THREAD_TIMEOUT``.
    """
    scope: Scope | None = call.scope
    if scope is not None and scope.state is State.LENDING:
        scope.wait_for(scope.take_back)
        scope.transaction.thread_waits(-1)
        scope.register_hooks()


@contextmanager
def entered_for(call: Call) -> Iterator[None]:
    """Have asynchronous code that is started in the block be inside of the call's transactions."""
    scope, before = scope_of_waiting(call), entered_scope()
    if scope is not None:
        enter_scope(scope)
    try:
        yield
    finally:
        enter_scope(before)


def is_bound() -> bool:
    """Whether calls of the running code have their thread: a transaction's, or one that waits for it."""
    return scope_to_ask() is not None or waiting_thread() is not None
