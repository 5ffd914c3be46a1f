"""A load of some rows: those with certain keys are read, and put where they belong now."""

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from datetime import UTC, datetime
from sqlite3 import SQLITE_LIMIT_VARIABLE_NUMBER
from typing import Any

from django.db import connections
from django.db.models import CompositePrimaryKey

from ..database.startup_checks import table_explained
from ..reading.codec import Chunk, EncodedRow, RowCodec, value_of
from ..reading.keys import OF_ONE_KEY, AnyQuerySet, is_loose, prepared, storable
from ..reading.on_loop import MOST_BYTES, LoopReads
from ..reading.own_ways import PLACING, not_djangos, not_djangos_lookups, note, pinned
from ..reading.past_caches import past_caches
from ..reading.postgresql_json import NotExpressible
from ..reading.readers import Reader, depends_on_others, is_final
from .changing import Changing, NotComparable, Order
from .key_index import ValueIndex, check_values
from .snapshot import RowCache, Snapshot
from .table import Table

# Takes the table, what reads its rows, its indexes, the snapshot before, when the rows are from, and when the
# load began.
Make = Callable[
    [Table, RowCache, Mapping[str, ValueIndex], Snapshot[Any] | None, datetime, datetime], Snapshot[Any]
]

_MOST_CONDITIONS = 500  # SQLite has 1000 at most, and PostgreSQL what its stack has room for
_MOST_OF_POSTGRESQL = 2**16 - 1  # parameters that its protocol can count
_MOST_OF_OLD_SQLITE = 999

# Errors that may be these keys' fault. A full load asks for no keys, and raises again what is no key's fault.
_OF_KEYS = (NotComparable, NotExpressible, *OF_ONE_KEY)


class KeyedLoader:
    """Loads some rows of one repository."""

    def __init__(
        self,
        queryset: Callable[[], AnyQuerySet],
        reader: Reader,
        on_loop: LoopReads,
        make: Make,
    ) -> None:
        self._queryset = queryset
        self._reader = reader
        self._on_loop = on_loop
        self._make = make

    def load(self, before: Snapshot[Any], keys: Collection[Hashable]) -> Snapshot[Any] | None:
        """Read rows that may have changed, come or gone; returns None if only a full load can do it.

        Raises:
            DatabaseError: as Django raises it.
            InvalidRow: a row cannot be looked up by a field of ``indexes``.
        """
        began = datetime.now(UTC)
        queryset = pinned(self._queryset())
        order = self._order(queryset, before)
        if order is None or not _takes(queryset, len(keys)):
            return None
        try:
            of_keys = queryset.filter(pk__in=storable(keys, queryset.db)).order_by()
            codec = before.cache.codec
            surprises = 0 if codec is None else codec.surprises
            with table_explained(queryset.model, queryset.db), past_caches(queryset.db):
                chunks = list(self._reader.read(of_keys, codec=codec))
            if codec is not None and codec.surprises > surprises:
                return None  # a migration may have changed a column, and with it the other rows
        except _OF_KEYS:
            return None
        return self._changed(queryset, order, before, keys, chunks, began)

    async def load_on_loop(self, before: Snapshot[Any], keys: Collection[Hashable]) -> Snapshot[Any] | None:
        """Do the same without a thread, in the event loop; returns None if a thread is needed.

        The keys should be few, since the loop waits for the work.
        """
        if _page_bytes(before.table, keys) > MOST_BYTES:
            return None
        began = datetime.now(UTC)
        try:
            alias = self._on_loop.alias
            if alias is None:
                return None
            queryset = self._queryset().using(alias)
            order = self._order(queryset, before)
            found = None if order is None else await self._on_loop.rows(alias, keys)
            if order is None or not isinstance(found, Chunk):
                return None
            return self._changed(queryset, order, before, keys, [found], began)
        except Exception:  # it comes again on the thread
            return None

    def _order(self, queryset: AnyQuerySet, before: Snapshot[Any]) -> Order | None:
        """The rows' order; None if rows read alone may differ from those in the list, or cannot be placed."""
        order = self._why_not(queryset, before) or Order.of(queryset, self._reader.names)
        if isinstance(order, Order) and not order.is_by_key and before.cache.codec is None:
            order = "rows of a schema are in another order than that of their keys"
        note(self._reader.reasons, PLACING, order if isinstance(order, str) else None)
        return order if isinstance(order, Order) else None

    def _why_not(self, queryset: AnyQuerySet, before: Snapshot[Any]) -> str | None:
        if is_final(queryset) or queryset.query.distinct or depends_on_others(queryset):
            return "rows depend on each other"
        if not before.table.has_unique_keys:
            return "several rows have one key"
        return not_djangos(queryset) or not_djangos_lookups(queryset.model._meta.pk)

    def _changed(
        self,
        queryset: AnyQuerySet,
        order: Order,
        before: Snapshot[Any],
        keys: Collection[Hashable],
        chunks: Sequence[Chunk],
        began: datetime,
    ) -> Snapshot[Any] | None:
        if not all(_is_of_types(chunk.codec, before.cache.codec) for chunk in chunks):
            return None
        rows = [row for chunk in chunks for row in chunk.rows()]
        read = {row.key: row for row in rows}
        try:
            if len(read) != len(rows) or self._may_be_others(queryset, before, keys, read):
                return None
            # A row's key may equal one that is written otherwise, to the database.
            keys = {*keys, *read}
            table = Changing(before.table, before.cache, order).changed(keys, read)
        except _OF_KEYS:
            return None
        indexes = self._reindexed(before, read, keys)
        return self._make(table, before.cache, indexes, before, before.loaded_at, began)

    def _may_be_others(
        self,
        queryset: AnyQuerySet,
        before: Snapshot[Any],
        keys: Collection[Hashable],
        read: Mapping[Hashable, EncodedRow],
    ) -> bool:
        """Whether a key that no row seems to have could be another form of the key of a row that has gone."""
        field: Any = queryset.model._meta.pk
        if not is_loose(field, queryset.db):
            return False
        there = {prepared(field, key) for key in read}
        return any(key not in there and key not in (before.table.where or ()) for key in keys)

    def _reindexed(
        self, before: Snapshot[Any], read: Mapping[Hashable, EncodedRow], keys: Collection[Hashable]
    ) -> dict[str, ValueIndex]:
        if not before.keys_by_value:
            return {}
        known, decode = before.table.where or (), before.cache.decode
        gone = [(before.row(key), key) for key in keys if key in known]
        new = [(decode(row.json) if row.row is None else row.row, key) for key, row in read.items()]
        return {
            field: index.changed(
                [(value_of(row, field), key) for row, key in gone],
                check_values(field, [(value_of(row, field), key) for row, key in new]),
            )
            for field, index in before.keys_by_value.items()
        }


