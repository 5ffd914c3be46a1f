"""A schema as the source of a class, with every annotation."""

from collections.abc import Collection, Sequence
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import create_model

from .annotations import bare, without_none
from .declaring import model_named
from .model_schema import ModelSchema
from .secrets import is_secret


def source_of_schema(label: str, fields: Sequence[str] = (), name: str | None = None) -> str:
    """Return the source of a ``ModelSchema`` of a model, with its imports.

    Args:
        label: the model's, such as ``"bbs.Topic"``.
        fields: names of model fields; by default all that are not secret.
        name: what to call the class; by default ``TopicOut``.

    Raises:
        UnknownModel, UnknownField: the model, or a field of it, does not exist.
        InvalidSchema: a field is of a kind that is not known.
    """
    model = model_named(label, "manage.py schema")
    name = name or f"{model.__name__}Out"
    every = [*model._meta.concrete_fields, *model._meta.many_to_many]
    names = fields or [each.name for each in every if not is_secret(each) and not each.name.startswith("_")]
    schema = create_model(name, __base__=ModelSchema, __cls_kwargs__={"model": model, "fields": names})
    imports = Imports(schema.model_fields)
    lines = [
        f"    {name}: {_source(bare(info.annotation), imports)}" for name, info in schema.model_fields.items()
    ]
    head = [*imports.lines(), "", "from fastapi_django_orm import ModelSchema", "", ""]
    return "\n".join([*head, f'class {name}(ModelSchema, model="{model._meta.label}"):', *lines]).lstrip()


class Imports:
    """What annotations need, under names that no field has: type checkers take a field for the type."""

    def __init__(self, taken: Collection[str]) -> None:
        self._taken = taken
        self._found: dict[str, set[str]] = {}

    def name(self, module: str, name: str) -> str:
        """Return what to write for a name of a module."""
        written = f"{name}_" if name in self._taken else name
        self._found.setdefault(module, set()).add(name if written == name else f"{name} as {written}")
        return written

    def lines(self) -> list[str]:
        """Return the statements."""
        found = sorted(self._found.items())
        return [f"from {module} import {', '.join(sorted(names))}" for module, names in found]


def _source(annotation: Any, imports: Imports) -> str:
    """Return an annotation as it is written."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        parts = [
            _source(each, imports)
            for each in get_args(without_none(annotation)) or [without_none(annotation)]
        ]
        return " | ".join([*parts, *(["None"] if type(None) in arguments else [])])
    if origin is Literal:
        return f"{imports.name('typing', 'Literal')}[{', '.join(map(repr, arguments))}]"
    if origin is not None:
        return f"{origin.__name__}[{', '.join(_source(each, imports) for each in arguments)}]"
    if annotation is Any:
        return imports.name("typing", "Any")
    if annotation is type(None):
        return "None"
    if annotation.__module__ != "builtins":
        return imports.name(annotation.__module__, annotation.__name__)
    return str(annotation.__name__)
