"""What a schema accepts is what ``full_clean()`` accepts, on random values: Django itself is the oracle."""

import datetime as dt
import math
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from django.core import validators
from django.core.exceptions import ValidationError
from django.db import models
from django.test.utils import isolate_apps
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError as Refused

from fastapi_django_orm import ModelSchema

pytestmark = pytest.mark.usefixtures("sqlite")


def is_even(value: int) -> None:
    """What a project writes."""
    if value % 2:
        raise ValidationError("{odd} numbers are not even")


FIELDS: "dict[str, models.Field[Any, Any]]" = {
    "big": models.BigIntegerField(),
    "binary": models.BinaryField(editable=True, max_length=3),
    "boolean": models.BooleanField(),
    "char": models.CharField(max_length=3),
    "char_blank": models.CharField(max_length=3, blank=True, validators=[validators.MinLengthValidator(2)]),
    "char_null": models.CharField(max_length=3, null=True, blank=True),
    "choice": models.CharField(max_length=1, choices=[("a", "Alpha"), ("b", "Beta")]),
    "choice_blank": models.CharField(max_length=1, choices=[("a", "Alpha"), ("b", "Beta")], blank=True),
    "choice_null": models.IntegerField(choices=[(1, "One"), (2, "Two")], null=True, blank=True),
    "choice_decimal": models.DecimalField(max_digits=3, decimal_places=1, choices=[(Decimal("1.5"), "x")]),
    "choice_computed": models.CharField(max_length=9, choices=lambda: [("a", "Alpha")]),
    "date": models.DateField(),
    "decimal": models.DecimalField(max_digits=4, decimal_places=2),
    "decimal_bounded": models.DecimalField(
        max_digits=6,
        decimal_places=4,
        validators=[validators.MinValueValidator(Decimal("-1.5")), validators.MaxValueValidator(9)],
    ),
    "duration": models.DurationField(),
    "email": models.EmailField(),
    "email_blank": models.EmailField(blank=True),
    "even": models.IntegerField(validators=[is_even]),
    "floating": models.FloatField(validators=[validators.MaxValueValidator(1.5)]),
    "integer": models.IntegerField(
        validators=[validators.MinValueValidator(-3), validators.MaxValueValidator(3)]
    ),
    "ip": models.GenericIPAddressField(),
    "ip4": models.GenericIPAddressField(protocol="IPv4"),
    "moment": models.DateTimeField(),
    "pattern": models.CharField(max_length=9, validators=[validators.RegexValidator(r"^[ab]{1,3}\Z")]),
    "pattern_blank": models.CharField(
        max_length=9, blank=True, validators=[validators.RegexValidator(r"^a+$")]
    ),
    "pattern_inverse": models.CharField(
        max_length=9, validators=[validators.RegexValidator(r"^a", inverse_match=True)]
    ),
    "positive": models.PositiveSmallIntegerField(),
    "slug": models.SlugField(max_length=4),
    "slug_unicode": models.SlugField(max_length=4, allow_unicode=True),
    "step": models.IntegerField(validators=[validators.StepValueValidator(3)]),
    "text": models.TextField(),
    "time": models.TimeField(),
    "url": models.URLField(),
    "uuid": models.UUIDField(),
    "word": models.CharField(max_length=4, validators=[validators.RegexValidator(r"^\w+$")]),
}

text = st.text(max_size=5) | st.text("ab 1-_é\n\u0301", max_size=5) | st.sampled_from(["a", "b", ""])
addresses = st.emails() | st.sampled_from(["a@b.cd", "a@b", "a@localhost", "@b.cd", "a b@c.de", "é@b.cd"])
links = st.sampled_from(["http://a.de", "https://a.de/b?c=d#e", "ftp://a", "a.de", "http://", "http://a b"])
ips = st.ip_addresses().map(str) | st.sampled_from(["1.2.3", "::ffff:1.2.3.4", "fe80::1%0"])
numbers = st.integers(-6, 6) | st.integers() | st.integers(-(2**64), 2**64)
decimals = st.decimals(-120, 120, places=3) | st.decimals() | st.just(Decimal("1.5"))
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "BigIntegerField": numbers,
    "BinaryField": st.binary(max_size=5),
    "BooleanField": st.booleans(),
    "DateField": st.dates(),
    "DateTimeField": st.datetimes(timezones=st.just(dt.UTC)),
    "DecimalField": decimals,
    "DurationField": st.timedeltas(),
    "EmailField": addresses | text,
    "FloatField": st.floats(allow_nan=False),
    "GenericIPAddressField": ips | text,
    "IntegerField": numbers,
    "PositiveSmallIntegerField": numbers,
    "TimeField": st.times(),
    "URLField": links | text,
    "UUIDField": st.uuids(),
}


