"""How a repository's rows are read: which columns, as what.

All of this runs on a database thread. What it hands over is plain: no query, no model instance, no lazy
relation. There are four kinds of reading, by what a repository declares: columns as dicts (the default), a
pydantic schema, a DRF serializer, or the dicts of a ``queryset()`` that ends in ``.values()``.
"""

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from types import MappingProxyType
from typing import Any, Protocol

from django.core.exceptions import EmptyResultSet
from django.core.exceptions import ValidationError as ValidationErrorOfDjango
from django.db import DataError
from django.db.models import Model
from pydantic import BaseModel, TypeAdapter, ValidationError

from ..errors import LazyValue
from ..rows.codec import RowCodec
from ..rows.encoding import Encoder
from ..rows.refusal import not_fitting
from ..rows.row import Row, freeze
from ..rows.sharing import frozen_type, is_shareable
from ..snapshots.pages import Chunk
from .key_columns import AnyQuerySet, with_key
from .sql_json import DatabaseJSON

CHUNK = 500  # rows: enough to be cheap, and few enough that no step holds the GIL for long

# Errors that one key may be to blame for when several are read together.
OF_ONE_KEY = (DataError, ValueError, TypeError, ArithmeticError, ValidationErrorOfDjango, LazyValue)

_NOWHERE: Mapping[str, DatabaseJSON] = MappingProxyType({})

Encoded = tuple[Hashable, bytes, Any]  # a row's key, its JSON, and itself if the JSON does not say it all


class Reader(Protocol):
    """Reads a repository's rows.

    Attributes:
        names: what a row's fields are called.
        keyed: whether the rows have keys.
        copied: whether each caller needs a copy, because a row could be changed.
        codec: how to read rows that are kept as JSON; None if none is.
        in_sql: by alias how the database makes the JSON; without those where it does not, or where that is
            not known yet.
    """

    names: tuple[str, ...]
    keyed: bool
    copied: bool

    @property
    def codec(self) -> RowCodec | None: ...  # noqa: D102

    @property
    def in_sql(self) -> Mapping[str, DatabaseJSON]: ...  # noqa: D102

    def read(self, queryset: AnyQuerySet, *, key: str = "pk", in_python: bool = False) -> Iterator[Chunk]:
        """The rows in the query's order; on a database thread.

        Args:
            queryset: what to read.
            key: the column whose values come as the rows' keys.
            in_python: do not let the database make the JSON.

        Raises:
            InvalidRow: the schema refuses a row, or JSON cannot carry it.
            LazyValue: a row holds something that would query later.
            NotExpressible: the database cannot make the JSON of some row: read in Python.
            DatabaseError: as Django raises it.
        """


class ColumnReader:
    """Columns and annotations as dicts, as ``.values()`` gives them."""

    keyed = True
    copied = False

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(dict.fromkeys(names))
        self.codec = RowCodec(self.names)
        self._encoder = Encoder()
        self.in_sql: dict[str, DatabaseJSON] = {}
        self._asked: set[str] = set()

    def read(self, queryset: AnyQuerySet, *, key: str = "pk", in_python: bool = False) -> Iterator[Chunk]:
        """Let the database make the JSON where it can, else read tuples and encode them."""
        if not in_python and key == "pk":
            there = queryset.using(queryset.db)  # a router may choose another one whenever it is asked
            if (in_sql := self.database_json(there)) is not None:
                return _without_objects(in_sql.read(there, CHUNK))
        number = len(self.names)  # what comes after these is of the key alone
        rows, key_of = with_key(queryset, self.names, key)
        return _chunks(self._keyed(key_of(values), values[:number]) for values in rows.iterator(CHUNK))

    def database_json(self, queryset: AnyQuerySet) -> DatabaseJSON | None:
        """How the database makes the JSON of this query's rows; None if Python has to.

        Raises:
            DatabaseError: as Django raises it.
        """
        alias = queryset.db
        if alias not in self._asked:  # once, since columns keep their types under a running application
            try:
                found = DatabaseJSON.of(queryset, self.names)
            except EmptyResultSet:
                return None
            if found is not None and self.codec.expect(found.types):
                self.in_sql[alias] = found
            self._asked.add(alias)
        in_sql = self.in_sql.get(alias)
        return in_sql if in_sql is not None and in_sql.fits(queryset) else None

    def _keyed(self, key: Hashable, values: tuple[Any, ...]) -> Encoded:
        return key, *encode_columns(self.codec, self._encoder, key, values)


def is_final(queryset: AnyQuerySet) -> bool:
    """Whether Django refuses to look for a row in this query: a slice, or several queries in one."""
    return bool(queryset.query.is_sliced or queryset.query.combinator)


def depends_on_others(queryset: AnyQuerySet) -> bool:
    """Whether which other rows the query has decides on a row: what it holds, or whether it is there.

    Django puts a further condition before window functions and ``DISTINCT ON``, and so these see fewer rows.
    """
    query = queryset.query
    windows = any(annotation.contains_over_clause for annotation in query.annotations.values())
    return bool(windows or query.where.contains_over_clause or query.distinct_fields)


def reads_formed(reader: Reader, queryset: AnyQuerySet) -> bool:
    """Whether what is read of this query is known to be stored in the form in which Django stores it.

    A database makes JSON of no other form; what Django's own converters take, nobody has looked at.
    """
    in_sql = reader.in_sql.get(queryset.db)
    return in_sql is not None and in_sql.fits(queryset)


