"""``django.db.connections``, which first looks for a transaction or a call that the running code is in.

Django looks its connections up by thread. Here a thread serves many calls, and a transaction many threads.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.utils import ConnectionHandler

from . import calls
from .reentrancy import transaction_connection, transaction_connection_on_loop


class LentConnections(ConnectionHandler):
    """The connection handler while a lifespan is open.

    Code outside of all calls (a management command, a thread of the application's own) has Django's own
    connections, as ever.
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


@contextmanager
def lending() -> Iterator[None]:
    """Let ``django.db.connections`` lend, for the length of the block."""
    before = type(connections)
    connections.__class__ = LentConnections  # the object stays: everybody has imported it by name
    try:
        yield
    finally:
        connections.__class__ = before
