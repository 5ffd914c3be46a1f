"""Relations that a schema reads of instances: one query for each level, whatever the number of rows.

Relations to one row are joined into the query where that cannot change which rows it has. All others, and
those that are nested in themselves, are prefetched level by level, until a level has no rows.
"""

import sys
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeAlias

from django.db import connections
from django.db.models import Model, prefetch_related_objects
from django.db.models.query import ModelIterable
from pydantic import BaseModel

from ..events import logger
from ..schemas.annotations import evaluated, models_in
from ..schemas.relations import field_of_attribute, is_to_many
from .keys import AnyQuerySet
from .schema_code import source_of

WATCHED_ROWS = 20  # enough to see a field twice, and few enough to cost nothing

Schema: TypeAlias = type[BaseModel]


def relations_of(schema: Schema, model: type[Model]) -> Iterator[tuple[str, Any, list[Schema]]]:
    """Yield the relations that a schema reads: attribute, field, and the schemas of the related rows.

    A relation to one row that is read by its key needs nothing, and is left out.
    """
    for name, info in evaluated(schema).items():
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


def schema_for(model: type[Model], annotation: Any) -> Schema | None:
    """Return the first ``ModelSchema`` in a response's annotation that belongs to a model, or to its base."""
    seen: set[Schema] = set()
    waiting = list(models_in(annotation))
    while waiting:
        schema = waiting.pop(0)
        if schema in seen:
            continue
        seen.add(schema)
        if issubclass(model, getattr(schema, "__django_model__", ())):
            return schema
        waiting += [each for info in evaluated(schema).values() for each in models_in(info.annotation)]
    return None


def _next_level(schema: Schema, instances: list[Model]) -> Iterator[tuple[Schema, list[Model]]]:
    by_model: dict[type[Model], list[Model]] = {}
    for instance in instances:  # django-polymorphic's are of several classes, with relations of their own
        by_model.setdefault(type(instance), []).append(instance)
    for model, of_model in by_model.items():
        for attribute, field, nested in relations_of(schema, model):
            prefetch_related_objects(of_model, attribute)
            related = [row for instance in of_model for row in _related(instance, attribute, field)]
            for each in nested:
                wanted = getattr(each, "__django_model__", field.related_model)
                rows = [row for row in related if wanted is None or isinstance(row, wanted)]
                if rows:
                    yield each, rows


def _related(instance: Model, attribute: str, field: Any) -> list[Model]:
    if is_to_many(field):
        return list(getattr(instance, attribute).all())
    row = field.get_cached_value(instance, default=None)
    return [] if row is None else [row]


class QueryWatch:
    """Warns of a field that queries for each row: a property, say, of which no schema names the relation.

    It looks at the first rows of a read, and is around their statements as an ``execute_wrapper``.
    """

    changes_nothing = True  # so that fast ways are taken beside it

    def __init__(self, schema: str, names: Collection[str], alias: str) -> None:
        self._schema = schema
        self._names = names
        self._connection = connections[alias]
        self._rows_left = WATCHED_ROWS
        self._of_row: set[str] = set()
        self._rows_of: Counter[str] = Counter()

    @contextmanager
    def row(self) -> Iterator[None]:
        """Watch what making one row queries."""
        if self._rows_left == 0:
            yield
            return
        self._rows_left -= 1
        self._of_row.clear()
        with self._connection.execute_wrapper(self):
            yield
        self._rows_of.update(self._of_row)
        if repeated := [name for name, rows in self._rows_of.items() if rows > 1]:
            self._rows_left = 0
            logger.warning(
                "queries_for_each_row",
                schema=self._schema,
                fields=repeated,
                hint="prefetch in queryset() what these read, or annotate the relation itself in the schema",
            )

    def __call__(self, execute: Any, sql: Any, params: Any, many: Any, context: Any) -> Any:
        """Note which field is being read, and execute the statement."""
        frame: FrameType | None = sys._getframe(1)
        name: str | None = None
        while frame is not None and name is None:
            name = self._field(frame)
            frame = frame.f_back
        self._of_row.add(name or "a validator")
        return execute(sql, params, many, context)

    def _field(self, frame: FrameType) -> str | None:
        """Return the field whose property or descriptor this frame runs."""
        name, owner = frame.f_code.co_name, frame.f_locals.get("self")
        if name == "__get__" and (field := getattr(owner, "field", None)) is not None:
            name = getattr(field, "name", name)
        return name if name in self._names else None
