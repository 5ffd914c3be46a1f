"""The tables: medians, ranges, ratios to the limit of the same round, versions, who is missing."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

import django

from benchmarks.catalog import Peer
from benchmarks.harness import Cell, Results, Run
from benchmarks.load import generator

COLUMNS = (
    "peer", "what it does", "ratio", "requests/s", "p50 ms", "p99 ms", "errors", "connections left",
)  # fmt: skip
TITLES = {
    "cached": "Cached: `GET /topics`, the whole list",
    "live": "Live: a query in every request",
}


def render(results: Results) -> str:
    """Return one part's section, in Markdown that is also readable in a terminal."""
    blocks = [f"## {TITLES[results.plan.part]}", *conditions(results)]
    seen = dict.fromkeys(run.cell for run in results.runs)
    blocks += ["\n".join(table(results, cell)) for cell in seen]
    blocks.append("\n".join(versions(results.plan.peers)))
    if results.failed:
        blocks.append("\n".join(missing(results.failed)))
    return "\n\n".join(blocks) + "\n"


def conditions(results: Results) -> Iterator[str]:
    """Yield what somebody needs to know to judge the numbers."""
    plan = results.plan
    where = (
        "Servers on one processor, PostgreSQL and the load on another"
        if results.pinned
        else "**Nothing was pinned to a processor here**: ratios are rough"
    )
    yield (
        f"{where}; load by {generator()}; a fresh process for each run, {plan.warm_up} s to warm "
        f"up, {plan.seconds} s measured, {plan.rounds} interleaved rounds. Medians, with the range "
        f"of the rounds in parentheses; a ratio is to `{plan.peers[0].name}` in the same round. "
        "Errors are everything but a good answer, summed. Connections left are the most that "
        "PostgreSQL still had from the peer half a second after a run's end."
    )
    yield (
        f"{platform.system()} {platform.machine()}, {processor()}, Python "
        f"{platform.python_version()}, Django {django.__version__}."
    )


def processor() -> str:
    """Return the processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "?")


def table(results: Results, cell: Cell) -> Iterator[str]:
    """Yield the lines of one cell's table, in the catalogue's order."""
    path = cell.path + ("{pk}" if cell.random_keys else "")
    yield f"### `{path}`, {cell.rows:,} rows, {cell.clients} clients\n"
    yield line(COLUMNS)
    yield line("---" if place < 2 else "---:" for place in range(len(COLUMNS)))
    limit = {run.round: run for run in of(results, results.plan.peers[0], cell)}
    for peer in results.plan.peers:
        if runs := of(results, peer, cell):
            yield line((f"`{peer.name}`", peer.says, *numbers(runs, limit)))


def of(results: Results, peer: Peer, cell: Cell) -> list[Run]:
    """Return a peer's runs in a cell."""
    return [run for run in results.runs if run.peer == peer.name and run.cell == cell]


def numbers(runs: list[Run], limit: dict[int, Run]) -> Iterator[str]:
    """Yield the figures of one line."""
    ratios = [run.outcome.rate / limit[run.round].outcome.rate for run in runs]
    yield spread(ratios, 3 if median(ratios) < 0.1 else 2)
    rates = [run.outcome.rate for run in runs]
    yield spread(rates, 1 if median(rates) < 100 else 0)
    yield milliseconds(run.outcome.p50 for run in runs)
    yield milliseconds(run.outcome.p99 for run in runs)
    yield f"{sum(run.outcome.errors for run in runs):,}"
    yield str(max(run.connections for run in runs))


def milliseconds(values: Iterable[float]) -> str:
    """Return the median; a run without a single answer has no latency."""
    answered = [value for value in values if value > 0]
    return f"{median(answered):.2f}" if answered else "no answer"


def spread(values: list[float], digits: int) -> str:
    """Return the median and, if there is more than one value, the range."""
    figures = min(values), median(values), max(values)
    low, middle, high = (f"{figure:,.{digits}f}" for figure in figures)
    return f"{middle} ({low} to {high})" if len(values) > 1 else middle


def versions(peers: Iterable[Peer]) -> Iterator[str]:
    """Yield the versions of every package that took part."""
    names = sorted({name for peer in peers for name in peer.packages})
    yield "Versions: " + ", ".join(f"{name} {installed(name)}" for name in names) + "."


def installed(name: str) -> str:
    """Return a package's version; this one may run from its checkout."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "(this checkout)" if name == "fastapi-django-orm" else "(not installed)"


def missing(failed: dict[str, str]) -> Iterator[str]:
    """Yield why peers are missing: the end of what they said, without paths of this machine."""
    yield "Not measured, or left out from where they failed:\n"
    for name, reason in failed.items():
        lines = [text for text in reason.splitlines() if text.strip()] or ["no reason given"]
        yield f"- `{name}` {lines[0].rstrip(':')}: {lines[-1].strip()[:200]}"


def line(values: Iterable[str]) -> str:
    """Return one line of a Markdown table."""
    return "| " + " | ".join(values) + " |"


def write(section: str, part: str, path: Path) -> None:
    """Put a part's section into the file and leave the other part's as it is."""
    begin, end = f"<!-- {part}: begin -->", f"<!-- {part}: end -->"
    text = path.read_text(encoding="utf-8") if path.exists() else HEAD
    before, found, rest = text.partition(begin)
    after = rest.partition(end)[2] if found else "\n"
    separator = "" if found or before.endswith("\n\n") else "\n"
    path.write_text(f"{before}{separator}{begin}\n{section}{end}{after}", encoding="utf-8")


HEAD = """# Results

Made by `python -m benchmarks`; `benchmarks/README.md` says how. Different runs and machines compare
by their ratios only.
"""
