"""How long a commit takes to be visible in other processes: fresh workers, and the same writer for all peers.

Both note moments of the clock that all processes share, and what they noted is compared when they have ended.
"""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.children.start import outcome
from benchmarks.load import Load, Outcome, measure
from benchmarks.peer import Peer
from benchmarks.plan import PeerError, Plan
from benchmarks.serving import START_SECONDS, serve

CHILD = "benchmarks.children.writing"
PATH = "/topics"
WARM_UP = 5  # writes: what is done for the first time only
SETTLE = 1.0  # seconds for the last write to be visible

Stamps = dict[str, list[float]]


@dataclass(frozen=True)
class Cell:
    """One table of the report: so many workers, and so many clients that read lists all the time."""

    workers: int
    clients: int


@dataclass(frozen=True)
class Run:
    """One peer in one cell in one round; all times are in milliseconds.

    Attributes:
        visible: from COMMIT to the new row in a worker, for each write and worker.
        commit: from COMMIT to its return in the writer, for each write.
        reading: what a worker took of it to read the rows, for each write and worker.
        loads: what the clients saw, if there were any, one load after the other.
    """

    peer: str
    cell: Cell
    round: int
    visible: list[float]
    commit: list[float]
    reading: list[float]
    loads: list[Outcome]

    def __str__(self) -> str:
        return (
            f"{self.cell.workers} workers, {self.cell.clients} clients, round {self.round + 1}: {self.peer} "
            f"visible after {median(self.visible):.2f} ms, at most {max(self.visible):.1f} ms, "
            f"{len(self.visible)} times"
        )


@dataclass(frozen=True)
class Bench:
    """The servers of one run."""

    plan: Plan
    processor: int | None
    broker: str
    url: str
    urls: dict[str, str]  # of peers with a database of their own

    def measure(self, peer: Peer, cell: Cell, number: int) -> Run:
        """Start a peer's workers and a writer, and compare what both have noted."""
        with TemporaryDirectory() as directory:
            names = {name: value.format(broker=self.broker) for name, value in peer.settings.items()}
            names |= {"BENCHMARK_BROKER": self.broker, "BENCHMARK_SEEN": directory}
            peer = replace(peer, settings={**names, "WEB_CONCURRENCY": str(cell.workers)})
            url = self.urls.get(peer.name, self.url)
            with serve(peer, "list", PATH, url, self.processor) as server:
                wait_for(Path(directory), cell.workers)
                writes, loads = self.write(
                    peer, url, Load(server.base + PATH, cell.clients, self.plan.seconds)
                )
                time.sleep(SETTLE)
            seen = [json.loads(told.read_text()) for told in Path(directory).iterdir()]
        return compared(peer, cell, number, writes, seen, loads)

    def write(self, peer: Peer, url: str, load: Load) -> tuple[Stamps, list[Outcome]]:
        """Have a writer write, under load if there are clients: one after the other until it has ended."""
        loads: list[Outcome] = []
        with ThreadPoolExecutor(1) as executor:
            writing = executor.submit(outcome, CHILD, peer, url, None, self.plan.seconds)
            while load.clients and not writing.done():
                loads.append(measure(load))
            return writing.result(), loads


def wait_for(directory: Path, workers: int) -> None:
    """Wait until all workers listen: each makes its file then."""
    deadline = time.monotonic() + START_SECONDS
    while len(list(directory.iterdir())) < workers:
        if time.monotonic() > deadline:
            raise PeerError(f"does not have {workers} workers that listen after {START_SECONDS} s")
        time.sleep(0.05)


def compared(
    peer: Peer, cell: Cell, number: int, writes: Stamps, seen: list[Stamps], loads: list[Outcome]
) -> Run:
    """Return what each write took to be visible; a run in which one never was is none."""
    begun, committed = writes["begun"][WARM_UP:], writes["committed"][WARM_UP:]
    if len(seen) != cell.workers:
        raise PeerError(f"had {len(seen)} workers, not {cell.workers}: some have died")
    if any(len(worker["moments"]) != len(writes["begun"]) for worker in seen):
        shown = ", ".join(str(len(worker["moments"])) for worker in seen)
        raise PeerError(f"never showed all of {len(writes['begun'])} writes, but {shown}")
    moments = [worker["moments"][WARM_UP:] for worker in seen]
    return Run(
        peer.name,
        cell,
        number,
        visible=[
            (shown - sent) * 1e3 for worker in moments for shown, sent in zip(worker, begun, strict=True)
        ],
        commit=[(returned - sent) * 1e3 for returned, sent in zip(committed, begun, strict=True)],
        reading=[took for worker in seen for took in worker["reading"][WARM_UP:]],
        loads=loads,
    )
