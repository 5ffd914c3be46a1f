"""What requests notice of refreshes in the same process: each cell idle and then busy, peers in turn.

One process for a peer's cells of a round: the ratio is between two loads that follow each other there.
"""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from benchmarks import same
from benchmarks.databases import seeded, wait_until_quiet
from benchmarks.load import Load, Outcome, measure
from benchmarks.peer import Peer
from benchmarks.plan import Plan, Results, Say
from benchmarks.serving import apart, serve
from tests.support.servers.postgresql import PostgreSQL

SERVED = 100
PATHS = {"/topics": 0, "/topics/": SERVED}  # and how many random keys to append
BUSY = 2  # times as long as idle: refreshes that give way to requests take their time
COMPARED = ["/topics", "/topics/1", f"/topics/{SERVED}"]


@dataclass(frozen=True)
class Cell:
    """One table of the report."""

    path: str
    clients: int


@dataclass(frozen=True)
class Pair:
    """A cell without and with refreshes, and how many of these there were in a second."""

    idle: Outcome
    busy: Outcome
    refreshes: float


@dataclass(frozen=True)
class Run:
    """One peer in one round."""

    peer: str
    rows: int
    round: int
    pairs: dict[Cell, Pair]

    def __str__(self) -> str:
        ratios = (
            f"{cell.path} {cell.clients} clients {pair.busy.rate / pair.idle.rate:.2f} "
            f"p99 {pair.idle.p99:.1f} to {pair.busy.p99:.1f} ms, {pair.refreshes:.1f} refreshes/s"
            for cell, pair in self.pairs.items()
        )
        return f"round {self.round + 1}: {self.peer}: {'; '.join(ratios)}"


def cells(plan: Plan) -> Iterator[Cell]:
    """Yield what is measured."""
    for path in PATHS:
        for clients in plan.clients:
            yield Cell(path, clients)


def measure_all(plan: Plan, say: Say) -> Results:
    """Carry out the plan."""
    results = Results(plan)
    with apart() as processor, PostgreSQL() as server:
        results.pinned = processor is not None
        for rows in plan.rows:
            bench = Bench(plan, server, processor, rows, seeded(server, rows))
            for number in range(plan.rounds):
                for peer in plan.peers:
                    if isinstance(peer, Peer):
                        results.attempt(peer, partial(bench.measure, peer, number), say)
    return results


@dataclass
class Bench:
    """The servers of one run, and what the control answered."""

    plan: Plan
    server: PostgreSQL
    processor: int | None
    rows: int
    url: str
    expected: list[Any] = field(default_factory=list)

    def measure(self, peer: Peer, number: int) -> Run:
        """Start a peer, compare its answers, and load it idle and busy."""
        with serve(peer, "list", COMPARED[0], self.url, self.processor) as server:
            base = server.base
            seen = same.answers(base, COMPARED, {})
            self.expected = self.expected or seen
            same.check(COMPARED, seen, self.expected)
            pairs = {cell: self.pair(base, cell) for cell in cells(self.plan)}
            same.check(COMPARED, same.answers(base, COMPARED, {}), self.expected)
        wait_until_quiet(self.server, self.rows)
        return Run(peer.name, self.rows, number, pairs)

    def pair(self, base: str, cell: Cell) -> Pair:
        """Load one cell without and with refreshes, after a warm-up."""
        load = partial(Load, base + cell.path, cell.clients, keys=PATHS[cell.path])
        measure(load(self.plan.warm_up))
        idle = measure(load(self.plan.seconds))
        before, started = told(base, "/busy"), time.perf_counter()
        busy = measure(load(self.plan.seconds * BUSY))
        refreshes = (told(base, "/idle") - before) / (time.perf_counter() - started)
        return Pair(idle, busy, refreshes)


def told(base: str, path: str) -> int:
    """Begin or end refreshing; return how many there have been so far."""
    with urllib.request.urlopen(base + path, timeout=60) as response:
        return int(json.load(response))
