"""Coroutines that run under the plugin without HTTP, and looks at the database from outside of it."""

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import Any, TypeVar

from django.db import connections

from tests.project.board.models import Topic
from tests.support.gates import started

T = TypeVar("T")

DEADLINE = 20.0  # seconds


def play(main: Callable[[], Awaitable[T]], *, deadline: float = DEADLINE, **settings: Any) -> T:
    """Run the coroutine function inside the lifespan of an application, before the deadline."""

    async def with_deadline() -> T:
        async with asyncio.timeout(deadline), started(**settings):
            return await main()

    return asyncio.run(with_deadline())


async def outside(function: Callable[[], T]) -> T:
    """Run the function on a connection of Django's own, in no transaction of the caller's."""

    def work() -> T:
        try:
            return function()
        finally:
            connections.close_all()

    return await asyncio.get_running_loop().run_in_executor(None, Context().run, work)


async def committed() -> list[str]:
    """The comments of the topics that everybody can see."""
    return await outside(stored)


def stored() -> list[str]:
    """The comments of all topics, in order."""
    return sorted(Topic.objects.values_list("comment", flat=True))


def write(comment: str) -> None:
    """A topic, from synchronous code."""
    Topic.objects.create(comment=comment)


async def awrite(comment: str) -> None:
    """A topic, from asynchronous code."""
    await Topic.objects.acreate(comment=comment)


def wait_for(event: Any) -> None:
    """Wait for a threading event, before the deadline."""
    assert event.wait(DEADLINE), "the event did not come"
