"""Refreshing: one load at a time, and nobody gets data older than the question."""

import asyncio
import json
import re
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from datetime import datetime, timedelta, tzinfo
from typing import Any, Self

import pytest
import structlog
from asgiref.sync import async_to_sync
from django.core.exceptions import ValidationError
from django.db import DatabaseError, DataError, OperationalError
from structlog.testing import capture_logs

from fastapi_django_orm.errors import RefreshFailed
from tests.project.board.models import Topic
from tests.support.gates import DEADLINE, Gate, add_topics, comments, gated, started

pytestmark = pytest.mark.usefixtures("sqlite")


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[Any]]:
    """What is logged, instead of the output: rendering a traceback takes longer than these tests."""
    with capture_logs() as entries:
        yield entries


def ask(repository: Any) -> asyncio.Task[Any]:
    """Ask for a refresh, in a task that the loop begins before anything that is asked later."""
    return asyncio.ensure_future(repository.refresh())


async def asked() -> None:
    """Let the tasks that exist take their first step."""
    await asyncio.sleep(0)


# One load at a time, for whoever asks


def test_a_refresh_serves_what_was_written_before_it(database: str) -> None:
    """After a refresh the repository serves the rows as the database has them, as a new version."""

    async def main() -> None:
        async with started(gated(Gate())) as (topics,):
            await Topic.objects.acreate(comment="new")
            assert comments(topics) == ["old"]
            snapshot = await topics.refresh()
            assert comments(topics) == ["old", "new"]
            assert topics.snapshot is snapshot
            assert snapshot.version == 2

    add_topics("old")
    asyncio.run(main())


def test_loads_of_one_repository_never_overlap() -> None:
    """However many ask in whatever order, no load begins before the one before it has ended."""
    gate = Gate()

    async def main() -> None:
        async with started(gated(gate), gate=gate) as (topics,):
            for _ in range(5):
                gate.close()
                first = ask(topics)
                await gate.load_begun()
                others = [ask(topics) for _ in range(10)]
                await asked()
                gate.open()
                await asyncio.gather(first, *others)
            assert gate.most == 1

    asyncio.run(main())


@pytest.mark.parametrize(("own", "expected"), [(0.005, 0.0005), (0.001001, 0.0005), (0.0001, 0.0001)])
def test_the_interpreter_changes_hands_sooner_during_a_load(own: float, expected: float) -> None:
    """While anything loads, no thread waits for five milliseconds; and after it, as before."""

    async def main() -> None:
        gates = Gate(), Gate()
        async with started(
            *(gated(gate, name=f"topics_{number}") for number, gate in enumerate(gates))
        ) as both:
            sys.setswitchinterval(own)
            loads = []
            for gate, served in zip(gates, both, strict=True):
                gate.close()
                loads.append(ask(served))
                await gate.load_begun()
                gate.reset()
            for gate, load in zip(gates, loads, strict=True):
                assert sys.getswitchinterval() == pytest.approx(expected, abs=1e-6)
                gate.open()
                await load
            for _ in range(20):
                await both[0].refresh()
            assert sys.getswitchinterval() == pytest.approx(own, abs=1e-6)

    before = sys.getswitchinterval()
    try:
        asyncio.run(main())
    finally:
        sys.setswitchinterval(before)


def test_two_repositories_load_at_the_same_time() -> None:
    """A load that takes long holds back the loads of its own repository only."""
    slow, quick = Gate(), Gate()

    async def main() -> None:
        async with started(gated(slow), gated(quick, name="others")) as (topics, others):
            slow.reset()
            slow.close()
            waiting = ask(topics)
            await slow.load_begun()
            assert (await others.refresh()).version == 2
            assert not waiting.done()
            slow.open()
            await waiting

    asyncio.run(main())


