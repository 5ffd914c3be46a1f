"""How long it takes until a changed row is visible: a fresh process for each round."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from statistics import median

from benchmarks.children.start import outcome
from benchmarks.databases import seeded
from benchmarks.peer import Way
from benchmarks.plan import Plan, Results, Say
from benchmarks.serving import apart
from tests.support.servers.postgresql import PostgreSQL

CHILD = "benchmarks.children.refreshing"
TIMES = {True: 50, False: 200}  # for each kind of change, in a round; a quarter of it with many keys


@dataclass(frozen=True)
class Run:
    """One round.

    Attributes:
        refreshes: milliseconds by the kind of change and the number of keys, "update 1"; also "full".
        queries: milliseconds of a bare driver's query of the same keys.
    """

    peer: str
    rows: int
    round: int
    refreshes: dict[str, list[float]]
    queries: dict[str, list[float]]

    def __str__(self) -> str:
        figures = (f"{what} {median(values):.2f} ms" for what, values in self.refreshes.items())
        return f"{self.rows} rows, round {self.round + 1}: {', '.join(figures)}"


def measure_all(plan: Plan, say: Say) -> Results:
    """Carry out the plan."""
    results = Results(plan)
    with apart() as processor, PostgreSQL() as server:
        results.pinned = processor is not None
        for rows in plan.rows:
            url = seeded(server, rows)
            for number in range(plan.rounds):
                for peer in plan.peers:
                    times = TIMES[plan.rounds == 1]
                    results.attempt(peer, partial(measure, peer, rows, number, times, url, processor), say)
    return results


def measure(peer: Way, rows: int, number: int, times: int, url: str, processor: int | None) -> Run:
    """Carry out one round."""
    return Run(peer.name, rows, number, **outcome(CHILD, peer, url, processor, rows, times))
