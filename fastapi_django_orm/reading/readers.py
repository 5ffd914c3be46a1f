"""How a repository's rows are read: which columns, as what.

All of this runs on a database thread. What it hands over is plain: no query, no model instance, no lazy
relation. There are four ways of reading, by what a repository declares: columns as dicts (the default) and
the dicts of a ``queryset()`` that ends in ``.values()`` here, a pydantic schema and a DRF serializer in
``schema_readers``.

Where a query is not Django's own (``own_ways``), it is iterated as ``list(queryset.values(…))`` would do it,
and each value is taken by its name.
"""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

from django.core.exceptions import EmptyResultSet
from django.db import NotSupportedError, connections
from django.db.models import QuerySet

from ..clock import monotonic
from .codec import Chunk, RowCodec
from .encoding import plain_encoder
from .keys import AnyQuerySet, with_key
from .own_ways import IN_SQL, code_of_values, not_djangos, note, pinned
from .postgresql_json import DatabaseJSON, Outdated, not_in_sql
from .row import Row, freeze

CHUNK = 500  # rows: enough to be cheap, and few enough that no step holds the GIL for long

ASK_AGAIN = 60.0  # seconds until a database is asked again what it could not make the JSON of

Encoded = tuple[Hashable, bytes, Any]  # a row's key, its JSON, and the row if the JSON does not give it


class Reader:
    """Reads a repository's rows.

    Attributes:
        names: the names of a row's fields.
        keyed: whether the rows have keys.
        copied: whether each caller needs a copy, because a row could be changed.
        as_json: whether rows are kept as JSON, and each chunk comes with the codec that reads it.
        in_sql: by alias how the database makes the JSON, where it does and that is known.
        own_code: the code that decides what a row holds beside the query, None if there is none. It may look
            at the one who asks, so whoever asks must be the one for whom it runs.
        reasons: ways of reading that were not taken when they were tried last, and why.
    """

    keyed = True
    copied = False
    as_json = False

    def __init__(self, names: Iterable[str], own_code: str | None) -> None:
        self.names = tuple(names)
        self.own_code = own_code
        self.reasons: dict[str, str] = {}
        self.in_sql: dict[str, DatabaseJSON] = {}

    def read(
        self,
        queryset: AnyQuerySet,
        *,
        key: str = "pk",
        in_python: bool = False,
        codec: RowCodec | None = None,
    ) -> Iterator[Chunk]:
        """Return the rows in the query's order; on a database thread.

        Args:
            queryset: what to read.
            key: the column whose values come as the rows' keys.
            in_python: whether to read values even where the database could make the JSON.
            codec: reads the JSON of rows that these will stand among; by default a new one.

        Raises:
            InvalidRow: the schema refuses a row, or JSON cannot carry it.
            LazyValue: a row holds something that would query later.
            NotExpressible: the database cannot make the JSON of some row: read in Python.
            DatabaseError: as Django raises it.
        """
        queryset = pinned(queryset)
        codec = (codec or RowCodec(self.names)) if self.as_json else None
        return _chunked(self._encoded(queryset, key, codec), queryset, codec)

    def _encoded(self, queryset: AnyQuerySet, key: str, codec: Any) -> Iterator[Encoded]:
        """Read and encode the rows; the codec is None unless rows are kept as JSON."""
        raise NotImplementedError


