"""``python -m tests.soak.project.prepare ROWS SEED``: tables, rows, and on PostgreSQL the triggers."""

import os
import random
import sys

import django


def main(rows: int, seed: str) -> None:
    """Make them."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.soak.project.settings")
    django.setup()
    from django.core.management import call_command
    from django.db import connection

    from tests.soak.plan import ACCOUNTS, BEACON, PINNED_ITEMS, PINNED_SHELVES, TOTAL
    from tests.soak.project.stock.models import Account, Item, Shelf
    from tests.soak.writing.making import new_account, new_beacon, new_item, new_shelf

    rng = random.Random(f"{seed} prepare")
    call_command("migrate", verbosity=0, run_syncdb=True)
    Shelf.objects.bulk_create(new_shelf(rng, key) for key in range(1, PINNED_SHELVES + 1))
    shelves = list(range(1, PINNED_SHELVES + 1))
    Item.objects.bulk_create(
        [new_beacon(0), *(new_item(rng, shelves, key) for key in range(BEACON + 1, PINNED_ITEMS + 1))]
    )
    Item.objects.bulk_create(new_item(rng, shelves) for _ in range(rows - PINNED_ITEMS))
    Account.objects.bulk_create(new_account(key, TOTAL // ACCOUNTS) for key in range(1, ACCOUNTS + 1))
    if connection.vendor == "postgresql":
        call_command("coherence", "install", "--app", "tests.soak.project.main:app")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
