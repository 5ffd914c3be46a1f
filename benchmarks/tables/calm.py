"""Tables of requests beside refreshes: one for each cell, a line for each peer."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.calm import BUSY, SERVED, Cell, Pair
from benchmarks.load import generator
from benchmarks.plan import Plan, Results
from benchmarks.tables import markdown

COLUMNS = (
    "peer", "what it does", "busy ÷ idle", "idle requests/s", "p50 ms idle", "p50 ms busy", "p99 ms idle",
    "p99 ms busy", "p99 busy ÷ idle", "refreshes/s", "errors",
)  # fmt: skip


def title(part: str) -> str:
    """Return the heading of the section."""
    return "Calm: requests while the same process refreshes"


def conditions(plan: Plan) -> str:
    """Return what somebody needs to know to judge the numbers."""
    rows = ", ".join(f"{number:,}" for number in plan.rows)
    return (
        f"The application serves {SERVED} rows, and refreshes {rows} others one time after the other, of "
        "which 1 % have changed each time. "
        f"Load by {generator()}; a fresh process for a peer's cells of a round, {plan.warm_up} s to warm "
        f"up, {plan.seconds} s idle and then {plan.seconds * BUSY} s busy, {markdown.rounds(plan.rounds)}. "
        "Medians, with the range of the rounds in parentheses; a ratio is between the two loads of a "
        "process. The refreshes that were completed in a second tell what the calm costs."
    )


def tables(results: Results) -> Iterator[str]:
    """Yield each cell's table."""
    for rows in dict.fromkeys(run.rows for run in results.runs):
        for cell in dict.fromkeys(cell for run in results.runs for cell in run.pairs):
            path = f"{cell.path}{{pk}}" if cell.path.endswith("/") else cell.path
            clients = "1 client" if cell.clients == 1 else f"{cell.clients} clients"
            heading = f"`GET {path}`, {clients}, {rows:,} rows refreshed"
            yield markdown.table(heading, COLUMNS, lines(results, rows, cell))


def lines(results: Results, rows: int, cell: Cell) -> Iterator[list[str]]:
    """Yield the lines of one cell's table, in the catalogue's order."""
    for peer in results.plan.peers:
        runs = [run for run in results.runs if run.peer == peer.name and run.rows == rows]
        if runs:
            yield [f"`{peer.name}`", peer.says, *figures([run.pairs[cell] for run in runs])]


def figures(pairs: list[Pair]) -> Iterator[str]:
    """Yield the figures of one line."""
    yield markdown.ratio([pair.busy.rate / pair.idle.rate for pair in pairs])
    yield markdown.rate([pair.idle.rate for pair in pairs])
    for percent in ("p50", "p99"):
        yield markdown.latency(getattr(pair.idle, percent) for pair in pairs)
        yield markdown.latency(getattr(pair.busy, percent) for pair in pairs)
    yield markdown.spread([pair.busy.p99 / pair.idle.p99 for pair in pairs if pair.busy.p99], 1)
    yield markdown.spread([pair.refreshes for pair in pairs], 1)
    yield f"{sum(pair.idle.errors + pair.busy.errors for pair in pairs):,}"
