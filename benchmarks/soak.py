"""Half an hour of random writers, every answer judged: `python -m benchmarks.soak --minutes 30`.

The exit code is 1 if a worker has served what it must not, was stale for too long, or differs from the table
in the end; the report says what the first such thing was. `benchmarks/README.md` says what is judged.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys

from tests.soak.place import servers_for
from tests.soak.plan import Plan
from tests.soak.running import soak


def plan_of(options: argparse.Namespace) -> Plan:
    """Return what to do."""
    return Plan(
        database=options.database,
        seconds=options.minutes * 60,
        seed=random.randrange(10**6) if options.seed is None else options.seed,
        rows=options.rows,
        faults=options.faults,
        fault_every=options.fault_every,
    )


def say(text: str) -> None:
    """Tell how far it is."""
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Run; 1 if something was wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--database", choices=["postgresql", "sqlite", "mariadb"], default="postgresql")
    parser.add_argument("--seed", type=int, help="of everything that is left to chance (default: another)")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--faults", action="store_true", help="cut connections, stop workers for a while")
    parser.add_argument("--shared", action="store_true", help="have workers share loads on PostgreSQL, too")
    parser.add_argument("--fault-every", type=float, default=10.0, metavar="SECONDS")
    options = parser.parse_args()
    plan = plan_of(options)
    say(f"seed {plan.seed}")
    with servers_for(plan.database, shared=options.shared) as place:
        verdict = asyncio.run(soak(plan, place, say))
    print(verdict)
    return 1 if verdict.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
