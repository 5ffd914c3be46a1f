"""How a repository's rows are read: which columns, as what.

All of this runs on a database thread. What it hands over is plain: no query, no model instance, no lazy
relation. There are four kinds of reading, by what a repository declares: columns as dicts (the default), a
pydantic schema, a DRF serializer, or the dicts of a ``queryset()`` that ends in ``.values()``.

Where a query is not Django's own (``own_ways``), it is iterated as ``list(queryset.values(…))`` would do it,
and each value is taken by its name.
"""

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import islice
from types import MappingProxyType
from typing import Any, Protocol

from django.core.exceptions import EmptyResultSet
from django.core.exceptions import ValidationError as ValidationErrorOfDjango
from django.db import DataError, NotSupportedError, connections
from django.db.models import Model, QuerySet
from pydantic import BaseModel, TypeAdapter, ValidationError

from ..clock import monotonic
from ..errors import InvalidRow, LazyValue
from ..rows.codec import RowCodec
from ..rows.encoding import Encoder
from ..rows.refusal import not_fitting
from ..rows.row import Row, freeze
from ..rows.sharing import frozen_type, is_shareable
from ..snapshots.pages import Chunk
from .key_columns import AnyQuerySet, with_key
from .own_ways import COLUMNS, IN_SQL, code_of_values, not_djangos, note, pinned
from .schema_code import code_of, source_of, why_instances
from .sql_json import DatabaseJSON, Outdated, not_in_sql

CHUNK = 500  # rows: enough to be cheap, and few enough that no step holds the GIL for long

ASK_AGAIN = 60.0  # seconds until a database is asked again what it could not make the JSON of

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
        as_json: whether rows are kept as JSON, and each chunk comes with the codec that reads it.
        in_sql: by alias how the database makes the JSON; without those where it does not, or where that is
            not known yet.
        own_code: the code that decides what a row holds beside the query, None if there is none. It may look
            at the one who asks, so whoever asks must be the one for whom it runs.
        reasons: ways of reading that were not taken when they were tried last, and why.
    """

    names: tuple[str, ...]
    keyed: bool
    copied: bool
    as_json: bool
    own_code: str | None
    reasons: dict[str, str]

    @property
    def in_sql(self) -> Mapping[str, DatabaseJSON]: ...  # noqa: D102

    def read(
        self,
        queryset: AnyQuerySet,
        *,
        key: str = "pk",
        in_python: bool = False,
        codec: RowCodec | None = None,
    ) -> Iterator[Chunk]:
        """The rows in the query's order; on a database thread.

        Args:
            queryset: what to read.
            key: the column whose values come as the rows' keys.
            in_python: do not let the database make the JSON.
            codec: reads the JSON of rows that these will stand among; by default a new one.

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
    as_json = True

    def __init__(self, names: Sequence[str], queryset: AnyQuerySet) -> None:
        self.names = tuple(dict.fromkeys(names))
        self.own_code = code_of_values(queryset, self.names)
        self.reasons: dict[str, str] = {}
        self.in_sql: dict[str, DatabaseJSON] = {}
        self._not_in_sql: dict[str, tuple[str, float]] = {}  # and when that was found out
        self._encoder = Encoder()

    def read(
        self,
        queryset: AnyQuerySet,
        *,
        key: str = "pk",
        in_python: bool = False,
        codec: RowCodec | None = None,
        in_sql: DatabaseJSON | None = None,
    ) -> Iterator[Chunk]:
        """Let the database make the JSON where it can, in a way that may be given, else read values."""
        queryset = pinned(queryset)
        if in_sql is None and not in_python and key == "pk":
            in_sql = self.database_json(queryset)
        if in_sql is not None and (codec is None or codec.expect(in_sql.kinds)):
            return self._in_sql(in_sql, queryset, codec or in_sql.codec)
        codec = codec or RowCodec(self.names)
        read = self._from_tuples if not_djangos(queryset) is None else self._from_dicts
        return _chunks(read(queryset, key, codec), queryset, codec)

    def _from_tuples(self, queryset: AnyQuerySet, key: str, codec: RowCodec) -> Iterator[Encoded]:
        number = len(self.names)  # what comes after these is of the key alone
        rows, key_of = with_key(queryset, self.names, key)
        for values in _iterated(rows):
            of_row = key_of(values)
            yield of_row, *encode_columns(codec, self._encoder, of_row, values[:number])

    def _from_dicts(self, queryset: AnyQuerySet, key: str, codec: RowCodec) -> Iterator[Encoded]:
        """Rows as a queryset gives them that has ways of its own: each value by its name."""
        pk = queryset.model._meta.pk
        alike = {"pk", pk.attname, *(() if pk.is_relation else (pk.name,))} if key == "pk" else {key}
        known = next((name for name in self.names if name in alike), None)
        rows = queryset.values(*self.names) if known is not None else queryset.values(*self.names, key)
        for row in map(dict, _iterated(rows)):
            of_row = row.pop(key) if known is None else row[known]
            yield of_row, *encode_dict(codec, self._encoder, of_row, row)

    def database_json(self, queryset: AnyQuerySet) -> DatabaseJSON | None:
        """How the database makes the JSON of this query's rows, here and now; None if Python has to.

        Args:
            queryset: the query, at one database.

        Raises:
            DatabaseError: as Django raises it.
        """
        connection = connections[queryset.db]
        if connection.in_atomic_block:
            return None  # a stream could not be broken off half-way without ending the transaction
        connection.ensure_connection()  # a project may put something around its statements when it is opened
        found = self.in_sql.get(queryset.db)
        reason = not_in_sql(queryset, connection)
        if found is None and reason is None:
            try:
                found, reason = self._described(queryset)
            except EmptyResultSet:
                return None
        if found is not None and reason is None:
            reason = found.why_not(connection)
        note(self.reasons, IN_SQL, reason)
        return found if reason is None else None

    def _described(self, queryset: AnyQuerySet) -> tuple[DatabaseJSON | None, str | None]:
        reason, asked_at = self._not_in_sql.get(queryset.db, (None, 0.0))
        if reason is not None and monotonic() - asked_at < ASK_AGAIN:
            return None, reason
        found = DatabaseJSON.of(queryset, self.names)
        if isinstance(found, DatabaseJSON):
            self.in_sql[queryset.db] = found
            return found, None
        self._not_in_sql[queryset.db] = found, monotonic()
        return None, found

    def _in_sql(self, in_sql: DatabaseJSON, queryset: AnyQuerySet, codec: RowCodec) -> Iterator[Chunk]:
        try:
            for keys, json in in_sql.read(queryset, CHUNK):
                yield Chunk(keys, json, [None] * len(keys), codec)
        except Outdated:
            self.in_sql.pop(queryset.db, None)
            raise


