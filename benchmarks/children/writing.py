"""Writes at a pace: `python -m benchmarks.children.writing MODULE SECONDS` prints when each was committed.

Each is a transaction that changes one row through Django's ORM, with a random pause before it. For the limits
it announces itself what it writes, as `BENCHMARK_ANNOUNCE` says.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

import django
from redis import Redis

PAUSE = (0.01, 0.05)  # seconds

Announce = Callable[[int], Any]


def measure(seconds: float) -> dict[str, list[float]]:
    """Write for so long; return when each COMMIT was sent, and when it had returned."""
    django.setup()
    from benchmarks.peers.coherence.seen import comment_of, key_of
    from benchmarks.project.bbs.models import Topic

    announce = announcing()
    topics = {topic.pk: topic for topic in Topic.objects.all()}
    begun: list[float] = []
    committed: list[float] = []
    end = time.monotonic() + seconds
    for number in count():
        time.sleep(random.uniform(*PAUSE))
        if time.monotonic() > end:
            return {"begun": begun, "committed": committed}
        topic = topics[key_of(number, len(topics))]
        topic.comment = comment_of(number)
        begun.append(write(topic, committed, partial(announce, number)))
    raise AssertionError("there are more numbers")


def write(topic: Any, committed: list[float], announce: Callable[[], Any]) -> float:
    """Commit a topic; return when COMMIT was sent."""
    from django.db import transaction

    with transaction.atomic():
        transaction.on_commit(lambda: committed.append(time.monotonic()))  # before all that others do then
        topic.save()
        announce()
        return time.monotonic()  # COMMIT is next


def announcing() -> Announce:
    """Return what else to do in the transaction of a write."""
    from django.db import connection, transaction

    def notify(number: int) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_notify('benchmark', %s)", [str(number)])

    def publish(number: int) -> None:
        transaction.on_commit(partial(broker.publish, "benchmark", number))

    broker = Redis.from_url(os.environ["BENCHMARK_BROKER"])
    announcers: dict[str, Announce] = {"notify": notify, "publish": publish}
    return announcers.get(os.environ.get("BENCHMARK_ANNOUNCE", ""), lambda number: None)


if __name__ == "__main__":
    print(json.dumps(measure(float(sys.argv[2]))))
