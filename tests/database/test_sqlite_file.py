"""SQLite's file is replaced under an application that runs: a backup is put back, a developer begins anew."""

import asyncio
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from django.db import DatabaseError, connections
from structlog.testing import capture_logs

from fastapi_django_orm import run
from fastapi_django_orm.coherence.service import Coherence
from tests.project.board.models import Topic
from tests.support.databases import default_changed
from tests.support.hearing import eventually, follows, hearing, link
from tests.support.repositories import declare

POLL = 0.02  # seconds


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[Any]]:
    """What is logged, instead of the output."""
    with capture_logs() as entries:
        yield entries


@pytest.fixture
def place(sqlite: str, tmp_path: Path) -> Iterator[Path]:
    """The file of Django's `default`, in a folder of its own; beside that there is a backup with a topic."""
    (tmp_path / "site").mkdir()
    file = tmp_path / "site" / "board.sqlite3"
    topic = Topic.objects.create(comment="of the backup")
    _copy(tmp_path / "backup")
    topic.delete()
    _copy(file)
    connections.close_all()
    with default_changed(NAME=file):
        yield file
        connections.close_all()


def _copy(file: Path) -> None:
    with connections["default"].cursor() as cursor:
        cursor.execute("VACUUM INTO %s", [str(file)])
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")


def outside(program: str, file: Path) -> list[str]:
    """What a process of its own prints: SQLite shares what it knows of a file within a process."""
    beginning = "import os, shutil, sqlite3, sys; from pathlib import Path; file = Path(sys.argv[1])"
    backup = "backup = file.parent.parent / 'backup'"
    arguments = [sys.executable, "-c", f"{beginning}; {backup}\n{program}", str(file)]
    return subprocess.run(arguments, check=True, capture_output=True, text=True).stdout.splitlines()


REPLACE = "backup.replace(file)"
DELETE_AND_CREATE = """
for each in file.parent.glob(f"{file.name}*"):
    each.unlink()
shutil.copyfile(backup, file)"""
REPLACE_WITH_WAL = """
for each in file.parent.glob(f"{file.name}-*"):
    each.unlink()
backup.replace(file)
sqlite3.connect(file).execute("UPDATE board_topic SET comment = comment")
os._exit(0)  # and leaves its -wal"""
STORED = (
    "print(*sorted(c for c, in sqlite3.connect(file).execute('SELECT comment FROM board_topic')), sep='\\n')"
)


@pytest.mark.parametrize(
    "way", [REPLACE, DELETE_AND_CREATE, REPLACE_WITH_WAL], ids=["replace", "delete", "wal"]
)
def test_writes_go_to_the_file_that_is_there(place: Path, way: str) -> None:
    """No connection that is open writes into a file that has gone, and the new file's rows are served."""

    async def main() -> None:
        async with hearing(declare(), coherence_poll=POLL) as (topics, _):
            await run(Topic.objects.create, comment="before")
            await follows(topics, "before")
            await asyncio.to_thread(outside, way, place)
            await run(Topic.objects.create, comment="after")
            stored = await asyncio.to_thread(outside, STORED, place)
            assert "after" in stored  # and what was before where its -wal has stayed
            await follows(topics, *stored)
            await Topic.objects.acreate(comment="later")
            await follows(topics, "later", *stored)

    asyncio.run(main())


def test_a_connection_that_nothing_was_done_to_stays_open(place: Path) -> None:
    """The file is looked at before each use. The -wal that the first connection makes does not count."""

    def number() -> int:
        return id(connections["default"].connection)

    async def main() -> None:
        async with hearing(declare(), coherence="off", threads=1):
            await run(Topic.objects.create, comment="one")
            first = await run(number)
            for _ in range(3):
                await run(Topic.objects.create, comment="more")
                assert await run(number) == first

    asyncio.run(main())


def test_a_folder_that_disappears(place: Path) -> None:
    """A write fails instead of being lost, and the transport is down until the folder is back."""
    away = place.parent.with_name("away")

    def up(coherence: Coherence) -> bool:
        return link(coherence, "sqlite").connected_since is not None

    async def main() -> None:
        async with hearing(declare(), coherence_poll=POLL) as (topics, coherence):
            await run(Topic.objects.create, comment="before")
            await follows(topics, "before")
            place.parent.rename(away)
            with pytest.raises(DatabaseError):
                await run(Topic.objects.create, comment="lost")
            await eventually(lambda: not up(coherence), "it is noticed")
            assert (
                coherence.why_unheard("topics")
                == "sqlite:default is down. It is tried again; the log says why."
            )
            away.rename(place.parent)
            await eventually(lambda: up(coherence), "it is back")
            await run(Topic.objects.create, comment="after")
            await follows(topics, "after", "before")

    asyncio.run(main())