def test_who_asks_during_a_load_gets_what_was_committed_before_it_asked() -> None:
    """A load that has read already answers only those who asked before it began."""
    gate = Gate()

    async def main() -> None:
        async with started(gated(gate), gate=gate) as (topics,):
            gate.close()
            early = ask(topics)
            await gate.load_begun()
            await Topic.objects.acreate(comment="committed during the load")
            late = ask(topics)
            await asked()
            gate.open()
            assert len(await early) == 0
            assert [row["comment"] for row in (await late).rows] == ["committed during the load"]

    asyncio.run(main())


def test_a_hundred_callers_share_one_load() -> None:
    """Callers that ask while nothing runs get the same load."""
    gate = Gate()

    async def main() -> None:
        async with started(gated(gate), gate=gate) as (topics,):
            snapshots = await asyncio.gather(*(topics.refresh() for _ in range(100)))
            assert {snapshot.version for snapshot in snapshots} == {2}
            assert gate.loads == 1

    asyncio.run(main())


def test_a_hundred_callers_during_a_load_cost_one_more() -> None:
    """Callers that ask while a load runs share the next one."""
    gate = Gate()

    async def main() -> None:
        async with started(gated(gate), gate=gate) as (topics,):
            gate.close()
            running = ask(topics)
            await gate.load_begun()
            others = [ask(topics) for _ in range(100)]
            await asked()
            gate.open()
            await running
            assert {snapshot.version for snapshot in await asyncio.gather(*others)} == {3}
            assert gate.loads == 2

    asyncio.run(main())


# Who gives up


def test_a_caller_that_gives_up_leaves_the_load_to_the_others() -> None:
    """Cancelling one of those who share a running load ends the wait of that one only."""
    gate = Gate()

    async def main() -> None:
        async with started(gated(gate), gate=gate) as (topics,):
            gate.close()
            impatient, patient = ask(topics), ask(topics)
            await gate.load_begun()
            impatient.cancel()
            with pytest.raises(asyncio.CancelledError):
                await impatient
            gate.open()
            assert (await patient).version == 2
            assert gate.loads == 1

    asyncio.run(main())


def test_a_caller_that_gives_up_before_the_load_begins_leaves_it_to_the_others() -> None:
    """Cancelling one of those who wait for the next load does not take it from the rest."""
    gate = Gate()

    async def main() -> None:
        async with started(gated(gate), gate=gate) as (topics,):
            gate.close()
            running = ask(topics)
            await gate.load_begun()
            impatient, patient = ask(topics), ask(topics)
            await asked()
            impatient.cancel()
            gate.open()
            await running
            assert (await patient).version == 3
            assert impatient.cancelled()

    asyncio.run(main())


def test_a_load_that_nobody_waits_for_any_more_is_served(logs: list[Any]) -> None:
    """When all who asked have given up, what they asked for arrives nevertheless."""
    gate = Gate()

    async def main() -> None:
        async with started(gated(gate), gate=gate) as (topics,):
            gate.close()
            only = ask(topics)
            await gate.load_begun()
            only.cancel()
            with pytest.raises(asyncio.CancelledError):
                await only
            gate.open()
            assert (await topics.refresh()).version == 3

    asyncio.run(main())
    assert [entry["version"] for entry in logs if entry["event"] == "repository_refreshed"] == [2, 3]


# What fails


def test_a_failed_load_keeps_what_is_served() -> None:
    """Who asked is told the cause, and readers go on with the old rows."""
    gate = Gate()

    async def main() -> None:
        async with started(gated(gate), gate=gate) as (topics,):
            before = topics.snapshot
            gate.error = OperationalError("the disk is gone")
            with pytest.raises(RefreshFailed, match="topics could not be refreshed") as caught:
                await topics.refresh()
            assert caught.value.__cause__ is gate.error
            assert topics.snapshot is before
            assert comments(topics) == ["kept"]

    add_topics("kept")
    asyncio.run(main())


