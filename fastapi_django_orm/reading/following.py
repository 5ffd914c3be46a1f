"""Relations that a schema reads of instances: one query for each level, whatever the number of rows.

Relations to one row are joined into the query where that cannot change which rows it has. All others, and
those that are nested in themselves, are prefetched level by level, until a level has no rows.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from django.db.models import Model, prefetch_related_objects
from django.db.models.query import ModelIterable
from pydantic import BaseModel

from ..schemas.annotations import models_in
from ..schemas.relations import field_of_attribute, is_to_many
from .keys import AnyQuerySet
from .schema_code import source_of

Schema = type[BaseModel]


def relations_of(schema: Schema, model: type[Model]) -> Iterator[tuple[str, Any, list[Schema]]]:
    """Yield the relations that a schema reads: attribute, field, and the schemas of the related rows.

    A relation to one row that is read by its key needs nothing, and is left out.
    """
    for name, info in schema.model_fields.items():
        source = source_of(name, info, model)
        field = field_of_attribute(model, source)
        if field is not None and field.is_relation:
            nested = list(models_in(info.annotation))
            if nested or is_to_many(field):
                yield source, field, nested


def joined(queryset: AnyQuerySet, schema: Schema) -> AnyQuerySet:
    """Join the relations to one row that the schema nests, where the query may be changed."""
    query = queryset.query
    if query.combinator or query.deferred_loading[0] or queryset._iterable_class is not ModelIterable:
        return queryset
    names = list(_joins(schema, queryset.model, ()))
    if not names or query.select_related is True:
        return queryset
    return queryset.select_related(*names)


def _joins(schema: Schema, model: type[Model], within: tuple[Schema, ...]) -> Iterator[str]:
    for _, field, nested in relations_of(schema, model):
        if is_to_many(field) or field.related_model is None or len(nested) != 1:
            continue
        # Without a constraint the other row may be missing, and an inner join would drop this one.
        constrained = not field.concrete or getattr(field, "db_constraint", False)
        if constrained and nested[0] not in (*within, schema):
            yield field.name
            for name in _joins(nested[0], field.related_model, (*within, schema)):
                yield f"{field.name}__{name}"


def load_relations(instances: Sequence[Model], schema: Schema) -> None:
    """Prefetch what the schema reads and these instances do not have yet; on a database thread."""
    level = [(schema, list(instances))]
    while level:
        level = [each for schema, rows in level for each in _next_level(schema, rows)]


def _next_level(schema: Schema, instances: list[Model]) -> Iterator[tuple[Schema, list[Model]]]:
    if not instances:
        return
    for attribute, field, nested in relations_of(schema, type(instances[0])):
        prefetch_related_objects(instances, attribute)
        related = [row for instance in instances for row in _related(instance, attribute, field)]
        for each in nested:
            of_model = getattr(each, "__django_model__", field.related_model)
            rows = [row for row in related if of_model is None or isinstance(row, of_model)]
            if rows:
                yield each, rows


def _related(instance: Model, attribute: str, field: Any) -> list[Model]:
    if is_to_many(field):
        return list(getattr(instance, attribute).all())
    row = field.get_cached_value(instance, default=None)
    return [] if row is None else [row]
