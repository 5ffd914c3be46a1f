"""Which reader a repository's rows want, from what it declares."""

from collections.abc import Sequence
from typing import Any

from django.core.exceptions import FieldError
from django.db.models.query import ValuesIterable
from pydantic import BaseModel

from ..errors import InvalidRepository
from ..schemas.completing import KEYS_OF_RELATIONS
from .keys import AnyQuerySet
from .readers import ColumnReader, DictReader, Reader
from .resolve import unknown_field
from .schema_code import source_of
from .schema_readers import SchemaReader, SerializerReader
from .validation import Declared


def choose_reader(repository: Declared, queryset: AnyQuerySet) -> Reader:
    """Return the reader of a repository's rows.

    Raises:
        UnknownField: ``fields`` names what is not there.
        InvalidRepository: the declaration contradicts itself.
    """
    label, schema, fields = repository.label, repository.schema, repository.fields
    if schema is not None and fields is not None:
        raise InvalidRepository(f"{label}: give `fields` or `schema`; the schema names its own fields.")
    if issubclass(queryset._iterable_class, ValuesIterable):
        if schema is not None or fields is not None:
            raise InvalidRepository(
                f"{label}: queryset() ends in .values(), so `fields` and `schema` would say it twice."
            )
        return DictReader(queryset)
    if schema is None:
        columns = [field.attname for field in queryset.model._meta.concrete_fields]
        names = (*columns, *queryset.query.annotation_select) if fields is None else tuple(fields)
        _check_fields(f"{label}.fields", names, queryset)
        return ColumnReader(names, queryset)
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        _check_schema(schema, queryset)
        return SchemaReader(schema, queryset)
    if _is_serializer(schema):
        return SerializerReader(schema)
    raise InvalidRepository(
        f"{label}.schema: {schema!r} is neither a pydantic model nor a DRF serializer class."
    )


def _is_serializer(schema: Any) -> bool:
    try:
        from rest_framework.serializers import Serializer
    except ImportError:
        return False
    return isinstance(schema, type) and issubclass(schema, Serializer)


def _check_fields(where: str, names: Sequence[str], queryset: AnyQuerySet) -> None:
    for name in names:
        try:
            queryset.values_list(name)
        except FieldError:
            raise unknown_field(where, name, queryset) from None


def _check_schema(schema: type[BaseModel], queryset: AnyQuerySet) -> None:
    """Refuse a field that nothing of the model can fill, before the first row comes."""
    if schema.__pydantic_decorators__.model_validators.keys() - {KEYS_OF_RELATIONS}:
        return  # which may make it of something else
    columns = set(queryset.query.annotation_select)
    for column in queryset.model._meta.concrete_fields:
        columns.update((column.attname, column.name))
    for name, field in schema.model_fields.items():
        if not field.is_required():
            continue
        source = source_of(name, field, queryset.model)
        aliased = field.validation_alias is not None and field.validation_alias != field.alias
        if not aliased and source not in columns and not hasattr(queryset.model, source):
            raise unknown_field(f"{schema.__name__}.{name}", source, queryset)
