"""Rows as instances of a pydantic schema, or as the dicts that a DRF serializer makes.

A frozen model of immutable values can be handed to every reader. A frozen one that holds a list cannot: a
handler that appends to the list would change what the next request sees, so each reader gets a copy.
"""

import enum
from collections.abc import Hashable, Iterator
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address
from itertools import islice
from types import UnionType, new_class
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError

from ..errors import InvalidRow
from .encoding import Encoder, not_fitting, plain_encoder
from .following import QueryWatch, joined, load_relations
from .keys import AnyQuerySet, with_key
from .own_ways import COLUMNS, IN_SQL, code_of_values, not_djangos, note
from .readers import CHUNK, Encoded, Reader, iterated
from .row import SCALARS, freeze
from .schema_code import code_of, source_of, why_instances

_IMMUTABLE = SCALARS | {IPv4Address, IPv6Address}


class SchemaReader(Reader):
    """Instances of a pydantic model, validated from columns where those suffice, else from instances."""

    def __init__(self, schema: type[BaseModel], queryset: AnyQuerySet) -> None:
        self._sources = [source_of(name, each, queryset.model) for name, each in schema.model_fields.items()]
        self._instances = why_instances(schema, queryset)
        own_code = code_of(schema) or self._instances or code_of_values(queryset, self._sources)
        super().__init__(schema.model_fields, own_code)
        self.copied = not _is_shareable(schema)
        self.reasons[IN_SQL] = "rows have a schema"
        self._schema = schema
        self._adapter: TypeAdapter[Any] = TypeAdapter(schema)
        self._frozen = _frozen_type(schema)
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
        watch = QueryWatch(self._schema.__name__, self._sources, queryset.db)
        for instance in self._with_relations(queryset):
            for name in binary:
                instance.__dict__[name] = _without_view(getattr(instance, name))
            of_row = getattr(instance, key)
            with watch.row():
                row = self._of_instance(of_row, instance)
            yield of_row, self._encoder.encode(of_row, row), row

    def _of_instance(self, key: Hashable, instance: Any) -> Any:
        try:  # as FastAPI's response model does it
            return self._validated(key, instance, by_alias=None, by_name=None)
        except InvalidRow:
            if not self._has_aliases:
                raise
            # An alias may be for the answer alone.
            return self._validated(key, instance, by_alias=True, by_name=True)

    def _with_relations(self, queryset: AnyQuerySet) -> Iterator[Any]:
        rows = iter(iterated(joined(queryset, self._schema)))
        while chunk := list(islice(rows, CHUNK)):
            load_relations(chunk, self._schema)
            yield from chunk

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


def _frozen_type(schema: type[BaseModel]) -> type[BaseModel]:
    """Return the model itself if it is frozen, else a frozen subclass of the same name.

    Copies would need no such class, and a list of a thousand rows would cost milliseconds for each reader.
    """
    if schema.model_config.get("frozen"):
        return schema

    def equals(self: BaseModel, other: object) -> bool:
        if not isinstance(other, BaseModel) or type(other) is not schema:
            return schema.__eq__(self, other)
        same = all(getattr(self, name) == getattr(other, name) for name in schema.model_fields)
        return same and self.model_extra == other.model_extra

    def reduce(self: BaseModel) -> tuple[Any, ...]:
        return schema.__new__, (schema,), self.__getstate__()

    # A row equals an instance of the schema with the same values, and is pickled as one: by its name a
    # pickle finds the schema, not this class.
    namespace: dict[str, Any] = {
        "__module__": schema.__module__,
        "__qualname__": schema.__qualname__,
        "__doc__": schema.__doc__ or "",
        "__reduce__": reduce,
    }
    if schema.__eq__ is BaseModel.__eq__:
        namespace["__eq__"] = equals
        if schema.__hash__ is not None:  # Python drops it where __eq__ is written
            namespace["__hash__"] = schema.__hash__
    return new_class(schema.__name__, (schema,), {"frozen": True}, lambda body: body.update(namespace))


def _is_shareable(schema: type[BaseModel], within: tuple[type[BaseModel], ...] = ()) -> bool:
    """Whether no reader could change an instance of the frozen model."""
    if schema in within:  # a tree: the schema that it is within decides
        return True
    # Frozen models let private attributes and cached properties be set.
    cached = any(isinstance(value, cached_property) for cls in schema.__mro__ for value in vars(cls).values())
    if cached or schema.__private_attributes__ or schema.model_config.get("extra") == "allow":
        return False
    return all(_is_immutable(field.annotation, (*within, schema)) for field in schema.model_fields.values())


def _is_immutable(annotation: Any, within: tuple[type[BaseModel], ...]) -> bool:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _is_immutable(arguments[0], within)
    if origin is Literal:
        return True
    if origin in (Union, UnionType, tuple, frozenset):
        return all(item is Ellipsis or _is_immutable(item, within) for item in arguments)
    if not isinstance(annotation, type):
        return False
    if issubclass(annotation, BaseModel):  # a nested one is frozen only if its author has made it so
        return bool(annotation.model_config.get("frozen")) and _is_shareable(annotation, within)
    return annotation in _IMMUTABLE or issubclass(annotation, enum.Enum)


class SerializerReader(Reader):
    """The dicts that a DRF serializer makes of model instances."""

    def __init__(self, serializer: type[Any]) -> None:
        # One instance for all rows, as many=True has it: making one copies every field.
        self._serializer = serializer()
        names = [name for name, field in self._serializer.fields.items() if not field.write_only]
        super().__init__(names, f"{serializer.__qualname__} is code of its own")
        self.reasons[IN_SQL] = "rows have a serializer"

    def _encoded(self, queryset: AnyQuerySet, key: str, codec: None) -> Iterator[Encoded]:
        for instance in iterated(queryset):
            row = freeze(dict(self._serializer.to_representation(instance)))
            yield getattr(instance, key), plain_encoder.encode(instance.pk, row), row
