"""A page begins where the one before has ended, whatever is inserted and deleted meanwhile."""

import asyncio
import datetime as dt
from contextlib import AsyncExitStack
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from django.db.models import F, QuerySet
from django.db.models.functions import Length
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_core import from_json

from fastapi_django_orm import CachedRepository, Filter, Repository, run
from fastapi_django_orm.errors import InvalidParameter, InvalidRepository
from tests.project.board.models import Entry, Everything, Seat, Writer
from tests.queries.test_meaning import COLUMNS, DEADLINE, NAMES, ROWS, EntryFilter, answer, write
from tests.support.comparing import finish
from tests.support.gates import started


class Entries(CachedRepository):
    model = "board.Entry"
    ordering = (F("ratio").desc(nulls_first=True), "-word", F("number").asc(nulls_last=True))


class LiveEntries(Repository):
    model = "board.Entry"

    def queryset(self) -> QuerySet[Any, Any]:
        return super().queryset().annotate(length=Length("word")).order_by("-writer", "length")


async def page(repository: Any, where: Filter) -> tuple[list[Any], str | None]:
    """The keys of a page, and the cursor of the next one."""
    found = from_json(await answer(repository.response(where)))
    return [row["id"] for row in found[repository.name]], found["next"]


ORDERING = st.lists(st.tuples(st.sampled_from(["", "-"]), st.sampled_from(NAMES)).map("".join), max_size=3)
CHANGES = st.lists(st.fixed_dictionaries(COLUMNS) | st.integers(0, 11), max_size=3)


@pytest.mark.timeout(120)
def test_no_row_is_skipped_or_repeated(database: str) -> None:
    """With random orders, ties, NULLs, inserts and deletions, each row that stays is on exactly one page."""
    with asyncio.Runner() as runner:

        @settings(max_examples=40)
        @given(
            rows=ROWS,
            ordering=ORDERING,
            limit=st.integers(1, 4),
            changes=st.lists(CHANGES, max_size=6),
            is_live=st.booleans(),
        )
        def check(is_live: bool, **drawn: Any) -> None:
            runner.run(walk(live if is_live else kept, **drawn))

        async def walk(
            repository: Any, rows: list[Any], ordering: list[str], limit: int, changes: list[list[Any]]
        ) -> None:
            async with asyncio.timeout(DEADLINE):
                await run(write, rows)
                await kept.refresh()
                staying = set(range(len(rows)))
                found: list[int] = []
                after, number = None, 100
                while True:
                    keys, after = await page(
                        repository, EntryFilter(ordering=ordering, limit=limit, after=after)
                    )
                    found += keys
                    if after is None:
                        break
                    for change in changes.pop() if changes else ():
                        if isinstance(change, int):  # also the row that the cursor names
                            staying.discard(change)
                            await Entry.objects.filter(id=change).adelete()
                        else:
                            writer = await Writer.objects.filter(id=change["writer"] or 0).afirst()
                            await Entry.objects.acreate(id=number, **{**change, "writer": writer})
                            number += 1
                assert len(found) == len(set(found))
                assert staying <= set(found)
                if number == 100 and len(staying) == len(rows):
                    where = EntryFilter(ordering=ordering, limit=20)
                    assert found == (await page(repository, where))[0]

        stack = AsyncExitStack()
        kept, live = runner.run(stack.enter_async_context(started(Entries, LiveEntries)))
        try:
            check()
        finally:
            runner.run(stack.aclose())


class EverythingFilter(
    Filter,
    model="board.Everything",
    ordering=("key", "duration", "time", "ip", "decimal", "doubled", "file", "unique"),
    limit=1,
):
    pass


class AllOfEverything(CachedRepository):
    model = "board.Everything"
    fields = ("integer",)


@pytest.mark.parametrize("name", ["key", "duration", "time", "ip", "decimal", "doubled", "file", "unique"])
def test_every_type_that_rows_are_ordered_by(database: str, name: str) -> None:
    """Columns of each type, keys that a database stores in its own form included, make pages of one row."""
    for number in range(3):
        Everything.objects.create(
            key=UUID(int=number << 64),
            integer=number,
            duration=dt.timedelta(days=-number, microseconds=1),
            time=dt.time(number, 0, 0, number),
            ip=f"10.0.0.{number}",
            decimal=Decimal(number) / 3,
            file=f"{number}.txt",
            unique=UUID(int=number << 100),
        )

    async def main() -> None:
        async with started(AllOfEverything) as (rows,):
            for sign in ("", "-"):
                found: list[int] = []
                after = None
                for _ in range(3):
                    where = EverythingFilter(ordering=[sign + name], after=after)
                    found += [row["integer"] for row in await rows.select(where)]
                    after = from_json(await answer(rows.response(where)))["next"]
                assert after is None
                ordered = Everything.objects.order_by(sign + name, "pk").values_list("integer", flat=True)
                assert found == await run(list, ordered)

    finish(main)


class SeatFilter(Filter, model="board.Seat", ordering=("guest",), limit=1):
    pass


class Seats(CachedRepository):
    model = "board.Seat"


def test_keys_of_several_columns(database: str) -> None:
    """The columns of a composite key make the order total."""
    for row, number in ((1, 2), (2, 1), (1, 1)):
        Seat.objects.create(row=row, number=number, guest="same")

    async def main() -> None:
        async with started(Seats) as (seats,):
            found: list[Any] = []
            after = None
            for _ in range(3):
                where = SeatFilter(ordering=["guest"], after=after)
                found += [(seat["row"], seat["number"]) for seat in await seats.select(where)]
                after = from_json(await answer(seats.response(where)))["next"]
            assert (found, after) == ([(1, 1), (1, 2), (2, 1)], None)

    finish(main)


def test_a_cursor_of_something_else_is_refused(sqlite: str) -> None:
    """A cursor belongs to one list and order, and cannot be made by a client: otherwise a 422."""

    async def main() -> None:
        async with started(Entries, LiveEntries) as (kept, live):
            await run(write, [dict.fromkeys(COLUMNS) for _ in range(3)])
            where = EntryFilter(ordering=["word"], limit=1)
            _, after = await page(kept, where)
            assert after is not None
            assert (await page(kept, where.model_copy(update={"after": after})))[0] == [1]
            for other, cursor in (
                (EntryFilter(ordering=["-word"]), after),
                (where, f"{after[:-1]}{'a' if after[-1] != 'a' else 'b'}"),
                (where, "é"),
                (where, ""),
            ):
                with pytest.raises(InvalidParameter):
                    await kept.select(other.model_copy(update={"after": cursor}))
            with pytest.raises(InvalidParameter):
                await live.select(where.model_copy(update={"after": after}))

    finish(main)


def test_an_order_without_pages_is_an_error(sqlite: str) -> None:
    """Of rows that come at random no page has a next one, which an error says."""

    class Random(CachedRepository):
        model = "board.Entry"
        ordering = ("?",)

    class Reversed(CachedRepository):
        model = "board.Entry"

        def queryset(self) -> QuerySet[Any, Any]:
            return super().queryset().order_by("id").reverse()

    class Cut(CachedRepository):
        model = "board.Entry"

        def queryset(self) -> QuerySet[Any, Any]:
            return super().queryset()[:5]

    async def main() -> None:
        async with started(Random, Reversed, Cut) as repositories:
            for repository, message in zip(repositories, ("random", "reverse", "is sliced"), strict=True):
                with pytest.raises(InvalidRepository, match=message):
                    await repository.select(EntryFilter())

    finish(main)
