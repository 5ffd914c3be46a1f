"""The list of everything that is replaced in other packages; ``docs/replaced.md`` says why."""

from collections.abc import Iterator
from contextlib import contextmanager

from ..shared import SharedContext
from . import (
    async_waits,
    django_database,
    django_mounts,
    exception_handlers,
    fastapi_handlers,
    worker_threads,
)

# Of the whole process, from the beginning of the first lifespan to the end of the last.
REPLACED = (
    *django_database.REPLACED,
    *async_waits.REPLACED,
    *worker_threads.REPLACED,
    *django_mounts.REPLACED,
    *fastapi_handlers.REPLACED,
    *exception_handlers.REPLACED,
)

# Elsewhere, each by the code that needs it.
REPLACED_ELSEWHERE = (
    "app.middleware_stack",  # asgi_layer
    "app.build_middleware_stack",
    "sys.setswitchinterval",  # reading.pacing, while a repository is loaded
    # Of objects that the plugin has made itself:
    "chunked_cursor",  # of a pooled connection: database.cursors
    "connect",  # of a pooled connection: database.state
    "set_rollback",  # of a connection in atomic(): database.atomic_scope
)

_shared = SharedContext(*(replacement.open for replacement in REPLACED))


@contextmanager
def instrumented() -> Iterator[None]:
    """Replace everything for the length of the block; applications of one process share this.

    Raises:
        UnknownFastAPI: FastAPI or Starlette lacks a function that is to be replaced.
    """
    fastapi_handlers.check_fastapi()
    exception_handlers.check_starlette()
    with _shared.entered():
        yield
