"""Which schema instances can be shared by all readers, and which each reader gets a copy of.

A frozen model of immutable values can be handed to everybody. A frozen one that holds a list cannot: a
handler that appends to the list would change what the next request sees.
"""

import enum
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address
from types import UnionType, new_class
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from .row import SCALARS

_IMMUTABLE = SCALARS | {IPv4Address, IPv6Address}


def frozen_type(schema: type[BaseModel]) -> type[BaseModel]:
    """Return the model itself if it is frozen, else a frozen subclass of the same name.

    Copies would need no such class, and a list of a thousand rows would cost milliseconds for each reader.
    """
    if schema.model_config.get("frozen"):
        return schema

    def equals(self: BaseModel, other: object) -> bool:
        if not isinstance(other, BaseModel) or type(other) is not schema:
            return schema.__eq__(self, other)
        same = all(getattr(self, name) == getattr(other, name) for name in schema.model_fields)
        return same and self.model_extra == other.model_extra

    def reduce(self: BaseModel) -> tuple[Any, ...]:
        return schema.__new__, (schema,), self.__getstate__()

    # A row equals an instance of the schema with the same values, and is pickled as one: by its name a
    # pickle finds the schema, not this class.
    namespace: dict[str, Any] = {
        "__module__": schema.__module__,
        "__qualname__": schema.__qualname__,
        "__doc__": schema.__doc__ or "",
        "__reduce__": reduce,
    }
    if schema.__eq__ is BaseModel.__eq__:
        namespace["__eq__"] = equals
        if schema.__hash__ is not None:  # Python drops it where __eq__ is written
            namespace["__hash__"] = schema.__hash__
    return new_class(schema.__name__, (schema,), {"frozen": True}, lambda body: body.update(namespace))


def copied(row: Any) -> Any:
    """Return a copy that its reader may change."""
    return row.model_copy(deep=True)


def is_shareable(schema: type[BaseModel], within: tuple[type[BaseModel], ...] = ()) -> bool:
    """Whether no reader could change an instance of the frozen model."""
    if schema in within:  # a tree: the schema that it is within decides
        return True
    # Frozen models let private attributes and cached properties be set.
    cached = any(isinstance(value, cached_property) for cls in schema.__mro__ for value in vars(cls).values())
    if cached or schema.__private_attributes__ or schema.model_config.get("extra") == "allow":
        return False
    return all(_is_immutable(field.annotation, (*within, schema)) for field in schema.model_fields.values())


def _is_immutable(annotation: Any, within: tuple[type[BaseModel], ...]) -> bool:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _is_immutable(arguments[0], within)
    if origin is Literal:
        return True
    if origin in (Union, UnionType, tuple, frozenset):
        return all(item is Ellipsis or _is_immutable(item, within) for item in arguments)
    if not isinstance(annotation, type):
        return False
    if issubclass(annotation, BaseModel):  # a nested one is frozen only if its author has made it so
        return bool(annotation.model_config.get("frozen")) and is_shareable(annotation, within)
    return annotation in _IMMUTABLE or issubclass(annotation, enum.Enum)
