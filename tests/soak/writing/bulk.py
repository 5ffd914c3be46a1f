"""What the ORM writes without instances, or with many at once: no signal tells of it."""

import subprocess
import sys

from django.db import transaction
from django.db.models import F

from tests.soak.project.stock.models import Item
from tests.soak.writing.expressions import resealed
from tests.soak.writing.hand import Hand
from tests.soak.writing.kinds import kind
from tests.soak.writing.making import new_key, new_title, sealed

COMMAND_SECONDS = 60

ITEMS = ("stock.Item",)


@kind(4, unseen=ITEMS)
def bulk_create(hand: Hand) -> None:
    """As many rows as one likes."""
    Item.objects.bulk_create(hand.new_items(20))


@kind(4, unseen=ITEMS)
@transaction.atomic
def bulk_update(hand: Hand) -> None:
    """One statement with a value for each row."""
    renumber(hand)


def renumber(hand: Hand) -> None:
    """Give items other numbers and titles."""
    with transaction.atomic():
        items = hand.locked(20)
        for item in items:
            item.number, item.title = hand.rng.randrange(1000), new_title(hand.rng)
            sealed(item)
        Item.objects.bulk_update(items, ["number", "title", "seal"])


@kind(6, unseen=ITEMS)
def update(hand: Hand) -> None:
    """Rows that are not read before."""
    items = Item.objects.filter(id__in=hand.keys(20, pinned=True))
    items.update(**resealed(number=F("number") + 1, title=new_title(hand.rng)))


@kind(2, unseen=ITEMS)
def update_all(hand: Hand) -> None:
    """Half of all rows, more than hints name."""
    Item.objects.filter(is_open=hand.rng.random() < 0.5).update(**resealed(number=F("number") + 1))


@kind(4, unseen=ITEMS)
def delete_many(hand: Hand) -> None:
    """A queryset's delete."""
    Item.objects.filter(id__in=hand.surplus(10)).delete()


@kind(2, unseen=ITEMS)
def change_key(hand: Hand) -> None:
    """The same row under another key."""
    key = new_key(hand.rng)
    Item.objects.filter(id=hand.keys(1)[0]).update(**resealed(id=key))


@kind(0.3, unseen=ITEMS)
def command(hand: Hand) -> None:
    """A management command, in a process of its own."""
    arguments = ["restock", str(hand.rng.random()), str(hand.rows)]
    subprocess.run(
        [sys.executable, "-m", "tests.soak.project.manage", *arguments],
        check=True,
        capture_output=True,
        timeout=COMMAND_SECONDS,
    )
