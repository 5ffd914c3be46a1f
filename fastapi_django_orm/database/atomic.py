"""``async with atomic()``: Django's transactions around asynchronous code."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self

from asgiref.sync import sync_to_async
from django.db import DEFAULT_DB_ALIAS, transaction
from django.db.transaction import TransactionManagementError

from . import calls
from .blocks import (
    Block,
    current_block,
    enter_block,
    entered_block,
    rolled_back_before,
)
from .calls import left_open
from .transaction import new_transaction
from .turns import asking_block, waiting_executor


class Atomic:
    """What ``atomic()`` gives: an asynchronous ``django.db.transaction.atomic``."""

    def __init__(self, using: str | None, savepoint: bool, durable: bool) -> None:
        """Hold the arguments; see ``atomic()``."""
        self._alias = using or DEFAULT_DB_ALIAS
        self._django = transaction.atomic(using=using, savepoint=savepoint, durable=durable)
        self._outer: Block | None = None
        self._inner: Block | None = None

    if not TYPE_CHECKING:  # which says so by itself

        def __enter__(self) -> NoReturn:
            raise TypeError(
                "Write `async with atomic():`. In a function that is not async, write "
                "`with django.db.transaction.atomic():`."
            )

        def __exit__(self, *how: object) -> None: ...

    async def __aenter__(self) -> Self:
        if self._inner is not None:
            raise RuntimeError("This block is open already. Write `async with atomic():` for each block.")
        while not await self._enter():
            pass  # the block around it has just ended: this one begins outside of it
        return self

    async def _enter(self) -> bool:
        self._outer = entered_block()
        parent = asking_block()
        if parent is None:
            if waiting_executor() is not None:
                await sync_to_async(_let_go)(self._alias)  # on the thread that waits in async_to_sync
            inner = Block(new_transaction(), None)
        else:
            await parent.begin_nested()
            inner = Block(parent.transaction, parent)
        self._inner = inner
        enter_block(inner)
        try:
            await inner.take_connection(self._alias)
            entered = await inner.do(lambda: inner.enter(self._django.__enter__, self._django.__exit__))
        except BaseException as error:
            await self._leave(type(error), error, error.__traceback__)
            raise
        if not entered:
            self._forget()
        return entered

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._leave(kind, error, traceback)

    async def _leave(self, *how: Any) -> None:
        inner = self._inner
        assert inner is not None
        try:
            if not inner.broken:
                await inner.do(lambda: inner.leave(*how))
            elif how[0] is None:
                raise rolled_back_before()
        finally:
            self._forget()

    def _forget(self) -> None:
        inner, self._inner = self._inner, None
        enter_block(self._outer)
        if inner is not None and inner.parent is not None and not inner.broken:
            inner.parent.end_nested()


def _let_go(alias: str) -> None:
    """Have a call that waits for this block give its connections back.

    Raises:
        TransactionManagementError: it has a transaction open, of which this block could not be a part.
    """
    call = calls.current()
    if call is None:
        return
    call.give_back()
    if alias in call.held:
        raise TransactionManagementError(
            "`async with atomic()` under async_to_sync, inside of a synchronous transaction.atomic(), "
            "would be a transaction of its own. Write `with transaction.atomic():` in a synchronous function "
            "there, or make the outer one `async with atomic()`."
        )


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
        DatabaseBusy: no connection came free within ``DJANGO_ORM_THREAD_TIMEOUT``.
        RuntimeError: ``durable`` was asked for inside another block.
        NotStarted: no lifespan of ``DjangoORM`` runs.

    Source: https://docs.djangoproject.com/en/stable/topics/db/transactions/#django.db.transaction.atomic
    """
    return Atomic(using, savepoint, durable)


@asynccontextmanager
async def nothing_left_open() -> AsyncIterator[None]:
    """Roll back what a call inside leaves open, where nobody could end it later.

    Raises:
        TransactionLeftOpen: there was something.
    """
    before = current_block()
    try:
        yield
    except BaseException:
        await _end_left_open(before)  # the error that is on its way says more
        raise
    if aliases := await _end_left_open(before):
        raise left_open(aliases)


async def _end_left_open(before: Block | None) -> list[str]:
    block = current_block()
    if block is None or block is before or not block.adopted:
        return []
    aliases = list(block.transaction.connections)
    enter_block(before)
    await block.do(block.end)
    return aliases
