"""What a published repository's rows look like, for the OpenAPI document."""

from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pydantic
from django.core.exceptions import FieldError
from django.db.models import Model, QuerySet
from django.db.models.query import ValuesIterable
from pydantic import BaseModel, ConfigDict, create_model

from ..cached import CachedRepository
from ..reading.readers import depends_on_others, is_final, names_of_dicts
from ..repository import Repository

_TYPES: dict[str, type[Any]] = {
    **dict.fromkeys(["AutoField", "BigAutoField", "SmallAutoField"], int),
    **dict.fromkeys(["IntegerField", "BigIntegerField", "SmallIntegerField"], int),
    **dict.fromkeys(["PositiveIntegerField", "PositiveBigIntegerField", "PositiveSmallIntegerField"], int),
    **dict.fromkeys(["CharField", "TextField", "SlugField", "FileField", "FilePathField"], str),
    **dict.fromkeys(["IPAddressField", "GenericIPAddressField"], str),
    "BooleanField": bool,
    "FloatField": float,
    "DecimalField": Decimal,
    "DateField": date,
    "DateTimeField": datetime,
    "TimeField": time,
    "DurationField": timedelta,
    "UUIDField": UUID,
    "BinaryField": bytes,
}


def row_model(repository: Repository[Any]) -> type[BaseModel]:
    """The model of a row: the repository's own schema, or one made of the fields that it reads.

    To be called on a database thread: an overridden ``queryset()`` may query.
    """
    schema, queryset = repository.schema, repository.queryset()
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        return schema
    names = _names(repository, queryset)
    # Aliases, since pydantic does not take every name for a field.
    fields: dict[str, Any] = {
        f"field_{number}": (_type_of(name, queryset) if schema is None else Any, pydantic.Field(alias=name))
        for number, name in enumerate(names)
    }
    title = f"{repository.label}Row"
    return create_model(title, __config__=ConfigDict(title=title, arbitrary_types_allowed=True), **fields)


def list_model(repository: Repository[Any], row: type[BaseModel]) -> type[BaseModel]:
    """The model of ``{"name": [rows]}``."""
    rows: Any = list[row]  # type: ignore[valid-type]  # known when it runs
    fields: dict[str, Any] = {"rows": (rows, pydantic.Field(alias=repository.name))}
    return create_model(f"{repository.label}List", **fields)


def key_type(repository: Repository[Any]) -> Any:
    """The type of the rows' keys, or None if they have none that could stand in a path."""
    model, queryset = repository.model_class, repository.queryset()
    key = model._meta.pk
    if not key.concrete or getattr(key, "columns", None):
        return None  # several columns
    is_live = not isinstance(repository, CachedRepository)
    if is_live and (is_final(queryset) or depends_on_others(queryset)):
        return None  # fetch() refuses to look for one
    if repository.schema is None and not {key.attname, key.name, "pk"} & {*_names(repository, queryset)}:
        # Rows of .values() without their key; those of `fields` have it nevertheless.
        return _type(key) if _is_of_instances(queryset) else None
    return _type(key)


def _is_of_instances(queryset: "QuerySet[Any, Any]") -> bool:
    return not issubclass(queryset._iterable_class, ValuesIterable)


def _names(repository: Repository[Any], queryset: "QuerySet[Any, Any]") -> list[str]:
    query = queryset.query
    if repository.schema is not None:  # of Django REST framework
        serializer = repository.schema()
        return [name for name, field in serializer.fields.items() if not field.write_only]
    if not _is_of_instances(queryset):
        return names_of_dicts(queryset)
    if repository.fields is not None:
        return [*repository.fields]
    return [*(field.attname for field in queryset.model._meta.concrete_fields), *query.annotation_select]


def _type_of(name: str, queryset: "QuerySet[Any, Any]") -> Any:
    annotation = queryset.query.annotations.get(name)
    if annotation is not None:
        try:
            return _type(annotation.output_field) | None
        except FieldError:  # of several types, so Django does not know it either
            return Any
    return _column_type(name, queryset.model)


def _column_type(name: str, model: type[Model]) -> Any:
    """The type of a column, of a relation's (``author__name``) too."""
    columns = {field.attname: field for field in model._meta.concrete_fields}
    if name == "pk":
        return _type(model._meta.pk)
    if name in columns:
        return _nullable(columns[name])
    head, _, rest = name.partition("__")
    field = next((field for field in model._meta.get_fields() if field.name == head), None)
    if field is None or not (rest or field.concrete):
        return Any
    if not rest:
        return _nullable(field)
    related = field.related_model
    if not (isinstance(related, type) and issubclass(related, Model)):
        return Any  # a key of JSON, a transform
    return _column_type(rest, related) | None


def _nullable(field: Any) -> Any:
    # What the database generates may be null, whatever the field says.
    nullable = field.null or getattr(field, "generated", False)
    return _type(field) | None if nullable else _type(field)


def _type(field: Any) -> Any:
    while field.is_relation:
        field = field.target_field
    kind = field.get_internal_type()
    if kind == "ArrayField":
        return list[_nullable(field.base_field)]  # type: ignore[misc]  # known when it runs
    # A field of the project's own may read as anything.
    if hasattr(field, "from_db_value"):
        return Any
    return _TYPES.get(kind, Any)
