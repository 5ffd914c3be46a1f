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
from .blocks import current_block


class LentConnections(ConnectionHandler):
    """The connection handler while a lifespan is open.

    Code outside of all calls (a management command, a thread of the application's own) has Django's own
    connections, as ever.
    """

    def __getitem__(self, alias: str) -> BaseDatabaseWrapper:
        block, call = current_block(), calls.current()
        if block is not None:
            connection = block.transaction.connections.get(alias)
            if connection is not None:
                return connection
        if call is not None:
            return call.connection(alias)
        return super().__getitem__(alias)

    def all(self, initialized_only: bool = False) -> list[Any]:
        """All connections of the running code, or only those that it has already."""
        call = calls.current()
        if call is None or not initialized_only:
            return list(super().all(initialized_only))
        block = current_block()
        around = call.around if block is None else block.transaction.connections
        return [*around.values(), *call.held.values()]


@contextmanager
def lending() -> Iterator[None]:
    """Let ``django.db.connections`` lend, for the length of the block."""
    before = type(connections)
    connections.__class__ = LentConnections  # the object stays: everybody has imported it by name
    try:
        yield
    finally:
        connections.__class__ = before
