"""What it costs a writer that triggers announce its writes: with them, without, and with the least trigger.

One process writes, in blocks that alternate between the three; its commits wait for the disk, as PostgreSQL's
default is. Once nobody listens, and once a worker does that reads the rows anew.

And how many commits many writers make together, where a commit takes 2 ms, as on a disk in the network: with
NOTIFY they wait for each other, with a table of hints they need not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.children.start import outcome
from benchmarks.databases import seeded
from benchmarks.peer import Peer
from benchmarks.plan import Plan, Results, Say
from benchmarks.serving import serve
from tests.support.servers.postgresql import PostgreSQL

PEER = "postgresql"
CHILD = "benchmarks.children.announcing"
WRITERS = "benchmarks.children.writers"
MANY = (1, 8, 32)
SLOW = {"commit_delay": "2000", "commit_siblings": "0"}  # microseconds, for every commit
ROWS = 10_000
TURNS = {True: 4, False: 15}  # of the blocks, in a round
DURABLE = {"fsync": "on", "full_page_writes": "on"}  # PostgreSQL's defaults, which tests do without

# No look at the triggers while they come and go, which would refresh the worker each time.
QUIET = {"DJANGO_ORM_COHERENCE_HEARTBEAT": "600"}


@dataclass(frozen=True)
class Cost:
    """One round.

    Attributes:
        blocks: the median milliseconds of each block, by the kind of write and what announces it; those with
            the same place in their lists followed each other.
    """

    listening: bool
    round: int
    blocks: dict[str, dict[str, list[float]]]

    def ratio(self, kind: str, how: str) -> float:
        """Return how many times as long a write takes as one that nothing announces."""
        return median(taken / bare for taken, bare in self._pairs(kind, how))

    def difference(self, kind: str, how: str) -> float:
        """Return how many milliseconds longer it takes."""
        return median(taken - bare for taken, bare in self._pairs(kind, how))

    def _pairs(self, kind: str, how: str) -> Iterator[tuple[float, float]]:
        return zip(self.blocks[kind][how], self.blocks[kind]["off"], strict=True)

    def __str__(self) -> str:
        ratios = ", ".join(f"{kind} {self.ratio(kind, 'on'):.2f}" for kind in self.blocks)
        listens = "a worker listens" if self.listening else "nobody listens"
        return f"triggers on ÷ off, {listens}, round {self.round + 1}: {ratios}"


@dataclass(frozen=True)
class Together:
    """One round of many writers.

    Attributes:
        rates: commits a second, by the number of writers and what announces their writes.
    """

    round: int
    rates: dict[str, dict[str, float]]

    def __str__(self) -> str:
        ratios = (
            f"{writers}: NOTIFY {each['notify'] / each['off']:.2f}, table {each['table'] / each['off']:.2f}"
            for writers, each in self.rates.items()
        )
        return f"many writers ÷ off, round {self.round + 1}: {'; '.join(ratios)}"


def measure_all(results: Results, processor: int | None, say: Say) -> None:
    """Add the rounds to the results, if that peer takes part."""
    for peer in results.plan.peers:
        if isinstance(peer, Peer) and peer.name == PEER:
            with PostgreSQL(settings=DURABLE) as server:
                url = seeded(server, ROWS)
                for number in range(results.plan.rounds):
                    for listening in (False, True):
                        bench = partial(measure, peer, number, url, processor, results.plan, listening)
                        results.attempt(peer, bench, say)
            with PostgreSQL(settings=DURABLE | SLOW) as server:
                url = seeded(server, ROWS)
                for number in range(results.plan.rounds):
                    results.attempt(peer, partial(together, peer, number, url, results.plan), say)


def measure(peer: Peer, number: int, url: str, processor: int | None, plan: Plan, listening: bool) -> Cost:
    """Carry out one round. The writer has the processor, and a worker that listens is with PostgreSQL."""
    turns = TURNS[plan.rounds == 1]
    with ExitStack() as stack:
        if listening:
            seen = stack.enter_context(TemporaryDirectory())
            worker = replace(peer, settings=peer.settings | QUIET | {"BENCHMARK_SEEN": seen})
            stack.enter_context(serve(worker, "list", "/topics", url, None))
        return Cost(listening, number, outcome(CHILD, peer, url, processor, ROWS, turns))


def together(peer: Peer, number: int, url: str, plan: Plan) -> Together:
    """Carry out one round of many writers, on every processor."""
    return Together(number, outcome(WRITERS, peer, url, None, plan.seconds, *MANY))
