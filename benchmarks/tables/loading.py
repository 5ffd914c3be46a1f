"""Tables of full loads: one for each number of rows, a line for each peer."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.loading import Run
from benchmarks.peer import Way
from benchmarks.plan import Plan, Results
from benchmarks.tables import markdown

COLUMNS = ("peer", "what it makes", "ratio", "µs a row", "kept", "kept, all read", "peak")


def title(part: str) -> str:
    """Return the heading of the section."""
    return "Loading: all rows of a table"


def conditions(plan: Plan) -> str:
    """Return what somebody needs to know to judge the numbers."""
    return (
        f"A fresh process for each load, after one of 1,000 rows; {markdown.rounds(plan.rounds)}. "
        "Medians, with the range of the rounds in parentheses; a ratio is of the time, to "
        f"`{plan.peers[0].name}` in the same round. Kept and peak are resident memory beyond what the "
        "process had before, as a ratio to the bytes of the list's JSON: kept when the load was done, kept "
        "after each row has been read once by its key, and the most while it was loaded."
    )


def tables(results: Results) -> Iterator[str]:
    """Yield a table for each number of rows."""
    for rows in dict.fromkeys(run.rows for run in results.runs):
        yield markdown.table(f"{rows:,} rows", COLUMNS, lines(results, rows))


def lines(results: Results, rows: int) -> Iterator[list[str]]:
    """Yield the lines of one table, in the catalogue's order."""
    measure = of(results, results.plan.peers[0], rows)
    for peer in results.plan.peers:
        if runs := list(of(results, peer, rows).values()):
            yield [f"`{peer.name}`", peer.says, *figures(runs, measure)]


def of(results: Results, peer: Way, rows: int) -> dict[int, Run]:
    """Return a peer's loads of so many rows, by their round."""
    return {run.round: run for run in results.runs if run.peer == peer.name and run.rows == rows}


def figures(runs: list[Run], measure: dict[int, Run]) -> Iterator[str]:
    """Yield the figures of one line."""
    yield markdown.ratio([run.seconds / measure[run.round].seconds for run in runs])
    yield markdown.spread([run.seconds / run.rows * 1e6 for run in runs], 2)
    yield markdown.spread([run.kept for run in runs], 2)
    yield markdown.spread([run.kept_when_read for run in runs], 2)
    yield markdown.spread([run.peak for run in runs], 2)
