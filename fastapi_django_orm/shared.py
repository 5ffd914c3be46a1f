"""A context that many enter: the first opens it, the last closes it.

Some of what the plugin does is the process's and not an application's: Django's connections, the functions of
other libraries that are instrumented. Two applications in one process share it, and either may end first.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager


class SharedContext:
    """Opens a context for as long as anybody is inside."""

    def __init__(self, *contexts: Callable[[], AbstractContextManager[None]]) -> None:
        """Open nothing yet.

        Args:
            *contexts: what to open, in this order, and to close in reverse.
        """
        self._contexts = contexts
        self._stack = ExitStack()
        self._inside = 0
        self._lock = threading.Lock()  # applications may run on several threads

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
