"""The fields that a schema annotates itself, completed once pydantic has evaluated their annotations.

A relation's name may stand for its row or for its key, and only the annotation says which: a validator puts
keys in the place of rows for the fields that take them.
"""

from typing import Any, TypeAlias

from django.db.models import Model
from pydantic.fields import FieldInfo

from ..errors import InvalidSchema
from .definition import define
from .merging import complete, complete_later, complete_relation, is_key
from .relations import field_of_attribute, has_values
from .values import WithKeys

Schema: TypeAlias = type[Any]  # a subclass of ModelSchema, which is declared above this module

KEYS_OF_RELATIONS = "_relations_by_key"  # the validator that puts keys in the place of rows


def is_parametrized(cls: Schema) -> bool:
    """Whether this is ``Page[int]``, whose fields pydantic makes anew from what ``Page`` annotates."""
    return cls.__pydantic_generic_metadata__["origin"] is not None


def complete_fields(cls: Schema) -> bool:
    """Complete the fields that the class annotates; return whether any field was changed."""
    changed = False
    keys: dict[str, str] = {}
    annotated = cls.__annotated__  # what is inherited is complete
    if is_parametrized(cls):
        annotated = frozenset().union(*(getattr(each, "__annotated__", ()) for each in cls.__mro__))
    for name, info in cls.model_fields.items():
        source = _source(cls, name, info)
        field = _of_attribute(cls, source)
        if field is None:
            continue
        if name in annotated:
            changed = True
            _complete_one(cls, name, field)
        if is_key(info) and relation_with_key(cls.__django_model__, source):
            keys[source] = field.attname
    _check_sources(cls, keys)
    cls.__keys__ = keys
    return _arrange_validators(cls) or changed


def _arrange_validators(cls: Schema) -> bool:
    """Let the validator of keys run after all others, or not at all; return whether it had to move."""
    validators = cls.__pydantic_decorators__.model_validators
    if KEYS_OF_RELATIONS not in validators:
        return False
    names = [*validators]
    if cls.__keys__ and names[0] == KEYS_OF_RELATIONS:
        return False
    mine, others = validators.pop(KEYS_OF_RELATIONS), {**validators}
    if cls.__keys__:  # the first is the innermost: others are to see the instance itself
        validators.clear()
        validators.update({KEYS_OF_RELATIONS: mine, **others})
    return True


def _check_sources(cls: Schema, keys: dict[str, str]) -> None:
    """Refuse two fields of which one takes the row, and the other one its key, by the same attribute.

    Raises:
        InvalidSchema: there are two.
    """
    for name, info in cls.model_fields.items():
        source = _source(cls, name, info)
        if source in keys and not is_key(info):
            raise InvalidSchema(
                f"{cls.__qualname__}: {name} takes the row of {source!r}, and another field its key. Give "
                f'the one that takes the key Field(validation_alias="{keys[source]}").'
            )


def _source(cls: Schema, name: str, info: FieldInfo) -> str:
    """Return the attribute that a field is read from: its alias, if instances have that."""
    alias = info.validation_alias
    return alias if isinstance(alias, str) and _of_attribute(cls, alias) is not None else name


def _of_attribute(cls: Schema, name: str) -> Any:
    model = cls.__django_model__
    if name == "pk":
        return model._meta.pk
    columns = {field.attname: field for field in model._meta.concrete_fields}
    return columns.get(name) or field_of_attribute(model, name)


def _complete_one(cls: Schema, name: str, field: Any) -> None:
    info = cls.model_fields[name]
    if not info._complete:
        if field.is_relation:
            complete_later(info, field)
        return
    if field.is_relation and (field.many_to_many or not field.concrete):
        complete_relation(info, field)
    if not has_values(field):
        return
    try:
        definition = define(field, cls.__qualname__)
    except InvalidSchema:
        return  # of a kind that only the annotation knows
    complete(info, definition)
    if definition.read_only:
        cls.__read_only__ |= {name}


# Relations by key


def relation_with_key(model: type[Model], name: str) -> bool:
    """Whether instances have a row under this name, and its key under another one."""
    field = field_of_attribute(model, name)
    if field is None or field.name != name:  # Django finds a field by its column's attribute as well
        return False
    return bool(field.is_relation and field.concrete and not field.many_to_many)


def with_keys(cls: Schema, value: Any) -> Any:
    """Return what pydantic reads: keys of an instance's rows, where the schema takes keys."""
    return WithKeys(value, cls.__keys__) if isinstance(value, Model) else value
