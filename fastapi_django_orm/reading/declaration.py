"""What a repository class declares, checked against the models it speaks of.

Runs once, at startup, when Django is set up: a wrong label or field ends the start with what to write
instead, before a request meets it.
"""

from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import Any, Protocol, get_args

from django.apps import apps
from django.core.exceptions import FieldError
from django.db.models import Model, QuerySet
from django.db.models.query import ModelIterable, ValuesIterable
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ..errors import FieldsNotNamed, InvalidRepository, UnknownField, UnknownModel, nearest
from .readers import (
    AnyQuerySet,
    ColumnReader,
    DictReader,
    Reader,
    SchemaReader,
    SerializerReader,
    names_of_dicts,
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
    def name(self) -> Any: ...  # noqa: D102
    @property
    def schema(self) -> Any: ...  # noqa: D102

    def queryset(self) -> AnyQuerySet: ...  # noqa: D102


class DeclaredCached(Declared, Protocol):
    """What it needs to know of one that keeps its rows."""

    @property
    def max_age(self) -> Any: ...  # noqa: D102
    @property
    def indexes(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def rows_kept(self) -> Any: ...  # noqa: D102


def resolve_model(owner: str, model: str | type[Model]) -> type[Model]:
    """The model class that a repository means.

    Args:
        owner: the repository's name, for the message.
        model: a label such as ``"bbs.Topic"``, or the class.

    Raises:
        UnknownModel: no installed app has it; the message has the nearest labels.
        InvalidRepository: it is something else.
    """
    if not isinstance(model, str):
        given: Any = model
        if not (isinstance(given, type) and issubclass(given, Model)) or given._meta.abstract:
            raise InvalidRepository(
                f"{owner}.model: {model!r} is neither a model's label nor a model with a table."
            )
        return model
    try:
        return apps.get_model(model)
    except (LookupError, ValueError):
        labels = [installed._meta.label for installed in apps.get_models()]
        raise UnknownModel(
            f"{owner}.model: there is no model {model!r} in INSTALLED_APPS. {nearest(model, labels)}"
        ) from None


def model_named(label: str) -> type[Model]:
    """The model with this label, as Django reads labels: the case of the model's name makes no difference.

    A proxy's is the model that it stands for, since hints name that one.

    Raises:
        UnknownModel: no installed app has one; the message has the nearest labels.
    """
    try:
        model = apps.get_model(label)
    except (LookupError, ValueError):
        labels = [model._meta.label for model in apps.get_models(include_auto_created=True)]
        raise UnknownModel(
            f"There is no model {label!r} in INSTALLED_APPS. {nearest(label, labels)}"
        ) from None
    return model._meta.concrete_model or model


def ordered(queryset: AnyQuerySet, ordering: Sequence[str]) -> AnyQuerySet:
    """The query in an order that is the same in every worker: the key decides where nothing else does."""
    query = queryset.query
    if query.is_sliced:
        return queryset  # Django would refuse to order it again
    # These can be ordered only by what they select.
    if query.combinator or query.distinct_fields or issubclass(queryset._iterable_class, ValuesIterable):
        return queryset.order_by(*ordering) if ordering else queryset
    wanted = ordering or query.order_by or queryset.model._meta.ordering
    names, pk = {str(item).lstrip("-") for item in wanted}, queryset.model._meta.pk
    # A key that is a relation sorts, by its name, as the other model does.
    if names & {"pk", pk.attname, "?", *(() if pk.is_relation else (pk.name,))}:
        return queryset.order_by(*wanted)
    return queryset.order_by(*wanted, "pk")


def check_shape(repository: Declared) -> None:
    """Refuse attributes of a wrong type, and what is no query for rows.

    Raises:
        InvalidRepository: a text where names are wanted, and the like; or a ``queryset()`` that gives
            something else.
    """
    label, name = repository.label, repository.name
    if not isinstance(name, str) or not name:
        raise InvalidRepository(f"{label}.name: write the key that the JSON has for the rows, not {name!r}.")
    for attribute in ("fields", "ordering"):
        _check_names(f"{label}.{attribute}", getattr(repository, attribute))
    if repository.fields is not None and not repository.fields:
        raise InvalidRepository(f"{label}.fields: name at least one field, or leave it out for all.")
    queryset = repository.queryset()
    iterable = getattr(queryset, "_iterable_class", None)
    if iterable is None or not issubclass(iterable, ModelIterable | ValuesIterable):
        raise InvalidRepository(
            f"{repository.label}.queryset(): give a query of model instances, or one that ends in .values(); "
            f"this is {_shape(queryset)}."
        )


def check_cached(repository: DeclaredCached, reader: Reader) -> None:
    """Refuse what a cached repository says beyond that, if it does not fit.

    Raises:
        InvalidRepository: a number where a time is wanted, and the like.
        UnknownField: ``indexes`` name what its rows do not have.
    """
    label, max_age, kept = repository.label, repository.max_age, repository.rows_kept
    _check_names(f"{label}.indexes", repository.indexes)
    if max_age is not None and (not isinstance(max_age, timedelta) or max_age <= timedelta(0)):
        raise InvalidRepository(f"{label}.max_age: write timedelta(seconds=60), not {max_age!r}.")
    if type(kept) is not int or kept < 0:
        raise InvalidRepository(f"{label}.rows_kept: write a number of rows, not {kept!r}.")
    unknown = [name for name in repository.indexes if name not in reader.names]
    if unknown:
        raise UnknownField(
            f"{label}.indexes: its rows have no field {unknown[0]!r}. {nearest(unknown[0], reader.names)}"
        )


def _check_names(where: str, names: Any) -> None:
    if isinstance(names, str):
        raise InvalidRepository(f"{where}: write ({names!r},), a tuple of names.")
    if not isinstance(names, Sequence) and not (names is None and where.endswith(".fields")):
        raise InvalidRepository(f"{where}: write a tuple of names, not {names!r}.")


def _shape(queryset: Any) -> str:
    return (
        "one that ends in .values_list()"
        if isinstance(queryset, QuerySet)
        else f"a {type(queryset).__name__}"
    )


def choose_reader(repository: Declared, queryset: AnyQuerySet) -> Reader:
    """How to read a repository, from what it declares.

    Raises:
        UnknownField: ``fields`` names what is not there.
        FieldsNotNamed: the model has a password and the repository does not say which fields to serve.
        InvalidRepository: the declaration contradicts itself.
    """
    label, schema, fields = repository.label, repository.schema, repository.fields
    if schema is not None and fields is not None:
        raise InvalidRepository(f"{label}: give `fields` or `schema`; the schema names its own fields.")
    if issubclass(queryset._iterable_class, ValuesIterable):
        return _dict_reader(label, schema, fields, queryset)
    if schema is None:
        names = _default_fields(label, queryset) if fields is None else tuple(fields)
        _check_fields(f"{label}.fields", names, queryset)
        return ColumnReader(names)
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
    names = names_of_dicts(queryset)
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
    if repository.ordering and queryset.query.is_sliced:
        raise InvalidRepository(
            f"{repository.label}: queryset() is sliced, and only what is not can be ordered. Leave out "
            "`ordering`, and order before the slice."
        )
    for item in repository.ordering:
        try:
            _resolve_ordering(item, queryset.order_by(item))
        except FieldError as error:
            where = f"{repository.label}.ordering"
            if not isinstance(item, str):
                raise UnknownField(f"{where}: {error}") from None
            raise _unknown(where, item.lstrip("-"), queryset) from None


def _resolve_ordering(item: Any, queryset: AnyQuerySet) -> None:
    # order_by() looks at a name's first part alone; the rest would fail in the first load.
    query = queryset.query.chain()
    if not isinstance(item, str):
        item.resolve_expression(query)
    elif item != "?" and item.lstrip("-") not in query.extra:
        query.resolve_ref(item.lstrip("-"))


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
    """For each field of the schema its column, or None if it wants more of a model instance than columns."""
    columns = set(queryset.query.annotation_select)
    for column in queryset.model._meta.concrete_fields:
        columns.update((column.attname, column.name))
    names = tuple(_source(name, field) for name, field in schema.model_fields.items())
    _check_schema(schema, columns, queryset)
    if any(_nests_model(field.annotation) for field in schema.model_fields.values()):
        return None
    return names if columns.issuperset(names) else None


def _check_schema(schema: type[BaseModel], columns: Collection[str], queryset: AnyQuerySet) -> None:
    """Refuse a field that nothing of the model can fill, before the first row comes."""
    if schema.__pydantic_decorators__.model_validators:
        return  # which may make it of something else
    for name, field in schema.model_fields.items():
        source = _source(name, field)
        aliased = field.validation_alias is not None and field.validation_alias != field.alias
        if (
            field.is_required()
            and not aliased
            and source not in columns
            and not hasattr(queryset.model, source)
        ):
            raise _unknown(f"{schema.__name__}.{name}", source, queryset)


def _source(name: str, field: FieldInfo) -> str:
    """What a field is read from: its name, unless it has an alias for reading only."""
    alias = field.validation_alias
    return alias if isinstance(alias, str) and alias != field.alias else name


def _nests_model(annotation: Any) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return True
    return any(_nests_model(argument) for argument in get_args(annotation))
