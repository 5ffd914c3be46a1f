"""One run: every cell is measured for every peer in turn, round after round, on the same rows.

A machine's speed drifts by more than the differences that matter. So peers take turns (A, B, C, A,
B, C…), each in a fresh process, and a ratio is always to the limit of the same round.
"""

from __future__ import annotations

import contextlib
import http.client
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from benchmarks import same
from benchmarks.catalog import Part, Peer
from benchmarks.load import Load, Outcome, measure
from benchmarks.serving import ROOT, PeerError, apart, environment, serve
from tests.servers.postgresql import PostgreSQL

SETTLE_SECONDS = 10
FAILURES = (
    PeerError,
    OSError,
    ValueError,  # what should be JSON is not
    http.client.HTTPException,
    subprocess.SubprocessError,
)


@dataclass(frozen=True)
class Plan:
    """What to measure and for how long."""

    part: Part
    peers: tuple[Peer, ...]
    rows: tuple[int, ...]
    clients: tuple[int, ...]
    rounds: int
    seconds: int
    warm_up: int = 1


@dataclass(frozen=True)
class Cell:
    """One column of the report: a path, over so many rows, for so many clients."""

    path: str
    rows: int
    clients: int
    random_keys: bool = False

    def paths(self) -> list[str]:
        """Return the paths on which all peers must agree."""
        if not self.random_keys:
            return [self.path]
        return [f"{self.path}{key}" for key in sorted({1, (self.rows + 1) // 2, self.rows})]


@dataclass(frozen=True)
class Run:
    """One peer in one cell in one round, and the server connections that it kept afterwards."""

    peer: str
    cell: Cell
    round: int
    outcome: Outcome
    connections: int


@dataclass
class Results:
    """All runs, and why peers are missing."""

    plan: Plan
    pinned: bool = False
    runs: list[Run] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def cells(plan: Plan) -> Iterator[Cell]:
    """Yield what a part measures."""
    for rows in plan.rows:
        for clients in plan.clients:
            if plan.part == "cached":
                yield Cell("/topics", rows, clients)
            else:
                yield Cell("/topics/", rows, clients, random_keys=True)
                yield Cell("/latest", rows, clients)


def measure_all(plan: Plan, say: Callable[[str], None]) -> Results:
    """Carry out the plan; a peer that fails is left out from there on, and the others go on.

    Without the limit there are no ratios: if it fails, the run ends with what it has.
    """
    results, limit = Results(plan), plan.peers[0]
    with apart() as processor, PostgreSQL() as server:
        results.pinned = processor is not None
        bench = Bench(results, server, processor, say)
        urls = {rows: bench.seeded(rows) for rows in plan.rows}
        for cell in cells(plan):
            for number in range(plan.rounds):
                for peer in plan.peers:
                    if not {peer.name, limit.name} & results.failed.keys():
                        bench.attempt(peer, cell, number, urls[cell.rows])
    return results


@dataclass
class Bench:
    """The servers of one run, and what the limit answered."""

    results: Results
    server: PostgreSQL
    processor: int | None
    say: Callable[[str], None]
    expected: dict[Cell, dict[str, Any]] = field(default_factory=dict)

    def seeded(self, rows: int) -> str:
        """Make a database with so many rows; return its URL."""
        name = f"benchmark_{rows}_rows"
        self.server.drop_database(name)
        url = self.server.create_database(name)
        command = [sys.executable, "-m", "benchmarks.project.seed", str(rows)]
        env = environment(self.results.plan.peers[0], url)
        subprocess.run(command, cwd=ROOT, env=env, check=True)
        return url

    def attempt(self, peer: Peer, cell: Cell, number: int, url: str) -> None:
        """Measure one peer once, or note why that was not possible."""
        try:
            run = self.measure(peer, cell, number, url)
        except FAILURES as error:
            self.results.failed[peer.name] = str(error) or repr(error)
            self.say(f"{peer.name} failed: {error}")
            return
        self.results.runs.append(run)
        self.say(
            f"{cell.path} {cell.rows} rows, {cell.clients} clients, round {number + 1}: "
            f"{peer.name} {run.outcome.rate:.0f}/s, {run.outcome.errors} errors, "
            f"{run.connections} connections"
        )

    def measure(self, peer: Peer, cell: Cell, number: int, url: str) -> Run:
        """Start a peer, compare its answers, warm it up, load it and count what it keeps."""
        plan, paths, database = self.results.plan, cell.paths(), urlsplit(url).path[1:]
        with serve(peer, url, self.processor, paths[0]) as base:
            seen = same.answers(base, paths)
            same.check(seen, self.expected.setdefault(cell, seen))
            keys = cell.rows if cell.random_keys else 0
            measure(Load(base + cell.path, cell.clients, plan.warm_up, keys))
            with contextlib.suppress(OSError):  # the next load counts errors
                same.answers(base, paths[:1])  # comes after what the warm-up left in the queue
            outcome = measure(Load(base + cell.path, cell.clients, plan.seconds, keys))
            time.sleep(0.5)  # closing takes a server a moment; keeping is what is counted
            connections = self.server.connections(database)
        self.quiet(database)
        return Run(peer.name, cell, number, outcome, connections)

    def quiet(self, database: str) -> None:
        """Wait until the last peer's connections are gone, so that the next one is not blamed."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while self.server.connections(database):
            if time.monotonic() > deadline:
                raise PeerError("left connections open on the server after it had ended")
            time.sleep(0.05)
