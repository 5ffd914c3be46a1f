"""Loads from SQLite, whose rows come one by one while writers wait."""

import asyncio
import sqlite3
import tracemalloc
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from django.db import connections

from fastapi_django_orm.errors import RefreshFailed
from fastapi_django_orm.memory.table import Table
from fastapi_django_orm.reading.pacing import Pace
from tests.support.databases import default_changed
from tests.support.gates import started
from tests.support.playing import outside
from tests.support.repositories import declare

pytestmark = pytest.mark.usefixtures("sqlite")


def add_many(rows: int) -> None:
    with connections["default"].cursor() as cursor:  # as instances they would take longer than all the rest
        cursor.execute(
            "INSERT INTO board_topic (comment, tags, created_at)"
            " WITH RECURSIVE counter(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM counter WHERE n < %s)"
            " SELECT 'a topic of some length, as people write them: ' || n, '[]', '2026-01-01 00:00:00'"
            " FROM counter",
            [rows],
        )


def test_a_load_holds_few_rows_at_a_time() -> None:
    """At its most it takes little more memory than the snapshot that it leaves."""

    async def main() -> float:
        async with started(declare(fields=("id", "comment"))) as (topics,):
            await outside(lambda: add_many(20_000))
            tracemalloc.start()
            try:
                await topics.refresh()
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            return peak / topics.snapshot.size

    assert asyncio.run(main()) < 2.5  # all rows at once: 4.3


def test_a_load_that_rests_keeps_no_writer_waiting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without WAL nobody can commit while rows are being read, so a load does not rest before it has them."""
    file = tmp_path / "rests.sqlite3"
    rests = 0

    def rest(pace: Pace) -> None:
        nonlocal rests
        with closing(sqlite3.connect(file, timeout=0)) as writer:
            writer.execute("BEGIN EXCLUSIVE")  # "database is locked" if anybody reads
        rests += 1

    async def main() -> None:
        async with started(declare(fields=("id", "comment"))) as (topics,):
            await outside(lambda: add_many(3000))
            monkeypatch.setattr(Pace, "rest", rest)
            await topics.refresh()
            assert len(topics) == 3000

    with default_changed(migrate=True, NAME=file, OPTIONS={"transaction_mode": "IMMEDIATE"}):
        asyncio.run(main())
    assert rests


def test_a_load_that_fails_half_way_leaves_no_rows_open(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Others can write at once, though somebody still holds the error."""
    file = tmp_path / "fails.sqlite3"

    def broken(table: Table, page: Any) -> Any:
        raise ValueError("of the first page")

    async def main() -> None:
        async with started(declare(fields=("id", "comment"))) as (topics,):
            await outside(lambda: add_many(3000))
            monkeypatch.setattr(Table, "known", broken)
            with pytest.raises(RefreshFailed) as error:
                await topics.refresh()
            with closing(sqlite3.connect(file, timeout=0)) as writer:
                writer.execute("BEGIN EXCLUSIVE")
            assert "first page" in str(error.value.__cause__)

    with default_changed(migrate=True, NAME=file, OPTIONS={"transaction_mode": "IMMEDIATE"}):
        asyncio.run(main())
