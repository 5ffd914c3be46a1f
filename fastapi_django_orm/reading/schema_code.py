"""What a schema wants to read: columns, or the model's instances, as FastAPI's response model gets them.

Columns are cheaper. But they give the same only where nothing of the schema's or the model's own looks at the
instance: a validator that runs before pydantic's, ``resolve_…`` methods, an alias that leads to an attribute,
a field whose attribute is a file or an amount of money and not what the column has.
"""

from collections.abc import Callable, Iterator, Sequence
from inspect import getattr_static
from types import NoneType
from typing import Any, get_args
from uuid import UUID

from django.db.models import Model
from django.db.models.fields.related_descriptors import (
    ForeignKeyDeferredAttribute,
    ForwardManyToOneDescriptor,
    ForwardOneToOneDescriptor,
)
from django.db.models.query_utils import DeferredAttribute
from django.db.models.signals import post_init
from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

from ..schemas.annotations import models_in
from ..schemas.completing import KEYS_OF_RELATIONS
from ..schemas.values import Check, Choice
from .keys import AnyQuerySet

# Attributes that are the column's value, and those of relations, whose value is the other row's key.
_PLAIN = (DeferredAttribute, ForeignKeyDeferredAttribute)
_RELATIONS = (ForwardManyToOneDescriptor, ForwardOneToOneDescriptor)
_MAKING_INSTANCES = ("__init__", "__new__", "__getattribute__", "__setattr__", "from_db")
_READING_INSTANCES = ("__init__", "__new__", "__get_pydantic_core_schema__")
# Packages, and modules of this one, whose functions look at their arguments alone.
_PURE = ("pydantic", "pydantic_core", "builtins", "annotated_types")
_PURE_MODULES = ("fastapi_django_orm.schemas.", "django.core.validators")
_KEYS = frozenset({int, str, UUID, NoneType, Any})


def source_of(name: str, field: FieldInfo, model: type[Model]) -> str:
    """Return what a field of a schema is read from: its name, unless it has an alias for reading.

    An alias that the model does not have is for the answer alone, as ``alias_generator=to_camel`` makes it.
    """
    alias = field.validation_alias
    if not isinstance(alias, str):
        return name
    return alias if alias != field.alias or _has(model, alias) else name


def why_instances(schema: type[BaseModel], queryset: AnyQuerySet) -> str | None:
    """Return why rows are made of instances, as the part of a sentence; None if columns give the same."""
    model = queryset.model
    if own := _own(schema, BaseModel, _READING_INSTANCES) or _validator(schema):
        return f"{schema.__name__} has its own {own}"
    if own := _own(model, Model, _MAKING_INSTANCES):
        return f"{model.__name__} has its own {own}"
    if post_init.has_listeners(model):
        return f"{model.__name__} has receivers of post_init"
    for name, field in schema.model_fields.items():
        if any(models_in(field.annotation)):
            return f"{schema.__name__}.{name} is a schema"
        if not isinstance(field.validation_alias, str | None):
            return f"{schema.__name__}.{name} has a path for its alias"
        source = source_of(name, field, model)
        known = source in queryset.query.annotation_select or _is_column(model, source)
        if not known and not (_is_relation(model, source) and _takes_keys(schema, name)):
            return f"{schema.__name__}.{name} is not a plain column"
    return None


def code_of(schema: type[BaseModel]) -> str | None:
    """Return the code that runs when rows are made or sent and is not pydantic's own; None if none does.

    Such code may look at the language, the tenant, or whatever else belongs to the one who asks.
    """
    for function in _functions(TypeAdapter(schema).core_schema, set()):
        owner = getattr(function, "__self__", None)
        if isinstance(owner, Choice):  # which the project computes
            return f"{schema.__name__} runs the choices of {owner.field.name}"
        function = owner.validator if isinstance(owner, Check) else function
        where = getattr(function, "__module__", None) or type(function).__module__
        if where.partition(".")[0] not in _PURE and not where.startswith(_PURE_MODULES):
            return f"{schema.__name__} runs {getattr(function, '__qualname__', function)}"
    return None


def _functions(node: Any, seen: set[int]) -> Iterator[Callable[..., Any]]:
    """Yield the functions in a schema of pydantic-core's, whatever they are for."""
    if isinstance(node, dict | list | tuple):
        if id(node) not in seen:
            seen.add(id(node))
            for each in node.values() if isinstance(node, dict) else node:
                yield from _functions(each, seen)
    elif callable(node) and not isinstance(node, type):
        yield node


def _own(kind: type[Any], base: type[Any], names: Sequence[str]) -> str | None:
    for name in names:
        mine, known = getattr(kind, name), getattr(base, name)
        if getattr(mine, "__func__", mine) is not getattr(known, "__func__", known):
            return name
    return None


def _validator(schema: type[BaseModel]) -> str | None:
    """A validator that gets what is read, and not what pydantic has made of it."""
    found = schema.__pydantic_decorators__
    before = [
        name
        for name, of in found.model_validators.items()
        # Not what a ModelSchema has, which gives keys instead of rows, as columns do.
        if of.info.mode != "after" and name != KEYS_OF_RELATIONS
    ]
    return next(iter([*before, *found.root_validators]), None)


def _is_column(model: type[Model], name: str) -> bool:
    """Whether an attribute of an instance is what ``.values()`` gives under its name."""
    named = any(name == column.attname for column in model._meta.concrete_fields)
    return named and type(getattr_static(model, name, None)) in _PLAIN


def _is_relation(model: type[Model], name: str) -> bool:
    """Whether ``.values()`` gives a key under the name of an attribute that is an instance."""
    named = any(name == column.name for column in model._meta.concrete_fields)
    return named and type(getattr_static(model, name, None)) in _RELATIONS


def _takes_keys(schema: type[BaseModel], name: str) -> bool:
    """Whether a field that has a relation's name is meant for its key: it could not take an instance."""
    field = schema.model_fields[name]
    validators = schema.__pydantic_decorators__.field_validators.values()
    looked_at = any(name in of.info.fields or "*" in of.info.fields for of in validators)
    kinds = get_args(field.annotation) or (field.annotation,)
    return not looked_at and not field.metadata and _KEYS.issuperset(kinds)


def _has(model: type[Model], name: str) -> bool:
    return name in {column.attname for column in model._meta.concrete_fields} or hasattr(model, name)
