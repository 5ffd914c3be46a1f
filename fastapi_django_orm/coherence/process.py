"""Hints from within the process: Django mounted in the same server, or the application's own writes."""

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from ..shared import renewed_at_fork
from .hints import Hint
from .transport import Receiver

_lock = renewed_at_fork(threading.Lock())
_listening: list[tuple[asyncio.AbstractEventLoop, Receiver]] = []

# Called with whether an application listens, when one begins or ends: what is costly to find out is left
# undone while nobody listens.
on_change: list[Callable[[bool], None]] = []

# The loops of a parent process are not the child's to wake.
os.register_at_fork(after_in_child=_listening.clear)


def publish(hint: Hint) -> None:
    """Tell every application of this process. From any thread; returns at once."""
    with _lock:
        listening = list(_listening)
    for loop, receiver in listening:
        with suppress(RuntimeError):  # the loop has closed, and its application with it
            loop.call_soon_threadsafe(receiver.heard, hint)


class ProcessListener:
    """Hears what this process publishes."""

    name = "process"
    aliases: frozenset[str] | None = None
    unheard: frozenset[str] = frozenset()
    server: tuple[int, ...] | None = None

    async def listen(self, receiver: Receiver) -> None:
        """Listen until cancelled."""
        with _registered(receiver):
            receiver.connected()
            await asyncio.get_running_loop().create_future()

    async def caught_up(self) -> bool:
        """False: other processes write as well."""
        return False


@contextmanager
def _registered(receiver: Receiver) -> Iterator[None]:
    entry = asyncio.get_running_loop(), receiver
    with _lock:
        _listening.append(entry)
        _tell_change()
    try:
        yield
    finally:
        with _lock:
            _listening.remove(entry)
            _tell_change()


def _tell_change() -> None:
    for tell in on_change:
        tell(bool(_listening))
