"""Tables of requests: one for each cell, a line for each peer."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.harness import Cell, Run
from benchmarks.load import generator
from benchmarks.peer import Peer, Way
from benchmarks.plan import Plan, Results
from benchmarks.tables import markdown

COLUMNS = (
    "peer", "what it does", "ratio", "requests/s", "processor µs", "p50 ms", "p99 ms", "errors",
    "connections left",
)  # fmt: skip

TITLES = {
    "cached": "Cached: answers from memory",
    "live": "Live: a query in every request",
}

HEADINGS = {
    "list": "`GET /topics`, {cell.rows:,} rows, {clients}",
    "row": "`GET /topics/{{pk}}`, one of {cell.rows:,} rows, {clients}",
    "unchanged": "`GET /topics` with `If-None-Match`: 304, {clients}",
    "latest": "`GET /latest`, the last 20 of {cell.rows:,} rows, {clients}",
}


def title(part: str) -> str:
    """Return the heading of the section."""
    return TITLES[part]


def conditions(plan: Plan) -> str:
    """Return what somebody needs to know to judge the numbers."""
    return (
        f"Load by {generator()}; a fresh process for each run, {plan.warm_up} s to warm up, {plan.seconds} s "
        f"measured, {markdown.rounds(plan.rounds)}. Medians, with the range of the rounds in parentheses; a "
        f"ratio is to `{plan.peers[0].name}` in the same round. Processor is what the server's processes had "
        "of one for each answer, which a busy machine disturbs less. Errors are everything but a good "
        "answer, summed. Connections left are the most that PostgreSQL still had from the peer half a second "
        "after a run's end."
    )


def tables(results: Results) -> Iterator[str]:
    """Yield each cell's table, and how a peer compares with another one that it asks to be compared with."""
    for cell in dict.fromkeys(run.cell for run in results.runs):
        clients = "1 client" if cell.clients == 1 else f"{cell.clients} clients"
        heading = HEADINGS[cell.kind].format(cell=cell, clients=clients)
        yield markdown.table(heading, COLUMNS, lines(results, cell))
        yield from beside(results, cell)


def lines(results: Results, cell: Cell) -> Iterator[list[str]]:
    """Yield the lines of one cell's table, in the catalogue's order."""
    limit = of(results, results.plan.peers[0], cell)
    for peer in results.plan.peers:
        if runs := list(of(results, peer, cell).values()):
            yield [f"`{peer.name}`", peer.says, *figures(runs, limit)]


def beside(results: Results, cell: Cell) -> Iterator[str]:
    """Yield ratios to other peers than the limit."""
    by_name = {peer.name: peer for peer in results.plan.peers}
    for peer in results.plan.peers:
        if isinstance(peer, Peer) and peer.beside in by_name:
            runs, others = of(results, peer, cell), of(results, by_name[peer.beside], cell)
            if both := [(runs[n], others[n]) for n in runs.keys() & others.keys()]:
                rates = markdown.ratio([run.outcome.rate / other.outcome.rate for run, other in both])
                times = markdown.ratio([other.processor / run.processor for run, other in both])
                yield (
                    f"`{peer.name}` to `{peer.beside}` in the same round: {rates}; "
                    f"by what they need of the processor: {times}."
                )


def of(results: Results, peer: Way, cell: Cell) -> dict[int, Run]:
    """Return a peer's runs in a cell, by their round."""
    return {run.round: run for run in results.runs if run.peer == peer.name and run.cell == cell}


def figures(runs: list[Run], limit: dict[int, Run]) -> Iterator[str]:
    """Yield the figures of one line."""
    yield markdown.ratio([run.outcome.rate / limit[run.round].outcome.rate for run in runs])
    yield markdown.rate([run.outcome.rate for run in runs])
    yield markdown.spread([run.processor for run in runs], 0)
    yield markdown.latency(run.outcome.p50 for run in runs)
    yield markdown.latency(run.outcome.p99 for run in runs)
    yield f"{sum(run.outcome.errors for run in runs):,}"
    yield str(max(run.connections for run in runs))
