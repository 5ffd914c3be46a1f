"""What a schema takes from one model field: type, constraints, default, documentation."""

import importlib
import sys
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from enum import Enum
from typing import Annotated, Any, Literal, get_args, get_origin

from django.db.models import Expression, Value
from django.db.models.fields import NOT_PROVIDED, AutoFieldMixin
from django.utils.choices import CallableChoiceIterator
from django.utils.functional import Promise
from pydantic_core import to_jsonable_python

from .annotations import bare
from .constraints import constraints_of
from .kinds import annotation_of, key_annotation
from .values import Check, Choice, ModelDefault, Related, unset

_FORMATS = {
    "EmailField": "email",
    "URLField": "uri",
}
_IP_FORMATS = {"ipv4": "ipv4", "ipv6": "ipv6"}


@dataclass(frozen=True)
class Definition:
    """A model field, as a schema has it.

    Attributes:
        kind: the annotation without None.
        plain: the same without the choices, as an annotation that narrows nothing has it.
        nullable: whether None is a value.
        constraints: arguments of ``pydantic.Field`` that limit values.
        checks: what stands beside them in ``Annotated``.
        choice: what checks the choices where an annotation leaves them open.
        default: arguments of ``pydantic.Field`` for the default; empty if a value must be given.
        read_only: whether a write ignores the field.
        title: the field's ``verbose_name``, if it has been written.
        description: its ``help_text``.
        extra: what the JSON schema has beside that.
    """

    kind: Any
    plain: Any
    nullable: bool
    constraints: dict[str, Any]
    checks: list[Any]
    choice: list[Any]
    default: dict[str, Any]
    read_only: bool = False
    title: str | None = None
    description: str | None = None
    extra: dict[str, Any] = dataclass_field(default_factory=dict)

    @property
    def annotation(self) -> Any:
        """The annotation with None, if that is a value."""
        return self.kind | None if self.nullable else self.kind


def define(field: Any, owner: str) -> Definition:
    """Return what a schema takes from a model field.

    Raises:
        InvalidSchema: the field's class is not known.
    """
    if "django.contrib.postgres.fields" in sys.modules:  # importing it needs psycopg
        importlib.import_module(f"{__package__}.postgresql")  # which registers its kinds
    if field.many_to_many:
        return _of_keys(field, owner)
    annotation = key_annotation(field, owner) if field.is_relation else annotation_of(field, owner)
    kind, metadata = _unpacked(annotation)
    constraints, checks = ({}, []) if field.is_relation else constraints_of(field, bare(kind))
    plain, choice = kind, []
    extra: dict[str, Any] = {}
    if getattr(field, "choices", None):
        choice = [Choice(field)]
        if labels := _labels(field):
            kind, constraints = Literal[tuple(labels)], {}
            checks = [each for each in checks if not _is_djangos(each)]
            extra["x-enum-descriptions"] = [*labels.values()]
        else:
            checks = [*checks, *choice]
            extra |= _documented_choices(field)
    read_only = not field.editable or field.generated or _is_automatic(field)
    if read_only:  # so no value has to be checked that a client sends
        constraints, checks = {}, []
        extra["readOnly"] = True
    if format_ := _format(field):
        extra["format"] = format_
    nullable = field.null
    return Definition(
        kind=kind,
        plain=plain,
        nullable=nullable,
        constraints=constraints,
        checks=[*metadata, *checks],
        choice=choice,
        default={"default_factory": unset} if read_only else _default(field, kind),
        read_only=read_only,
        extra=extra,
        **_documentation(field),
    )


def _unpacked(annotation: Any) -> tuple[Any, list[Any]]:
    if get_origin(annotation) is Annotated:
        kind, *metadata = get_args(annotation)
        return kind, metadata
    return annotation, []


def _of_keys(field: Any, owner: str) -> Definition:
    """A many-to-many relation, as the list of the other rows' keys."""
    key = annotation_of(field.related_model._meta.pk, owner)
    if field.related_model._meta.pk.is_relation:
        key = key_annotation(field.related_model._meta.pk, owner)
    kind: Any = list[_unpacked(key)[0]]  # type: ignore[misc]
    return Definition(
        kind=kind,
        plain=kind,
        nullable=False,
        constraints={},
        checks=[Related()],
        choice=[],
        default={"default_factory": list} if field.blank else {},
        **_documentation(field),
    )


def _documentation(field: Any) -> dict[str, Any]:
    written = getattr(field, "_verbose_name", None)
    return {
        "title": None if written is None else str(field.verbose_name),
        "description": str(field.help_text) or None,
    }


def _format(field: Any) -> str | None:
    for kind in type(field).__mro__:
        if kind.__name__ == "GenericIPAddressField":
            return _IP_FORMATS.get(field.protocol.lower())
        if kind.__name__ in _FORMATS:
            return _FORMATS[kind.__name__]
    return None


def _is_automatic(field: Any) -> bool:
    """Whether Django or the database makes the value: an AutoField, the link to a parent's row."""
    remote = field.remote_field
    return isinstance(field, AutoFieldMixin) or (
        field.auto_created and remote is not None and getattr(remote, "parent_link", False)
    )


def _is_djangos(check: Any) -> bool:
    return isinstance(check, Check) and type(check.validator).__module__.startswith("django.core.validators")


def _labels(field: Any) -> dict[Any, str]:
    """Return the choices for ``Literal``; none if they are computed or of types that it cannot have."""
    if isinstance(field.choices, CallableChoiceIterator):
        return {}
    pairs = [
        (each.value if isinstance(each, Enum) else each, str(label)) for each, label in field.flatchoices
    ]
    labels = {value: label for value, label in pairs if value is not None}
    if field.blank and field.empty_strings_allowed:
        labels.setdefault("", "")
    return labels if all(type(value) in (str, int, bool) for value in labels) else {}


def _documented_choices(field: Any) -> dict[str, Any]:
    """Return what the JSON schema says of choices that are not a ``Literal``, if they are not computed."""
    if isinstance(field.choices, CallableChoiceIterator):
        return {}
    values, labels = zip(*field.flatchoices, strict=True)
    return {
        "examples": to_jsonable_python(values, fallback=str),
        "x-enum-descriptions": [*map(str, labels)],
    }


# Defaults


def _default(field: Any, kind: Any) -> dict[str, Any]:
    """Return the arguments of ``pydantic.Field``; nothing where a value must be given."""
    if field.default is not NOT_PROVIDED:
        # Bytes have no place in a JSON schema, which would have the default.
        if callable(field.default) or isinstance(field.default, Promise | list | dict | set | bytes):
            return {"default_factory": ModelDefault(field)}
        return {"default": _converted(field, field.default)}
    given = field.db_default
    if given is not NOT_PROVIDED:
        given = given.value if type(given) is Value else given
        if isinstance(given, Expression | bytes) or hasattr(given, "resolve_expression"):
            return {"default_factory": unset}
        return {"default": _converted(field, given)}
    if not field.blank:
        return {}
    if field.null:
        return {"default": None}
    # What is blank and not null is a text, or is set by clean() or save().
    return {"default": ""} if bare(kind) is str or "" in get_args(kind) else {"default_factory": unset}


def _converted(field: Any, default: Any) -> Any:
    if isinstance(default, Enum):
        default = default.value
    return default if field.is_relation else field.to_python(default)
