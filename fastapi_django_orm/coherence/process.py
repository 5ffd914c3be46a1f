"""Hints within one process: Django mounted in the same server, or the application's own writes."""

import asyncio
import os
import threading
from collections.abc import Callable
from contextlib import suppress

from ..shared import renewed_at_fork
from .hints import Hint
from .transport import Listener, TransportSupervisor

_lock = renewed_at_fork(threading.Lock())
_listening: list[tuple[asyncio.AbstractEventLoop, TransportSupervisor]] = []

# Called with whether an application listens, when one begins or ends: while none does, signals whose
# receivers make Django slower stay disconnected.
on_change: list[Callable[[bool], None]] = []

# The loops of a parent process are not the child's to wake.
os.register_at_fork(after_in_child=_listening.clear)


def publish(hint: Hint) -> None:
    """Send a hint to every application of this process. From any thread; returns at once."""
    with _lock:
        listening = list(_listening)
    for loop, receiver in listening:
        with suppress(RuntimeError):  # the loop has closed, and its application with it
            loop.call_soon_threadsafe(receiver.received, hint)


class ProcessListener(Listener):
    """Receives what this process publishes. Other processes write as well, so it is never caught up."""

    name = "process"

    async def listen(self, receiver: TransportSupervisor) -> None:
        """Listen until cancelled."""
        loop = asyncio.get_running_loop()
        entry = loop, receiver
        _change(_listening.append, entry)
        try:
            receiver.connected()
            await loop.create_future()
        finally:
            _change(_listening.remove, entry)


def _change(
    how: Callable[[tuple[asyncio.AbstractEventLoop, TransportSupervisor]], None],
    entry: tuple[asyncio.AbstractEventLoop, TransportSupervisor],
) -> None:
    with _lock:
        how(entry)
        for notify in on_change:
            notify(bool(_listening))
