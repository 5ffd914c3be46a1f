"""`python -m benchmarks PART`: measure one part, or all; print the tables and write RESULTS.md."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import calm, coherence, harness, loading, refreshing, report
from benchmarks.catalog import choose
from benchmarks.plan import DEFAULT, QUICK, Plan, Results, Say

MEASURES: dict[str, Callable[[Plan, Say], Results]] = {
    "cached": harness.measure_all,
    "live": harness.measure_all,
    "loading": loading.measure_all,
    "refreshing": refreshing.measure_all,
    "calm": calm.measure_all,
    "coherence": coherence.measure_all,
}
RESULTS = Path(__file__).with_name("RESULTS.md")


def numbers(text: str) -> tuple[int, ...]:
    """Read `1,32,256`."""
    found = tuple(int(part) for part in text.split(","))
    if min(found) < 1:
        raise ValueError(text)
    return found


def parser() -> argparse.ArgumentParser:
    """Return the command line; what is not given there is as `plan.py` has it for each part."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("part", choices=[*MEASURES, "all"])
    parser.add_argument("--quick", action="store_true", help="fewer cells, one short round")
    parser.add_argument("--peers", default="", help="names, separated by commas (default: all)")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=int, help="measured in each run of a load")
    parser.add_argument("--rows", type=numbers, help="of the table: 10,1000")
    parser.add_argument("--clients", type=numbers, help="of the load: 1,32")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the report")
    return parser


def plan_of(part: str, options: argparse.Namespace) -> Plan:
    """Return what to measure.

    Raises `LookupError` for a peer that does not exist.
    """
    sizes = (QUICK if options.quick else DEFAULT)[part]
    return Plan(
        part=part,
        peers=choose(part, [name for name in options.peers.split(",") if name]),
        rows=options.rows or sizes.rows,
        clients=options.clients or sizes.clients,
        rounds=options.rounds or sizes.rounds,
        seconds=options.seconds or sizes.seconds,
    )


def carry_out(plan: Plan, output: Path) -> bool:
    """Measure and report one part; return whether every peer could be measured."""
    started = time.monotonic()
    results = MEASURES[plan.part](plan, say)
    section = report.render(results)
    print(section, flush=True)
    report.write(section, plan.part, output)
    say(f"{plan.part} took {(time.monotonic() - started) / 60:.1f} minutes")
    return not results.failed


def say(text: str) -> None:
    """Tell how far it is."""
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Measure and report; 1 if a peer could not be measured."""
    command = parser()
    options = command.parse_args()
    if options.part == "all" and (options.peers or options.rows):
        command.error("--peers and --rows are for one part: they mean something else in each")
    parts = list(MEASURES) if options.part == "all" else [options.part]
    try:
        plans = [plan_of(part, options) for part in parts]
    except LookupError as error:
        command.error(str(error))
    complete = [carry_out(plan, options.output) for plan in plans]  # all of them, whichever fails
    return 0 if all(complete) else 1


if __name__ == "__main__":
    sys.exit(main())
