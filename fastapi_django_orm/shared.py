"""What belongs to the process and not to an application.

Django's connections and the functions of other packages that are replaced are the process's. Two applications
in one process share them, and either may end first.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, TypeVar
from weakref import WeakSet

LockT = TypeVar("LockT")

_locks: WeakSet[Any] = WeakSet()


def renewed_at_fork(lock: LockT) -> LockT:
    """Have a lock be free in a forked child, whichever thread of the parent held it at the fork."""
    _locks.add(lock)
    return lock


def _renew_locks() -> None:
    for lock in _locks:
        lock._at_fork_reinit()  # as logging and concurrent.futures do with theirs


os.register_at_fork(after_in_child=_renew_locks)


class SharedContext:
    """A context that many enter: the first opens it, the last closes it."""

    def __init__(self, *contexts: Callable[[], AbstractContextManager[None]]) -> None:
        """Open these in this order, and close them in reverse."""
        self._contexts = contexts
        self._stack = ExitStack()
        self._inside = 0
        self._lock = renewed_at_fork(threading.Lock())  # applications may run on several threads

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Keep the contexts open, for the length of the block."""
        with self._lock:
            if not self._inside:
                with ExitStack() as opening:  # which closes the first ones if a later one cannot be opened
                    for context in self._contexts:
                        opening.enter_context(context())
                    self._stack = opening.pop_all()
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    self._stack.close()
