"""The parts that answer requests: every cell is measured for every peer in turn, round after round.

A machine's speed drifts by more than the differences that matter. So peers take turns (A, B, C, A,
B, C…), each in a fresh process, and a ratio is always to the limit of the same round.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from benchmarks import same
from benchmarks.databases import name_of, seeded, wait_until_quiet
from benchmarks.load import Load, Outcome, measure
from benchmarks.peer import Peer
from benchmarks.plan import Plan, Results, Say
from benchmarks.serving import apart, serve
from tests.support.servers.postgresql import PostgreSQL


@dataclass(frozen=True)
class Cell:
    """One table of the report: a kind of answer, from so many rows, for so many clients.

    Attributes:
        kind: what peers name in `kinds`, `apps` and `paths`.
        random_keys: whether a random key is appended to the path.
        conditional: whether clients have the answer already and ask whether there is a newer one.
        for_all: whether peers that name no kinds take part.
    """

    kind: str
    path: str
    rows: int
    clients: int
    random_keys: bool = False
    conditional: bool = False
    for_all: bool = True

    def includes(self, peer: Peer) -> bool:
        """Return whether a peer takes part."""
        return self.kind in peer.kinds or (self.for_all and not peer.kinds)

    def path_of(self, peer: Peer) -> str:
        """Return the path at which a peer gives the answer."""
        return peer.paths.get(self.kind, self.path)

    def compared(self, path: str) -> list[str]:
        """Return the paths on which all peers must agree."""
        if not self.random_keys:
            return [path]
        return [f"{path}{key}" for key in sorted({1, (self.rows + 1) // 2, self.rows})]


@dataclass(frozen=True)
class Run:
    """One peer in one cell in one round.

    Attributes:
        processor: microseconds of a processor that the server's processes had for each good answer.
        connections: to the database that it kept afterwards.
    """

    peer: str
    cell: Cell
    round: int
    outcome: Outcome
    processor: float
    connections: int

    def __str__(self) -> str:
        return (
            f"{self.cell.kind} of {self.cell.rows} rows, {self.cell.clients} clients, round "
            f"{self.round + 1}: {self.peer} {self.outcome.rate:.0f}/s, {self.processor:.0f} µs each, "
            f"{self.outcome.errors} errors, {self.connections} connections"
        )


def cached_cells(plan: Plan) -> Iterator[Cell]:
    """Yield lists of all sizes; of the largest also single rows, and 304s."""
    for clients in plan.clients:
        for rows in plan.rows:
            yield Cell("list", "/topics", rows, clients)
        most = max(plan.rows)
        yield Cell("row", "/topics/", most, clients, random_keys=True, for_all=False)
        yield Cell("unchanged", "/topics", most, clients, conditional=True, for_all=False)


def live_cells(plan: Plan) -> Iterator[Cell]:
    """Yield single rows for all numbers of clients, and the latest rows for the one in the middle."""
    for rows in plan.rows:
        for clients in plan.clients:
            yield Cell("row", "/topics/", rows, clients, random_keys=True)
        yield Cell("latest", "/latest", rows, plan.clients[(len(plan.clients) - 1) // 2])


CELLS = {"cached": cached_cells, "live": live_cells}


def measure_all(plan: Plan, say: Say) -> Results:
    """Carry out the plan; a peer that fails is left out from there on, and the others go on."""
    results = Results(plan)
    with apart() as processor, PostgreSQL() as server:
        results.pinned = processor is not None
        urls = {rows: seeded(server, rows) for rows in plan.rows}
        bench = Bench(plan, server, processor, urls)
        for cell in CELLS[plan.part](plan):
            for number in range(plan.rounds):
                for peer in plan.peers:
                    if isinstance(peer, Peer) and cell.includes(peer):
                        results.attempt(peer, partial(bench.measure, peer, cell, number), say)
    return results


@dataclass
class Bench:
    """The servers of one run, and what the limit answered."""

    plan: Plan
    server: PostgreSQL
    processor: int | None
    urls: dict[int, str]
    expected: dict[Cell, list[Any]] = field(default_factory=dict)

    def measure(self, peer: Peer, cell: Cell, number: int) -> Run:
        """Start a peer, compare its answers, warm it up, load it and count what it keeps."""
        path = cell.path_of(peer)
        paths = cell.compared(path)
        with serve(peer, cell.kind, paths[0], self.urls[cell.rows], self.processor) as server:
            etag = same.etag(server.base + path) if cell.conditional else None
            headers = {"If-None-Match": etag} if etag else {}
            seen = same.answers(server.base, paths, headers)
            same.check(paths, seen, self.expected.setdefault(cell, seen))
            keys = cell.rows if cell.random_keys else 0
            load = Load(server.base + path, cell.clients, self.plan.seconds, keys, etag)
            measure(replace(load, seconds=self.plan.warm_up))
            with contextlib.suppress(OSError):  # the next load counts errors
                same.answers(server.base, paths[:1], headers)  # after what the warm-up left in the queue
            before = server.processor_seconds()
            outcome = measure(load)
            processor = (server.processor_seconds() - before) * 1e6 / max(outcome.answers, 1)
            time.sleep(0.5)  # closing takes a server a moment; keeping is what is counted
            connections = self.server.connections(name_of(cell.rows))
        wait_until_quiet(self.server, cell.rows)
        return Run(peer.name, cell, number, outcome, processor, connections)
