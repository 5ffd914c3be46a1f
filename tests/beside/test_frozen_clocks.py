"""Clocks that a test stops: freezegun and time-machine around an application, and while it runs."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

freezegun = pytest.importorskip("freezegun", reason="freezegun is not installed")
time_machine = pytest.importorskip("time_machine", reason="time-machine is not installed")

from asgiref.sync import sync_to_async  # noqa: E402
from django.db import connections  # noqa: E402
from fastapi import FastAPI  # noqa: E402
from structlog.testing import capture_logs  # noqa: E402

from fastapi_django_orm import CachedRepository, DjangoORM, ORMSettings  # noqa: E402
from fastapi_django_orm.clock import pause  # noqa: E402
from tests.project.board.models import Topic  # noqa: E402
from tests.support.projects import Project  # noqa: E402

DEADLINE = 20  # seconds, by a clock that no test stops

Clock = Callable[[], AbstractContextManager[Any]]
CLOCKS: dict[str, Clock] = {
    "real": nullcontext,
    "future": lambda: freezegun.freeze_time("2031-05-01"),
    "past": lambda: freezegun.freeze_time("2001-05-01"),
    "ticking": lambda: freezegun.freeze_time("2031-05-01", tick=True),
    "real asyncio": lambda: freezegun.freeze_time("2031-05-01", real_asyncio=True),
    "time-machine": lambda: time_machine.travel("2031-05-01", tick=False),
    "time-machine, past": lambda: time_machine.travel("2001-05-01", tick=False),
}


@pytest.fixture(params=CLOCKS)
def clock(request: pytest.FixtureRequest) -> Clock:
    return CLOCKS[request.param]


@pytest.fixture
def topics() -> type[CachedRepository]:
    attributes = {"model": Topic, "name": "topics", "ordering": ("-pk",), "max_age": timedelta(minutes=5)}
    return type("Topics", (CachedRepository,), attributes)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[list[Any]]:
    with capture_logs() as entries:
        yield entries


async def written_and_read(topics: type[CachedRepository]) -> None:
    """Writes, and waits for each to be there by all ways that there are."""
    repository = await topics.current()
    before = len(repository)
    for number in range(3):  # the second would wait for a pause after the first
        topic = await Topic.objects.acreate(comment=f"topic {number}")
        if number % 2:
            await repository.refresh(topic.pk)
        else:
            await repository.wait_until_current()
        assert len(repository) == before + number + 1
        assert (await repository.fetch(topic.pk))["comment"] == f"topic {number}"
        assert repository.get(topic.pk)["comment"] == f"topic {number}"
        assert repository.response().status_code == 200


async def in_time(work: Any) -> None:
    """Wait for it, by a clock that is not stopped: asyncio's own time limits never pass."""
    task, limit = asyncio.ensure_future(work), asyncio.ensure_future(pause(DEADLINE))
    await asyncio.wait([task, limit], return_when=asyncio.FIRST_COMPLETED)
    limit.cancel()
    assert task.done(), task.get_stack()
    await task


@pytest.mark.parametrize("when", ["before", "during"])
def test_an_application_under_a_stopped_clock(
    default_database: str, topics: type[CachedRepository], clock: Clock, when: str, quiet: list[Any]
) -> None:
    """It starts, follows every write, and ends, on every database, whenever the clock was stopped."""
    settings = ORMSettings(coherence=("auto",), call_timeout=60)
    app = FastAPI(lifespan=DjangoORM(settings, repositories=[topics]).lifespan)

    async def main() -> None:
        with ExitStack() as stack:
            if when == "before":
                stack.enter_context(clock())
            async with app.router.lifespan_context(app):
                with nullcontext() if when == "before" else clock():
                    await in_time(written_and_read(topics))
                if when == "during":
                    await in_time(written_and_read(topics))
                await sync_to_async(connections.close_all)()

    asyncio.run(main())
    assert not [entry for entry in quiet if entry["log_level"] == "error"]


def test_rows_keep_their_times(default_database: str, topics: type[CachedRepository], clock: Clock) -> None:
    """A time that was written is read as it is, whatever class the clock puts in place of datetime."""
    Topic.objects.create(comment="first")
    Topic.objects.update(created_at=datetime(2026, 7, 1, 12, 0, tzinfo=UTC))

    async def main() -> None:
        app = FastAPI(lifespan=DjangoORM(repositories=[topics]).lifespan)
        async with app.router.lifespan_context(app):
            repository = await topics.current()
            (row,) = repository.all()
            assert row["created_at"] == datetime(2026, 7, 1, 12, 0, tzinfo=UTC)
            assert b'"2026-07-01T12:00:00Z"' in repository.response().body

    with clock():
        asyncio.run(main())


def test_a_start_that_is_the_first_thing_under_a_stopped_clock(project: Project) -> None:
    """What is imported late, by whichever package, is not imported for the first time then."""
    code = """
        import asyncio, freezegun
        from main import Topics, app

        async def main():
            async with app.router.lifespan_context(app):
                print("rows:", len(await Topics.current()))

        with freezegun.freeze_time("2031-05-01"):
            asyncio.run(main())
    """
    assert "rows: 1" in project.python(code)
