"""How long a commit takes to be visible in other processes, and what announcing it costs who writes.

Bare notifications are measured like this package, so that what the machine and the servers take is known.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from tempfile import TemporaryDirectory

from benchmarks import announcing
from benchmarks.databases import filled, run, seeded
from benchmarks.peer import Peer
from benchmarks.plan import Plan, Results, Say
from benchmarks.serving import apart
from benchmarks.visibility import Bench, Cell
from tests.support.servers.postgresql import PostgreSQL
from tests.support.servers.valkey import Valkey

MANY = 4  # workers


def cells(plan: Plan) -> Iterator[Cell]:
    """Yield what is measured: idle, and under each load."""
    yield Cell(1, 0)
    for clients in plan.clients:
        yield Cell(MANY, clients)


def measure_all(plan: Plan, say: Say) -> Results:
    """Carry out the plan."""
    results = Results(plan)
    with apart() as processor:
        results.pinned = processor is not None
        for rows in plan.rows:
            with benched(plan, processor, rows) as bench:
                for cell in cells(plan):
                    for number in range(plan.rounds):
                        for peer in plan.peers:
                            if isinstance(peer, Peer):
                                results.attempt(peer, partial(bench.measure, peer, cell, number), say)
        announcing.measure_all(results, processor, say)
    return results


@contextmanager
def benched(plan: Plan, processor: int | None, rows: int) -> Iterator[Bench]:
    """Start the servers, and fill the databases: one without triggers, one with them, and a file."""
    peers = {peer.name: peer for peer in plan.peers}
    with PostgreSQL() as server, Valkey() as valkey, TemporaryDirectory() as directory:
        urls: dict[str, str] = {}
        if announced := peers.get(announcing.PEER):
            urls[announced.name] = seeded(server, rows, "benchmark_announced")
            run(announced, urls[announced.name], "django", "coherence", "install", "bbs.Topic")
        if "sqlite" in peers:
            urls["sqlite"] = filled(f"sqlite:///{directory}/db.sqlite3", rows)
        yield Bench(plan, processor, valkey.url(), seeded(server, rows), urls)
