"""Which schema instances can be shared by all readers, and which each reader gets a copy of.

A frozen model of immutable values can be handed to everybody. A frozen one that holds a list cannot: a
handler that appends to the list would change what the next request sees.
"""

import enum
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from types import NoneType, UnionType, new_class
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from .rows import SCALARS

_IMMUTABLE = SCALARS | {NoneType, IPv4Address, IPv6Address}


def frozen_type(schema: type[BaseModel]) -> type[BaseModel]:
    """The model itself if it is frozen, else a frozen subclass with the same name."""
    if schema.model_config.get("frozen"):
        return schema
    namespace = {"__module__": schema.__module__, "__qualname__": schema.__qualname__}
    namespace["__doc__"] = schema.__doc__ or ""
    return new_class(schema.__name__, (schema,), {"frozen": True}, lambda body: body.update(namespace))


def is_shareable(schema: type[BaseModel]) -> bool:
    """Whether no reader could change an instance of the frozen model."""
    return schema.model_config.get("extra") != "allow" and all(
        _is_immutable(field.annotation) for field in schema.model_fields.values()
    )


def reader_copy(schema: type[BaseModel]) -> Callable[[Any], Any] | None:
    """How to copy a row for each reader, or None if all can share it."""
    if is_shareable(schema):
        return None
    return lambda row: row.model_copy(deep=True)


def _is_immutable(annotation: Any) -> bool:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _is_immutable(arguments[0])
    if origin is Literal:
        return True
    if origin in (Union, UnionType, tuple, frozenset):
        return all(item is Ellipsis or _is_immutable(item) for item in arguments)
    if not isinstance(annotation, type):
        return False
    if issubclass(annotation, BaseModel):  # nested, so nobody has made it frozen but its author
        return bool(annotation.model_config.get("frozen")) and is_shareable(annotation)
    return annotation in _IMMUTABLE or issubclass(annotation, enum.Enum)
