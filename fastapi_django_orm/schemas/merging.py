"""Model fields into pydantic's: those that are only named, and what an annotation leaves open."""

from typing import Annotated, Any

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from .annotations import allows_none, bare, models_in, without_none
from .definition import Definition
from .relations import is_to_many
from .values import MayBeUnset, OfItsModel, Related, unset

_BOUNDS = {"ge": "gt", "le": "lt"}
_LIMITS = ("multiple_of", "min_length", "max_length", "pattern", "max_digits", "decimal_places", "ge", "le")


def new_field(definition: Definition) -> FieldInfo:
    """Return the ``Field(…)`` of a field that the class only names; its annotation is the definition's."""
    info = FieldInfo(**definition.constraints, **definition.default, **_documented(definition))
    info.metadata += definition.checks
    _mark_unset(info, definition.nullable)
    return info


def complete(info: FieldInfo, definition: Definition) -> None:
    """Give an annotated field what its author leaves open: limits, default, documentation."""
    mine = without_none(info.annotation)
    if mine == bare(definition.kind):
        info.annotation = info.annotation if mine == definition.kind else _replaced(info, definition)
        _check(info, definition.checks)
        _limit(info, definition.constraints)
    elif mine == bare(definition.plain):
        _check(info, [*definition.checks, *definition.choice])
    nested = any(models_in(info.annotation))
    if info.is_required() and definition.default:
        is_none = definition.default.get("default", ...) is None
        if allows_none(info.annotation) if is_none else not nested:
            change(info, **definition.default, validate_default=None if is_none else True)
    _mark_unset(info, allows_none(info.annotation))
    written = {
        "json_schema_extra": info.json_schema_extra,
        "title": info.title,
        "description": info.description,
    }
    for name, value in _documented(definition).items():
        if written[name] is None:
            change(info, **{name: value})
        elif isinstance(value, dict) and isinstance(written[name], dict):
            change(info, **{name: {**value, **written[name]}})  # type: ignore[dict-item]


def complete_relation(info: FieldInfo, field: Any) -> None:
    """Let an annotated relation be read from instances: rows of a manager, a generic one by its model."""
    if is_to_many(field):
        _check(info, [Related()])
    elif field.related_model is None:
        _check(info, [OfItsModel()])
    elif field.auto_created and info.is_required() and allows_none(info.annotation):
        change(info, default=None)  # the other side of a one-to-one relation, which may have no row


def complete_later(info: FieldInfo, field: Any) -> None:
    """Do for a relation whose schema is declared later what can be done: pydantic evaluates this again.

    Other fields are not expected to have annotations that cannot be evaluated where they stand.
    """
    annotation: Any = info._original_annotation
    added = Related() if is_to_many(field) else OfItsModel() if field.related_model is None else None
    if added is not None:
        info._original_annotation = Annotated[annotation, added]
    elif (field.auto_created or (field.null and field.blank)) and "None" in str(annotation):
        info._original_annotation = Annotated[annotation, FieldInfo(default=None)]


def make_optional(info: FieldInfo) -> None:
    """Let a field be left out: it is None then, and not in ``model_fields_set``."""
    if not info._complete:  # pydantic evaluates it again, with what its annotation has
        annotation: Any = info._original_annotation
        info._original_annotation = Annotated[annotation, FieldInfo(default_factory=unset), MayBeUnset()]
        if not isinstance(info._original_assignment, FieldInfo):
            info._original_assignment = PydanticUndefined
        return
    change(info, default=PydanticUndefined, default_factory=unset, validate_default=None)
    _mark_unset(info, allows_none(info.annotation))


def change(info: FieldInfo, **attributes: Any) -> None:
    """Set attributes of a field, as if its author had written them."""
    for name, value in attributes.items():
        setattr(info, name, value)
        if value is PydanticUndefined or (value is None and name == "validate_default"):
            info._attributes_set.pop(name, None)
        else:
            info._attributes_set[name] = value


def _mark_unset(info: FieldInfo, nullable: bool) -> None:
    if info.default_factory is unset and not nullable:
        info.metadata = [each for each in info.metadata if not isinstance(each, MayBeUnset)] + [MayBeUnset()]


def _replaced(info: FieldInfo, definition: Definition) -> Any:
    """The same annotation with the limits that the model has inside of it, as for the items of an array."""
    return definition.kind | None if allows_none(info.annotation) else definition.kind


def _check(info: FieldInfo, checks: list[Any]) -> None:
    # What stands first is applied first: the author's validators are around these.
    info.metadata = [each for each in checks if each not in info.metadata] + info.metadata


def _limit(info: FieldInfo, constraints: dict[str, Any]) -> None:
    known = {name for each in info.metadata for name in (*_LIMITS, "gt", "lt") if _has(each, name)}
    left = {
        name: value
        for name, value in constraints.items()
        if name not in known and _BOUNDS.get(name) not in known
    }
    info.metadata = FieldInfo(**left).metadata + info.metadata


def _has(metadata: Any, name: str) -> bool:
    return getattr(metadata, name, None) is not None


def _documented(definition: Definition) -> dict[str, Any]:
    found = {
        "title": definition.title,
        "description": definition.description,
        "json_schema_extra": definition.extra or None,
    }
    return {name: value for name, value in found.items() if value is not None}


def is_key(info: FieldInfo) -> bool:
    """Whether a field that has a relation's name takes its key: it names no schema, now or later."""
    return info._complete and not any(models_in(info.annotation))