def _iterated(queryset: AnyQuerySet) -> Iterator[Any]:
    """The rows as ``list(queryset)`` gives them, chunk by chunk if that is the same."""
    kind = type(queryset)
    own = kind.__iter__ is not QuerySet.__iter__ or kind._fetch_all is not QuerySet._fetch_all
    return iter(queryset) if own else queryset.iterator(CHUNK)


def encode_dict(
    codec: RowCodec, encoder: Encoder, key: Hashable, row: dict[str, Any]
) -> tuple[bytes, Row | None]:
    """The same as ``encode_columns()``, of a dict that need not have what it should have."""
    if row.keys() == set(codec.names):
        return encode_columns(codec, encoder, key, tuple(row[name] for name in codec.names))
    frozen = freeze(row)
    return encoder.encode(key, frozen), frozen


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


def names_of_dicts(queryset: AnyQuerySet) -> list[str]:
    """What the dicts of a ``queryset()`` that ends in ``.values()`` have, in their order."""
    query = queryset.query
    return [*(query.selected or [*query.extra_select, *query.values_select, *query.annotation_select])]


class DictReader:
    """The dicts of a ``queryset()`` that ends in ``.values()``, as they are."""

    copied = False
    as_json = True
    in_sql = _NOWHERE

    def __init__(self, names: Sequence[str], key: str | None, queryset: AnyQuerySet) -> None:
        self.names = tuple(names)
        self.keyed = key is not None
        self.own_code = code_of_values(queryset, self.names)
        self.reasons: dict[str, str] = {IN_SQL: "queryset() ends in .values()"}
        self._key = key
        self._encoder = Encoder()

    def read(
        self,
        queryset: AnyQuerySet,
        *,
        key: str = "pk",
        in_python: bool = False,
        codec: RowCodec | None = None,
    ) -> Iterator[Chunk]:
        """Read the dicts; the key is one of their values, if they have it."""
        name = self._key if key == "pk" else key
        codec = codec or RowCodec(self.names)
        return _chunks((self._encoded(row, name, codec) for row in _iterated(queryset)), queryset, codec)

    def _encoded(self, row: dict[str, Any], name: str | None, codec: RowCodec) -> Encoded:
        key = None if name is None else row.get(name)
        return key, *encode_dict(codec, self._encoder, key, row)


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
    as_json = False
    in_sql = _NOWHERE

    def __init__(self, schema: type[BaseModel], queryset: AnyQuerySet) -> None:
        """Read rows of a schema.

        Args:
            schema: what the rows become.
            queryset: what is read.
        """
        self.names = tuple(schema.model_fields)
        self.copied = not is_shareable(schema)
        self.reasons: dict[str, str] = {IN_SQL: "rows have a schema"}
        self._schema = schema
        model = queryset.model
        self._sources = [source_of(name, field, model) for name, field in schema.model_fields.items()]
        self._instances = why_instances(schema, queryset)
        self.own_code = code_of(schema) or self._instances or code_of_values(queryset, self._sources)
        self._adapter: TypeAdapter[Any] = TypeAdapter(schema)
        self._frozen = frozen_type(schema)
        self._encoder = Encoder(schema)

    def read(
        self,
        queryset: AnyQuerySet,
        *,
        key: str = "pk",
        in_python: bool = False,
        codec: RowCodec | None = None,
    ) -> Iterator[Chunk]:
        """Read, validate and encode."""
        queryset = pinned(queryset)
        reason = self._instances or not_djangos(queryset)
        note(self.reasons, COLUMNS, reason)
        if reason is None:
            return _chunks(self._from_columns(queryset, key), queryset)
        return _chunks(self._from_instances(queryset, key), queryset)

    def _from_columns(self, queryset: AnyQuerySet, key: str) -> Iterator[Encoded]:
        rows, key_of = with_key(queryset, self._sources, key)
        for values in _iterated(rows):
            of_row = key_of(values)
            # Under the names of the fields.
            columns = dict(zip(self.names, map(_without_view, values), strict=False))
            yield self._encoded(of_row, self._validated(of_row, columns, by_alias=False, by_name=True))

    def _from_instances(self, queryset: AnyQuerySet, key: str) -> Iterator[Encoded]:
        binary = [
            field.attname
            for field in queryset.model._meta.concrete_fields
            if field.get_internal_type() == "BinaryField"
        ]
        for instance in _iterated(queryset):
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
            yield self._encoded(of_row, row)

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
        if type(row) is self._schema:  # and its own validators, which may change it, have done so
            object.__setattr__(row, "__class__", self._frozen)
        if self.copied:
            for name in self.names:
                freeze(getattr(row, name))  # for its refusal: the row keeps its own values
        return row

    def _encoded(self, key: Hashable, row: Any) -> Encoded:
        return key, self._encoder.encode(key, row), row


