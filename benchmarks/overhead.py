"""What `await run(query)` costs over the query itself, and where: `python -m benchmarks.overhead`.

One caller, so nothing queues: each way is timed for a while, in turn, round after round. The ways differ by
one step each, so the difference of two lines is the price of a step.
"""

import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

from benchmarks.serving import ROOT
from tests.support.servers.postgresql import PostgreSQL

CALLS = 400
ROUNDS = 15

Way = Callable[[], Awaitable[object]]


async def measure() -> dict[str, list[float]]:
    """Microseconds for one call of each way, a figure for each round."""
    from asgiref.sync import sync_to_async
    from django.db import connections
    from fastapi import FastAPI

    from fastapi_django_orm import DjangoORM, run

    DjangoORM.setup()
    from benchmarks.project.bbs.models import Topic

    def query() -> object:
        return Topic.objects.get(pk=500)

    def many(function: Callable[[], object]) -> float:
        started = time.perf_counter()
        for _ in range(CALLS):
            function()
        return (time.perf_counter() - started) / CALLS * 1e6

    async def timed(way: Way) -> float:
        started = time.perf_counter()
        for _ in range(CALLS):
            await way()
        return (time.perf_counter() - started) / CALLS * 1e6

    figures: dict[str, list[float]] = {}
    async with DjangoORM(repositories=[]).lifespan(FastAPI()):
        for _ in range(ROUNDS):
            ways: dict[str, Callable[[], Awaitable[float]]] = {
                "the query, in a loop on one thread": lambda: run(many, query),
                "run(a function that does nothing)": lambda: timed(lambda: run(lambda: None)),
                "run(acquire a connection)": lambda: timed(
                    lambda: run(lambda: connections["default"] and None)
                ),
                "run(query)": lambda: timed(lambda: run(query)),
                "sync_to_async(query)": lambda: timed(lambda: sync_to_async(query)()),
                "aget()": lambda: timed(lambda: Topic.objects.aget(pk=500)),
            }
            for name, way in ways.items():
                figures.setdefault(name, []).append(await way())
    return figures


def report(figures: dict[str, list[float]]) -> str:
    """A table of medians and ranges, each over the bare query of the same round."""
    bare = figures["the query, in a loop on one thread"]
    lines = ["| one call of | µs | range | over the query |", "| --- | ---: | ---: | ---: |"]
    for name, values in figures.items():
        over = statistics.median(value - base for value, base in zip(values, bare, strict=True))
        median = statistics.median(values)
        lines.append(f"| {name} | {median:.0f} | {min(values):.0f} to {max(values):.0f} | {over:+.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Start PostgreSQL, fill it, measure and print."""
    with PostgreSQL() as server:
        os.environ["DATABASE_URL"] = server.create_database("overhead")
        os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.project.settings"
        os.environ["BENCHMARK_CONN_MAX_AGE"] = "600"
        subprocess.run([sys.executable, "-m", "benchmarks.project.seed", "1000"], cwd=ROOT, check=True)
        print(report(asyncio.run(measure())))


if __name__ == "__main__":
    main()
