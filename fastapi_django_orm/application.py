"""What the plugin holds for one application, and how code finds the one that it runs under."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from .database import current
from .database.executor import DatabaseExecutor
from .errors import NotStarted

T = TypeVar("T")

LOOK_AGAIN = 1.0  # seconds between two looks whether another loop still runs


class Application:
    """What the plugin holds for one application, between its start and its end.

    Attributes:
        executor: runs its calls. Code finds the application by it.
        loop: the event loop on which the lifespan was entered.
        requests: how many have come so far.
        shared: the ``SharedSnapshots`` if loads are shared; their module needs redis-py.
        answers: makes the handler of an exception that the application has none for; None to leave those to
            it.
    """

    def __init__(self, executor: DatabaseExecutor, loop: asyncio.AbstractEventLoop) -> None:
        self.executor = executor
        self.loop = loop
        self.requests = 0
        self.shared: Any = None
        self.answers: Callable[[Exception], Callable[..., Any] | None] | None = None
        self._held: dict[type[Any], Any] = {}

    def hold(self, instance: object) -> None:
        """Keep an instance, to be found by its class: a repository, or something else there is one of."""
        self._held[type(instance)] = instance

    def get(self, cls: type[T]) -> T | None:
        """The instance of exactly this class; None before it was made, and after the lifespan."""
        return self._held.get(cls)

    def __getitem__(self, cls: type[T]) -> T:
        held: T = self._held[cls]
        return held

    def all_of(self, cls: type[T]) -> list[T]:
        """The instances of a class and of those derived from it, in the order in which they were made."""
        return [each for each in self._held.values() if isinstance(each, cls)]


_applications: dict[object, Application] = {}  # by executor


@contextmanager
def running(executor: DatabaseExecutor, loop: asyncio.AbstractEventLoop) -> Iterator[Application]:
    """Have code that finds an executor find its application, for the length of the block."""
    here = _applications[executor] = Application(executor, loop)
    try:
        yield here
    finally:
        del _applications[executor]
        # A task that is still referenced keeps this object in its context. Release the rows now.
        here._held.clear()
        here.shared = None


def find(owner: str) -> Application:
    """The application that the caller runs under.

    Raises:
        NotStarted: there is none, or several and the context does not say which; ``owner`` asks for it.
    """
    here = _applications.get(current.find(owner))
    if here is None:
        raise NotStarted(f"{owner} is used, but the application ends.")
    return here


def entered() -> Application | None:
    """The application whose request the running code belongs to, if there is one."""
    return _applications.get(current.entered())


def how_to_get(repository: str) -> str:
    """What to write instead of using an instance that no application has made: the end of a message."""
    if not _applications:
        return current.HOW_TO_START
    return (
        "It was made by hand, and the application that runs has one of its own: write "
        f"Depends({repository}.current) in a handler, and `await {repository}.current()` elsewhere."
    )


async def on_loop(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T], owner: str) -> T:
    """Run a coroutine on the loop of an application, for a caller on another.

    Raises:
        NotStarted: that loop does not run, and so the work would never end; ``owner`` asks for it.
    """
    if not loop.is_running():
        work.close()
        raise _stands_still(owner)
    done = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, loop))
    try:
        while not (await asyncio.wait([done], timeout=LOOK_AGAIN))[0]:
            if not loop.is_running():  # it has stopped meanwhile
                raise _stands_still(owner)
        return done.result()
    finally:
        done.cancel()


def _stands_still(owner: str) -> NotStarted:
    return NotStarted(
        f"{owner} needs the event loop on which the lifespan was entered, and that loop does not run now. "
        "Keep it running. In a test, enter the lifespan and use the application within one asyncio.run(), or "
        "write `with TestClient(app)`."
    )
