"""What one hint for a full load costs the database with many workers: `python -m benchmarks.workers`.

Real: PostgreSQL, Valkey, the hint (NOTIFY after a commit, heard through LISTEN), and all of this package
between the hint and the new snapshot, of which each worker has its own: follower with its jitter, refresher,
loader, and its own conversation with Valkey. What a worker serves in the end is compared with the table.

Simulated: the workers are objects in one process that share an interpreter, one LISTEN connection and, as
behind a pooler, `CONNECTIONS` connections to the database. So the time until all are fresh is that of one
interpreter doing the work of all of them: compare it between lines, and nothing else. Loads are counted from
when a worker asks the pooler until it has the rows.

With the shared snapshot the loads go with the time over which workers ask, divided by what a load takes,
since whoever asks while a load runs must have the next one. Workers that all ask during one load cost one
more; a thousand that share an interpreter ask over seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import django
import structlog
from asgiref.sync import ThreadSensitiveContext

from tests.support.servers.postgresql import PostgreSQL
from tests.support.servers.valkey import Valkey

ROOT = Path(__file__).resolve().parent.parent
WORKERS = (1, 10, 100, 1000)
ROWS = 1000
CONNECTIONS = 20
SPREAD = 1.0  # seconds, the setting's default
PATIENCE = 100.0  # seconds for one line
COLUMNS = ("workers", "jitter", "shared", "database loads", "most at once", "all fresh after")


@dataclass(frozen=True)
class Line:
    """What one hint has led to."""

    workers: int
    jitter: bool
    shared: bool
    loads: int
    most: int
    seconds: float


class Pooler:
    """Lets so many loads read at once, and counts all that have come and not gone."""

    def __init__(self) -> None:
        self._places = threading.BoundedSemaphore(CONNECTIONS)
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Forget what was counted."""
        self.loads = self.most = self._inside = 0

    @contextmanager
    def load(self) -> Iterator[None]:
        """Be one of the loads."""
        with self._lock:
            self.loads += 1
            self._inside += 1
            self.most = max(self.most, self._inside)
        try:
            with self._places:
                yield
        finally:
            from django.db import connections

            connections.close_all()  # returned to the pooler
            with self._lock:
                self._inside -= 1


class Counted:
    """A loader behind the pooler."""

    def __init__(self, loader: Any, pooler: Pooler) -> None:
        self.alone = loader
        self._pooler = pooler

    def load(self, before: Any) -> Any:
        """Read the database."""
        with self._pooler.load():
            return self.alone.load(before)

    def read(self, queryset: Any, before: Any) -> Any:
        """Read the database, for others too."""
        with self._pooler.load():
            return self.alone.read(queryset, before)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.alone, name)


class Fleet:
    """So many workers of one repository."""

    def __init__(self, count: int, pooler: Pooler, shared: Any, spread: float) -> None:
        from fastapi_django_orm import CachedRepository
        from fastapi_django_orm.application import Application
        from fastapi_django_orm.coherence.follower import Follower
        from fastapi_django_orm.reading.windows import Windows

        class Topics(CachedRepository):
            model = "bbs.Topic"

        self.pooler = pooler
        self.refreshers: list[Any] = []
        nothing: Any = None  # no live read
        here = Application(nothing, nothing)
        here.hold(Windows(nothing, nothing, patience=0))
        here.shared = shared
        for _ in range(count):
            repository = Topics()
            repository.prepare(here)
            refresher: Any = repository.refresher
            holder = refresher if shared is None else refresher._loader
            holder._loader = self.loader = Counted(holder._loader, pooler)
            self.refreshers.append(refresher)
        self.followers = [Follower(refresher, spread) for refresher in self.refreshers]

    def warm_up(self, seconds: float, snapshot: Any) -> None:
        """Have all serve the rows before the change, and know how long a load takes alone."""
        for refresher, follower in zip(self.refreshers, self.followers, strict=True):
            refresher.start()
            refresher.snapshot, follower._cost = snapshot, seconds

    async def hint(self, comment: str) -> float:
        """Change a row and announce it; the seconds until all serve it."""
        from fastapi_django_orm.coherence.postgresql import PostgreSQLListener
        from fastapi_django_orm.coherence.postgresql_session import way_to

        receiver = _Receiver(self.followers)
        tables = {"bbs_topic": "bbs.Topic"}
        listener = PostgreSQLListener("default", partial(way_to, "default", {}), tables, 30.0)
        listening = asyncio.create_task(listener.listen(receiver))
        try:
            await receiver.ready.wait()
            self.pooler.reset()
            began = time.perf_counter()
            await asyncio.to_thread(_change, comment)
            await receiver.told.wait()
            await asyncio.gather(*(follower.settle() for follower in self.followers))
            return time.perf_counter() - began
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

    async def stop(self) -> None:
        """End all tasks."""
        await asyncio.gather(*(follower.stop() for follower in self.followers))
        await asyncio.gather(*(refresher.stop() for refresher in self.refreshers))


