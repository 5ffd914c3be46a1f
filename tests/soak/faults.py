"""What goes wrong in a run: connections that listen are cut, the broker restarts, workers stand still."""

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress

import psycopg

from tests.soak.place import NAME, Place

_LISTENERS = """
SELECT pid FROM pg_stat_activity
WHERE datname = current_database() AND starts_with(application_name, 'fastapi-django-orm')"""


class Faults:
    """Makes one every so often.

    Args:
        place: where.
        pids: the workers' processes.
        rng: decides which.
        counts: takes in what was done.
    """

    def __init__(self, place: Place, pids: list[int], rng: random.Random, counts: Counter[str]) -> None:
        self._place = place
        self._pids = pids
        self._rng = rng
        self._counts = counts

    async def make(self, every: float) -> None:
        """Make them until cancelled, each kind once in every round; whatever was stopped goes on then."""
        possible: list[Callable[[], Awaitable[None]]] = [self._stop_worker]
        if self._place.postgresql is not None:
            possible += [self._cut_one, self._cut_all]
        if self._place.valkey is not None:
            possible += [self._restart_broker]
        while True:
            for make in self._rng.sample(possible, len(possible)):
                await asyncio.sleep(every * self._rng.uniform(0.5, 1.0))
                await make()

    async def _stop_worker(self) -> None:
        pid = self._rng.choice(self._pids)
        self._counts["worker stopped for a while"] += 1
        os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(self._rng.uniform(0.5, 3.0))
        finally:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    async def _cut_one(self) -> None:
        self._counts["listening connection cut"] += 1
        await asyncio.to_thread(self._cut, " ORDER BY random() LIMIT 1")

    async def _cut_all(self) -> None:
        self._counts["all listening connections cut"] += 1
        await asyncio.to_thread(self._cut, "")

    def _cut(self, which: str) -> None:
        assert self._place.postgresql is not None
        with psycopg.connect(self._place.postgresql.url(NAME), autocommit=True) as connection:
            connection.execute(f"SELECT pg_terminate_backend(pid) FROM ({_LISTENERS}{which}) AS listening")

    async def _restart_broker(self) -> None:
        self._counts["broker restarted"] += 1
        # In one thread to its end, also when the run ends meanwhile: what is still to be told needs it.
        await asyncio.to_thread(self._restart, self._rng.uniform(0, 2.0))

    def _restart(self, seconds: float) -> None:
        assert self._place.valkey is not None
        self._place.valkey.kill()
        time.sleep(seconds)
        self._place.valkey.start()
