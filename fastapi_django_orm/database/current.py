"""The executor of the application that the running code belongs to.

Each application has its own threads and repositories, so that two in one process (tests, a service beside
another) do not share data. Code under a request finds its application's executor through a context variable;
code elsewhere finds the only one there is.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import ParamSpec, Protocol, TypeVar

from ..errors import NotStarted
from .pool import Pool
from .threads import DatabaseThreads

P = ParamSpec("P")
T = TypeVar("T")

HOW_TO_START = (
    "Write FastAPI(lifespan=DjangoORM.lifespan). If that is written, nothing has run it: start the server "
    "without `--lifespan off`; in a test write `with TestClient(app) as client:`, or `async with "
    "app.router.lifespan_context(app):` around httpx.ASGITransport. A server runs the lifespan of the "
    "outermost application only: put `async with DjangoORM.lifespan(mounted_app):` into that one, or into "
    "any lifespan of your own."
)


class CurrentExecutor(Protocol):
    """What runs an application's calls; ``executor.DatabaseExecutor`` is one."""

    threads: DatabaseThreads
    pools: Callable[[str], Pool]

    async def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a synchronous function as a call."""


current_executor: ContextVar[CurrentExecutor] = ContextVar("fastapi_django_orm_executor")
_open: list[CurrentExecutor] = []  # of all applications


@contextmanager
def announced(executor: CurrentExecutor) -> Iterator[None]:
    """Have code find an executor, for the length of the block."""
    _open.append(executor)
    token = current_executor.set(executor)
    try:
        yield
    finally:
        _open.remove(executor)
        with suppress(ValueError):  # left in another task than it was entered in
            current_executor.reset(token)


def entered() -> CurrentExecutor | None:
    """The executor that this context has entered, if its application has not ended."""
    executor = current_executor.get(None)
    return executor if executor in _open else None


def find(owner: str) -> CurrentExecutor:
    """The executor of the application that the caller runs under.

    Raises:
        NotStarted: there is none, or several and the context does not say which; ``owner`` asks for it.
    """
    executor = current_executor.get(None)
    if executor in _open:
        return executor
    if len(_open) == 1:
        return _open[0]
    if _open:
        raise NotStarted(
            f"{owner}: {len(_open)} applications run in this process, and this code runs under none of them."
        )
    raise NotStarted(f"{owner} is used, but no lifespan of DjangoORM runs. {HOW_TO_START}")
