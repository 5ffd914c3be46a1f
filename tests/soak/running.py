"""A run: workers, writers, readers and faults side by side, and the comparison in the end."""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import httpx

from tests.soak import child
from tests.soak.child import Child
from tests.soak.ending import expected_bodies, settle
from tests.soak.errors import Wrong
from tests.soak.faults import Faults
from tests.soak.place import ROOT, Place
from tests.soak.plan import Plan
from tests.soak.reading import readers
from tests.soak.verdict import Verdict
from tests.support.servers import Uvicorn

GROUPS = ("one", "two")  # machines' worth of processes; the second one's connections come from pools
WRITERS = 2  # processes in each
TELL_SECONDS = 30.0

Say = Callable[[str], None]


async def soak(plan: Plan, place: Place, say: Say) -> Verdict:
    """Carry out the plan.

    Raises:
        ChildError: a writer has failed, by which nothing is proved about workers.
        UvicornError: a worker did not start.
    """
    verdict = Verdict(plan)
    prepare = ("tests.soak.project.prepare", str(plan.rows), str(plan.seed))
    await child.run(*prepare, environment=place.environment())
    async with _workers(plan, place) as workers:
        try:
            await _write_and_read(verdict, place, workers, say)
            await _end(verdict, place, workers)
        except Wrong as wrong:
            verdict.wrong = str(wrong)
        _count_events(verdict, workers)
    return verdict


@asynccontextmanager
async def _workers(plan: Plan, place: Place) -> AsyncIterator[list[Uvicorn]]:
    """Processes that serve, each on a port of its own, so that each can be asked."""
    arguments = ["--no-access-log", "--log-level", "warning"]
    found = [
        Uvicorn("tests.soak.project.main:app", directory=ROOT, env=place.environment(), args=arguments)
        for _ in range(plan.workers)
    ]
    try:
        await asyncio.gather(*(asyncio.to_thread(worker.start) for worker in found))
        yield found
    finally:
        for worker in found:
            worker.close()


@asynccontextmanager
async def _writers(verdict: Verdict, place: Place) -> AsyncIterator[list[Child]]:
    """Processes that write; what they have done is in the verdict when they have ended."""
    plan = verdict.plan
    async with AsyncExitStack() as stack:
        pool = {"SOAK_POOL": GROUPS[1]} if place.pool else {}
        names = [f"{group}:{number}" for number in range(WRITERS) for group in GROUPS]
        arguments = (str(plan.seed), str(plan.rows), str(plan.pause), *names)
        writers = Child(
            "tests.soak.writing", *arguments, environment=place.environment(**pool), voices=len(names)
        )
        beacon = Child(
            "tests.soak.writing.beacon", environment=place.environment(), said=verdict.staleness.commit
        )
        found = [writers, beacon]
        for writer in found:
            await stack.enter_async_context(writer)
        await asyncio.gather(*(writer.begun() for writer in found))
        yield found
        said, _ = await asyncio.gather(*(writer.finish() for writer in found))
        for line in said[len(names) :]:  # each has said before that it begins
            verdict.add_writes(json.loads(line))


async def _write_and_read(verdict: Verdict, place: Place, workers: list[Uvicorn], say: Say) -> None:
    plan = verdict.plan
    async with _writers(verdict, place) as writers:
        tasks = [
            asyncio.create_task(reader.read())
            for reader in readers([worker.url for worker in workers], verdict)
        ]
        if plan.faults:
            rng = random.Random(f"{plan.seed} faults")
            faults = Faults(place, [worker.pid for worker in workers], rng, verdict.faults)
            tasks.append(asyncio.create_task(faults.make(plan.fault_every)))
        try:
            await _watch(verdict, tasks, writers, say)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _watch(verdict: Verdict, tasks: list[asyncio.Task[None]], writers: list[Child], say: Say) -> None:
    """Wait for the end of the time, or for the first that ends before it."""
    began = told = time.monotonic()
    while (passed := time.monotonic() - began) < verdict.plan.seconds:
        done, _ = await asyncio.wait(tasks, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            await task
        for writer in writers:
            writer.check()
        if time.monotonic() > told + TELL_SECONDS:
            told = time.monotonic()
            answers = sum(verdict.answers.values())
            behind = max(verdict.behind.values(), default=0.0)
            say(f"{passed:.0f} s: {answers} answers, at most {behind:.2f} s behind")


async def _end(verdict: Verdict, place: Place, workers: list[Uvicorn]) -> None:
    urls = [worker.url for worker in workers]
    expected = await expected_bodies(place)
    verdict.settled = await settle(urls, expected, verdict.plan.staleness)
    async with httpx.AsyncClient(timeout=30, trust_env=False) as client:
        for url in urls:
            verdict.counted.update((await client.get(f"{url}/counted/")).json())
            health = (await client.get(f"{url}/health/")).json()
            if health["status"] != "ok":
                raise Wrong(f"health is not ok in the end: {health}")


def _count_events(verdict: Verdict, workers: list[Uvicorn]) -> None:
    for worker in workers:
        for line in worker.output().splitlines():
            with suppress(ValueError, TypeError, KeyError):
                verdict.events[json.loads(line)["event"]] += 1
                continue
            verdict.events[line[:100]] += 1
