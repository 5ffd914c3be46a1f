"""What goes around the ORM: SQL of one's own, COPY on a connection of one's own, TRUNCATE."""

from collections.abc import Sequence

from django.db import connection, transaction

from tests.soak.plan import ACCOUNTS, BEACON, PINNED_ITEMS
from tests.soak.project.stock.models import Item
from tests.soak.seals import SEALED, seal_sql
from tests.soak.writing.hand import Hand
from tests.soak.writing.kinds import kind
from tests.soak.writing.making import new_item

ITEMS = ("stock.Item",)
COLUMNS = (*SEALED["stock_item"], "seal")


@kind(5, unseen=ITEMS)
def raw_update(hand: Hand) -> None:
    """UPDATE through Django's cursor."""
    low = hand.keys(1, pinned=True)[0]
    statement = "UPDATE stock_item SET seal = {seal}, number = number - 1 WHERE id >= %s AND id <= %s"
    written = statement.format(seal=seal_sql(hand.vendor, "stock_item", number="number - 1"))
    execute(written, low, low + 2**42)


@kind(3, unseen=ITEMS)
def raw_insert(hand: Hand) -> None:
    """INSERT through Django's cursor."""
    insert([new_item(hand.rng, hand.shelves()) for _ in range(hand.rng.randint(1, 3))])


@kind(3, unseen=ITEMS)
def raw_delete(hand: Hand) -> None:
    """DELETE through Django's cursor."""
    for key in hand.surplus(3):
        execute("DELETE FROM stock_item WHERE id = %s", key)


@kind(4, unseen=("stock.Account",))
def raw_transfer(hand: Hand) -> None:
    """Two accounts in one statement."""
    one, other = hand.rng.sample(range(1, ACCOUNTS + 1), 2)
    amount = hand.rng.randint(-50, 50)
    changed = f"balance + CASE id WHEN {one} THEN {amount} ELSE {-amount} END"
    seal = seal_sql(hand.vendor, "stock_account", balance=f"({changed})")
    execute(f"UPDATE stock_account SET seal = {seal}, balance = {changed} WHERE id IN (%s, %s)", one, other)


@kind(3, on=("postgresql",))
def copy(hand: Hand) -> None:
    """COPY on a connection that Django knows nothing of, as from psql."""
    import psycopg

    from fastapi_django_orm.coherence.postgresql_session import libpq_parameters

    rows = [_values(item) for item in hand.new_items(20)]
    with (
        connection.wrap_database_errors,
        psycopg.connect(**{**libpq_parameters("default"), "application_name": "copy"}) as own,
        own.cursor() as cursor,
        cursor.copy(f"COPY stock_item ({', '.join(COLUMNS)}) FROM STDIN") as copying,
    ):
        for row in rows:
            copying.write_row(row)


@kind(0.3, unseen=ITEMS)
@transaction.atomic
def empty_and_refill(hand: Hand) -> None:
    """TRUNCATE, or what is like it in a transaction, and all rows anew."""
    empty = "TRUNCATE stock_item" if hand.vendor == "postgresql" else "DELETE FROM stock_item"
    beacon = Item.objects.select_for_update().get(id=BEACON)  # which counts on where it is
    execute(empty)
    pinned = [new_item(hand.rng, hand.shelves(), key) for key in range(BEACON + 1, PINNED_ITEMS + 1)]
    insert([beacon, *pinned, *(new_item(hand.rng, hand.shelves()) for _ in range(hand.rows - PINNED_ITEMS))])


def insert(items: Sequence[Item]) -> None:
    """Insert rows, several in each statement."""
    with transaction.atomic():
        for start in range(0, len(items), 100):
            rows = [_values(item) for item in items[start : start + 100]]
            places = ", ".join(["(%s, %s, %s, %s, %s, %s)"] * len(rows))
            values = [value for row in rows for value in row]
            execute(f"INSERT INTO stock_item ({', '.join(COLUMNS)}) VALUES {places}", *values)


def execute(statement: str, *values: object) -> None:
    """Run a statement."""
    with connection.cursor() as cursor:
        cursor.execute(statement, values)


def _values(item: Item) -> list[object]:
    return [getattr(item, name) for name in COLUMNS]
