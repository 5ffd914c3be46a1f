"""Transactions that are rolled back, in whole or in part, and those that take their time."""

from django.db import transaction

from tests.soak.plan import ACCOUNTS, NEVER, PINNED_ITEMS
from tests.soak.project.stock.models import Account, Item
from tests.soak.writing.bulk import renumber
from tests.soak.writing.expressions import resealed
from tests.soak.writing.hand import Hand, RolledBack
from tests.soak.writing.kinds import kind
from tests.soak.writing.making import new_item, new_title, sealed
from tests.soak.writing.sql import execute


@kind(8)
def roll_back(hand: Hand) -> None:
    """Nobody may see any of it."""
    with transaction.atomic():
        _mischief(hand)
        hand.linger(hand.rng.uniform(0, 0.2))
        transaction.set_rollback(True)
    raise RolledBack


@kind(0.5, on=("postgresql", "sqlite"))
def roll_back_all(hand: Hand) -> None:
    """Not even that there is nothing left."""
    with transaction.atomic():
        execute("TRUNCATE stock_item" if hand.vendor == "postgresql" else "DELETE FROM stock_item")
        hand.linger(hand.rng.uniform(0, 0.2))
        transaction.set_rollback(True)
    raise RolledBack


@kind(6)
@transaction.atomic
def savepoint(hand: Hand) -> None:
    """What is before and after it is committed."""
    new_item(hand.rng, hand.shelves()).save(force_insert=True)
    with transaction.atomic():
        _mischief(hand)
        transaction.set_rollback(True)
    for item in hand.locked(1):
        item.title = new_title(hand.rng)
        sealed(item).save()


@kind(2, unseen=("stock.Item",))
@transaction.atomic
def take_time(hand: Hand) -> None:
    """A transaction that stays open, while others commit after what it has written and before it does."""
    one, other = hand.accounts(2)
    amount = hand.rng.randint(1, 50)
    one.balance -= amount
    sealed(one).save()
    renumber(hand)
    hand.linger(hand.rng.uniform(0.3, 2.0))
    new_item(hand.rng, hand.shelves()).save(force_insert=True)
    other.balance += amount
    sealed(other).save()


def _mischief(hand: Hand) -> None:
    """Rows with the mark, a deletion that pinned rows do not survive, and money from nowhere."""
    title = f"{NEVER} {new_title(hand.rng)}"
    new_item(hand.rng, hand.shelves(), title=title).save(force_insert=True)
    Item.objects.filter(id__in=hand.keys(5, pinned=True)).update(**resealed(title=title))
    Item.objects.filter(id=hand.rng.randint(1, PINNED_ITEMS)).delete()
    account = Account.objects.select_for_update().get(id=hand.rng.randint(1, ACCOUNTS))
    account.balance += 1_000_000
    sealed(account).save()
