"""A load: rows are read and encoded chunk by chunk, and become a snapshot.

All of them, or those of some keys alone, which costs in proportion to the keys.
"""

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from ..database.reachable import table_explained
from ..errors import InvalidRow
from ..snapshots.changing import Changing, NewRow
from ..snapshots.key_index import KeyIndex
from ..snapshots.page_list import PageList
from ..snapshots.pages import Chunk, Page, cut, cut_evenly
from ..snapshots.placing import NotComparable, Order
from ..snapshots.reuse import known_index, known_page
from ..snapshots.row_cache import RowCache
from ..snapshots.snapshot import Snapshot, value_of
from ..snapshots.table import Table
from ..snapshots.value_index import ValueIndex
from .equality import is_loose, storable
from .pacing import Pace
from .readers import CHUNK, OF_ONE_KEY, AnyQuerySet, Reader
from .sql_json import NotExpressible

Pairs = list[tuple[Hashable, Hashable]]

STEP = 8  # pages: half a millisecond


class Loader:
    """Loads one repository. Its methods run on a database thread, one at a time."""

    def __init__(
        self,
        queryset: Callable[[], AnyQuerySet],
        reader: Reader,
        *,
        name: str,
        indexes: Sequence[str],
        rows_kept: int,
        pace: Pace,
    ) -> None:
        """Get ready.

        Args:
            queryset: gives what to read, ordered.
            reader: how to read it.
            name: the key of the list in the JSON.
            indexes: fields to look rows up by.
            rows_kept: how many rows to keep as Python objects.
            pace: lets others go first between two steps.
        """
        self._queryset = queryset
        self._reader = reader
        self._name = name
        self._indexes = indexes
        self._cache = RowCache(reader.codec, rows_kept)
        self._pace = pace

    def load(self, before: Snapshot[Any] | None) -> Snapshot[Any]:
        """Read all rows.

        Args:
            before: the snapshot that there is.

        Raises:
            InvalidRow: the schema refuses a row, or JSON cannot carry it.
            LazyValue: a row holds something that would query later.
            DatabaseError: as Django raises it.
        """
        began = datetime.now(UTC)
        self._pace.begin()
        queryset = self._queryset()
        with table_explained(queryset.model, queryset.db):
            try:
                table = self._read_table(queryset, before, in_python=False)
            except NotExpressible:
                table = self._read_table(queryset, before, in_python=True)
        return self._made(table, before, began)

    def take(self, pages: Iterable[Page], before: Snapshot[Any] | None, loaded_at: datetime) -> Snapshot[Any]:
        """Have the rows that another process has read.

        Args:
            pages: all of them, cut as this process would have.
            before: the snapshot that there is.
            loaded_at: a time by this process's clock at which the other had not begun to read.

        Raises:
            InvalidRow: ``indexes`` name a field whose values cannot be looked up by.
        """
        self._pace.begin()
        known = None if before is None else before.table
        listed = PageList(self._taken(pages, known))
        where = self._where(listed.pages, known) if self._reader.keyed else None
        return self._made(Table(listed, where), before, loaded_at)

    def _taken(self, pages: Iterable[Page], known: Table | None) -> Iterator[Page]:
        for number, page in enumerate(pages):
            yield known_page(page, known)
            if number % STEP == 0:
                self._pace.rest()

    def _made(self, table: Table, before: Snapshot[Any] | None, began: datetime) -> Snapshot[Any]:
        if before is not None and before.table.has_same_pages(table):
            # Nothing has changed, and what was made of these rows (decoded, joined, compressed) is still
            # good.
            table, indexes = before.table, before.keys_by_value
        else:
            indexes = self._index(table)
        self._pace.end()
        return self._snapshot(table, indexes, before, began, began)

    def load_keys(self, before: Snapshot[Any], keys: Collection[Hashable]) -> Snapshot[Any] | None:
        """Read the rows with these keys again.

        Args:
            before: the snapshot that there is.
            keys: of rows that may have changed, come or gone.

        Returns:
            The snapshot with these rows as they are now, or None if only a full load can make it.

        Raises:
            The same as ``load()``.
        """
        began = datetime.now(UTC)
        queryset = self._queryset()
        order = Order.of(queryset, self._reader.names)
        if order is None or not self._is_divisible(queryset, before, order):
            return None
        try:
            read = self._read_keys(queryset, keys)
            if read is None or self._may_be_others(queryset, before, keys, read):
                return None
            # The database may hold a row's key for equal to one that is written otherwise.
            keys = {*keys, *read}
            table = Changing(before.table, self._cache, order).changed(keys, read)
        except (NotComparable, NotExpressible, *OF_ONE_KEY):
            return None  # a full load asks for no key, and raises again what is no key's fault
        indexes = {
            field: index.changed(*self._moved(field, before, read, keys))
            for field, index in before.keys_by_value.items()
        }
        return self._snapshot(table, indexes, before, before.loaded_at, began)

    def let_go(self, pieces: list[Any]) -> None:
        """Free what a table was made of: a large one in one go would stop everybody for that time."""
        self._pace.begin()
        for number in range(len(pieces)):
            pieces.pop()
            if number % STEP == 0:
                self._pace.rest()

    def _read_table(self, queryset: AnyQuerySet, before: Snapshot[Any] | None, *, in_python: bool) -> Table:
        chunks = self._paced(self._reader.read(queryset, in_python=in_python))
        if not self._reader.keyed:
            return Table(PageList(cut_evenly(chunks)), None)
        known = None if before is None else before.table
        listed = PageList(known_page(page, known) for page in cut(chunks))
        return Table(listed, self._where(listed.pages, known))

    def _paced(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        for chunk in chunks:
            yield chunk
            if len(chunk) == CHUNK:  # or it was the last
                self._pace.rest()

    def _where(self, pages: Sequence[Page], known: Table | None) -> KeyIndex[Hashable]:
        """Where each key is: made of the index before, where few keys are others."""
        where = None if known is None else known_index(pages, known)
        return KeyIndex.of(sum(map(len, pages)), self._keys(pages)) if where is None else where

    def _keys(self, pages: Sequence[Page]) -> Iterator[tuple[Sequence[Hashable], Hashable]]:
        for number, page in enumerate(pages):
            if number % STEP == 0:
                self._pace.rest()
            yield page.keys, page.start

    def _is_divisible(self, queryset: AnyQuerySet, before: Snapshot[Any], order: Order) -> bool:
        """Whether some of the rows read alone are what they are among all others."""
        query = queryset.query
        together = query.is_sliced or query.combinator or query.distinct or query.distinct_fields
        windows = any(annotation.contains_over_clause for annotation in query.annotations.values())
        readable = order.is_by_key or self._reader.codec is not None
        return not together and not windows and readable and before.table.has_unique_keys

    def _read_keys(self, queryset: AnyQuerySet, keys: Collection[Hashable]) -> dict[Hashable, NewRow] | None:
        chunks = self._reader.read(queryset.filter(pk__in=storable(keys, queryset.db)).order_by())
        rows = [row for chunk in chunks for row in zip(chunk.keys, chunk.json, chunk.objects, strict=True)]
        read = {key: NewRow(key, json, row) for key, json, row in rows}
        return read if len(read) == len(rows) else None

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
        read: dict[Hashable, NewRow],
        keys: Collection[Hashable],
    ) -> tuple[Pairs, Pairs]:
        """Which pairs of a value and a key the field's index loses and gains."""
        known = before.by_key or ()
        gone = [(value_of(before.row(key), field), key) for key in keys if key in known]
        new = [
            (value_of(self._cache.decode(row.json) if row.row is None else row.row, field), row.key)
            for row in read.values()
        ]
        return gone, self._hashable(field, new)

    def _index(self, table: Table) -> dict[str, ValueIndex]:
        if not self._indexes:
            return {}
        found: dict[str, dict[Hashable, list[Hashable]]] = {field: {} for field in self._indexes}
        for page in table.pages:
            rows = self._cache.rows(page)
            for field, keys in found.items():
                pairs = zip((value_of(row, field) for row in rows), page.keys, strict=True)
                for value, key in self._hashable(field, list(pairs)):
                    keys.setdefault(value, []).append(key)
            self._pace.rest()
        return {field: ValueIndex.of(keys) for field, keys in found.items()}

    def _hashable(self, field: str, pairs: Pairs) -> Pairs:
        for value, _ in pairs:
            try:
                hash(value)
            except TypeError:
                raise InvalidRow(
                    f"A row cannot be looked up by {field!r}, which holds {value!r}: "
                    "leave the field out of `indexes`."
                ) from None
        return pairs

    def _snapshot(
        self,
        table: Table,
        indexes: Mapping[str, ValueIndex],
        before: Snapshot[Any] | None,
        loaded_at: datetime,
        began: datetime,
    ) -> Snapshot[Any]:
        # When it began, and not when it ended: newer rows began to be read after older ones were, whichever
        # worker has been quicker, so their dates are in order in all workers.
        modified_at, exact = began, True
        if before is not None:
            if before.table.digest == table.digest:
                modified_at, exact = before.modified_at, before.date_is_exact
            else:
                exact = began.replace(microsecond=0) > before.modified_at
        return Snapshot(
            table,
            self._cache,
            name=self._name,
            copies=self._reader.copied,
            version=1 if before is None else before.version + 1,
            loaded_at=loaded_at,
            modified_at=modified_at,
            date_is_exact=exact,
            indexes=indexes,
        )
