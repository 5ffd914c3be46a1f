"""``python -m tests.soak.writing.beacon``: have one item's title count up until standard input ends.

Prints each number with the time of its commit, by the clock that all processes of the machine share. The row
is in most lists, and so the age of each of them can be told.
"""

import os
import time

import django

PERIOD = 0.2  # seconds


def main() -> None:
    """Count."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.soak.project.settings")
    django.setup()
    from django.db import OperationalError, transaction

    from tests.soak.plan import BEACON
    from tests.soak.project.stock.models import Item
    from tests.soak.writing.making import sealed
    from tests.soak.writing.stopping import at_end_of_input

    stopping = at_end_of_input()
    number = 1
    while not stopping.wait(PERIOD):
        try:
            with transaction.atomic():
                item = Item.objects.select_for_update().get(id=BEACON)
                item.title = f"beacon {number}"
                sealed(item).save()
        except OperationalError:  # a deadlock: the same number once more
            continue
        print(number, time.monotonic(), flush=True)
        number += 1


if __name__ == "__main__":
    main()
