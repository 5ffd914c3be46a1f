"""The caller's context on another thread, as ``sync_to_async`` takes it there and back.

A context variable goes along with a copy of the context. asgiref's ``Local`` (Django's language and time
zone, django-simple-history's user) does not: it belongs to a thread, and asgiref hands it over where it moves
work between threads. Where this package moves work it does the same, with asgiref's own function.
"""

import asyncio
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import Any, Generic, TypeVar

from asgiref.sync import SyncToAsync, _restore_context

T = TypeVar("T")


class Carried(Generic[T]):
    """A function that a thread calls in the context of the task that has made this object.

    Attributes:
        context: the copy in which it runs.
    """

    def __init__(self, function: Callable[[], T]) -> None:
        """Copy the context of the running task.

        Args:
            function: what to call.
        """
        self.context = copy_context()
        self._function = function
        self._loop = asyncio.get_running_loop()

    def __call__(self) -> T:
        """Call the function, on a thread whose ``async_to_sync`` then finds the task's event loop."""
        result: T = _asgiref.thread_handler(self._loop, (None, None, None), [], self.context.run, self._work)
        return result

    def _work(self) -> T:
        _restore_context(self.context)
        return self._function()

    def bring_back(self) -> None:
        """Give the task what the function has changed."""
        give_over(self.context)


def take_over() -> None:
    """Let the running thread see the ``Local``s of its context, which another thread has set."""
    _restore_context(copy_context())


def give_over(context: Context) -> None:
    """Give the running code what has changed in a context that another thread ran."""
    _restore_context(context)


def _nothing() -> None: ...


_asgiref: Any = SyncToAsync(_nothing)  # for what its calls set up on a thread
