"""The report: each part's tables, where and with which versions they were made, and who is missing."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

import django

from benchmarks.peer import Way
from benchmarks.plan import Results
from benchmarks.tables import calm, coherence, loading, refreshing, served

PARTS: dict[str, ModuleType] = {
    "cached": served,
    "live": served,
    "loading": loading,
    "refreshing": refreshing,
    "calm": calm,
    "coherence": coherence,
}


def render(results: Results) -> str:
    """Return one part's section."""
    plan, part = results.plan, PARTS[results.plan.part]
    blocks = [f"## {part.title(plan.part)}", f"{where(results)} {part.conditions(plan)}", machine()]
    blocks += part.tables(results)
    blocks.append("\n".join(versions(plan.peers)))
    if results.failed:
        blocks.append("\n".join(missing(results.failed)))
    return "\n\n".join(blocks) + "\n"


def where(results: Results) -> str:
    """Return whether what was measured had a processor of its own."""
    if results.pinned:
        return "What is measured runs on one processor, PostgreSQL and everything else on another."
    return "**Nothing was pinned to a processor here**: ratios are rough."


def machine() -> str:
    """Return what the figures were made on."""
    return (
        f"{platform.system()} {platform.machine()}, {processor()}, Python {platform.python_version()}, "
        f"Django {django.__version__}."
    )


def processor() -> str:
    """Return the processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "?")


def versions(peers: Iterable[Way]) -> Iterator[str]:
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


def write(section: str, part: str, path: Path) -> None:
    """Put a part's section into the file and leave the other parts' as they are."""
    begin, end = f"<!-- {part}: begin -->", f"<!-- {part}: end -->"
    text = path.read_text(encoding="utf-8") if path.exists() else HEAD
    before, found, rest = text.partition(begin)
    after = rest.partition(end)[2] if found else "\n"
    separator = "" if found or before.endswith("\n\n") else "\n"
    path.write_text(f"{before}{separator}{begin}\n{section}{end}{after}", encoding="utf-8")


HEAD = """# Results

Made by `python -m benchmarks`; `benchmarks/README.md` says how, and how to read each table. Different runs
and machines compare by their ratios only.
"""
