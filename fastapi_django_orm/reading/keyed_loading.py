"""A load of some rows: those with certain keys are read, and put where they belong now."""

import asyncio
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any

from ..database.reachable import table_explained
from ..snapshots.changing import Changing, NewRow
from ..snapshots.pages import Chunk
from ..snapshots.placing import NotComparable, Order
from ..snapshots.row_cache import RowCache
from ..snapshots.snapshot import Snapshot, value_of
from ..snapshots.table import Table
from ..snapshots.value_index import Pairs, ValueIndex, lookup_pairs
from .equality import is_loose, storable
from .on_loop import Found, LoopReads
from .readers import OF_ONE_KEY, AnyQuerySet, Reader
from .sql_json import NotExpressible

# Takes the table, its indexes, the snapshot before, when the rows are from, and when the load began.
Make = Callable[[Table, Mapping[str, ValueIndex], Snapshot[Any] | None, datetime, datetime], Snapshot[Any]]

# Errors that may be these keys' fault. A full load asks for no keys, and raises again what is no key's fault.
_OF_KEYS = (NotComparable, NotExpressible, *OF_ONE_KEY)


class KeyedLoader:
    """Loads some rows of one repository."""

    def __init__(
        self,
        queryset: Callable[[], AnyQuerySet],
        reader: Reader,
        on_loop: LoopReads,
        cache: RowCache,
        make: Make,
    ) -> None:
        """Load nothing yet.

        Args:
            queryset: gives what to read, ordered.
            reader: how to read it.
            on_loop: reads without a thread what can be read so.
            cache: reads the rows of the snapshot.
            make: makes the snapshot.
        """
        self._queryset = queryset
        self._reader = reader
        self._on_loop = on_loop
        self._cache = cache
        self._make = make

    def load(self, before: Snapshot[Any], keys: Collection[Hashable]) -> Snapshot[Any] | None:
        """Read the rows with these keys again, on a database thread.

        Args:
            before: the snapshot that there is.
            keys: of rows that may have changed, come or gone.

        Returns:
            The snapshot with these rows as they are now, or None if only a full load can make it.

        Raises:
            DatabaseError: as Django raises it.
            InvalidRow: a row cannot be looked up by a field of ``indexes``.
        """
        began = datetime.now(UTC)
        queryset = self._queryset()
        order = self._order(queryset, before)
        if order is None:
            return None
        try:
            of_keys = queryset.filter(pk__in=storable(keys, queryset.db)).order_by()
            with table_explained(queryset.model, queryset.db):
                chunks = list(self._reader.read(of_keys))
        except _OF_KEYS:
            return None
        return self._changed(queryset, order, before, keys, chunks, began)

    async def load_on_loop(self, before: Snapshot[Any], keys: Collection[Hashable]) -> Snapshot[Any] | None:
        """The same without a thread, in the event loop; None if a thread is needed, for whatever reason.

        Args:
            before: the snapshot that there is.
            keys: of rows that may have changed, come or gone; few, since the loop waits for the work.
        """
        if not self._on_loop.is_possible:
            return None
        began = datetime.now(UTC)
        read: asyncio.Future[Found] = asyncio.get_running_loop().create_future()
        try:
            queryset = self._queryset()
            order = self._order(queryset, before)
            if order is None or not self._on_loop.rows(keys, partial(_tell, read)):
                return None
            found = await read
            if not isinstance(found, Chunk):
                return None
            return self._changed(queryset, order, before, keys, [found], began)
        except Exception:  # on the thread it comes again
            return None

    def _order(self, queryset: AnyQuerySet, before: Snapshot[Any]) -> Order | None:
        """The rows' order; None if rows read alone may differ from those in the list, or cannot be placed."""
        query = queryset.query
        together = query.is_sliced or query.combinator or query.distinct or query.distinct_fields
        windows = any(annotation.contains_over_clause for annotation in query.annotations.values())
        if together or windows or not before.table.has_unique_keys:
            return None
        order = Order.of(queryset, self._reader.names)
        readable = order is not None and (order.is_by_key or self._reader.codec is not None)
        return order if readable else None

    def _changed(
        self,
        queryset: AnyQuerySet,
        order: Order,
        before: Snapshot[Any],
        keys: Collection[Hashable],
        chunks: Iterable[Chunk],
        began: datetime,
    ) -> Snapshot[Any] | None:
        rows = [row for chunk in chunks for row in map(NewRow, chunk.keys, chunk.json, chunk.objects)]
        read = {row.key: row for row in rows}
        try:
            if len(read) != len(rows) or self._may_be_others(queryset, before, keys, read):
                return None
            # The database may hold a row's key for equal to one that is written otherwise.
            keys = {*keys, *read}
            table = Changing(before.table, self._cache, order).changed(keys, read)
        except _OF_KEYS:
            return None
        indexes = {
            field: index.changed(*self._moved(field, before, read, keys))
            for field, index in before.keys_by_value.items()
        }
        return self._make(table, indexes, before, before.loaded_at, began)

    def _may_be_others(
        self,
        queryset: AnyQuerySet,
        before: Snapshot[Any],
        keys: Collection[Hashable],
        read: Mapping[Hashable, NewRow],
    ) -> bool:
        """Whether a key that no row seems to have could be another form of the key of a row that has gone."""
        field: Any = queryset.model._meta.pk
        if not is_loose(field, queryset.db):
            return False
        there = {field.get_prep_value(key) for key in read}
        return any(key not in there and key not in (before.table.where or ()) for key in keys)

    def _moved(
        self,
        field: str,
        before: Snapshot[Any],
        read: Mapping[Hashable, NewRow],
        keys: Collection[Hashable],
    ) -> tuple[Pairs, Pairs]:
        """Which pairs of a value and a key the field's index loses and gains."""
        known = before.by_key or ()
        gone = [(value_of(before.row(key), field), key) for key in keys if key in known]
        new = [
            (value_of(self._cache.decode(row.json) if row.row is None else row.row, field), row.key)
            for row in read.values()
        ]
        return gone, lookup_pairs(field, new)


def _tell(waiting: "asyncio.Future[Found]", found: Found) -> None:
    if not waiting.done():
        waiting.set_result(found)
