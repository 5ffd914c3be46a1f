"""``async with atomic()``: Django's transactions around asynchronous code."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import Token
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, Self

from asgiref.sync import async_to_sync
from django.db import DEFAULT_DB_ALIAS, connections, transaction

from .atomic_scope import AtomicScope, block_around
from .keeping import AdoptedScope
from .reentrancy import transaction_connection_on_loop
from .scopes import Scope, current_scope, enter_scope, leave_scope


class Atomic:
    """What ``atomic()`` gives: an asynchronous ``django.db.transaction.atomic``."""

    def __init__(self, using: str | None, savepoint: bool, durable: bool) -> None:
        self._alias = using or DEFAULT_DB_ALIAS
        self._django = transaction.atomic(using=using, savepoint=savepoint, durable=durable)
        self._entered: Token[Scope | None] | None = None
        self._inner: AtomicScope | None = None

    if not TYPE_CHECKING:  # which says so by itself

        def __enter__(self) -> NoReturn:
            raise TypeError(
                "Write `async with atomic():`. In a function that is not async, write "
                "`with django.db.transaction.atomic():`."
            )

        def __exit__(self, *how: object) -> None: ...

        def __call__(self, function: object) -> NoReturn:
            """Refuse to decorate a function, with what to write instead."""
            raise _not_a_decorator()

    async def __aenter__(self) -> Self:
        if self._inner is not None:
            raise RuntimeError("This block is open already. Write `async with atomic():` for each block.")
        self._inner = AtomicScope.here()
        try:
            await self._inner.let_in()
        except BaseException:
            self._inner = None
            raise
        self._entered = enter_scope(self._inner)
        try:
            await self._inner.begin(self._django, self._alias)
        except BaseException as error:
            await self.__aexit__(type(error), error, error.__traceback__)
            raise
        return self

    async def __aexit__(self, *how: object) -> None:
        inner, self._inner = self._inner, None
        assert inner is not None
        assert self._entered is not None
        try:
            await inner.leave(*how)
        finally:
            # Not where it was entered if the block was collected: then it ends in the context of other code.
            with suppress(ValueError):
                leave_scope(self._entered)
        # Now, when the connection has been released: what they await may need one as well.
        for function in inner.committed:
            await function()


def atomic(using: str | None = None, savepoint: bool = True, durable: bool = False) -> Atomic:
    """Put asynchronous code into a transaction, ``async with atomic():``.

    All that runs inside, in tasks that are awaited inside too, sees it: Django's async API,
    ``sync_to_async``, ``run()``, ``def`` handlers and dependencies under it. Leaving the block commits and
    runs the ``on_commit`` callbacks; an exception, a cancellation or a shutdown rolls back. Nested blocks are
    savepoints. One call runs at a time, since all share a connection.

    Args:
        using: the database's alias; by default ``default``.
        savepoint: whether a nested block can be rolled back alone.
        durable: refuse to be nested, so that leaving the block is sure to commit.

    Raises:
        DatabaseBusy: no connection became available, or a sibling's nested block did not end, within
            ``DJANGO_ORM_THREAD_TIMEOUT``; or, at the end, a call that still ran in the block did not.
        TransactionManagementError: the block ended without an exception, and was rolled back all the same.
        RuntimeError: ``durable`` was asked for inside another block.
        NotStarted: no lifespan of ``DjangoORM`` runs.

    Source: https://docs.djangoproject.com/en/stable/topics/db/transactions/#django.db.transaction.atomic
    """
    if callable(using):  # @atomic, without parentheses
        raise _not_a_decorator()
    return Atomic(using, savepoint, durable)


async def on_commit(function: Callable[[], Awaitable[object]], using: str | None = None) -> None:
    """Await a coroutine function once the transaction around has committed; at once if there is none.

    It is Django's ``transaction.on_commit()`` for asynchronous code: if the transaction, or the savepoint in
    which this was called, is rolled back, the function is not called. ``async with atomic():`` ends when all
    of them have been awaited. If one raises, the block ends with that exception, and the rest are not
    awaited; the commit stands.

    Args:
        function: takes no arguments.
        using: the database's alias; by default ``default``.

    Raises:
        TransactionManagementError: the block is at its end.

    Source: https://docs.djangoproject.com/en/stable/topics/db/transactions/#performing-actions-after-commit
    """
    alias = using or DEFAULT_DB_ALIAS
    connection = transaction_connection_on_loop(alias)
    if connection is None or not connection.in_atomic_block:
        await function()
    elif not awaits_commit(function, alias):

        async def call() -> None:
            await function()

        transaction.on_commit(async_to_sync(call), using=alias)  # the thread that commits waits for it


def awaits_commit(function: Callable[[], Awaitable[object]], alias: str, *, first: bool = False) -> bool:
    """Have the ``atomic()`` that commits this transaction await a function afterwards.

    Args:
        function: takes no arguments.
        alias: the database.
        first: await it before those that others have registered, which may fail.

    Returns:
        False if something else will commit it: a ``with transaction.atomic()`` of a call around.
    """
    scope = current_scope()
    while scope is not None:
        if isinstance(scope, AtomicScope) and scope.commits == alias:
            committed = scope.committed
            add = partial(committed.insert, 0) if first else committed.append
            transaction.on_commit(partial(add, function), using=alias)
            return True
        scope = scope.parent
    return False


def undo_after_rollback(function: Callable[[], None], alias: str) -> None:
    """Have the ``atomic()`` around the running call call a function if it rolls back, on its thread.

    Nothing calls it if something else rolls back: a ``with transaction.atomic()`` of a call around.
    """
    if (scope := block_around(current_scope(), alias)) is not None:
        scope.undo.append(function)


def _not_a_decorator() -> TypeError:
    return TypeError(
        "atomic() is not a decorator. Write `async with atomic():` inside the function, or give a handler "
        "the parameter `_: InTransaction`."
    )


async def end_left_open(before: Scope | None) -> list[str]:
    """Roll back what a call has left open in the scope that was current before, where nothing could end it.

    Returns:
        The databases that it was left open on.
    """
    scope = current_scope()
    if scope is before or not isinstance(scope, AdoptedScope):
        return []
    enter_scope(before)
    return await scope.roll_back()


def atomic_aliases(handler: Any) -> list[str]:
    """The databases whose ``ATOMIC_REQUESTS`` is on, except those that ``@non_atomic_requests`` names."""
    every = connections.settings
    for settings in every.values():
        if settings["ATOMIC_REQUESTS"]:
            break
    else:  # as it mostly is, and this is asked for every request
        return []
    exempt = getattr(handler, "_non_atomic_requests", ())
    return [alias for alias in every if every[alias]["ATOMIC_REQUESTS"] and alias not in exempt]
