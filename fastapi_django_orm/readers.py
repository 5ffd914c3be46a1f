"""How a repository's rows are read: which columns, as what.

All of this runs on a database thread. What it hands over is plain: no query, no model instance, no lazy
relation. There are four kinds of reading, by what a repository declares: columns as dicts (the default), a
pydantic schema, a DRF serializer, or the dicts of a ``queryset()`` that ends in ``.values()``.
"""

from collections.abc import Hashable, Iterator, Sequence
from typing import Any, Protocol

from django.db.models import Field, Model, QuerySet
from pydantic import BaseModel, TypeAdapter, ValidationError

from .errors import InvalidRow
from .rows import Row, freeze, freeze_columns
from .sharing import frozen_type, is_shareable

CHUNK = 1000  # rows: enough to be cheap, and few enough that no step holds the GIL for long

# Columns whose values are immutable as they come; those of any other field are looked at one by one.
PLAIN_COLUMNS = frozenset(
    {"AutoField", "BigAutoField", "SmallAutoField", "IntegerField", "BigIntegerField", "SmallIntegerField"}
    | {"PositiveIntegerField", "PositiveBigIntegerField", "PositiveSmallIntegerField", "BooleanField"}
    | {"CharField", "TextField", "SlugField", "UUIDField", "FileField", "FilePathField", "IPAddressField"}
    | {"GenericIPAddressField", "DecimalField", "FloatField", "DateField", "DateTimeField", "TimeField"}
    | {"DurationField", "ForeignKey", "OneToOneField"}
)

Keyed = tuple[Hashable, Any]
AnyQuerySet = QuerySet[Any, Any]


class Reader(Protocol):
    """Reads a repository's rows, each with its primary key.

    Attributes:
        names: what a row's fields are called.
        row_type: the type that the rows are encoded as.
        keyed: whether the rows have keys.
        copied: whether each reader needs a copy, because a row could be changed.
    """

    names: tuple[str, ...]
    row_type: Any
    keyed: bool
    copied: bool

    def read(self, queryset: AnyQuerySet) -> Iterator[Keyed]:
        """The rows with their keys, in the query's order; on a database thread."""


class ColumnReader:
    """Columns and annotations as dicts, as ``.values()`` gives them."""

    row_type: Any = Any
    keyed = True
    copied = False

    def __init__(self, model: type[Model], names: Sequence[str]) -> None:
        self.names = tuple(names)
        columns: dict[str, Field[Any, Any]] = {}
        for field in model._meta.concrete_fields:
            columns[field.attname] = columns[field.name] = field
        self._looked_at = [
            position
            for position, name in enumerate(self.names)
            if name not in columns or not _is_plain(columns[name])
        ]

    def read(self, queryset: AnyQuerySet) -> Iterator[Keyed]:
        """Read tuples, of which zip() makes the dicts."""
        names, looked_at = self.names, self._looked_at
        # The key comes last, and zip() leaves it out of the row.
        for values in queryset.values_list(*names, "pk").iterator(CHUNK):
            if looked_at:
                values = freeze_columns(values, looked_at)
            yield values[-1], Row(zip(names, values, strict=False))


def _is_plain(column: "Field[Any, Any]") -> bool:
    # A field of the project's own, such as a CharField that reads as a list, has from_db_value().
    return column.get_internal_type() in PLAIN_COLUMNS and not hasattr(column, "from_db_value")


class DictReader:
    """The dicts of a ``queryset()`` that ends in ``.values()``, as they are."""

    row_type: Any = Any
    copied = False

    def __init__(self, names: Sequence[str], key: str | None) -> None:
        self.names = tuple(names)
        self.keyed = key is not None
        self._key = key

    def read(self, queryset: AnyQuerySet) -> Iterator[Keyed]:
        """Read the dicts."""
        for values in queryset.iterator(CHUNK):
            row = freeze(values)
            yield row.get(self._key), row


class SchemaReader:
    """Instances of a pydantic model, validated from columns where those suffice, else from instances."""

    keyed = True

    def __init__(self, schema: type[BaseModel], columns: Sequence[str] | None) -> None:
        """Read rows of a schema.

        Args:
            schema: what the rows become.
            columns: for each of its fields the column to read; None reads model instances.
        """
        self.names = tuple(schema.model_fields)
        self.row_type = schema
        self._columns = tuple(columns) if columns is not None else None
        self._adapter: TypeAdapter[Any] = TypeAdapter(frozen_type(schema))
        self.copied = not is_shareable(schema)

    def read(self, queryset: AnyQuerySet) -> Iterator[Keyed]:
        """Read and validate.

        Raises:
            InvalidRow: the schema refuses a row.
            LazyValue: a field of the schema takes anything, and something lazy came.
        """
        # Columns come under the fields' names; of an instance an alias may name the attribute to read.
        by_alias = self._columns is None
        for key, source in self._sources(queryset):
            try:
                row = self._adapter.validate_python(
                    source, from_attributes=True, by_alias=by_alias, by_name=True
                )
            except ValidationError as error:
                raise InvalidRow(
                    f"The row with the key {key!r} does not fit {self.row_type.__name__}: {error}"
                ) from error
            if self.copied:
                for name in self.names:
                    freeze(getattr(row, name))  # for its refusal: the row keeps its own values
            yield key, row

    def _sources(self, queryset: AnyQuerySet) -> Iterator[Keyed]:
        if self._columns is None:
            binary = [
                field.attname
                for field in queryset.model._meta.concrete_fields
                if field.get_internal_type() == "BinaryField"
            ]
            for instance in queryset.iterator(CHUNK):
                for name in binary:
                    instance.__dict__[name] = _without_view(getattr(instance, name))
                yield instance.pk, instance
        else:
            for values in queryset.values_list(*self._columns, "pk").iterator(CHUNK):
                yield values[-1], dict(zip(self.names, map(_without_view, values), strict=False))


def _without_view(value: Any) -> Any:
    # What psycopg2 gives for a BinaryField, and pydantic does not take for bytes.
    return bytes(value) if type(value) is memoryview else value


class SerializerReader:
    """The dicts that a DRF serializer makes of model instances."""

    row_type: Any = Any
    keyed = True
    copied = False

    def __init__(self, serializer: type[Any]) -> None:
        # One instance for all rows, as many=True has it: making one copies every field.
        self._serializer = serializer()
        self.names = tuple(name for name, field in self._serializer.fields.items() if not field.write_only)

    def read(self, queryset: AnyQuerySet) -> Iterator[Keyed]:
        """Read model instances and serialize them."""
        for instance in queryset.iterator(CHUNK):
            yield instance.pk, freeze(dict(self._serializer.to_representation(instance)))
