"""Fields of ``django.contrib.postgres``: arrays, ranges, hstore."""

import datetime as dt
import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from django.contrib.postgres.fields import (
    ArrayField,
    DateTimeRangeField,
    DecimalRangeField,
    HStoreField,
    IntegerRangeField,
)
from django.contrib.postgres.signals import register_type_handlers
from django.contrib.postgres.validators import RangeMaxValueValidator
from django.core.exceptions import ValidationError as Unclean
from django.db import connections, models
from django.db.backends.postgresql.psycopg_any import DateTimeTZRange, NumericRange
from django.db.backends.signals import connection_created
from django.test.utils import isolate_apps
from pydantic import ValidationError

from fastapi_django_orm import ModelSchema
from tests.project import router
from tests.support.databases import created
from tests.support.repositories import declare, read


@pytest.fixture(scope="module")
def model() -> Iterator[type[models.Model]]:
    with isolate_apps("tests.project.board"):

        class Special(models.Model):
            words = ArrayField(models.CharField(max_length=3), size=2, default=list, blank=True)
            grid = ArrayField(ArrayField(models.IntegerField(null=True, blank=True)), null=True, blank=True)
            numbers = IntegerRangeField(validators=[RangeMaxValueValidator(10)])
            amounts = DecimalRangeField(null=True, blank=True)
            times = DateTimeRangeField(null=True, blank=True)
            labels = HStoreField(default=dict, blank=True)

            class Meta:
                app_label = "board"

            def __str__(self) -> str:
                return ""

        yield Special


@pytest.fixture(scope="module")
def out(model: type[models.Model]) -> type[ModelSchema]:
    class SpecialOut(ModelSchema, model=model, exclude=("id",)): ...

    return SpecialOut


WHEN = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
VALUES: dict[str, Any] = {
    "words": ["a", "abc"],
    "grid": [[1, None], [2, 3]],
    "numbers": NumericRange(1, 5),
    "amounts": NumericRange(Decimal("0.5"), None),
    "times": DateTimeTZRange(WHEN, WHEN + dt.timedelta(1)),
    "labels": {"a": "b", "c": None},
}
JSON = {
    "words": ["a", "abc"],
    "grid": [[1, None], [2, 3]],
    "numbers": {"lower": 1, "upper": 5, "bounds": "[)"},
    "amounts": {"lower": "0.5", "upper": None, "bounds": "[)"},
    "times": {"lower": "2020-01-01T00:00:00Z", "upper": "2020-01-02T00:00:00Z", "bounds": "[)"},
    "labels": {"a": "b", "c": None},
}


def test_values_go_through_json(model: type[models.Model], out: type[ModelSchema]) -> None:
    """A range is what Django's serializers make of it, and is a range in Python."""
    made = out.model_validate(model(**VALUES))
    assert made.model_dump() == VALUES
    assert json.loads(made.model_dump_json()) == JSON
    assert out.model_validate_json(made.model_dump_json()) == made
    assert out.model_validate(JSON) == made
    assert out.model_validate({**JSON, "numbers": [1, 5]}) == made
    nothing = {"empty": True}
    assert out.model_validate({**JSON, "amounts": nothing}).model_dump(mode="json")["amounts"] == nothing
    model(**made.model_dump()).full_clean()


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("words", ["a", "b", "c"]),
        ("words", ["abcd"]),
        ("words", [""]),
        ("words", [None]),
        ("grid", [["x"]]),
        ("numbers", {"lower": 1, "upper": 11}),
        ("numbers", {"lower": 5, "upper": 1}),
        ("numbers", {"lower": "x"}),
        ("numbers", {"lower": 1, "upper": 5, "bounds": "x"}),
        ("numbers", None),
        ("labels", {"a": 1}),
        ("times", {"lower": "2020-01-01T00:00:00"}),
    ],
)
def test_what_the_model_refuses_is_refused(out: type[ModelSchema], name: str, wrong: Any) -> None:
    """Limits of items hold as well."""
    with pytest.raises(ValidationError) as caught:
        out.model_validate({**JSON, name: wrong})
    assert {each["loc"][0] for each in caught.value.errors()} == {name}


def test_the_json_schema_says_what_is_inside(out: type[ModelSchema]) -> None:
    """Items have their limits, and ranges their parts."""
    found = out.model_json_schema()["properties"]
    assert found["words"]["items"] == {"type": "string", "minLength": 1, "maxLength": 3}
    assert found["words"]["maxItems"] == 2
    assert found["numbers"]["properties"]["bounds"]["enum"] == ["[)", "(]", "()", "[]"]
    assert out.model_json_schema()["required"] == ["numbers"]


@pytest.fixture
def hstore(_databases: Any) -> Iterator[None]:
    """PostgreSQL with hstore, which django.contrib.postgres would register with each new connection."""
    router.choose(_databases("postgresql"))
    with connections["postgresql"].cursor() as cursor:
        cursor.execute("CREATE EXTENSION IF NOT EXISTS hstore")
    connections.close_all()
    connection_created.connect(register_type_handlers)
    yield
    connection_created.disconnect(register_type_handlers)
    connections.close_all()
    router.choose("default")


def test_rows_of_postgresql_are_served(
    hstore: None, model: type[models.Model], out: type[ModelSchema]
) -> None:
    """What the database has is what full_clean() accepts and what the repository sends."""
    with created(model):
        row = model(**VALUES)
        row.full_clean()
        row.save()
        sent = read(declare("Specials", model, schema=out), lambda rows: rows.snapshot.json)
    assert json.loads(sent) == {"specials": [JSON]}


def test_the_model_itself_refuses_the_same(model: type[models.Model]) -> None:
    """The oracle of the table of wrong values."""
    with pytest.raises(Unclean) as caught:
        model(**{**VALUES, "words": ["abcd"], "numbers": NumericRange(1, 11)}).full_clean()
    assert {*caught.value.message_dict} == {"words", "numbers"}
