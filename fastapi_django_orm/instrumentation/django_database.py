"""Django: which connection code finds, and what ``transaction.atomic()`` says on an event loop.

Django looks its connections up by thread: ``connections[alias]`` and ``connections.all()`` of
``django.db.connections``, which everybody has imported by name, so that the object has to stay and only its
class can be another. Here a thread serves many calls, and a transaction many threads.

Django refuses to open a transaction on an event loop, and Python refuses ``async with atomic()``. Neither can
say what to write instead.
"""

from collections.abc import Callable
from typing import Any, NoReturn

from django.core.exceptions import SynchronousOnlyOperation
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.transaction import Atomic
from django.db.utils import ConnectionHandler

from ..database import calls
from ..database.reentrancy import transaction_connection, transaction_connection_on_loop
from .replacing import Replacement


class LentConnections(ConnectionHandler):
    """Django's connection handler, which first looks for a transaction or a call of the running code.

    Code outside of all calls (a management command, a thread of the application's own) has Django's own
    connections.
    """

    def __getitem__(self, alias: str) -> BaseDatabaseWrapper:
        connection: BaseDatabaseWrapper | None = transaction_connection_on_loop(alias)
        if connection is None:
            call = calls.current()
            if call is None or not call.borrows():
                return super().__getitem__(alias)
            connection = transaction_connection(call, alias) or call.connection(alias)
        return connection

    def all(self, initialized_only: bool = False) -> list[Any]:
        """All connections of the running code, or only those that it has already."""
        call = calls.current()
        if call is None or not initialized_only or not call.borrows():
            return list(super().all(initialized_only))
        of_transaction = {} if call.scope is None else call.scope.all_connections()
        return list((of_transaction | call.held).values())


HOW_TO_BEGIN = (
    "In an `async def` function write `async with atomic():`, with atomic from fastapi_django_orm; or put "
    "`with transaction.atomic():` into a function that runs on a thread: a `def` handler, or one for run()."
)


def _enter(original: Callable[[Atomic], Any]) -> Callable[[Atomic], Any]:
    def enter(atomic: Atomic) -> Any:
        try:
            return original(atomic)
        except SynchronousOnlyOperation as error:
            error.add_note(HOW_TO_BEGIN)
            raise

    return enter


async def _aenter(atomic: Atomic) -> NoReturn:
    raise TypeError(f"Django's transaction.atomic() is not asynchronous. {HOW_TO_BEGIN}")


async def _aexit(atomic: Atomic, *how: object) -> None: ...


REPLACED = (
    Replacement("django.db:connections", "__class__", lambda _: LentConnections),
    Replacement(Atomic, "__enter__", _enter),
    # Added, unless Django has them by then.
    Replacement(Atomic, "__aenter__", lambda own: own or _aenter),
    Replacement(Atomic, "__aexit__", lambda own: own or _aexit),
)
