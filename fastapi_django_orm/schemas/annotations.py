"""Questions about annotations: what is inside, and what they are without None and ``Annotated``."""

from collections.abc import Iterator
from functools import reduce
from operator import or_
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the pydantic models that a field's annotation names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models_in(argument)


def evaluated(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Return a model's fields, also where annotations name classes that were declared after it."""
    if not model.__pydantic_complete__:
        model.model_rebuild(raise_errors=False)  # pydantic does it in the first validation
    return model.model_fields


def allows_none(annotation: Any) -> bool:
    """Whether a value may be None."""
    if get_origin(annotation) is Annotated:
        return allows_none(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return any(map(allows_none, get_args(annotation)))
    return annotation in (Any, object, None, NoneType)


def without_none(annotation: Any) -> Any:
    """Return ``int`` for ``int | None``."""
    if get_origin(annotation) in (Union, UnionType):
        members = [each for each in get_args(annotation) if each is not NoneType]
        return reduce(or_, members)
    return annotation


def bare(annotation: Any) -> Any:
    """Return the annotation without any ``Annotated``, as code has it: ``list[str]``."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return bare(arguments[0])
    if origin in (Union, UnionType):
        return reduce(or_, map(bare, arguments))
    if origin in (list, dict):
        return origin[tuple(map(bare, arguments))]
    return annotation
