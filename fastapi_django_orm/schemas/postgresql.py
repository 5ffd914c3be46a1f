"""Fields of ``django.contrib.postgres``. Imported only where the project has imported those, with psycopg."""

from dataclasses import dataclass
from typing import Annotated, Any

from django.contrib.postgres.fields import ArrayField, HStoreField, RangeField
from django.contrib.postgres.search import SearchVectorField
from django.db.backends.postgresql.psycopg_any import Range
from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from .annotations import allows_none, bare
from .constraints import constraints_of
from .kinds import annotation_of, register_field


@dataclass(frozen=True)
class _RangeOf:
    """A range as Django's serializers have it: ``{"lower": 1, "upper": 5, "bounds": "[)"}``."""

    ends: Any
    range_type: type[Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        end = core_schema.nullable_schema(handler.generate_schema(self.ends))
        bounds = core_schema.literal_schema(["[)", "(]", "()", "[]"])
        ends = core_schema.typed_dict_schema(
            {
                "lower": core_schema.typed_dict_field(end, required=False),
                "upper": core_schema.typed_dict_field(end, required=False),
                "bounds": core_schema.typed_dict_field(bounds, required=False),
                "empty": core_schema.typed_dict_field(core_schema.bool_schema(), required=False),
            },
            extra_behavior="forbid",
        )
        ranges = core_schema.chain_schema(
            [
                core_schema.no_info_before_validator_function(_parts, ends),
                core_schema.no_info_plain_validator_function(self.made),
            ],
            serialization=core_schema.plain_serializer_function_ser_schema(
                _parts, return_schema=ends, when_used="json-unless-none"
            ),
        )
        return core_schema.nullable_schema(ranges) if allows_none(source) else ranges

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        inner: Any = schema
        nullable = False
        while inner["type"] != "chain":  # it may be within validators
            nullable |= inner["type"] == "nullable"
            inner = inner["lax_schema"] if inner["type"] == "lax-or-strict" else inner["schema"]
        found = handler(inner["steps"][0]["schema"])
        return {"anyOf": [found, {"type": "null"}]} if nullable else found

    def made(self, parts: dict[str, Any]) -> Any:
        if parts.get("empty"):
            return self.range_type(empty=True)
        lower, upper = parts.get("lower"), parts.get("upper")
        if lower is not None and upper is not None and lower > upper:  # which the database refuses
            raise PydanticCustomError("range", "lower must not be greater than upper")
        return self.range_type(lower, upper, parts.get("bounds", "[)"))


def _parts(value: Any) -> Any:
    if isinstance(value, Range):
        if value.isempty:
            return {"empty": True}
        return {"lower": value.lower, "upper": value.upper, "bounds": value._bounds}
    if isinstance(value, list | tuple) and len(value) == 2:  # as a model field takes it
        return {"lower": value[0], "upper": value[1]}
    return value


def _of_range(field: Any) -> Any:
    return Annotated[
        field.range_type, _RangeOf(annotation_of(field.base_field, str(field)), field.range_type)
    ]


def _of_array(field: Any) -> Any:
    item = annotation_of(field.base_field, str(field))
    constraints, checks = constraints_of(field.base_field, bare(item))
    for each in (*FieldInfo(**constraints).metadata, *checks):
        item = Annotated[item, each]
    return list[item | None] if field.base_field.null else list[item]  # type: ignore[valid-type]


register_field(ArrayField, _of_array)
register_field(HStoreField, dict[str, str | None])
register_field(RangeField, _of_range)
register_field(SearchVectorField, str)