class ColumnReader(Reader):
    """Columns and annotations as dicts, as ``.values()`` gives them."""

    as_json = True

    def __init__(self, names: Sequence[str], queryset: AnyQuerySet) -> None:
        super().__init__(dict.fromkeys(names), code_of_values(queryset, names))
        self._not_in_sql: dict[str, tuple[str, float]] = {}  # and when that was found out

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
        return super().read(queryset, key=key, codec=codec)

    def _encoded(self, queryset: AnyQuerySet, key: str, codec: RowCodec) -> Iterator[Encoded]:
        if not_djangos(queryset) is None:
            return self._from_tuples(queryset, key, codec)
        return self._from_dicts(queryset, key, codec)

    def _from_tuples(self, queryset: AnyQuerySet, key: str, codec: RowCodec) -> Iterator[Encoded]:
        number = len(self.names)  # the columns after these belong to the key alone
        rows, key_of = with_key(queryset, self.names, key)
        for values in iterated(rows):
            of_row = key_of(values)
            yield of_row, *_encode_columns(codec, of_row, values[:number])

    def _from_dicts(self, queryset: AnyQuerySet, key: str, codec: RowCodec) -> Iterator[Encoded]:
        """Read rows of a queryset that is not Django's own: each value by its name."""
        pk = queryset.model._meta.pk
        alike = {"pk", pk.attname, *(() if pk.is_relation else (pk.name,))} if key == "pk" else {key}
        known = next((name for name in self.names if name in alike), None)
        rows = queryset.values(*self.names) if known is not None else queryset.values(*self.names, key)
        for row in map(dict, iterated(rows)):
            of_row = row.pop(key) if known is None else row[known]
            yield of_row, *_encode_dict(codec, of_row, row)

    def database_json(self, queryset: AnyQuerySet) -> DatabaseJSON | None:
        """Return how the database makes the JSON of this query's rows, here and now; None if Python has to.

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


class DictReader(Reader):
    """The dicts of a ``queryset()`` that ends in ``.values()``, as they are."""

    as_json = True

    def __init__(self, queryset: AnyQuerySet) -> None:
        query = queryset.query
        names = [*(query.selected or [*query.extra_select, *query.values_select, *query.annotation_select])]
        super().__init__(names, code_of_values(queryset, names))
        self.reasons[IN_SQL] = "queryset() ends in .values()"
        self._key = next((name for name in (queryset.model._meta.pk.attname, "pk") if name in names), None)
        self.keyed = self._key is not None

    def _encoded(self, queryset: AnyQuerySet, key: str, codec: RowCodec) -> Iterator[Encoded]:
        name = self._key if key == "pk" else key
        for row in iterated(queryset):
            of_row = None if name is None else row.get(name)
            yield of_row, *_encode_dict(codec, of_row, row)


def _encode_columns(codec: RowCodec, key: Hashable, values: tuple[Any, ...]) -> tuple[bytes, Row | None]:
    """Return a row's JSON, and the row if the JSON does not give it."""
    if codec.is_exact(values):
        return plain_encoder.encode(key, dict(zip(codec.names, values, strict=True))), None
    row = Row(zip(codec.names, map(freeze, values), strict=True))
    return plain_encoder.encode(key, row), row


def _encode_dict(codec: RowCodec, key: Hashable, row: dict[str, Any]) -> tuple[bytes, Row | None]:
    """Return the same for a dict that need not have what it should have."""
    if row.keys() == set(codec.names):
        return _encode_columns(codec, key, tuple(row[name] for name in codec.names))
    frozen = freeze(row)
    return plain_encoder.encode(key, frozen), frozen


def is_final(queryset: AnyQuerySet) -> bool:
    """Whether Django refuses to look for a row in this query: a slice, or several queries in one."""
    return bool(queryset.query.is_sliced or queryset.query.combinator)


def depends_on_others(queryset: AnyQuerySet) -> bool:
    """Whether a row's values, or whether it is there, depend on the query's other rows.

    Django puts a further condition before window functions and ``DISTINCT ON``, and so these see fewer rows.
    """
    query = queryset.query
    windows = any(annotation.contains_over_clause for annotation in query.annotations.values())
    return bool(windows or query.where.contains_over_clause or query.distinct_fields)


def iterated(queryset: AnyQuerySet) -> Iterator[Any]:
    """Return the rows as ``list(queryset)`` gives them, chunk by chunk if that is the same."""
    kind = type(queryset)
    own = kind.__iter__ is not QuerySet.__iter__ or kind._fetch_all is not QuerySet._fetch_all
    return iter(queryset) if own else queryset.iterator(CHUNK)


def _chunked(rows: Iterator[Encoded], queryset: AnyQuerySet, codec: RowCodec | None) -> Iterator[Chunk]:
    try:
        while chunk := list(islice(rows, CHUNK)):
            keys, json, objects = map(list, zip(*chunk, strict=True))
            yield Chunk(keys, json, objects, codec)
    except NotSupportedError as error:
        connection = connections[queryset.db]
        if not _is_outdated_plan(error) or connection.in_atomic_block:
            raise
        # A migration has changed what psycopg has prepared here. A new connection has prepared nothing.
        connection.close()
        raise Outdated from error
    except Exception as error:
        _close_cursor(error)
        raise


def _close_cursor(error: Exception) -> None:
    """Close the cursor that an error's traceback holds open, in those frames of Django's that were reading.

    On a server it would stay open for as long as anybody keeps the error.
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
