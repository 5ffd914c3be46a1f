"""Tables of refreshes of some keys: one for each number of rows, a line for each kind of change."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from benchmarks.plan import Plan, Results
from benchmarks.refreshing import Run
from benchmarks.tables import markdown

COLUMNS = ("change", "keys", "visible ms", "p99 ms", "bare query ms", "beyond the query ms", "full refresh")


def title(part: str) -> str:
    """Return the heading of the section."""
    return "Refreshing: rows that were written by others"


def conditions(plan: Plan) -> str:
    """Return what somebody needs to know to judge the numbers."""
    return (
        f"A fresh process for each round: {markdown.rounds(plan.rounds)}. Another connection changes, "
        "deletes or inserts random rows; a row is visible when `await topics.refresh(*keys)` has returned "
        "and the list's ETag and size are there. The bare query is a driver's, of the same rows, right "
        "after. Medians of all such refreshes of a round, the range of the rounds' medians in parentheses; "
        "the p99 is of all rounds together; the last column says how many times longer a full refresh "
        "takes that finds a row changed."
    )


def tables(results: Results) -> Iterator[str]:
    """Yield a table for each number of rows."""
    for rows in dict.fromkeys(run.rows for run in results.runs):
        runs = [run for run in results.runs if run.rows == rows]
        full = markdown.spread([median(run.refreshes["full"]) for run in runs], 0)
        heading = f"{rows:,} rows; a full refresh takes {full} ms"
        yield markdown.table(heading, COLUMNS, lines(runs), texts=1)


def lines(runs: list[Run]) -> Iterator[list[str]]:
    """Yield a line for each kind of change and number of keys."""
    for what in runs[0].queries:
        change, keys = what.split()
        yield [change, keys, *figures(runs, what)]


def figures(runs: list[Run], what: str) -> Iterator[str]:
    """Yield the figures of one line."""
    visible = [median(run.refreshes[what]) for run in runs]
    query = [median(run.queries[what]) for run in runs]
    full = [median(run.refreshes["full"]) for run in runs]
    yield markdown.spread(visible, 2)
    yield f"{markdown.percentile([value for run in runs for value in run.refreshes[what]], 99):.2f}"
    yield markdown.spread(query, 2)
    yield markdown.spread([a - b for a, b in zip(visible, query, strict=True)], 2)
    yield f"× {median(a / b for a, b in zip(full, visible, strict=True)):,.0f}"
