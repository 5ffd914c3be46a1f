"""Who may use a transaction's connections: one scope at a time.

All that happens inside a transaction happens in a tree of scopes. An ``AtomicScope`` is one ``async with
atomic()``; a ``ReentrantScope`` is one call (a synchronous function on some thread) inside of it. A
``ContextScope`` or a ``RequestScope`` is the root of a tree without a transaction: what a context or a
request keeps from call to call. There is one rule, whatever way the code took (``run()``,
``sync_to_async``, AnyIO's threads, ``async_to_sync``, …):

    A scope either uses the connections itself, or lends them to one child at a time, in the order of asking.

A block lends between its BEGIN and its COMMIT. A call lends while it waits for asynchronous code that it has
called. What is kept is lent until the request ends. So a sibling's call waits while a nested block is open, a
nested block waits for a sibling's call, and the end of a block waits for the calls that still run in it.

======== ========================================== =====================================================
state    means                                      goes on to
======== ========================================== =====================================================
WAITING  asks its parent                            RUNNING: let in. ENDED: given up.
RUNNING  uses the connections itself                LENDING: a block has begun, a call waits for async code.
                                                    ENDED: its end is done.
LENDING  its children use them, one at a time       RUNNING: ``take_back()`` had its turn.
ENDED    code inside is in the scope around it now
======== ========================================== =====================================================

Two marks, once set, stay in every state:

======== ================================================================================================
mark     means
======== ================================================================================================
ending   the end of a block has asked for its turn: nothing breaks it off any more, and it takes no more
         ``on_commit`` callbacks of code on the event loop
broken   it is rolled back, or about to be, under the code inside, which gets an error; a scope that has
         waited in such a block is broken as well, before it began
======== ================================================================================================

A scope that still waits when all around it have ended without being broken is the root of a tree of its own:
it is outside of the transaction.

Locking: all fields of a tree are guarded by ``transaction.lock``. ``begin`` callbacks are called under it, on
whichever thread made room; they only hand work over (to a thread's queue, to an event loop) and never block.
The locks of ``DatabaseThreads`` and of ``keeping`` are taken after it, a pool's as well.
"""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from contextvars import ContextVar, Token
from enum import Enum, auto
from functools import partial
from typing import Any
from weakref import WeakSet

from asgiref.sync import AsyncToSync
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.transaction import TransactionManagementError

from . import calls
from .pool import current_request
from .threads import DatabaseThreads, Job
from .transaction import Transaction, release


class State(Enum):
    """What a scope does; see the table above."""

    WAITING = auto()
    RUNNING = auto()
    LENDING = auto()
    ENDED = auto()


# To be ended with their application, and to be forgotten in a forked child.
roots: "WeakSet[Scope]" = WeakSet()


