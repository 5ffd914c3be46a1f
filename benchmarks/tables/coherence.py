"""Tables of commits until they are visible elsewhere, a table for each load, and of what announcing costs."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from benchmarks import announcing
from benchmarks.announcing import Cost, Together
from benchmarks.load import generator
from benchmarks.peer import Peer
from benchmarks.plan import Plan, Results
from benchmarks.tables import markdown
from benchmarks.visibility import Cell, Run

VISIBLE = (
    "peer", "how it hears", "median ms", "p99 ms", "beyond the limit ms", "reading ms", "COMMIT ms", "times",
    "requests/s", "errors",
)  # fmt: skip
COST = ("write", "listening", "off ms", "on ÷ off", "constant ÷ off", "on − off µs", "constant − off µs")

TOGETHER = ("writers", "off, commits/s", "NOTIFY", "table", "NOTIFY ÷ off", "table ÷ off")

KINDS = {
    "save": "`topic.save()`",
    "create": "`Topic.objects.create()`",
    "insert": "`INSERT`, psycopg",
    "update": f"`.update()`, {announcing.ROWS:,} rows",
}


def title(part: str) -> str:
    """Return the heading of the section."""
    return "Coherence: a write in one process, visible in others"


def conditions(plan: Plan) -> str:
    """Return what somebody needs to know to judge the numbers."""
    rows = ", ".join(f"{number:,}" for number in plan.rows)
    return (
        f"A process with Django's ORM changes one of {rows} rows in each transaction, every 10 to 50 ms, for "
        f"{plan.seconds} s; {markdown.rounds(plan.rounds)}, each with fresh workers. A write is visible when "
        "a worker serves the snapshot with it. The time begins when COMMIT is sent, not when it returns. "
        "The limits note that a notification has come, and read nothing. "
        f"Load by {generator()}: clients that ask for the list again as soon as they have it, of uvicorn "
        "with several workers on one port. Medians of all writes and workers of a round, the range of the "
        "rounds' medians in parentheses; the p99 is of all rounds together. Commits do not wait for the disk "
        "here; in the last table they do, as is PostgreSQL's default."
    )


def tables(results: Results) -> Iterator[str]:
    """Yield a table for each load, and that of the costs."""
    for cell in dict.fromkeys(run.cell for run in results.runs if isinstance(run, Run)):
        workers = "1 worker" if cell.workers == 1 else f"{cell.workers} workers"
        load = f"{cell.clients} clients read `GET /topics`" if cell.clients else "nobody asks for anything"
        yield markdown.table(f"Commit to visible: {workers}, {load}", VISIBLE, lines(results, cell))
    if costs := [run for run in results.runs if isinstance(run, Cost)]:
        yield markdown.table("What announcing costs a write on PostgreSQL", COST, cost_lines(costs))
        yield (
            "On: the triggers of `coherence install`. Constant: one trigger, which does nothing but "
            "`pg_notify` of a constant. Off: none. Listening: a worker that reads the changed rows, in the "
            "pause after each write. Medians of the medians of blocks that alternate; ratios and "
            "differences are within a turn, the range is of the rounds."
        )
    if rounds := [run for run in results.runs if isinstance(run, Together)]:
        title = "What many writers commit a second, if a commit takes 2 ms"
        yield markdown.table(title, TOGETHER, together_lines(rounds))
        yield (
            "One-row INSERTs, each a commit of its own, and nobody listens. NOTIFY: `coherence install`. "
            "Table: `coherence install --table`. Writers and server share the machine's processors."
        )


def lines(results: Results, cell: Cell) -> Iterator[list[str]]:
    """Yield the lines of one load, in the catalogue's order."""
    for peer in results.plan.peers:
        if isinstance(peer, Peer) and (runs := of(results, peer.name, cell)):
            yield [f"`{peer.name}`", peer.says, *figures(runs, of(results, peer.beside, cell))]


def of(results: Results, peer: str, cell: Cell) -> dict[int, Run]:
    """Return a peer's runs under a load, by their round."""
    runs = (run for run in results.runs if isinstance(run, Run))
    return {run.round: run for run in runs if run.peer == peer and run.cell == cell}


def figures(runs: dict[int, Run], limit: dict[int, Run]) -> Iterator[str]:
    """Yield the figures of one line."""
    visible = {number: median(run.visible) for number, run in runs.items()}
    every = [value for run in runs.values() for value in run.visible]
    beyond = [visible[number] - median(limit[number].visible) for number in runs.keys() & limit.keys()]
    reading = [median(run.reading) for run in runs.values()]
    loads = [load for run in runs.values() for load in run.loads]
    yield markdown.spread(list(visible.values()), 2)
    yield f"{markdown.percentile(every, 99):.2f}"
    yield markdown.spread(beyond, 2) if beyond else "–"
    yield markdown.spread(reading, 2) if any(reading) else "–"
    yield markdown.spread([median(run.commit) for run in runs.values()], 2)
    yield f"{len(every):,}"
    yield markdown.rate([load.rate for load in loads]) if loads else "–"
    yield f"{sum(load.errors for load in loads):,}"


def together_lines(rounds: list[Together]) -> Iterator[list[str]]:
    """Yield a line for each number of writers."""
    for writers in rounds[0].rates:
        rates = [each.rates[writers] for each in rounds]
        line = [markdown.rate([each[way] for each in rates]) for way in ("off", "notify", "table")]
        line += [markdown.ratio([each[way] / each["off"] for each in rates]) for way in ("notify", "table")]
        yield [writers, *line]


def cost_lines(costs: list[Cost]) -> Iterator[list[str]]:
    """Yield a line for each kind of write, without and with a worker that listens."""
    for kind, says in KINDS.items():
        for listening in (False, True):
            if chosen := [cost for cost in costs if cost.listening == listening]:
                yield [says, "yes" if listening else "no", *cost_figures(chosen, kind)]


def cost_figures(costs: list[Cost], kind: str) -> Iterator[str]:
    """Yield the figures of one line."""
    yield markdown.spread([median(cost.blocks[kind]["off"]) for cost in costs], 2)
    for how in ("on", "constant"):
        yield markdown.ratio([cost.ratio(kind, how) for cost in costs])
    for how in ("on", "constant"):
        yield markdown.spread([cost.difference(kind, how) * 1e3 for cost in costs], 0)
