"""A real uvicorn in a thread of the test process, for tests that look at an application from both sides."""

import threading
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

from tests.support.servers.uvicorn import KEEP_ALIVE

DEADLINE = 20.0  # seconds


@contextmanager
def serving(
    app: FastAPI, *, around: Callable[[FastAPI], ASGIApp] | None = None, **options: Any
) -> Iterator[httpx.Client]:
    """Serve the application on a free port, for the length of the block, to the client that it gives.

    Args:
        app: the application.
        around: wraps it in what the server calls.
        **options: uvicorn's.

    Raises:
        BaseException: what the application's lifespan has raised at startup.
    """
    served: Any = app if around is None else around(app)
    config = uvicorn.Config(served, port=0, lifespan="on", log_config=None, **options)
    server = uvicorn.Server(config)
    failure: list[BaseException] = []
    original = app.router.lifespan_context

    @contextmanager
    def restored() -> Iterator[None]:
        app.router.lifespan_context = _recording(original, failure)
        try:
            yield
        finally:
            app.router.lifespan_context = original

    with restored():
        thread = threading.Thread(target=_run, args=[server], name="uvicorn")
        thread.start()
        try:
            while not server.started and thread.is_alive():
                thread.join(0.01)
            if failure:
                raise failure[0]
            if not server.started:
                raise RuntimeError("uvicorn did not start")
            port = server.servers[0].sockets[0].getsockname()[1]
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=DEADLINE, **KEEP_ALIVE) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join(DEADLINE)
            assert not thread.is_alive(), "uvicorn did not end"


def _run(server: uvicorn.Server) -> None:
    with suppress(SystemExit):  # how uvicorn says that the lifespan has failed
        server.run()


def _recording(lifespan: Any, failure: list[BaseException]) -> Any:
    @asynccontextmanager
    async def recording(app: FastAPI) -> Any:
        try:
            async with lifespan(app) as state:
                yield state
        except BaseException as error:
            failure.append(error)
            raise

    return recording
