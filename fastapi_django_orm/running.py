"""Which application's plugin a piece of code runs under.

Each application has repositories of its own, so that two in one process (tests, a service beside another)
do not share data. Code under a request finds its application through a context variable; code elsewhere
finds the only one there is.
"""

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import NotStarted
from .how_to_start import how_to_start

if TYPE_CHECKING:  # rooms above this one
    from .coherence.service import Coherence
    from .database.executor import DatabaseExecutor
    from .reading.windows import Windows
    from .repository import Repository
    from .shared_loads.loader import SharedSnapshots

T = TypeVar("T")


LOOK_AGAIN = 1.0  # seconds between two looks whether another loop still runs


class Running:
    """What the plugin holds for one application, between its start and its end."""

    def __init__(self) -> None:
        self.repositories: dict[type[Repository[Any]], Repository[Any]] = {}
        self.executor: DatabaseExecutor  # the plugin sets it first of all
        self.loop: asyncio.AbstractEventLoop | None = None
        self.coherence: Coherence | None = None
        self.shared: SharedSnapshots | None = None  # if loads are shared
        self.ended = False
        self.requests = 0
        self.windows: Windows  # the plugin sets it with the executor

    def requests_so_far(self) -> int:
        """How many requests have come so far."""
        return self.requests


_current: ContextVar[Running] = ContextVar("fastapi_django_orm_running")
_all: list[Running] = []


@contextmanager
def running() -> Iterator[Running]:
    """Announce an application, until the block ends."""
    here = Running()
    _all.append(here)
    token = _current.set(here)
    try:
        yield here
    finally:
        here.ended = True
        # Contexts of tasks that somebody remembers have this object, and nobody needs the rows any more.
        here.repositories.clear()
        here.coherence = here.shared = None
        _all.remove(here)
        with suppress(ValueError):  # left in another task than it was entered in
            _current.reset(token)


def enter(here: Running) -> Token[Running]:
    """Let this context run under this application, until ``leave()``."""
    return _current.set(here)


def leave(entered: Token[Running]) -> None:
    """Let this context run under what it ran under before."""
    _current.reset(entered)


def entered() -> Running | None:
    """The application that this context has entered, if it has not ended."""
    here = _current.get(None)
    return None if here is None or here.ended else here


def find(owner: str) -> Running:
    """The application that the caller runs under.

    Args:
        owner: what asks, for the message.

    Raises:
        NotStarted: there is none, or several and the context does not say which.
    """
    here = _current.get(None)
    if here is not None and not here.ended:
        return here
    if len(_all) == 1:
        return _all[0]
    if _all:
        raise NotStarted(
            f"{owner}: {len(_all)} applications run in this process, and this code runs under none of them."
        )
    raise NotStarted(f"{owner} is used, but no lifespan of DjangoORM runs. {how_to_start()}")


async def on_loop(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T], owner: str) -> T:
    """Run a coroutine on the loop of an application, for a caller on another.

    Args:
        loop: the application's.
        work: what to run there.
        owner: what asks, for the message.

    Raises:
        NotStarted: that loop does not run, and so nothing would ever come of it.
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


def how_to_get(owner: str) -> str:
    """What to write instead of using an instance that no application has made: the end of a message.

    Args:
        owner: the repository's class.
    """
    if not _all:
        return how_to_start()
    return (
        "It was made by hand, and the application that runs has one of its own: write "
        f"Depends({owner}.current) in a handler, and `await {owner}.current()` elsewhere."
    )
