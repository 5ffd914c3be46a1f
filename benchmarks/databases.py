"""The databases of a run: one for each number of rows, filled before anything is measured."""

from __future__ import annotations

import subprocess
import sys
import time

from benchmarks.plan import PeerError
from benchmarks.serving import ROOT, environment
from tests.servers.postgresql import PostgreSQL

SETTLE_SECONDS = 10


def name_of(rows: int) -> str:
    """Return the name of the database with so many rows."""
    return f"benchmark_{rows}_rows"


def seeded(server: PostgreSQL, rows: int) -> str:
    """Make a database with so many rows; return its URL."""
    name = name_of(rows)
    server.drop_database(name)
    url = server.create_database(name)
    settings = {"DJANGO_SETTINGS_MODULE": "benchmarks.project.settings"}
    command = [sys.executable, "-m", "benchmarks.project.seed", str(rows)]
    subprocess.run(command, cwd=ROOT, env=environment(settings, url), check=True)
    return url


def wait_until_quiet(server: PostgreSQL, rows: int) -> None:
    """Wait until the last peer's connections are gone, so that the next one is not blamed."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while server.connections(name_of(rows)):
        if time.monotonic() > deadline:
            raise PeerError("left connections open on the server after it had ended")
        time.sleep(0.05)