class Scope:
    """A part of a transaction that uses its connections, or lends them to what is inside of it.

    Attributes:
        transaction: the lock and the thread that the whole tree shares.
        parent: the scope around it; None for the outermost.
        state, ending, broken: see the module.
        connections: those that this scope has brought in, by alias.
    """

    is_block = False
    keeps_all = False  # whether what anything inside acquires stays here, for what comes next

    def __init__(self, transaction: Transaction, parent: "Scope | None") -> None:
        self.transaction = transaction
        self.parent = parent
        self.state = State.WAITING
        self.connections: dict[str, BaseDatabaseWrapper] = {}
        self.ending = self.broken = False
        self._child: Scope | None = None  # has been let in, and has not ended
        self._queue: deque[Scope] = deque()  # children that wait, and this scope if it takes back
        self._begin: Callable[[], None] = _nothing
        self._hooks: list[Callable[[], None]] = []  # see on_commit()
        if parent is None:
            roots.add(self)

    def connection(self, alias: str) -> BaseDatabaseWrapper | None:
        """The transaction's connection to a database, if it has one."""
        scope: Scope | None = self
        while scope is not None:
            if alias in scope.connections:
                return scope.connections[alias]
            scope = scope.parent
        return None

    def all_connections(self) -> dict[str, BaseDatabaseWrapper]:
        """All connections of this scope and those around it, by alias."""
        around = {} if self.parent is None else self.parent.all_connections()
        return around | self.connections

    def keeper(self) -> "Scope":
        """Where a connection that this scope brings in belongs: to the context around all, or to itself."""
        root = self
        while root.parent is not None:
            root = root.parent
        return root if root.keeps_all else self

    def on_commit(self, register: Callable[[], None]) -> None:
        """Note a callback of code on an event loop, until the connection is at this scope's savepoint.

        Args:
            register: gives it to Django, which keeps it with the savepoints that are open at that moment.

        Raises:
            TransactionManagementError: the block is at its end.
        """
        with self.transaction.lock:
            if self.ending or self.state is State.ENDED:
                raise ended_meanwhile()
            self._hooks.append(register)

    def register_hooks(self) -> None:
        """Give Django the callbacks that were noted so far. On the thread that uses the connections now."""
        with self.transaction.lock:
            hooks, self._hooks = self._hooks, []
        for register in hooks:
            register()

    def ask(self, begin: Callable[[], None]) -> None:
        """Have ``begin`` called once this scope may use the connections.

        If all scopes around it end first, it is called as well, and the scope has no parent any more. If one
        of them is broken, this one is broken besides.
        """
        with self.transaction.lock:
            self._begin = begin
            if self.parent is None:
                self._start()
            else:
                self._wait_in(self.parent)

    def lend(self) -> None:
        """Let children in, until ``take_back()``."""
        with self.transaction.lock:
            self.state = State.LENDING
            self._let_in()

    def take_back(self, begin: Callable[[], None]) -> None:
        """Have ``begin`` called once no child uses the connections.

        Calls that asked before are served before. Nested blocks are not let in any more, and one that is open
        is rolled back: it belongs to a task that was not awaited.
        """
        with self.transaction.lock:
            self._begin = begin
            others = [each for each in self._queue if each is not self]
            before = [each for each in others if not each.is_block]
            self._queue = deque([*before, self, *(each for each in others if each.is_block)])
            if self._child is not None:
                self._child.break_off()
            self._let_in()

    def wait_for(self, request: Callable[[Callable[[], None]], None]) -> None:
        """Block this thread until ``ask`` or ``take_back``, the request, is granted; see ``check()``."""
        granted: Future[None] = Future()
        request(partial(granted.set_result, None))
        with suppress(TimeoutError):
            granted.result(self.transaction.threads.timeout)
        self.check(granted)

    def check(self, granted: "Future[None]") -> None:
        """Raise if a request was not granted, and give it up then.

        Raises:
            DatabaseBusy: it has waited for too long.
            TransactionManagementError: the block around was rolled back meanwhile.
        """
        with self.transaction.lock:
            is_late = not granted.done()
            if is_late:
                self._begin = _nothing
                if self.state is State.WAITING:
                    self.end()
        if is_late:
            raise self.transaction.busy()
        if self.broken:
            self.end()
            raise rolled_back_before()

    def release(self) -> None:
        """Give the connections of this scope back, and end, on a thread that may close connections."""
        release(self.connections)  # before the end, which returns the thread
        self.end()

    def release_on_thread(self) -> None:
        """Do so on the transaction's thread."""
        self.transaction.put(Job(self.release))

    def break_off(self) -> None:
        """Roll back before the end, if that can be done. A call cannot be ended: it is waited for."""

    def call_begins(self) -> None:
        """Note that a call begins that may use the connections for this scope. On its thread."""

    def call_ended(self, call: calls.Call) -> None:
        """Note that it has ended."""

    def child_ends(self) -> None:
        """Look at the connections after a call inside, on its thread, while nothing else uses them."""

    def end(self) -> None:
        """Make room for the next one. Does nothing the second time."""
        with self.transaction.lock:
            if self.state is State.ENDED:
                return
            # First the state, so that nothing asks here any more. Then the parent has its turn, or the child
            # takes this one's place; then what waits here asks outside. The thread goes last: nothing of
            # this tree may put a job on it afterwards.
            self.state = State.ENDED
            child, self._child = self._child, None
            waiting = [each for each in self._queue if each.state is State.WAITING]
            self._queue.clear()
            if self.parent is not None:
                self.parent._hooks += self._hooks
            if self.parent is not None and self.parent._child is self:
                # There is a child where a call outlives the one that was waiting for it.
                self.parent._child = child
                self.parent._let_in()
            if child is not None:
                child.parent = self.parent
            for each in waiting:
                each._wait_in(self)
            if self.parent is None:
                self.transaction.end()

    def _wait_in(self, parent: "Scope") -> None:
        around = open_around(parent)
        self.broken = around is not None and around.broken
        self.parent = None if self.broken else around
        if self.parent is not None:
            self.parent._queue.append(self)
            self.parent._let_in()
        else:
            roots.add(self)
            # The lock stays the same: another thread may be about to take it, to give this scope up.
            self.transaction = self.transaction.another()
            self._start()

    def _let_in(self) -> None:
        while self._queue and self._child is None and self.state is State.LENDING:
            following = self._queue.popleft()
            if following is self:
                self._start()
            elif following.state is State.WAITING:  # else it was given up
                self._child = following
                following._start()

    def _start(self) -> None:
        self.state = State.RUNNING
        begin, self._begin = self._begin, _nothing
        begin()