def _without_view(value: Any) -> Any:
    # What psycopg2 gives for a BinaryField, and pydantic does not take for bytes.
    return bytes(value) if type(value) is memoryview else value


class SerializerReader:
    """The dicts that a DRF serializer makes of model instances."""

    keyed = True
    copied = False
    as_json = False
    in_sql = _NOWHERE

    def __init__(self, serializer: type[Any]) -> None:
        # One instance for all rows, as many=True has it: making one copies every field.
        self._serializer = serializer()
        self.names = tuple(name for name, field in self._serializer.fields.items() if not field.write_only)
        self.own_code: str | None = f"{serializer.__qualname__} is code of its own"
        self.reasons: dict[str, str] = {IN_SQL: "rows have a serializer"}
        self._encoder = Encoder()

    def read(
        self,
        queryset: AnyQuerySet,
        *,
        key: str = "pk",
        in_python: bool = False,
        codec: RowCodec | None = None,
    ) -> Iterator[Chunk]:
        """Read model instances, serialize and encode them."""
        queryset = pinned(queryset)
        rows = (self._serialized(instance, key) for instance in _iterated(queryset))
        return _chunks(rows, queryset)

    def _serialized(self, instance: Model, key: str) -> Encoded:
        row = freeze(dict(self._serializer.to_representation(instance)))
        return getattr(instance, key), self._encoder.encode(instance.pk, row), row


def _chunks(rows: Iterable[Encoded], queryset: AnyQuerySet, codec: RowCodec | None = None) -> Iterator[Chunk]:
    rows = iter(rows)
    try:
        while chunk := list(islice(rows, CHUNK)):
            keys, json, objects = map(list, zip(*chunk, strict=True))
            yield Chunk(keys, json, objects, codec)
    except NotSupportedError as error:
        connection = connections[queryset.db]
        if not _is_outdated_plan(error) or connection.in_atomic_block:
            raise
        # A migration has changed what psycopg has prepared here. A new one has prepared nothing.
        connection.close()
        raise Outdated from error
    except Exception as error:
        _close_cursor(error)
        raise


def _close_cursor(error: Exception) -> None:
    """Close the cursor that an error's traceback holds open, in those frames of Django's that were reading.

    On a server it would stay open until somebody forgets the error.
    """
    traceback = error.__traceback__
    while traceback is not None:
        frame, traceback = traceback.tb_frame, traceback.tb_next
        if frame.f_globals.get("__name__") == "django.db.models.sql.compiler":
            with suppress(RuntimeError):  # it runs
                frame.clear()


def _is_outdated_plan(error: NotSupportedError) -> bool:
    """Whether PostgreSQL says "cached plan must not change result type", in whatever language."""
    said = getattr(error.__cause__, "diag", None)
    return said is not None and said.source_function == "RevalidateCachedQuery"