def _is_of_types(read: RowCodec | None, there: RowCodec | None) -> bool:
    """Whether rows that were read have values of the types that the rows have among which they will stand.

    If not, a migration may have changed a column, and with it the other rows.
    """
    if read is None or there is None:
        return read is there
    return read is there or there.expect(read.types)


def _takes(queryset: AnyQuerySet, number: int) -> bool:
    """Whether the database takes so many keys in one query. In several, rows would be of several moments."""
    connection: Any = connections[queryset.db]
    pk: Any = queryset.model._meta.pk
    parts = len(pk.fields) if isinstance(pk, CompositePrimaryKey) else 1
    # Of several columns Django, or the database, makes a condition for each key, one in the other.
    if parts > 1 and number > _MOST_CONDITIONS:
        return False
    if connection.vendor == "sqlite":
        # Up to Django 6.0 max_query_params is what SQLite took long ago.
        connection.ensure_connection()
        limit = getattr(connection.connection, "getlimit", None)  # which other drivers may lack
        most = _MOST_OF_OLD_SQLITE if limit is None else int(limit(SQLITE_LIMIT_VARIABLE_NUMBER))
    elif getattr(connection.features, "uses_server_side_binding", False):
        most = _MOST_OF_POSTGRESQL
    else:  # the driver writes them into the query
        return True
    return number * parts <= most // 2  # which leaves as many for the query itself


def _page_bytes(table: Table, keys: Collection[Hashable]) -> float:
    """How much JSON the pages have that these rows are on, or will be: all of it is made anew."""
    where = table.where
    if where is None:
        return table.size
    pages = map(table.page, {where[key] for key in keys if key in where})
    known = sum(len(page.json) for page in pages if page is not None)
    return known + sum(key not in where for key in keys) * table.size / max(1, len(table.pages))