def test_a_failed_load_fails_for_everybody_who_shared_it() -> None:
    """All callers of the load that failed are told so, each by an exception of its own."""
    gate = Gate()

    async def main() -> None:
        async with started(gated(gate), gate=gate) as (topics,):
            gate.error = OperationalError("the disk is gone")
            errors = await asyncio.gather(*(topics.refresh() for _ in range(3)), return_exceptions=True)
            assert [type(error) for error in errors] == [RefreshFailed] * 3
            assert len(set(map(id, errors))) == 3

    asyncio.run(main())


def test_a_failed_load_is_logged_with_its_cause(logs: list[Any]) -> None:
    """The event names the repository, who asked, the error and what is served instead."""
    gate = Gate()

    async def main() -> None:
        async with started(gated(gate), gate=gate) as (topics,):
            gate.error = OperationalError("the disk is gone")
            with pytest.raises(RefreshFailed):
                await topics.refresh()

    asyncio.run(main())
    (failed,) = [entry for entry in logs if entry["event"] == "refresh_failed"]
    assert failed["log_level"] == "error"
    assert (failed["repository"], failed["trigger"]) == ("topics", "call")
    assert (failed["failures"], failed["serving"]) == (1, 1)
    assert failed["error"] == "OperationalError"
    assert "the disk is gone" in str(failed)


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (ValueError("invalid literal: 'rosebud'"), "its text is left out"),
        (KeyError("rosebud"), "its text is left out"),
        (DataError('invalid input syntax for type integer: "rosebud"'), "its text is left out"),
        (ValidationError("“rosebud” is not a valid UUID."), "its text is left out"),
        (DatabaseError("the disk is gone\nDETAIL:  Failing row contains (rosebud)."), "the disk is gone"),
        (RuntimeError("out of order"), "out of order"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_failed_load_is_logged_without_values(logs: list[Any], error: Exception, kept: str) -> None:
    """An error whose text may quote a row is logged by its class and place, without a traceback."""
    gate = Gate()

    async def main() -> None:
        async with started(gated(gate), gate=gate) as (topics,):
            gate.error = error
            with pytest.raises(RefreshFailed):
                await topics.refresh()

    asyncio.run(main())
    failed = next(entry for entry in logs if entry["event"] == "refresh_failed")
    assert failed["error"] == type(error).__name__
    assert kept in failed["cause"]
    if "left out" in kept:
        assert "gates.py" in failed["cause"]
    assert ("exc_info" in failed) == isinstance(error, RuntimeError)
    assert "rosebud" not in str(failed)


def test_a_failed_load_is_tried_again_until_it_succeeds(logs: list[Any]) -> None:
    """The repository recovers by itself, without anybody who asks."""
    gate = Gate()

    async def main() -> None:
        async with started(gated(gate), gate=gate) as (topics,):
            gate.error = OperationalError("the disk is gone")
            with pytest.raises(RefreshFailed):
                await topics.refresh()
            await gate.load_begun()
            gate.error = None
            await Topic.objects.acreate(comment="written meanwhile")
            gate.close()
            await gate.load_begun()
            joins_next = ask(topics)
            await asked()
            gate.open()
            await joins_next
            assert comments(topics) == ["written meanwhile"]

    asyncio.run(main())
    triggers = [entry["trigger"] for entry in logs if entry["event"] == "repository_refreshed"]
    assert triggers == ["retry", "call"]


def test_a_log_that_cannot_be_written_does_not_end_refreshing() -> None:
    """Whoever reads the log may go: loads that succeed and loads that fail are answered as before."""
    gate = Gate()
    lost: list[str] = []

    def lose(logger: Any, method: str, event: Any) -> Any:
        lost.append(event["event"])
        raise BrokenPipeError("the reader has gone")

    async def main() -> None:
        async with started(gated(gate), gate=gate) as (topics,):
            before = structlog.get_config()["processors"]
            structlog.configure(processors=[lose])
            for version in (2, 3):
                assert (await asyncio.wait_for(topics.refresh(), DEADLINE)).version == version
            gate.error = OperationalError("the disk is gone")
            with pytest.raises(RefreshFailed):
                await asyncio.wait_for(topics.refresh(), DEADLINE)
            gate.error = None
            assert (await asyncio.wait_for(topics.refresh(), DEADLINE)).version >= 4  # a retry may be first
            structlog.configure(processors=before)

    asyncio.run(main())
    assert {"repository_refreshed", "refresh_failed"} == set(lost)


class Hurried(asyncio.SelectorEventLoop):
    """An event loop that writes down how long a repository was to wait, and does not wait."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    def call_at(self, when: float, callback: Callable[..., Any], *args: Any, **options: Any) -> Any:
        task = asyncio.current_task(self)
        if task is not None and task.get_name() == "refresh topics":
            self.waits.append(when - self.time())
            when = self.time()
        return super().call_at(when, callback, *args, **options)


def run_hurried(main: Callable[[Hurried], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=Hurried) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, Hurried)
        runner.run(main(loop))


def test_retries_wait_longer_each_time_and_never_longer_than_half_a_minute() -> None:
    """A database that is down is not hammered, and one that comes back is not forgotten."""
    gate = Gate()

    async def main(loop: Hurried) -> None:
        async with started(gated(gate), gate=gate) as (topics,):
            gate.error = OperationalError("the disk is gone")
            loop.waits.clear()
            with pytest.raises(RefreshFailed):
                await topics.refresh()
            for _ in range(13):
                await gate.load_begun()
            growing, longest = loop.waits[:6], loop.waits[7:12]
            assert growing == sorted(growing)
            assert growing[0] > 0
            assert growing[5] > 10 * growing[0]
            assert max(longest) <= 30
            assert min(longest) >= 15
            assert len({round(wait, 2) for wait in longest}) > 1  # or workers would come back together

    run_hurried(main)


def test_after_a_success_the_next_failure_is_retried_soon() -> None:
    """A success ends the series: the wait after the next failure is a first one again."""
    gate = Gate()

    async def main(loop: Hurried) -> None:
        async with started(gated(gate), gate=gate) as (topics,):
            for _ in range(2):
                gate.reset()
                gate.error = OperationalError("the disk is gone")
                loop.waits.clear()
                with pytest.raises(RefreshFailed):
                    await topics.refresh()
                for _ in range(6):
                    await gate.load_begun()
                assert loop.waits[0] <= 0.5 < loop.waits[4]
                gate.error = None
                await topics.refresh()

    run_hurried(main)


# What gets old


def test_rows_older_than_max_age_are_loaded_in_the_background(logs: list[Any]) -> None:
    """Nobody asks and nobody waits: the old rows are served until the new ones are there."""
    gate = Gate()

    async def main() -> None:
        async with started(gated(gate, max_age=timedelta(milliseconds=20)), gate=gate) as (topics,):
            gate.close()
            await Topic.objects.acreate(comment="unannounced")
            await gate.load_begun()
            before = topics.snapshot
            await asked()
            assert topics.snapshot is before
            gate.reset()
            gate.open()
            for _ in range(
                2
            ):  # the first may have read too early, and has been swapped in when the last is here
                await gate.load_begun()
            assert comments(topics) == ["unannounced"]

    asyncio.run(main())
    loads = [entry for entry in logs if entry["event"] == "repository_refreshed"]
    assert {entry["trigger"] for entry in loads} == {"max_age"}


def test_rows_get_old_when_the_clock_is_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that were loaded at what the clock calls the future are loaded again at `max_age` all the same."""

    class Ahead(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return super().now(tz) + timedelta(hours=1)

    gate = Gate()

    async def main() -> None:
        with monkeypatch.context() as patch:
            patch.setattr("fastapi_django_orm.memory.loading.datetime", Ahead)
            async with started(gated(gate, max_age=timedelta(milliseconds=20)), gate=gate):
                for _ in range(2):
                    await gate.load_begun()

    asyncio.run(main())


def test_rows_without_max_age_are_not_loaded_unasked() -> None:
    """Without `max_age` the loop has nothing to wait for."""
    gate = Gate()

    async def main(loop: Hurried) -> None:
        async with started(gated(gate), gate=gate) as (topics,):
            loop.waits.clear()
            await topics.refresh()
            await asked()
            assert loop.waits == []
            assert gate.loads == 1

    run_hurried(main)


def test_rows_younger_than_max_age_are_left_alone() -> None:
    """The next load is due when the rows have reached `max_age`, not before."""
    gate = Gate()

    async def main(loop: Hurried) -> None:
        async with started(gated(gate, max_age=timedelta(hours=1)), gate=gate):
            gate.close()
            await gate.load_begun()
            assert 3600 - DEADLINE < loop.waits[0] <= 3600
            gate.open()

    run_hurried(main)


def test_callers_are_answered_when_a_load_takes_longer_than_max_age() -> None:
    """Rows that are too old as soon as they are there do not keep a caller from being heard."""

    async def main() -> None:
        async with started(gated(Gate(), max_age=timedelta(microseconds=1))) as (topics,):
            snapshot = await asyncio.wait_for(topics.refresh(), DEADLINE)
            assert snapshot.version > 1

    asyncio.run(main())


# From elsewhere


def from_a_thread(call: Callable[[], Any]) -> Any:
    """Call a function on a thread that knows nothing of the application's loop."""
    result: list[Any] = []

    def run() -> None:
        try:
            result.append(call())
        except BaseException as error:
            result.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(DEADLINE)
    return result[0]


@pytest.mark.parametrize("how", ["async_to_sync", "asyncio.run"])
def test_another_thread_may_ask(how: str) -> None:
    """A refresh works from an event loop that is not the application's, and is the application's own load."""
    gate = Gate()

    async def main() -> None:
        async with started(gated(gate), gate=gate) as (topics,):
            call = (
                async_to_sync(topics.refresh)
                if how == "async_to_sync"
                else lambda: asyncio.run(topics.refresh())
            )
            await Topic.objects.acreate(comment="new")
            snapshot = await asyncio.to_thread(from_a_thread, call)
            assert snapshot is topics.snapshot
            assert comments(topics) == ["new"]
            assert gate.loads == 1

    asyncio.run(main())


def test_another_thread_is_told_of_a_failure() -> None:
    """A refresh that fails raises the same exception on every event loop."""
    gate = Gate()

    async def main() -> None:
        async with started(gated(gate), gate=gate) as (topics,):
            gate.error = OperationalError("the disk is gone")
            error = await asyncio.to_thread(from_a_thread, async_to_sync(topics.refresh))
            assert isinstance(error, RefreshFailed)
            assert error.__cause__ is gate.error

    asyncio.run(main())


def test_a_caller_on_another_thread_that_gives_up_leaves_the_load_to_the_others() -> None:
    """Cancelling a caller of another event loop ends nothing in the application's."""
    gate = Gate()

    async def main() -> None:
        async with started(gated(gate), gate=gate) as (topics,):
            gate.close()
            patient = ask(topics)

            async def impatient() -> None:
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(topics.refresh(), 0.01)

            await asyncio.to_thread(from_a_thread, lambda: asyncio.run(impatient()))
            gate.open()
            assert (await patient).version == 2

    asyncio.run(main())


# At the end


def test_a_shutdown_during_a_load_tells_who_waits() -> None:
    """Callers of the load that runs and of the next one get an error, not a cancellation of their own."""
    gate = Gate()
    repository = gated(gate)

    async def application(running: asyncio.Event, end: asyncio.Event) -> None:
        async with started(repository):
            gate.reset()
            running.set()
            await end.wait()

    async def main() -> None:
        running, end = asyncio.Event(), asyncio.Event()
        serving = asyncio.ensure_future(application(running, end))
        await running.wait()
        topics = await repository.current()
        gate.close()
        first = ask(topics)
        await gate.load_begun()
        second = ask(topics)
        await asked()
        end.set()
        for caller in (first, second):
            with pytest.raises(RefreshFailed, match="shut down"):
                await caller
        gate.open()
        await serving
        assert topics.snapshot.version == 1
        names = [thread.name for thread in threading.enumerate()]
        assert not [name for name in names if re.fullmatch(r"database-\d+", name)]

    asyncio.run(main())


def test_nobody_refreshes_after_the_shutdown() -> None:
    """A repository that is still held when its application has ended says so."""

    async def main() -> None:
        async with started(gated(Gate())) as (topics,):
            pass
        with pytest.raises(RefreshFailed, match="shut down"):
            await topics.refresh()

    asyncio.run(main())


# Readers


def test_readers_see_the_old_rows_as_long_as_a_load_runs() -> None:
    """Until a load has ended, every way to read gives what was there before it."""
    gate = Gate()

    async def main() -> None:
        async with started(gated(gate, indexes=("comment",)), gate=gate) as (topics,):
            key = topics.all()[0]["id"]
            gate.close()
            await Topic.objects.all().aupdate(comment="new")
            refreshing = ask(topics)
            await gate.load_begun()
            assert comments(topics) == ["old"]
            assert topics.get(key)["comment"] == "old"
            assert len(topics.find(comment="old")) == 1
            assert json.loads(topics.response().body)["topics"][0]["comment"] == "old"
            gate.open()
            await refreshing
            assert comments(topics) == ["new"]
            assert topics.get(key)["comment"] == "new"
            assert len(topics.find(comment="new")) == 1
            assert json.loads(topics.response().body)["topics"][0]["comment"] == "new"

    add_topics("old")
    asyncio.run(main())


def test_readers_never_see_half_a_load() -> None:
    """Threads that read all the time find the rows, the bytes and the index of one load together."""
    torn: list[Any] = []
    done = threading.Event()

    def read(topics: Any) -> None:
        while not done.is_set():
            snapshot = topics.snapshot
            (comment, *others) = {row["comment"] for row in snapshot.rows}
            encoded = {row["comment"] for row in json.loads(snapshot.json)["topics"]}
            if others or encoded != {comment} or set(snapshot.indexes["comment"]) != {comment}:
                torn.append(snapshot)
            if len(set(comments(topics))) != 1:
                torn.append(snapshot)

    async def main() -> None:
        async with started(gated(Gate(), indexes=("comment",))) as (topics,):
            readers = [threading.Thread(target=read, args=[topics]) for _ in range(2)]
            for reader in readers:
                reader.start()
            try:
                for number in range(8):
                    await Topic.objects.all().aupdate(comment=f"round {number}")
                    await topics.refresh()
            finally:
                done.set()
                for reader in readers:
                    reader.join(DEADLINE)

    Topic.objects.bulk_create(Topic(comment="round") for _ in range(50))
    asyncio.run(main())
    assert torn == []


def test_a_repository_that_could_not_be_loaded_at_startup_is_loaded_later(logs: list[Any]) -> None:
    """With `startup = "retry"` an application that has started without rows gets them by itself."""
    gate = Gate()
    gate.error = OperationalError("not yet")

    async def main() -> None:
        async with started(gated(gate), startup="retry") as (topics,):
            await gate.load_begun()
            gate.error = None
            gate.reset()
            await gate.load_begun()
            assert (await topics.refresh()).version == 2

    asyncio.run(main())
    triggers = [
        entry["trigger"] for entry in logs if entry["event"] in ("repository_loaded", "repository_refreshed")
    ]
    assert triggers == ["retry", "call"]
