"""How long a full load takes and what it keeps: peers take turns, each load in a fresh process."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import psycopg
from pydantic_core import to_json

from benchmarks.children.start import outcome
from benchmarks.databases import seeded
from benchmarks.peer import Way
from benchmarks.plan import Plan, Results, Say
from benchmarks.serving import apart
from tests.support.servers.postgresql import PostgreSQL

CHILD = "benchmarks.children.loading"


@dataclass(frozen=True)
class Run:
    """One load.

    Attributes:
        seconds: until it was there.
        kept: bytes of memory, as a ratio to the list's JSON.
        kept_when_read: the same after every row has been read by its key.
        peak: the same at the most, while it was loaded.
    """

    peer: str
    rows: int
    round: int
    seconds: float
    kept: float
    kept_when_read: float
    peak: float

    def __str__(self) -> str:
        return (
            f"{self.rows} rows, round {self.round + 1}: {self.peer} {self.seconds:.2f} s, "
            f"kept {self.kept:.2f}, peak {self.peak:.2f}"
        )


def measure_all(plan: Plan, say: Say) -> Results:
    """Carry out the plan."""
    results = Results(plan)
    with apart() as processor, PostgreSQL() as server:
        results.pinned = processor is not None
        for rows in plan.rows:
            url = seeded(server, rows)
            size = json_size(url)
            for number in range(plan.rounds):
                for peer in plan.peers:
                    load = partial(measure, peer, rows, number, url, size, processor)
                    results.attempt(peer, load, say)
    return results


def measure(peer: Way, rows: int, number: int, url: str, size: int, processor: int | None) -> Run:
    """Load once."""
    found = outcome(CHILD, peer, url, processor, rows)
    memory = {name: found[name] / size for name in ("kept", "kept_when_read", "peak")}
    return Run(peer.name, rows, number, found["seconds"], **memory)


def json_size(url: str) -> int:
    """Return how many bytes the list's JSON has, in the form that FastAPI gives it."""
    size, rows = 0, 0
    select = "SELECT id, comment, created_at FROM bbs_topic"
    with psycopg.connect(url, row_factory=psycopg.rows.dict_row) as connection:
        for row in connection.cursor("rows").execute(select):
            size += len(to_json(row))
            rows += 1
    return size + max(rows - 1, 0) + len(b'{"topics":[]}')
