"""Many writers, with each way to announce: `python -m benchmarks.children.writers MODULE SECONDS WRITERS…`.

Prints the commits a second of each number of writers. Each writer is a thread with a connection of its own,
and commits one row after the other.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from functools import partial

import django
import psycopg

django.setup()
from benchmarks.children.announcing import INSERT  # noqa: E402  # models need django.setup()
from benchmarks.project.bbs.models import Topic  # noqa: E402
from fastapi_django_orm.django import tables, triggers  # noqa: E402

WARM_UP = 0.5  # seconds

Rates = dict[int, dict[str, float]]


def rate(writers: int, seconds: float) -> float:
    """Return how many commits a second so many writers make."""
    counts, end = [0] * writers, threading.Event()

    def write(number: int) -> None:
        with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as connection:
            while not end.is_set():
                connection.execute(INSERT, ["It works on my machine."])
                counts[number] += 1

    threads = [threading.Thread(target=write, args=[number]) for number in range(writers)]
    for thread in threads:
        thread.start()
    time.sleep(WARM_UP)
    begin, before = time.perf_counter(), sum(counts)
    time.sleep(seconds)
    found = (sum(counts) - before) / (time.perf_counter() - begin)
    end.set()
    for thread in threads:
        thread.join()
    return found


def measure(seconds: float, numbers: list[int]) -> Rates:
    """Return the rates, by the number of writers and what announces their writes."""
    table = tables.table_of(Topic)
    ways: dict[str, Callable[[], object]] = {
        "off": lambda: None,
        "notify": partial(triggers.install, "default", table),
        "table": partial(triggers.install, "default", table, into_table=True),
    }
    found: Rates = {number: {} for number in numbers}
    for number in numbers:
        for way, put in ways.items():
            triggers.uninstall("default", table)
            put()
            found[number][way] = rate(number, seconds)
    return found


if __name__ == "__main__":
    print(json.dumps(measure(float(sys.argv[2]), list(map(int, sys.argv[3:])))))