def _nothing() -> None:
    pass


_scope: ContextVar[Scope | None] = ContextVar("fastapi_django_orm_scope", default=None)


def open_around(scope: Scope | None) -> Scope | None:
    """The scope itself, or the innermost around it that has not ended, or is broken."""
    while scope is not None and scope.state is State.ENDED and not scope.broken:
        scope = scope.parent
    return scope


def current_scope() -> Scope | None:
    """The innermost scope of the running code that has not ended, or None outside of any transaction.

    Raises:
        TransactionManagementError: the code is inside a block that was rolled back under it.
    """
    scope = open_around(_scope.get())  # a task may have outlived scopes
    if scope is not None and scope.broken:
        raise rolled_back_before()
    return scope


def scope_to_ask() -> Scope | None:
    """The scope that a call asks: the current one, or that of what its request has left on a connection.

    Raises:
        TransactionManagementError: the code is inside a block that was rolled back under it.
    """
    scope = current_scope()
    if scope is None and (request := current_request.get()) is not None:
        kept: Scope | None = request.scope
        # A thread that waits in async_to_sync runs its calls itself, and has connections of its own.
        return kept if kept is None or waiting_thread() is None else None
    return scope


def waiting_thread() -> Any:
    """What runs calls on the thread that waits in ``async_to_sync`` for the running code, if one does."""
    return getattr(AsyncToSync.executors, "current", None)


def entered_scope() -> Scope | None:
    """The scope that this context has entered last, be it over or not."""
    return _scope.get()


def enter_scope(scope: Scope | None) -> Token[Scope | None]:
    """Let the rest of this context run inside the scope, or outside of any, until ``leave_scope()``."""
    return _scope.set(scope)


def leave_scope(entered: Token[Scope | None]) -> None:
    """Let the rest of this context run where it did before; ValueError in another context."""
    _scope.reset(entered)


def break_off_all(threads: DatabaseThreads, deadline: float) -> None:
    """Roll back the transactions that are open when an application ends, and end what its requests keep.

    Args:
        threads: the application's, before they are shut down.
        deadline: when to stop waiting for the calls that still run in them.
    """
    for scope in list(roots):
        if scope.transaction.threads is threads:
            scope.break_off()
    threads.wait_for_transactions(deadline)


def forget_all() -> list[dict[str, BaseDatabaseWrapper]]:
    """Forget the transactions that the parent had open, in a forked child.

    Returns:
        The parent's connections, which must be kept alive.
    """
    held = []
    for root in roots:
        scope: Scope | None = root
        while scope is not None:
            held.append(scope.connections)
            scope.connections, scope.state = {}, State.ENDED
            scope = scope._child
    return held


def rolled_back_before() -> TransactionManagementError:
    """The error of code in a block that was rolled back under it."""
    return TransactionManagementError(
        "This atomic() was rolled back before its end, because the block around it, or the application, has "
        "ended. Await the tasks that are made inside of a block before it ends: asyncio.TaskGroup does, "
        "gather() does not when one raises."
    )


def ended_meanwhile() -> TransactionManagementError:
    """The error of code that outlives the block in which it was started."""
    return TransactionManagementError(
        "The atomic() in which this code was started has ended, so it cannot write in it any more. Await "
        "tasks, asyncio.to_thread() and its like before the block ends. To give a function up under a time "
        "limit, use run(), which the block waits for."
    )
