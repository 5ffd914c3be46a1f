"""How values of Django's fields pass through pydantic, where pydantic has no type for them.

These stand in ``Annotated``. They are compared by value: an annotation that is made twice is equal.
"""

from base64 import b64decode, b64encode
from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Any, NewType

from django.core.exceptions import ValidationError
from django.db.models import Field, Model
from django.db.models.fields.files import FieldFile
from django.db.models.manager import BaseManager
from pydantic import BeforeValidator, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from .annotations import models_in


class MayBeUnset:
    """A value that may be left out and then is None in Python, although null is not a value of the field.

    A read-only field of a request, a field of a ``partial`` schema, one that the database fills. In lax mode
    (pydantic's default) no code in Python runs: the inner schema validates, and refuses null. pydantic-core
    takes the serializer from ``strict_schema``, which serializes None as null; pydantic takes the JSON schema
    from ``lax_schema``.
    """

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        inner = handler(source)
        return core_schema.lax_or_strict_schema(
            lax_schema=inner,
            strict_schema=core_schema.no_info_before_validator_function(
                _not_none, core_schema.nullable_schema(inner)
            ),
        )


def unset() -> None:
    """Return what a field has that was left out. A factory, since a default would be in the JSON schema."""
    return


def _not_none(value: Any) -> Any:
    if value is None:
        raise PydanticCustomError("null", "This field cannot be null.")
    return value


class ModelDefault:
    """The default of a model field that is computed, such as ``uuid4`` or ``timezone.now``.

    Called without arguments, it returns what Django would.
    """

    def __init__(self, field: "Field[Any, Any]") -> None:
        self._field = field

    def __call__(self) -> Any:  # noqa: D102
        return self._field.get_default()


@dataclass(frozen=True)
class TimeZone:
    """Times that have a time zone, or that have none (``constraint``: ``"aware"`` or ``"naive"``)."""

    constraint: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema: Any = handler(source)
        inner = schema["schema"] if schema["type"] == "nullable" else schema
        if inner["type"] in ("datetime", "time"):
            inner["tz_constraint"] = self.constraint
        return schema  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Base64:
    """Bytes, which are base64 in JSON, as in Django's serializers."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(
            _decoded,
            handler(source),
            serialization=core_schema.plain_serializer_function_ser_schema(
                _encoded, return_schema=core_schema.str_schema(), when_used="json-unless-none"
            ),
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        found = handler(schema)
        for each in (found, *found.get("anyOf", ())):
            if each.get("type") == "string":
                each.pop("format", None)
                each["contentEncoding"] = "base64"
                for limit in {"minLength", "maxLength"} & each.keys():  # of the text: four for three bytes
                    each[limit] = -(-each[limit] // 3) * 4
        return found


def _decoded(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return b64decode(value, validate=True)
        except ValueError:
            raise PydanticCustomError("base64", "Input should be valid base64") from None
    return bytes(value) if isinstance(value, memoryview) else value


def _encoded(value: bytes) -> str:
    return b64encode(value).decode()


def _name_of_file(value: Any) -> Any:
    return value.name if isinstance(value, FieldFile) else value


def _url_of_file(value: Any) -> Any:
    return (value.url if value else None) if isinstance(value, FieldFile) else value


file_name = BeforeValidator(_name_of_file)

# A type of its own, for which the limits of the file's name do not hold.
_URL = NewType("_URL", str)
FileURL = Annotated[_URL | None, BeforeValidator(_url_of_file)]
"""The URL of a file or an image, by the field's storage; null where there is none."""


@dataclass(frozen=True)
class Check:
    """A validator of Django's or of the project, run as a model field runs it: not on empty values."""

    validator: Any
    empty_values: Collection[Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def check(self, value: Any) -> Any:
        """Return the value, or raise pydantic's error with Django's message."""
        if value not in self.empty_values:
            try:
                self.validator(value)
            except ValidationError as error:
                raise PydanticCustomError("invalid", " ".join(error.messages)) from None
        return value


@dataclass(frozen=True)
class Choice:
    """One of a field's choices, where they are computed or are values that ``Literal`` cannot have."""

    field: Any

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def check(self, value: Any) -> Any:
        """Return the value, or raise pydantic's error."""
        if value not in self.field.empty_values and value not in (
            known for known, _ in self.field.flatchoices
        ):
            raise PydanticCustomError("choice", "Input should be one of the choices")
        return value


# Relations


@dataclass(frozen=True)
class Related:
    """Rows of a relation to many, from the manager that an instance has; or their keys."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        read = _rows if any(models_in(source)) else _keys
        return core_schema.no_info_before_validator_function(read, handler(source))


def _rows(value: Any) -> Any:
    return list(value.all()) if isinstance(value, BaseManager) else value


def _keys(value: Any) -> Any:
    # Not values_list(), which would not use what is prefetched.
    return [row.pk for row in value.all()] if isinstance(value, BaseManager) else value


@dataclass(frozen=True)
class OfItsModel:
    """The row of a generic relation, as the schema in the annotation that belongs to its model."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schemas = {getattr(schema, "__django_model__", None): schema for schema in models_in(source)}

        def read(value: Any) -> Any:
            nearest = next((schemas[kind] for kind in type(value).__mro__ if kind in schemas), None)
            return value if nearest is None else nearest.model_validate(value)

        return core_schema.no_info_before_validator_function(read, handler(source))


class WithKeys:
    """A model instance whose attribute ``author`` is the key ``author_id``, for schemas that want the key."""

    __slots__ = ("_instance", "_keys")

    def __init__(self, instance: Model, keys: dict[str, str]) -> None:
        self._instance = instance
        self._keys = keys

    def __getattr__(self, name: str) -> Any:
        return getattr(self._instance, self._keys.get(name, name))
