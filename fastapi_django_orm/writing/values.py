"""From what a request sends to what a model instance takes: names, keys of relations, files."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from typing import Any

from django.core.exceptions import ValidationError
from django.core.files.uploadedfile import UploadedFile
from django.db.models import Model
from django.forms import ModelMultipleChoiceField
from pydantic import BaseModel
from starlette.datastructures import UploadFile

from ..errors import UnknownField, nearest


def given(data: BaseModel | Mapping[str, Any] | None, *, partial: bool) -> dict[str, Any]:
    """Return what a caller gives for a row, by name.

    Args:
        data: a pydantic model, a mapping, or None for nothing.
        partial: whether a pydantic field that is not set is left alone. Otherwise its default counts, except
            None, which leaves the default to Django's model.

    Raises:
        TypeError: the data is something else.
    """
    if data is None:
        return {}
    if isinstance(data, Mapping):
        return dict(data)
    if not isinstance(data, BaseModel):
        raise TypeError(f"Give a pydantic model or a dict, not a {type(data).__name__}.")
    is_set = data.model_fields_set
    names = is_set if partial else {*type(data).model_fields, *is_set}
    dumped = data.model_dump(include=set(names), by_alias=False)
    return {name: value for name, value in dumped.items() if value is not None or name in is_set}


@dataclass(frozen=True, slots=True)
class Values:
    """What a caller gives, as a model's own names.

    Attributes:
        of_row: what the instance takes, as arguments and as attributes.
        many: the keys of many-to-many relations, by the relation's name.
    """

    of_row: dict[str, Any] = field(default_factory=dict)
    many: dict[str, list[Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, model: type[Model], where: str, named: Mapping[str, Any]) -> "Values":
        """Sort values by what the model has under their names; ``where`` is for the message.

        Raises:
            UnknownField: the model has nothing of a name; the message has the nearest ones.
        """
        check_names(model, where, named)
        columns, relations, _ = _names(model)
        values = cls()
        for name, value in named.items():
            if name in relations:
                values.many[name] = list(value or ())
            elif name in columns:
                # The last one counts where a relation is given by its name and by its column's.
                by_name, by_key = columns[name]
                values.of_row.pop(by_name, None)
                values.of_row.pop(by_key, None)
                values.of_row[by_name if isinstance(value, Model) else by_key] = _taken(value)
            else:
                values.of_row[name] = value
        return values

    def check_keys(self, model: type[Model], alias: str) -> dict[str, ValidationError]:
        """Return an error for each many-to-many relation with a key that no row has. On a database thread."""
        errors: dict[str, ValidationError] = {}
        for name, keys in self.many.items():
            related = _names(model)[1][name]
            try:
                self.many[name] = _found(related, keys, alias)
            except ValidationError as error:
                errors[name] = error
        return errors


def check_names(model: type[Model], where: str, names: Iterable[str]) -> None:
    """Refuse a name under which the model takes nothing; ``where`` is for the message.

    Raises:
        UnknownField: there is one; the message has the nearest names.
    """
    columns, relations, others = _names(model)
    for name in names:
        if name not in columns and name not in relations and name not in others:
            known = [*columns, *relations, *others]
            raise UnknownField(f"{where}: {model._meta.label} has no field {name!r}. {nearest(name, known)}")


def _taken(value: Any) -> Any:
    """A value as fields take it: drivers write the name of an enumeration's member, and Django its value."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, UploadFile):
        if not value.filename:  # a form's field without a file
            return ""
        return UploadedFile(value.file, value.filename, value.content_type, value.size)
    return value


def _found(related: type[Model], keys: Iterable[Any], alias: str) -> list[Any]:
    pk: Any = related._meta.pk
    messages = ModelMultipleChoiceField.default_error_messages
    wanted = []
    for key in keys:
        key = key.pk if isinstance(key, Model) else key
        try:
            wanted.append(pk.to_python(key))
        except (ValidationError, TypeError, ValueError):
            raise ValidationError(
                messages["invalid_pk_value"], code="invalid_pk_value", params={"pk": key}
            ) from None
    there = set(related._base_manager.using(alias).filter(pk__in=wanted).values_list("pk", flat=True))
    for key in wanted:
        if key not in there:
            raise ValidationError(messages["invalid_choice"], code="invalid_choice", params={"value": key})
    return wanted


_Columns = dict[str, tuple[str, str]]  # by each of its names, that for an instance and that for a value


@cache
def _names(model: type[Model]) -> tuple[_Columns, dict[str, type[Model]], frozenset[str]]:
    """What a model takes: columns, many-to-many relations with their models, and what else it has."""
    meta: Any = model._meta
    columns: _Columns = {"pk": ("pk", "pk")}
    for each in meta.concrete_fields:
        columns[each.name] = columns[each.attname] = (each.name, each.attname)
    if meta.pk.concrete:
        columns["pk"] = (meta.pk.name, meta.pk.attname)
    relations = {each.name: each.related_model for each in meta.many_to_many}
    for each in meta.related_objects:
        if each.many_to_many and (accessor := each.get_accessor_name()):
            relations[accessor] = each.related_model
    settable = {name for name in meta._property_names if getattr(getattr(model, name), "fset", None)}
    generic = {each.name for each in meta.private_fields if not each.one_to_many}
    return columns, relations, frozenset((generic | settable) - {"pk"})
