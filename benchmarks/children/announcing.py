"""Writes with and without triggers: `python -m benchmarks.children.announcing MODULE ROWS TURNS`.

Prints the median milliseconds of each block of writes. A turn has for each kind of write a block with each
way to announce it, right after each other, in another order each time, on the same table.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import django
import psycopg

django.setup()
from benchmarks.project.bbs.models import Topic  # noqa: E402  # models need django.setup()
from fastapi_django_orm.django import tables, triggers  # noqa: E402

SINGLE = 30  # writes in a block, of one row each

# Seconds for a worker that listens to read what a write has changed, so that the next is not charged for it:
# one row, and all rows.
PAUSE = 0.01
CALM = 0.3

INSERT = "INSERT INTO bbs_topic (comment, created_at) VALUES (%s, now())"

# The least that announces something: a constant, and no look at the rows.
CONSTANT = """
CREATE OR REPLACE FUNCTION benchmark_constant() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('fastapi_django_orm', '{"v":1,"m":"bbs.Topic","k":[1]}');
    RETURN NULL;
END $$;
CREATE TRIGGER benchmark_constant AFTER INSERT OR UPDATE OR DELETE ON bbs_topic
    FOR EACH STATEMENT EXECUTE FUNCTION benchmark_constant()"""
NO_CONSTANT = "DROP TRIGGER IF EXISTS benchmark_constant ON bbs_topic"

Medians = dict[str, dict[str, list[float]]]


class Writer:
    """The kinds of writes."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self.connection = connection
        self.topics = list(Topic.objects.all())
        self.writes = 0

    def comment(self) -> str:
        """Return another one each time."""
        self.writes += 1
        return f"It works on my machine, says the writer of line {self.writes}."

    def save(self) -> None:
        """Save a row that is there."""
        topic = random.choice(self.topics)
        topic.comment = self.comment()
        topic.save()

    def create(self) -> None:
        """Create a row."""
        Topic.objects.create(comment=self.comment(), created_at=self.topics[0].created_at)

    def insert(self) -> None:
        """Insert a row without Django."""
        self.connection.execute(INSERT, [self.comment()])

    def update(self) -> None:
        """Update all rows."""
        Topic.objects.update(comment=self.comment())


class Announcers:
    """The ways to announce a write: each can be put in place, and all be taken away."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self.connection = connection
        self.table = tables.table_of(Topic)
        self.put: dict[str, Callable[[], object]] = {
            "off": lambda: None,
            "constant": partial(connection.execute, CONSTANT),
            "on": partial(triggers.install, "default", self.table),
        }

    def clear(self, rows: int) -> None:
        """Take all away, and the rows and the dead rows that a block has left."""
        triggers.uninstall("default", self.table)
        self.connection.execute(NO_CONSTANT)
        self.connection.execute("DELETE FROM bbs_topic WHERE id > %s", [rows])
        self.connection.execute("VACUUM bbs_topic")


def block(write: Callable[[], None], writes: int) -> float:
    """Return the median milliseconds of some writes."""
    took: list[float] = []
    for _ in range(writes):
        started = time.perf_counter()
        write()
        took.append((time.perf_counter() - started) * 1e3)
        time.sleep(PAUSE)
    return median(took)


def measure(rows: int, turns: int) -> Medians:
    """Return the medians of all blocks, by the kind of write and what announces it."""
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as connection:
        writer, announcers = Writer(connection), Announcers(connection)
        kinds = {
            write.__name__: write for write in (writer.save, writer.create, writer.insert, writer.update)
        }
        found: Medians = {kind: {how: [] for how in announcers.put} for kind in kinds}
        for _ in range(turns):
            for kind, write in kinds.items():
                for how in random.sample(list(announcers.put), len(announcers.put)):
                    announcers.clear(rows)
                    announcers.put[how]()
                    single = kind != "update"
                    block(write if single else writer.save, 2)  # what a first call compiles
                    found[kind][how].append(block(write, SINGLE if single else 1))
                    time.sleep(0 if single else CALM)
        return found


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[2]), int(sys.argv[3]))))
