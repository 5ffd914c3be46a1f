"""New rows, sealed. Keys are the writer's, so that a row need not be written to be sealed."""

import random
from collections.abc import Sequence
from typing import TypeVar

from tests.soak.plan import BEACON, PINNED_ITEMS, PINNED_SHELVES
from tests.soak.project.stock.models import Account, Item, Shelf
from tests.soak.seals import SEALED, seal

WORDS = ("ash", "birch", "cedar", "elm", "fir", "hazel", "larch", "maple", "oak", "pine", "rowan", "yew")

Row = TypeVar("Row", Item, Shelf, Account)


def sealed(row: Row) -> Row:
    """The row, with its seal as its columns are now."""
    table = row._meta.db_table
    row.seal = seal(table, {name: getattr(row, name) for name in SEALED[table]})
    return row


def new_title(rng: random.Random) -> str:
    """Two words and a number; the same one now and then."""
    return f"{rng.choice(WORDS)} {rng.choice(WORDS)} {rng.randrange(1000)}"


def new_item(
    rng: random.Random, shelves: Sequence[int], key: int | None = None, title: str | None = None
) -> Item:
    """An item on one of these shelves; one that is pinned is on a shelf that is."""
    if key is not None and key <= PINNED_ITEMS:
        shelves = [shelf for shelf in shelves if shelf <= PINNED_SHELVES]
    return sealed(
        Item(
            id=new_key(rng) if key is None else key,
            number=rng.randrange(1000),
            title=new_title(rng) if title is None else title,
            is_open=rng.random() < 0.5,
            shelf_id=rng.choice(shelves),
        )
    )


def new_beacon(number: int) -> Item:
    """The item that counts up, as it is in the beginning."""
    return sealed(Item(id=BEACON, number=0, title=f"beacon {number}", is_open=True, shelf_id=1))


def new_shelf(rng: random.Random, key: int | None = None) -> Shelf:
    """A shelf."""
    return sealed(Shelf(id=new_key(rng) if key is None else key, name=f"shelf {new_title(rng)}"))


def new_account(key: int, balance: int) -> Account:
    """An account."""
    return sealed(Account(id=key, balance=balance))


def new_key(rng: random.Random) -> int:
    """A key that nobody has, and that JavaScript can read."""
    return rng.randrange(1_000_000, 2**48)
