"""What rows are kept by: keys that a project's own field has made."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any

import pytest
from django.db import models
from django.test.utils import isolate_apps
from structlog.testing import capture_logs

from fastapi_django_orm.errors import InvalidRow, RefreshFailed
from tests.project.board.models import Code, CodeField
from tests.support.comparing import assert_as_loaded_anew, finish
from tests.support.databases import created
from tests.support.gates import started
from tests.support.projects import explanation
from tests.support.repositories import declare, read

pytestmark = pytest.mark.usefixtures("sqlite")


class Bare:
    """Equal to nothing but itself, and shown by where it is in memory."""

    def __init__(self, number: int) -> None:
        self.number = number


class Shown(Bare):
    """Equal to nothing but itself."""

    def __str__(self) -> str:
        return f"s{self.number}"


class Equal(Bare):
    """Cannot be hashed, since Python drops that where equality is written."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Equal) and other.number == self.number


class Hashed(Equal):
    """Shown by where it is in memory."""

    def __hash__(self) -> int:
        return hash(self.number)


class Level(Enum):
    """What the standard library makes of numbers."""

    LOW = 1
    HIGH = 2


@contextmanager
def table(make: Callable[[int], Any], *numbers: int) -> Iterator[type[models.Model]]:
    """A model whose keys are what this makes of numbers, with rows of these."""

    class OwnField(models.IntegerField):
        def from_db_value(self, value: int, *rest: Any) -> Any:
            return make(value)

    with isolate_apps("tests.project.board"):

        class Thing(models.Model):
            id = OwnField(primary_key=True)
            name = models.CharField(max_length=10)

            class Meta:
                app_label = "board"

            def __str__(self) -> str:
                return self.name

        with created(Thing):
            Thing.objects.bulk_create([Thing(id=number, name=str(number)) for number in numbers])
            yield Thing


REFUSED: dict[Callable[[int], Any], str] = {
    Bare: "Bare: it has no equality",
    Shown: "Shown: it has no equality",
    Equal: "Equal: it has no hash",
    Hashed: "Hashed: it has no text",
    lambda number: [number]: "list: it has no hash",
    lambda number: (1, Hashed(number)): "tuple: it has no text",
}


@pytest.mark.parametrize(("make", "message"), REFUSED.items(), ids=REFUSED.values())
def test_keys_that_rows_cannot_be_kept_by_are_refused(make: Callable[[int], Any], message: str) -> None:
    """The start ends with an error that names the key, what it lacks and what to do."""
    with table(make, 1, 2) as model, pytest.raises(InvalidRow, match=message) as caught:
        read(declare("Things", model, fields=("name",)), len)
    assert "from_db_value()" in str(caught.value)
    assert "`__str__`" in str(caught.value)


def test_such_a_key_that_comes_later_fails_the_refresh() -> None:
    """Where the table was empty at the start, the rows that were served stay."""
    with table(Bare) as model, capture_logs():

        async def main() -> None:
            async with started(declare("Things", model, fields=("name",))) as (kept,):
                await model._default_manager.acreate(id=1)
                for keys in ((), (1,)):
                    with pytest.raises(RefreshFailed) as caught:
                        await kept.refresh(*keys)
                    assert isinstance(caught.value.__cause__, InvalidRow)
                assert kept.all() == ()

        finish(main)


def test_without_their_key_such_rows_are_served() -> None:
    """What the error says helps: rows of `.values()` without the key need none."""
    with table(Bare, 1) as model:
        values = model._default_manager.values
        assert read(declare("Things", model, queryset=lambda self: values("name")), list) == [{"name": "1"}]


def test_keys_of_an_enum_are_kept() -> None:
    """Its members are equal to themselves alone, and there is one of each."""
    with table(Level, 1, 2) as model:

        async def main() -> None:
            async with started(declare("Things", model, fields=("name",))) as (kept,):
                assert kept.get(Level.LOW)["name"] == "1"
                await model._default_manager.filter(id=2).aupdate(name="new")
                await kept.refresh(2)
                assert kept.get(Level.HIGH)["name"] == "new"
                await assert_as_loaded_anew(kept)

        finish(main)


def test_keys_of_several_columns_are_the_same_everywhere() -> None:
    """A part of the project's own that `str()` alone shows makes the same pages in every worker."""
    with isolate_apps("tests.project.board"):

        class Place(models.Model):
            pk = models.CompositePrimaryKey("code", "number")
            code = CodeField()
            number = models.IntegerField()

            class Meta:
                app_label = "board"

            def __str__(self) -> str:
                return f"{self.code} {self.number}"

        with created(Place):
            Place.objects.bulk_create([Place(code=Code(n), number=n) for n in range(1000)])
            repository = declare("Places", Place, fields=("number",), ordering=("number",))

            async def main() -> list[str]:
                async with started(repository) as (one,), started(repository) as (other,):
                    assert len(one.snapshot.table.pages) > 1
                    return [one.snapshot.etag, other.snapshot.etag]

            one, other = asyncio.run(main())
    assert one == other


def test_the_start_says_what_to_do(project: Any) -> None:
    """Uvicorn ends, and the last thing to read is the class that lacks something."""
    project.write(
        "bbs/models.py",
        """
        from django.db import models


        class Number:
            def __init__(self, value):
                self.value = value


        class NumberField(models.BigAutoField):
            def from_db_value(self, value, *rest):
                return Number(value)


        class Topic(models.Model):
            id = NumberField(primary_key=True)
            comment = models.CharField(max_length=2000)
        """,
    )
    main = (project.directory / "main.py").read_text()
    project.write("main.py", main.replace("ordering =", 'fields = ("comment",)\n    ordering ='))
    said = explanation(project.fails())
    assert "a Number: it has no equality of its own" in said
    assert "give your class `__eq__`, `__hash__` and `__str__`" in said