def strategy(name: str) -> st.SearchStrategy[Any]:
    """Values of a field, right and wrong, and null."""
    kind = type(FIELDS[name]).__name__
    return VALUES.get(kind, text) | st.none()


@pytest.fixture(scope="module")
def model() -> Iterator[type[models.Model]]:
    with isolate_apps("tests.project.board"):
        body = {"__module__": __name__, "Meta": type("Meta", (), {"app_label": "board"})}
        yield type("Sample", (models.Model,), {**body, **FIELDS})


@pytest.fixture(scope="module")
def schemas(model: type[models.Model]) -> dict[str, type[ModelSchema]]:
    """A schema of each field, alone."""

    def make(field: str) -> type[ModelSchema]:
        class One(ModelSchema, model=model, fields=(field,)): ...

        return One

    return {name: make(name) for name in FIELDS}


def is_clean(model: type[models.Model], name: str, value: Any) -> bool:
    """Whether ``full_clean()`` accepts it, and the column has such values."""
    if value is None and not FIELDS[name].null:  # full_clean() accepts it for a field that may be blank
        return False
    try:
        model(**{name: value}).full_clean(exclude={*FIELDS} - {name})
    except ValidationError:
        return False
    return True


def is_accepted(schema: type[ModelSchema], name: str, value: Any) -> bool:
    """Whether the schema accepts it, in Python and as JSON alike."""
    try:
        made = schema(**{name: value})
    except Refused:
        return False
    if not (isinstance(value, float) and not math.isfinite(value)):  # for which JSON has null
        assert schema.model_validate_json(made.model_dump_json()) == made
    return True


@pytest.mark.parametrize("name", FIELDS)
def test_a_schema_accepts_what_full_clean_accepts(
    name: str, model: type[models.Model], schemas: dict[str, type[ModelSchema]]
) -> None:
    """For values of the field's type, both accept the same, and JSON gives the value back."""

    @settings(max_examples=40)
    @given(strategy(name))
    def check(value: Any) -> None:
        assert is_accepted(schemas[name], name, value) is is_clean(model, name, value), repr(value)

    check()


OTHER_TYPES = st.one_of(
    st.integers(-5, 5),
    st.floats(-5, 5),
    st.booleans(),
    st.text("ab1-: ", max_size=4),
    st.dates(),
    st.binary(),
)


@pytest.mark.parametrize("name", FIELDS)
def test_what_a_schema_makes_of_other_types_is_clean(
    name: str, model: type[models.Model], schemas: dict[str, type[ModelSchema]]
) -> None:
    """Whatever the type of the value, what the schema makes of it is what ``full_clean()`` accepts."""

    @settings(max_examples=40)
    @given(OTHER_TYPES)
    def check(value: Any) -> None:
        try:
            made = getattr(schemas[name](**{name: value}), name)
        except Refused:
            return
        assert is_clean(model, name, made), repr(value)

    check()


def test_the_documented_exceptions() -> None:
    """What only one of the two accepts is written in docs/schemas.md."""
    with isolate_apps("tests.project.board"):

        class Exceptions(models.Model):
            null = models.CharField(max_length=3, null=True)  # and not blank
            tags = models.JSONField(default=list)  # and not blank
            moment = models.DateTimeField()

            class Meta:
                app_label = "board"

            def __str__(self) -> str:
                return ""

        class Out(ModelSchema, model=Exceptions, fields=("null", "tags", "moment")): ...

    now = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
    made = Out(null=None, tags=[], moment=now)
    with pytest.raises(ValidationError) as caught:
        Exceptions(**made.model_dump()).full_clean()
    assert {*caught.value.message_dict} == {"null", "tags"}
    with pytest.raises(Refused, match="timezone"):
        Out(null="a", moment=now.replace(tzinfo=None))
    with pytest.raises(Refused, match="valid string"):
        Out(null=3, moment=now)
