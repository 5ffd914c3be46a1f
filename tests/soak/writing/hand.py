"""What a writer writes with: its dice, and rows that it picks."""

import random
import threading
from dataclasses import dataclass, field

from django.db import connection

from tests.soak.plan import ACCOUNTS, BEACON, PINNED_ITEMS, PINNED_SHELVES
from tests.soak.project.stock.models import Account, Item, Shelf
from tests.soak.writing.making import new_item, new_key


class NothingToDo(Exception):
    """There are no rows for this kind of write."""


class RolledBack(Exception):
    """The transaction was meant to be rolled back, and was."""


@dataclass
class Hand:
    """One writer's.

    Attributes:
        rng: all that is left to chance.
        rows: about how many items there should be.
        stopping: set when it is time to end.
    """

    rng: random.Random
    rows: int
    stopping: threading.Event = field(default_factory=threading.Event)

    @property
    def vendor(self) -> str:
        """The database's."""
        return connection.vendor

    def linger(self, seconds: float) -> None:
        """Keep a transaction open; not for long where nobody else can write meanwhile."""
        self.stopping.wait(min(seconds, 0.3) if self.vendor == "sqlite" else seconds)

    def keys(self, most: int, *, pinned: bool = False) -> list[int]:
        """Keys of some items, which may be gone by the time that they are used."""
        if pinned and self.rng.random() < 0.2:
            return self.rng.sample(range(BEACON + 1, PINNED_ITEMS + 1), min(most, 3))
        items = Item.objects.filter(id__gt=max(PINNED_ITEMS, new_key(self.rng)))
        found = list(items.order_by("id").values_list("id", flat=True)[: self.rng.randint(1, most)])
        if not found:
            raise NothingToDo
        return found

    def locked(self, most: int) -> list[Item]:
        """Items that nobody else can change until the transaction ends, so that their seals stay true."""
        return list(
            Item.objects.select_for_update().filter(id__in=self.keys(most, pinned=True)).order_by("id")
        )

    def accounts(self, number: int) -> list[Account]:
        """Accounts that nobody else can change until the transaction ends."""
        keys = self.rng.sample(range(1, ACCOUNTS + 1), number)
        return list(Account.objects.select_for_update().filter(id__in=keys).order_by("id"))

    def shelves(self) -> list[int]:
        """The keys of those that stay."""
        return list(range(1, PINNED_SHELVES + 1))

    def shelf(self, key: int) -> Shelf:
        """One that nobody else can change until the transaction ends."""
        found = Shelf.objects.select_for_update().filter(id=key).first()
        if found is None:
            raise NothingToDo
        return found

    def loose_shelves(self) -> list[Shelf]:
        """Those that may go."""
        return list(Shelf.objects.filter(id__gt=PINNED_SHELVES).order_by("id"))

    def new_items(self, most: int) -> list[Item]:
        """Items to insert: some, and as many as are missing."""
        missing = max(0, self.rows - Item.objects.count())
        return [new_item(self.rng, self.shelves()) for _ in range(missing + self.rng.randint(1, most))]

    def surplus(self, most: int) -> list[int]:
        """Keys of items to delete: some, and as many as are too many."""
        too_many = max(0, Item.objects.count() - self.rows)
        items = Item.objects.filter(id__gt=PINNED_ITEMS).order_by("id")
        return list(items.values_list("id", flat=True)[: too_many + self.rng.randint(1, most)])
