"""What people write with model instances, row by row: Django's signals tell of all of it."""

from django.db import transaction

from tests.soak.project.stock.models import Item
from tests.soak.writing.hand import Hand, NothingToDo
from tests.soak.writing.kinds import kind
from tests.soak.writing.making import new_item, new_shelf, new_title, sealed


@kind(12)
def create(hand: Hand) -> None:
    """INSERT."""
    item = new_item(hand.rng, hand.shelves())
    item.save(force_insert=True)


@kind(16)
@transaction.atomic
def save(hand: Hand) -> None:
    """UPDATE of every column."""
    for item in hand.locked(1):
        item.number = hand.rng.randrange(1000)
        item.title = new_title(hand.rng)
        item.is_open = hand.rng.random() < 0.5
        sealed(item).save()


@kind(6)
@transaction.atomic
def toggle(hand: Hand) -> None:
    """Into the filtered list, or out of it."""
    for item in hand.locked(2):
        item.is_open = not item.is_open
        sealed(item).save(update_fields=["is_open", "seal"])


@kind(8)
def delete(hand: Hand) -> None:
    """DELETE."""
    for item in Item.objects.filter(id__in=hand.keys(1)):
        item.delete()


@kind(4)
@transaction.atomic
def rename_shelf(hand: Hand) -> None:
    """A related row: no item changes, and every list that shows the shelf does."""
    loose = [shelf.id for shelf in hand.loose_shelves()]
    shelf = hand.shelf(hand.rng.choice([*hand.shelves(), *loose]))
    shelf.name = f"shelf {new_title(hand.rng)}"
    sealed(shelf).save()


@kind(3)
@transaction.atomic
def fill_shelf(hand: Hand) -> None:
    """A shelf and items on it, in one transaction."""
    if len(hand.loose_shelves()) > 10:
        raise NothingToDo
    shelf = new_shelf(hand.rng)
    shelf.save(force_insert=True)
    for _ in range(hand.rng.randint(1, 8)):
        new_item(hand.rng, [shelf.id]).save(force_insert=True)


@kind(3, unseen=("stock.Item",))
def cascade(hand: Hand) -> None:
    """A shelf with all that is on it."""
    shelves = hand.loose_shelves()
    if len(shelves) < 3:
        raise NothingToDo
    hand.rng.choice(shelves).delete()


@kind(10)
@transaction.atomic
def transfer(hand: Hand) -> None:
    """From one account to another: two statements, of which nobody may see one alone."""
    one, other = hand.accounts(2)
    amount = hand.rng.randint(-50, 50)
    one.balance -= amount
    sealed(one).save()
    other.balance += amount
    sealed(other).save()
