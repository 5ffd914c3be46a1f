"""The databases of a run: one for each number of rows, filled before anything is measured."""

from __future__ import annotations

import subprocess
import sys
import time

from benchmarks.peer import Way
from benchmarks.plan import PeerError
from benchmarks.serving import ROOT, environment
from tests.support.servers.postgresql import PostgreSQL

SETTLE_SECONDS = 10


def name_of(rows: int) -> str:
    """Return the name of the database with so many rows."""
    return f"benchmark_{rows}_rows"


def seeded(server: PostgreSQL, rows: int, name: str = "") -> str:
    """Make a database with so many rows, by default under a name that tells them; return its URL."""
    name = name or name_of(rows)
    server.drop_database(name)
    return filled(server.create_database(name), rows)


def filled(url: str, rows: int) -> str:
    """Fill an empty database; return its URL."""
    run(Way("seed", "", ""), url, "benchmarks.project.seed", rows)
    return url


def run(peer: Way, url: str, module: str, *arguments: object) -> None:
    """Run a module on a database with a peer's settings, to its end."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    settings = environment(peer.environment(), url)
    subprocess.run(command, cwd=ROOT, env=settings, stdout=subprocess.DEVNULL, check=True)


def wait_until_quiet(server: PostgreSQL, rows: int) -> None:
    """Wait until the last peer's connections are gone, so that the next one is not blamed."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while server.connections(name_of(rows)):
        if time.monotonic() > deadline:
            raise PeerError("left connections open on the server after it had ended")
        time.sleep(0.05)
