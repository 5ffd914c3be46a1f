"""``python -m tests.soak.writing NAME SEED ROWS PAUSE``: write until standard input ends.

Prints a line when it begins, and in the end what it has done as JSON: for each kind how many were committed,
rolled back, refused by the database (a deadlock, a row that went meanwhile) or had nothing to do.
"""

import json
import os
import random
import sys

import django


def main(name: str, seed: str, rows: int, pause: float) -> None:
    """Write."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.soak.project.settings")
    django.setup()
    from tests.soak.writing.hand import Hand
    from tests.soak.writing.stopping import at_end_of_input
    from tests.soak.writing.writer import Writer

    hand = Hand(random.Random(f"{seed} {name}"), rows, at_end_of_input())
    writer = Writer(hand, pause)
    print("begins to write", flush=True)
    writer.write()
    print(json.dumps(writer.counts), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