class _Receiver:
    """Tells all workers what one connection hears."""

    def __init__(self, followers: list[Any]) -> None:
        self._followers = followers
        self.ready, self.told = asyncio.Event(), asyncio.Event()

    def connected(self) -> None:
        self.ready.set()

    def received(self, hint: Any) -> None:
        for follower in self._followers:
            follower.follow(None)
        self.told.set()


def _change(comment: str) -> None:
    from django.db import connection, transaction

    from benchmarks.project.bbs.models import Topic

    with transaction.atomic():
        Topic.objects.filter(pk=1).update(comment=comment)
        with connection.cursor() as cursor:
            cursor.execute("""SELECT pg_notify('fastapi_django_orm', '{"v":1,"m":"bbs.Topic"}')""")
    connection.close()


async def _measure(workers: int, jitter: bool, shares: Any, pooler: Pooler, number: int) -> Line:
    fleet = Fleet(workers, pooler, shares, SPREAD if jitter else 0.0)
    with ThreadPoolExecutor(workers + 8) as executor:
        async with asyncio.timeout(PATIENCE), ThreadSensitiveContext(executor=executor):
            fleet.warm_up(*await asyncio.to_thread(_time_alone, fleet.loader))
            try:
                seconds = await fleet.hint(comment := f"change {number}")
                for refresher in fleet.refreshers:
                    assert refresher.snapshot.row(1)["comment"] == comment, "a worker serves old rows"
                etags = {refresher.snapshot.etag for refresher in fleet.refreshers}
                assert len(etags) == 1, "workers serve different rows"
            finally:
                await fleet.stop()
    return Line(workers, jitter, shares is not None, pooler.loads, pooler.most, seconds)


def _time_alone(loader: Any) -> tuple[float, Any]:
    began = time.perf_counter()
    snapshot = loader.load(None)
    return time.perf_counter() - began, snapshot


def measure(workers: tuple[int, ...] = WORKERS, rows: int = ROWS) -> list[Line]:
    """Measure all: each number of workers with and without jitter, with and without the shared snapshot.

    Sets Django up in this process, on a database of its own, so it is called once.
    """
    with ExitStack() as stack:
        server, valkey = stack.enter_context(PostgreSQL()), stack.enter_context(Valkey())
        server.drop_database("workers")
        os.environ["DATABASE_URL"] = server.create_database("workers")
        os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.project.settings"
        command = [sys.executable, "-m", "benchmarks.project.seed", str(rows)]
        subprocess.run(command, cwd=ROOT, check=True)
        django.setup()
        from django.db import connections

        from fastapi_django_orm.shared_loads.loader import SharedSnapshots

        pooler, lines = Pooler(), []
        for count in workers:
            for jitter in (False, True):
                for shares in (None, SharedSnapshots(valkey.url())):
                    line = _measure(count, jitter, shares, pooler, len(lines))
                    lines.append(asyncio.run(line))
        connections.close_all()
        return lines


def table(lines: list[Line]) -> str:
    """The lines in Markdown."""
    cells = [COLUMNS, ("---:", "---", "---", "---:", "---:", "---:")]
    cells += [
        (
            f"{line.workers:,}",
            "yes" if line.jitter else "no",
            "yes" if line.shared else "no",
            f"{line.loads:,}",
            f"{line.most:,}",
            f"{line.seconds:,.2f} s",
        )
        for line in lines
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.workers")
    parser.add_argument("--workers", type=lambda text: tuple(map(int, text.split(","))), default=WORKERS)
    parser.add_argument("--rows", type=int, default=ROWS)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    print(table(measure(options.workers, options.rows)))


if __name__ == "__main__":
    main()