def names_of_dicts(queryset: AnyQuerySet) -> list[str]:
    """What the dicts of a ``queryset()`` that ends in ``.values()`` have, in their order."""
    query = queryset.query
    return [*(query.selected or [*query.extra_select, *query.values_select, *query.annotation_select])]


class DictReader:
    """The dicts of a ``queryset()`` that ends in ``.values()``, as they are."""

    copied = False
    in_sql = _NOWHERE

    def __init__(self, names: Sequence[str], key: str | None) -> None:
        self.names = tuple(names)
        self.keyed = key is not None
        self.codec = RowCodec(self.names)
        self._key = key
        self._encoder = Encoder()

    def read(self, queryset: AnyQuerySet, *, key: str = "pk", in_python: bool = False) -> Iterator[Chunk]:
        """Read the dicts; the key is one of their values, if they have it."""
        name = self._key if key == "pk" else key
        return _chunks(self._encoded(row, name) for row in queryset.iterator(CHUNK))

    def _encoded(self, row: dict[str, Any], name: str | None) -> Encoded:
        key = None if name is None else row.get(name)
        values = tuple(row[name] for name in self.names)
        return key, *encode_columns(self.codec, self._encoder, key, values)


def encode_columns(
    codec: RowCodec, encoder: Encoder, key: Hashable, values: tuple[Any, ...]
) -> tuple[bytes, Row | None]:
    """A row's JSON, and the row itself if the JSON does not say it all."""
    if codec.is_exact(values):
        return encoder.encode(key, dict(zip(codec.names, values, strict=True))), None
    row = Row(zip(codec.names, map(freeze, values), strict=True))
    return encoder.encode(key, row), row


class SchemaReader:
    """Instances of a pydantic model, validated from columns where those suffice, else from instances."""

    keyed = True
    codec = None
    in_sql = _NOWHERE

    def __init__(self, schema: type[BaseModel], columns: Sequence[str] | None) -> None:
        """Read rows of a schema.

        Args:
            schema: what the rows become.
            columns: for each of its fields the column to read; None reads model instances.
        """
        self.names = tuple(schema.model_fields)
        self.copied = not is_shareable(schema)
        self._schema = schema
        self._columns = tuple(columns) if columns is not None else None
        self._adapter: TypeAdapter[Any] = TypeAdapter(frozen_type(schema))
        self._encoder = Encoder(schema)

    def read(self, queryset: AnyQuerySet, *, key: str = "pk", in_python: bool = False) -> Iterator[Chunk]:
        """Read, validate and encode."""
        return _chunks(self._validated(*pair) for pair in self._sources(queryset, key))

    def _validated(self, key: Hashable, source: Any) -> Encoded:
        # Columns come under the fields' names; of an instance an alias may name the attribute to read.
        by_alias = self._columns is None
        try:
            row = self._adapter.validate_python(source, from_attributes=True, by_alias=by_alias, by_name=True)
        except ValidationError as error:
            # Not `from error`: pydantic's text has the values, and a traceback shows it.
            raise not_fitting(self._schema, key, error) from None
        if self.copied:
            for name in self.names:
                freeze(getattr(row, name))  # for its refusal: the row keeps its own values
        return key, self._encoder.encode(key, row), row

    def _sources(self, queryset: AnyQuerySet, key: str) -> Iterator[tuple[Hashable, Any]]:
        if self._columns is None:
            binary = [
                field.attname
                for field in queryset.model._meta.concrete_fields
                if field.get_internal_type() == "BinaryField"
            ]
            for instance in queryset.iterator(CHUNK):
                for name in binary:
                    instance.__dict__[name] = _without_view(getattr(instance, name))
                yield getattr(instance, key), instance
        else:
            rows, key_of = with_key(queryset, self._columns, key)
            for values in rows.iterator(CHUNK):
                yield key_of(values), dict(zip(self.names, map(_without_view, values), strict=False))


def _without_view(value: Any) -> Any:
    # What psycopg2 gives for a BinaryField, and pydantic does not take for bytes.
    return bytes(value) if type(value) is memoryview else value


class SerializerReader:
    """The dicts that a DRF serializer makes of model instances."""

    keyed = True
    copied = False
    codec = None
    in_sql = _NOWHERE

    def __init__(self, serializer: type[Any]) -> None:
        # One instance for all rows, as many=True has it: making one copies every field.
        self._serializer = serializer()
        self.names = tuple(name for name, field in self._serializer.fields.items() if not field.write_only)
        self._encoder = Encoder()

    def read(self, queryset: AnyQuerySet, *, key: str = "pk", in_python: bool = False) -> Iterator[Chunk]:
        """Read model instances, serialize and encode them."""
        return _chunks(self._serialized(instance, key) for instance in queryset.iterator(CHUNK))

    def _serialized(self, instance: Model, key: str) -> Encoded:
        row = freeze(dict(self._serializer.to_representation(instance)))
        return getattr(instance, key), self._encoder.encode(instance.pk, row), row


def _chunks(rows: Iterable[Encoded]) -> Iterator[Chunk]:
    rows = iter(rows)
    while chunk := list(islice(rows, CHUNK)):
        yield Chunk(*map(list, zip(*chunk, strict=True)))


def _without_objects(read: Iterable[tuple[list[Hashable], list[bytes]]]) -> Iterator[Chunk]:
    for keys, json in read:
        yield Chunk(keys, json, [None] * len(keys))
