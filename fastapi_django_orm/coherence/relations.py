"""Models that a repository reads beside its query: by prefetching, or by what a schema reads of instances."""

from collections.abc import Collection, Iterator
from typing import Any

from django.apps import apps
from django.core.exceptions import FieldDoesNotExist
from django.db.models import Model, Prefetch, QuerySet
from django.db.models.query import ModelIterable, ValuesIterable
from pydantic import AliasChoices, AliasPath, BaseModel

from ..reading.validation import Declared
from ..schemas.annotations import models_in

Path = tuple[str, ...]


def children_of(repository: Declared, queryset: QuerySet[Any]) -> list[type[Model]]:
    """The models that inherit from a query's, if they may be read with it.

    Where a query's class or iterable is not Django's, as django-polymorphic's, an instance may be read from
    the table of the child that it is, by a query that nothing shows.
    """
    plain = type(queryset) is QuerySet and queryset._iterable_class is ModelIterable
    if plain or repository.schema is None or issubclass(queryset._iterable_class, ValuesIterable):
        return []
    model = queryset.model._meta.concrete_model or queryset.model
    return [
        other
        for other in apps.get_models()
        if not other._meta.proxy and other is not model and issubclass(other, model)
    ]


def related_models(
    repository: Declared, queryset: QuerySet[Any], children: Collection[type[Model]]
) -> Iterator[type[Model] | None]:
    """Those models; None for one that only the data names, as a generic foreign key's.

    What a method or a property reads is for ``depends_on``.
    """
    for each in (queryset, *prefetched(queryset)):
        for lookup in _lookups(each):
            name = lookup.prefetch_through if isinstance(lookup, Prefetch) else lookup
            yield from _along(each.model, tuple(name.split("__")))
    for path in _paths(repository.schema):
        for model in (queryset.model, *children):
            yield from _along(model, path)
    for child in children:  # which may have further parents
        yield from set(child._meta.get_parent_list()) - set(queryset.model._meta.get_parent_list())


def prefetched(queryset: QuerySet[Any]) -> Iterator[QuerySet[Any]]:
    """The querysets that ``Prefetch`` objects have, and theirs in turn."""
    for lookup in _lookups(queryset):
        if isinstance(lookup, Prefetch):
            for inner in (lookup.queryset, *getattr(lookup, "querysets", ())):  # GenericPrefetch has several
                if inner is not None:
                    yield inner
                    yield from prefetched(inner)


def _lookups(queryset: QuerySet[Any]) -> Iterator[Any]:
    yield from queryset._prefetch_related_lookups  # type: ignore[attr-defined]


def _along(model: type[Model], path: Path) -> Iterator[type[Model] | None]:
    """The models that a path of attributes leads through."""
    for name in path:
        relation = _relation(model, name)
        if relation is None:
            return
        if relation.related_model is None:
            yield None
            return
        through = getattr(relation, "through", None) or getattr(relation.remote_field, "through", None)
        if through is not None:
            yield through
        model = relation.related_model
        yield model._meta.concrete_model
        yield from model._meta.get_parent_list()


def _relation(model: type[Model], name: str) -> Any:
    try:
        field: Any = model._meta.get_field(name)
    except FieldDoesNotExist:
        by_accessor = {found.get_accessor_name(): found for found in model._meta.related_objects}
        return by_accessor.get(name)
    return field if field.is_relation else None


def _paths(schema: Any) -> Iterator[Path]:
    """The attributes that a schema reads: a pydantic model's fields, a DRF serializer's sources."""
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        yield from _pydantic_paths(schema, ())
    elif schema is not None:
        yield from _serializer_paths(schema())


def _pydantic_paths(schema: type[BaseModel], seen: tuple[type[BaseModel], ...]) -> Iterator[Path]:
    for name, field in schema.model_fields.items():
        for source in {(name,), *_aliases(field.validation_alias)}:
            yield source
            for nested in models_in(field.annotation):
                if nested not in seen:
                    rest = _pydantic_paths(nested, (*seen, schema, nested))
                    yield from ((*source, *path) for path in rest)


def _aliases(alias: str | AliasPath | AliasChoices | None) -> Iterator[Path]:
    if isinstance(alias, str):
        yield (alias,)
    elif isinstance(alias, AliasPath):
        yield tuple(map(str, alias.path))
    elif isinstance(alias, AliasChoices):
        for choice in alias.choices:
            yield from _aliases(choice)


def _serializer_paths(serializer: Any) -> Iterator[Path]:
    serializer = getattr(serializer, "child", serializer)  # many=True
    for field in getattr(serializer, "fields", {}).values():
        source = tuple(name for name in (field.source or "").split(".") if name not in ("", "*"))
        yield source
        nested = getattr(field, "child", field)
        if hasattr(nested, "fields"):
            yield from ((*source, *path) for path in _serializer_paths(nested))
