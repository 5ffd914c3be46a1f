"""What a repository class declares, checked against the models it speaks of.

Runs once, at startup, when Django is set up: a wrong label or field ends the start with what to write
instead, before a request meets it.
"""

from collections.abc import Sequence
from typing import Any, Protocol, get_args

from django.apps import apps
from django.core.exceptions import FieldError
from django.db.models import Model
from django.db.models.query import ValuesIterable
from pydantic import BaseModel

from .errors import FieldsNotNamed, InvalidRepository, UnknownField, UnknownModel, nearest
from .readers import (
    AnyQuerySet,
    ColumnReader,
    DictReader,
    Reader,
    SchemaReader,
    SerializerReader,
)


class Declared(Protocol):
    """What this room needs to know of a repository; its own documentation says what each means."""

    @property
    def label(self) -> str: ...  # noqa: D102
    @property
    def fields(self) -> Sequence[str] | None: ...  # noqa: D102
    @property
    def ordering(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def schema(self) -> Any: ...  # noqa: D102
    @property
    def indexes(self) -> Sequence[str]: ...  # noqa: D102

    def queryset(self) -> AnyQuerySet: ...  # noqa: D102


def resolve_model(owner: str, model: str | type[Model]) -> type[Model]:
    """The model class that a repository means.

    Args:
        owner: the repository's name, for the message.
        model: a label such as ``"bbs.Topic"``, or the class.

    Raises:
        UnknownModel: no installed app has it; the message has the nearest labels.
    """
    if not isinstance(model, str):
        return model
    try:
        return apps.get_model(model)
    except (LookupError, ValueError):
        labels = [installed._meta.label for installed in apps.get_models()]
        raise UnknownModel(
            f"{owner}.model: there is no model {model!r} in INSTALLED_APPS. {nearest(model, labels)}"
        ) from None


def ordered(queryset: AnyQuerySet, ordering: Sequence[str]) -> AnyQuerySet:
    """The query in an order that is the same in every worker: the key decides where nothing else does."""
    query = queryset.query
    if query.is_sliced or query.combinator or query.distinct_fields:
        return queryset  # Django would refuse to order these again
    if issubclass(queryset._iterable_class, ValuesIterable):
        return queryset.order_by(*ordering) if ordering else queryset
    wanted = ordering or query.order_by or queryset.model._meta.ordering
    names = {str(item).lstrip("-") for item in wanted}
    if names & {"pk", queryset.model._meta.pk.name, "?"}:
        return queryset.order_by(*wanted)
    return queryset.order_by(*wanted, "pk")


def choose_reader(repository: Declared, queryset: AnyQuerySet) -> Reader:
    """How to read a repository, from what it declares.

    Raises:
        UnknownField: ``fields``, ``ordering`` or ``indexes`` name what is not there.
        FieldsNotNamed: the model has a password and the repository does not say which fields to serve.
        InvalidRepository: the declaration contradicts itself.
    """
    reader = _reader(repository, queryset)
    unknown = [name for name in repository.indexes if name not in reader.names]
    if unknown:
        raise UnknownField(
            f"{repository.label}.indexes: its rows have no field {unknown[0]!r}. "
            + nearest(unknown[0], reader.names)
        )
    return reader


def _reader(repository: Declared, queryset: AnyQuerySet) -> Reader:
    label, schema, fields = repository.label, repository.schema, repository.fields
    if schema is not None and fields is not None:
        raise InvalidRepository(f"{label}: give `fields` or `schema`; the schema names its own fields.")
    if issubclass(queryset._iterable_class, ValuesIterable):
        return _dict_reader(label, schema, fields, queryset)
    if schema is None:
        names = _default_fields(label, queryset) if fields is None else tuple(fields)
        _check_fields(f"{label}.fields", names, queryset)
        return ColumnReader(queryset.model, names)
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        return SchemaReader(schema, _schema_columns(schema, queryset))
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


def _dict_reader(label: str, schema: Any, fields: Any, queryset: AnyQuerySet) -> Reader:
    if schema is not None or fields is not None:
        raise InvalidRepository(
            f"{label}: queryset() ends in .values(), so `fields` and `schema` would say it twice."
        )
    query = queryset.query
    names = [*query.extra_select, *query.values_select, *query.annotation_select]
    key = next((name for name in (queryset.model._meta.pk.attname, "pk") if name in names), None)
    return DictReader(names, key)


def _default_fields(label: str, queryset: AnyQuerySet) -> tuple[str, ...]:
    names = [field.attname for field in queryset.model._meta.concrete_fields]
    secret = [name for name in names if "password" in name.lower()]
    if secret:
        raise FieldsNotNamed(
            f"{label}: {queryset.model._meta.label} has the field {secret[0]!r}. Say which fields to "
            f"serve: fields = ({', '.join(map(repr, [n for n in names if n not in secret][:3]))}, …)."
        )
    return (*names, *queryset.query.annotation_select)


def check_ordering(repository: Declared) -> None:
    """Refuse an ``ordering`` by what is not there.

    Raises:
        UnknownField: a name in it is neither a column, a relation's column nor an annotation.
    """
    queryset = repository.queryset()
    for item in repository.ordering:
        try:
            queryset.order_by(item)
        except FieldError:
            raise _unknown(f"{repository.label}.ordering", item.lstrip("-"), queryset) from None


def _check_fields(where: str, names: Sequence[str], queryset: AnyQuerySet) -> None:
    for name in names:
        try:
            queryset.values_list(name)
        except FieldError:
            raise _unknown(where, name, queryset) from None


def _unknown(where: str, name: str, queryset: AnyQuerySet) -> UnknownField:
    fields = [field.name for field in queryset.model._meta.get_fields()]
    known = [*fields, *queryset.query.annotations]
    return UnknownField(
        f"{where}: {queryset.model._meta.label} has no field {name!r}. {nearest(name, known)}"
    )


def _schema_columns(schema: type[BaseModel], queryset: AnyQuerySet) -> Sequence[str] | None:
    """The columns that fill the schema, or None if it wants more of a model instance than columns."""
    columns = set(queryset.query.annotation_select)
    for column in queryset.model._meta.concrete_fields:
        columns.update((column.attname, column.name))
    names = tuple(schema.model_fields)
    if any(_nests_model(field.annotation) for field in schema.model_fields.values()):
        return None
    return names if columns.issuperset(names) else None


def _nests_model(annotation: Any) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return True
    return any(_nests_model(argument) for argument in get_args(annotation))
