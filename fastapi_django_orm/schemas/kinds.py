"""Which Python type the values of each kind of model field have, and the one function that adds kinds."""

import datetime as dt
from decimal import Decimal
from inspect import isfunction
from typing import Annotated, Any, TypeAlias
from uuid import UUID

from django.conf import settings
from django.db import models
from django.db.models import Field

from ..errors import InvalidSchema
from .values import Base64, TimeZone, file_name

AnyField: TypeAlias = "Field[Any, Any]"
Kind: TypeAlias = Any  # an annotation, or a function that makes one of the field

_kinds: "dict[type[AnyField], Kind]" = {}


def register_field(field_class: "type[AnyField]", annotation: Kind) -> None:
    """Say which annotation schemas use for a class of model fields, and for its subclasses.

    Args:
        field_class: such as ``MoneyField``.
        annotation: a type or an ``Annotated`` that validates what instances have and what requests send; or a
            function that gets the field and returns one.
    """
    _kinds[field_class] = annotation


def annotation_of(field: Any, owner: str) -> Any:
    """Return the annotation of a field's values, without constraints and without None.

    Raises:
        InvalidSchema: neither the field's class nor a base of it is registered.
    """
    for kind in type(field).__mro__:
        if kind in _kinds:
            found = _kinds[kind]
            return found(field) if isfunction(found) else found
    where = f"{field.model._meta.label}.{field.name}"
    name = type(field).__qualname__
    raise InvalidSchema(
        f"{owner}: {where} is a {type(field).__module__}.{name}, which schemas do not know. Annotate the "
        f"field in the class (`{field.name}: str`), or register the kind once, where the application is "
        f"made: `from fastapi_django_orm.schemas import register_field; register_field({name}, str)`."
    )


def key_annotation(field: Any, owner: str) -> Any:
    """Return the annotation of a related row's key, through keys that are relations themselves."""
    target = field.target_field
    while target.is_relation:
        target = target.target_field
    found = annotation_of(target, owner)
    return found.__origin__ if hasattr(found, "__metadata__") else found


def _of_json(field: Any) -> Any:
    # All that JSON has but null, which a field without null refuses. A decoder may make anything.
    return Any if field.decoder else dict[str, Any] | list[Any] | str | bool | int | float


def _of_datetime(field: Any) -> Any:
    return Annotated[dt.datetime, TimeZone("aware" if settings.USE_TZ else "naive")]


def _of_generated(field: Any) -> Any:
    return annotation_of(field.output_field, field.model._meta.label)


def _of_key_of_several(field: Any) -> Any:
    parts = [annotation_of(field.model._meta.get_field(part.name), str(field)) for part in field.fields]
    return tuple[tuple(parts)]  # type: ignore[misc]


for _class, _annotation in {
    models.BigIntegerField: int,
    models.BinaryField: Annotated[bytes, Base64()],
    models.BooleanField: bool,
    models.CharField: str,
    models.CompositePrimaryKey: _of_key_of_several,
    models.DateField: dt.date,
    models.DateTimeField: _of_datetime,
    models.DecimalField: Decimal,
    models.DurationField: dt.timedelta,
    models.FileField: Annotated[str, file_name],
    models.FilePathField: str,
    models.FloatField: float,
    models.GeneratedField: _of_generated,
    models.GenericIPAddressField: str,
    models.IntegerField: int,
    models.JSONField: _of_json,
    models.TextField: str,
    models.TimeField: Annotated[dt.time, TimeZone("naive")],
    models.UUIDField: UUID,
}.items():
    register_field(_class, _annotation)
