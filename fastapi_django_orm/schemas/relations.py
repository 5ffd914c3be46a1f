"""Relations by the names of attributes, as instances have them and schemas read them."""

from typing import Any

from django.core.exceptions import FieldDoesNotExist
from django.db.models import Model


def field_of_attribute(model: type[Model], name: str) -> Any:
    """Return the field or relation that an attribute of instances belongs to; None if it is neither.

    A reverse relation is found by its accessor (``topic_set``), not by its name in queries (``topic``).
    """
    try:
        found: Any = model._meta.get_field(name)
    except FieldDoesNotExist:
        found = None
    if found is not None and not (found.auto_created and not found.concrete):
        return found
    return {each.get_accessor_name(): each for each in model._meta.related_objects}.get(name)


def is_to_many(field: Any) -> bool:
    """Whether instances have a manager of the related rows."""
    return bool(field.many_to_many or field.one_to_many)


def has_values(field: Any) -> bool:
    """Whether a field has a value, a key or keys to set: it is not the other side of a relation."""
    return bool(not field.is_relation or field.concrete or (field.many_to_many and not field.auto_created))
