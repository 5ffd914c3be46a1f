"""``python -m tests.soak.writing SEED ROWS PAUSE NAME…``: write until standard input ends.

Each name is a writer in a process of its own. They are forks of this one, which has imported by then what
takes a second. Every writer prints a line when it begins, and in the end what it has done
as JSON: for each kind how many were committed, rolled back, refused by the database (a deadlock, a row that
went meanwhile) or had nothing to do.
"""

import json
import os
import random
import signal
import sys

import django.db.models

import fastapi_django_orm  # noqa: F401 - for the forks


def main(seed: str, rows: int, pause: float, names: list[str]) -> int:
    """Have them write; 1 if one has failed."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.soak.project.settings")
    pooled = os.environ.pop("SOAK_POOL", None)  # the group whose connections come from a pool
    writing = set()
    for number, name in enumerate(names):
        pid = os.fork()
        if pid == 0:
            if name.partition(":")[0] == pooled:
                os.environ["SOAK_POOL"] = "1"
            write(name, seed, rows, pause, (number, len(names)))
            return 0
        writing.add(pid)
    while writing:
        pid, status = os.wait()
        writing.discard(pid)
        if status:
            for other in writing:
                os.kill(other, signal.SIGKILL)
            return 1
    return 0


def write(name: str, seed: str, rows: int, pause: float, turn: tuple[int, int]) -> None:
    """Write as one of them."""
    django.setup()
    from tests.soak.writing.hand import Hand
    from tests.soak.writing.stopping import at_end_of_input
    from tests.soak.writing.writer import Writer

    hand = Hand(random.Random(f"{seed} {name}"), rows, at_end_of_input())
    writer = Writer(hand, pause, turn)
    say("begins to write")
    writer.write()
    say(json.dumps(writer.counts))


def say(line: str) -> None:
    """Print a line in one piece, since the others print into the same pipe; print() may write it in two."""
    os.write(sys.stdout.fileno(), f"{line}\n".encode())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4:]))
