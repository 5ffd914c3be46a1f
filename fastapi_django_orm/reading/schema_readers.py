"""Rows as instances of a pydantic schema, or as the dicts that a DRF serializer makes."""

from collections.abc import Hashable, Iterator
from functools import cached_property
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from ..errors import InvalidRow
from .encoding import Encoder, not_fitting
from .keys import AnyQuerySet, with_key
from .own_ways import COLUMNS, IN_SQL, code_of_values, not_djangos, note
from .readers import Encoded, Reader, iterated
from .row import freeze
from .schema_code import code_of, source_of, why_instances
from .sharing import frozen_type, is_shareable


class SchemaReader(Reader):
    """Instances of a pydantic model, validated from columns where those suffice, else from instances."""

    def __init__(self, schema: type[BaseModel], queryset: AnyQuerySet) -> None:
        self._sources = [source_of(name, each, queryset.model) for name, each in schema.model_fields.items()]
        self._instances = why_instances(schema, queryset)
        own_code = code_of(schema) or self._instances or code_of_values(queryset, self._sources)
        super().__init__(schema.model_fields, own_code)
        self.copied = not is_shareable(schema)
        self.reasons[IN_SQL] = "rows have a schema"
        self._schema = schema
        self._adapter: TypeAdapter[Any] = TypeAdapter(schema)
        self._frozen = frozen_type(schema)
        self._encoder = Encoder(schema)

    def _encoded(self, queryset: AnyQuerySet, key: str, codec: None) -> Iterator[Encoded]:
        reason = self._instances or not_djangos(queryset)
        note(self.reasons, COLUMNS, reason)
        return self._from_columns(queryset, key) if reason is None else self._from_instances(queryset, key)

    def _from_columns(self, queryset: AnyQuerySet, key: str) -> Iterator[Encoded]:
        rows, key_of = with_key(queryset, self._sources, key)
        for values in iterated(rows):
            of_row = key_of(values)
            # Under the names of the fields.
            columns = dict(zip(self.names, map(_without_view, values), strict=False))
            row = self._validated(of_row, columns, by_alias=False, by_name=True)
            yield of_row, self._encoder.encode(of_row, row), row

    def _from_instances(self, queryset: AnyQuerySet, key: str) -> Iterator[Encoded]:
        fields = queryset.model._meta.concrete_fields
        binary = [field.attname for field in fields if field.get_internal_type() == "BinaryField"]
        for instance in iterated(queryset):
            for name in binary:
                instance.__dict__[name] = _without_view(getattr(instance, name))
            of_row = getattr(instance, key)
            try:  # as FastAPI's response model does it
                row = self._validated(of_row, instance, by_alias=None, by_name=None)
            except InvalidRow:
                if not self._has_aliases:
                    raise
                # An alias may be for the answer alone.
                row = self._validated(of_row, instance, by_alias=True, by_name=True)
            yield of_row, self._encoder.encode(of_row, row), row

    @cached_property
    def _has_aliases(self) -> bool:
        return any(field.alias is not None for field in self._schema.model_fields.values())

    def _validated(self, key: Hashable, source: Any, *, by_alias: bool | None, by_name: bool | None) -> Any:
        try:
            row = self._adapter.validate_python(
                source, from_attributes=True, by_alias=by_alias, by_name=by_name
            )
        except ValidationError as error:
            # Not `from error`: pydantic's text has the values, and a traceback shows it.
            raise not_fitting(self._schema, key, error) from None
        if type(row) is self._schema:  # the schema's own validators, which may change it, have run
            object.__setattr__(row, "__class__", self._frozen)
        if self.copied:
            for name in self.names:
                freeze(getattr(row, name))  # raises for a lazy value: the row keeps its own values
        return row


def _without_view(value: Any) -> Any:
    # What psycopg2 gives for a BinaryField, and pydantic does not take for bytes.
    return bytes(value) if type(value) is memoryview else value


class SerializerReader(Reader):
    """The dicts that a DRF serializer makes of model instances."""

    def __init__(self, serializer: type[Any]) -> None:
        # One instance for all rows, as many=True has it: making one copies every field.
        self._serializer = serializer()
        names = [name for name, field in self._serializer.fields.items() if not field.write_only]
        super().__init__(names, f"{serializer.__qualname__} is code of its own")
        self.reasons[IN_SQL] = "rows have a serializer"
        self._encoder = Encoder()

    def _encoded(self, queryset: AnyQuerySet, key: str, codec: None) -> Iterator[Encoded]:
        for instance in iterated(queryset):
            row = freeze(dict(self._serializer.to_representation(instance)))
            yield getattr(instance, key), self._encoder.encode(instance.pk, row), row
