"""Repositories whose loads a test can hold back, count and break."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from fastapi_django_orm import CachedRepository, DjangoORM, ORMSettings
from tests.project.board.models import Topic

DEADLINE = 20.0  # seconds that a load may be held back


class Gate:
    """What the loads of a repository pass, when they have read and before they return it.

    Attributes:
        error: what every load raises, if anything.
        loads: how many have come since the application has started.
        most: how many were here at once.
    """

    def __init__(self) -> None:
        self.error: Exception | None = None
        self._open = threading.Event()
        self._lock = threading.Lock()
        self.open()
        self.reset()

    def reset(self) -> None:
        """Forget what has passed so far."""
        self.loads = self.most = self._inside = 0
        self._begun = threading.Semaphore(0)

    def close(self) -> None:
        """Hold back the loads that come from now on."""
        self._open.clear()

    def open(self) -> None:
        """Let all pass."""
        self._open.set()

    def wait_for_load(self) -> None:
        """Return when a load has come that no earlier call has waited for."""
        assert self._begun.acquire(timeout=DEADLINE), "no load has begun"

    async def load_begun(self) -> None:
        """As `wait_for_load`, beside a running event loop."""
        await asyncio.to_thread(self.wait_for_load)

    def enter(self) -> None:
        """Pass, on the thread that loads."""
        with self._lock:
            self.loads += 1
            self._inside += 1
            self.most = max(self.most, self._inside)
        self._begun.release()
        try:
            assert self._open.wait(DEADLINE), "nobody has opened the gate"
            if self.error is not None:
                raise self.error
        finally:
            with self._lock:
                self._inside -= 1


def gated(gate: Gate, **attributes: Any) -> type[CachedRepository]:
    """A repository of topics whose loads pass the gate after they have read."""

    class Topics(CachedRepository):
        model = "board.Topic"
        fields = ("id", "comment")

        def prepare(self, here: Any) -> None:
            super().prepare(here)
            put_behind(gate, self)

    for name, value in attributes.items():
        setattr(Topics, name, value)
    return Topics


def put_behind(gate: Gate, repository: Any) -> None:
    """Have whatever a prepared repository reads pass the gate when it was read."""
    read = repository._reader.read

    def gated(*args: Any, **options: Any) -> Iterator[Any]:
        rows = list(read(*args, **options))
        gate.enter()
        yield from rows

    repository._reader.read = gated


@asynccontextmanager
async def started(
    *repositories: type[Any], gate: Gate | None = None, **settings: Any
) -> AsyncIterator[list[Any]]:
    """The repositories of an application that runs, for the length of the block."""
    async with DjangoORM(ORMSettings(**settings), repositories=repositories).lifespan(FastAPI()):
        if gate is not None:
            gate.reset()
        try:
            yield [await repository.current() for repository in repositories]
        finally:
            if gate is not None:
                gate.open()  # or the shutdown would wait for a load that the failed test has left


def add_topics(*comments: str) -> list[Topic]:
    """Write topics, outside of any application."""
    return [Topic.objects.create(comment=comment) for comment in comments]


def comments(repository: Any) -> list[str]:
    """What the repository serves now."""
    return [row["comment"] for row in repository.all()]
