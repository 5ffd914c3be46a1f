"""`python -m benchmarks cached|live`: measure, print the table, write RESULTS.md."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks import report
from benchmarks.catalog import choose
from benchmarks.harness import Plan, measure_all

ROWS = {"cached": "10,100,1000,10000", "live": "10000"}
CLIENTS = {"cached": "32", "live": "1,32,256"}


def numbers(text: str) -> tuple[int, ...]:
    """Read `1,32,256`."""
    found = tuple(int(part) for part in text.split(","))
    if min(found) < 1:
        raise ValueError(text)
    return found


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("part", choices=sorted(ROWS))
    parser.add_argument("--peers", default="", help="names, separated by commas (default: all)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=3, help="measured in each run")
    parser.add_argument("--rows", type=numbers, help=f"default: {ROWS}")
    parser.add_argument("--clients", type=numbers, help=f"default: {CLIENTS}")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).with_name("RESULTS.md"), help="the report"
    )
    options = parser.parse_args()
    try:
        options.peers = choose(options.part, [name for name in options.peers.split(",") if name])
    except LookupError as error:
        parser.error(str(error))
    return options


def main() -> int:
    """Measure and report; 1 if a peer could not be measured."""
    options = arguments()
    plan = Plan(
        part=options.part,
        peers=options.peers,
        rows=options.rows or numbers(ROWS[options.part]),
        clients=options.clients or numbers(CLIENTS[options.part]),
        rounds=options.rounds,
        seconds=options.seconds,
    )
    results = measure_all(plan, lambda text: print(text, file=sys.stderr, flush=True))
    section = report.render(results)
    print(section)
    report.write(section, options.part, options.output)
    return 1 if results.failed else 0


if __name__ == "__main__":
    sys.exit(main())
