"""Which model and which field a name means; for an unknown one, an error with the nearest names."""

from typing import Any

from django.db.models import Model, QuerySet

from ..errors import InvalidRepository, UnknownField, nearest
from ..schemas.declaring import labelled


def resolve_model(where: str, model: str | type[Model]) -> type[Model]:
    """Return the model class that a repository means; ``where`` names the attribute, for the message.

    Raises:
        UnknownModel: no installed app has it; the message has the nearest labels.
        InvalidRepository: it is something else.
    """
    if isinstance(model, str):
        return labelled(model, f"{where}: there")
    given: Any = model
    if not (isinstance(given, type) and issubclass(given, Model)) or given._meta.abstract:
        raise InvalidRepository(f"{where}: {model!r} is neither a model's label nor a model with a table.")
    return model


def model_named(label: str) -> type[Model]:
    """Return the model with this label; for a proxy its concrete model, since hints name that one.

    Raises:
        UnknownModel: no installed app has one; the message has the nearest labels.
    """
    model = labelled(label, "There")
    return model._meta.concrete_model or model


def unknown_field(where: str, name: str, queryset: "QuerySet[Any, Any]") -> UnknownField:
    """Return the error of a name that is neither a field of the query's model nor an annotation."""
    fields = [field.name for field in queryset.model._meta.get_fields()]
    known = [*fields, *queryset.query.annotations]
    return UnknownField(
        f"{where}: {queryset.model._meta.label} has no field {name!r}. {nearest(name, known)}"
    )
