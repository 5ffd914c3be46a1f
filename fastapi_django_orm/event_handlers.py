"""``@app.on_event`` beside a lifespan: the handlers run inside the plugin's.

FastAPI runs them in its default lifespan only. An application that is given another one loses them without a
word, and with them the lists that they load. Those of included routers FastAPI goes on running itself.
https://fastapi.tiangolo.com/advanced/events/#alternative-events-deprecated
"""

import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette._utils import is_async_callable

Handlers = list[Callable[[], Any]]


@asynccontextmanager
async def event_handlers_run(app: FastAPI) -> AsyncIterator[None]:
    """Run an application's ``startup`` handlers, and at the end of the block its ``shutdown`` handlers.

    As in FastAPI's default lifespan, a plain function runs on the event loop.
    """
    await _run(_left_to_us(app, "on_startup"))
    try:
        yield
    finally:
        await _run(_left_to_us(app, "on_shutdown"))


async def _run(handlers: Handlers) -> None:
    for handler in handlers:
        if is_async_callable(handler):
            await handler()
        else:
            handler()


def _left_to_us(app: FastAPI, event: str) -> Handlers:
    """The handlers for ``on_startup`` or ``on_shutdown`` that no default lifespan of a router runs."""
    handlers: Handlers = list(getattr(app.router, event, ()))
    for router in _routers_that_run_theirs(app.router.lifespan_context):
        for handler in getattr(router, event, ()):
            if handler in handlers:  # include_router() has added it to the application's
                handlers.remove(handler)
    return handlers


def _routers_that_run_theirs(lifespan: Any) -> Iterator[Any]:
    """The routers whose default lifespans are part of this one: FastAPI merges them in closures."""
    seen: set[int] = set()
    found = [lifespan]
    while found:
        each = found.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if router := getattr(each, "_router", None):
            yield router
        elif inspect.isfunction(function := inspect.unwrap(each)):
            variables = inspect.getclosurevars(function)
            around = [*variables.nonlocals.values(), *variables.globals.values()]
            found += [value for value in around if _is_lifespan(value)]


def _is_lifespan(value: Any) -> bool:
    return hasattr(value, "_router") or inspect.isasyncgenfunction(getattr(value, "__wrapped__", None))
