"""Refreshes of some keys: `python -m benchmarks.children.refreshing MODULE ROWS TIMES` prints milliseconds.

Rows are changed, deleted and inserted again by another connection. Each time the refresh is timed, until
the ETag and the size of the list with those rows are there; then a bare driver's query of the same rows.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg

ROWS = "SELECT id, comment, created_at FROM bbs_topic WHERE id = ANY(%s)"
DELETE = "DELETE FROM bbs_topic WHERE id = ANY(%s)"
INSERT = "INSERT INTO bbs_topic (id, comment, created_at) VALUES (%s, %s, %s)"
UPDATE = "UPDATE bbs_topic SET comment = %s WHERE id = ANY(%s)"

SEVERAL = 100  # keys
FULL = 3  # full refreshes

Figures = dict[str, list[float]]


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """Return milliseconds, and what was returned."""
    started = time.perf_counter()
    found = function(*arguments)
    return (time.perf_counter() - started) * 1e3, found


class Writer:
    """Another process, as it were: a connection of its own, behind Django's back."""

    def __init__(self, url: str, rows: int) -> None:
        self.connection = psycopg.connect(url, autocommit=True)
        self.rows = rows
        self.writes = 0

    def read(self, keys: list[int]) -> list[tuple[Any, ...]]:
        """Read what there is under these keys: the bare query."""
        return self.connection.execute(ROWS, [keys]).fetchall()

    def changes(self, count: int) -> Iterator[tuple[str, list[int]]]:
        """Make changes of so many random rows, and tell of each which keys it was."""
        keys = random.sample(range(1, self.rows + 1), count)
        self.writes += 1
        self.connection.execute(UPDATE, [f"changed for the {self.writes}th time", keys])
        yield "update", keys
        rows = self.read(keys)
        self.connection.execute(DELETE, [keys])
        yield "delete", keys
        with self.connection.cursor() as cursor:
            cursor.executemany(INSERT, rows)
        yield "insert", keys


def measure(module: str, rows: int, times: int) -> dict[str, Figures]:
    """Return milliseconds of refreshes, and of bare queries, for each kind of change and number of keys."""
    peer = importlib.import_module(module)
    peer.load(rows)
    writer = Writer(os.environ["DATABASE_URL"], rows)
    refreshes: Figures = {}
    queries: Figures = {}
    for count, repeats in ((1, times), (SEVERAL, times // 4 or 1)):
        for _ in range(repeats):
            for change, keys in writer.changes(count):
                refresh, seen = timed(peer.refresh, keys)
                query, there = timed(writer.read, keys)
                check(seen, keys, there, rows)
                refreshes.setdefault(f"{change} {count}", []).append(refresh)
                queries.setdefault(f"{change} {count}", []).append(query)
    refreshes["full"] = [full(peer, writer, rows) for _ in range(FULL)]
    return {"refreshes": refreshes, "queries": queries}


def full(peer: Any, writer: Writer, rows: int) -> float:
    """Return the milliseconds of a full refresh that finds something changed."""
    next(writer.changes(1))
    milliseconds, _ = timed(peer.load, rows)
    return milliseconds


def check(seen: Any, keys: list[int], there: list[tuple[Any, ...]], rows: int) -> None:
    """Fail unless a snapshot shows what is in the database."""
    found = [tuple(seen.row(key).values()) for key in keys if key in seen.by_key]
    if sorted(found) != sorted(there) or len(seen) != rows - len(keys) + len(there):
        raise SystemExit(f"shows {len(found)} rows of {len(there)}, or shows them wrong: {found[:1]}")


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
