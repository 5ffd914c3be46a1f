"""A load of everything: rows are read and encoded chunk by chunk, and become a snapshot."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

from django.db import connections

from ..database.reachable import table_explained
from ..rows.codec import RowCodec
from ..snapshots.key_index import KeyIndex
from ..snapshots.page_list import PageList
from ..snapshots.pages import Chunk, Page, cut, cut_evenly
from ..snapshots.reuse import known_index, known_page
from ..snapshots.row_cache import RowCache
from ..snapshots.snapshot import Snapshot, value_of
from ..snapshots.table import Table
from ..snapshots.value_index import ValueIndex, lookup_pairs
from .key_columns import AnyQuerySet
from .keyed_loading import KeyedLoader
from .on_loop import LoopReads
from .own_ways import pinned
from .pacing import Pace
from .past_caches import past_caches
from .readers import CHUNK, ColumnReader, Reader
from .sql_json import DatabaseJSON, NotExpressible

STEP = 8  # pages: half a millisecond


class Loader:
    """Loads one repository: one load at a time, on a database thread.

    Attributes:
        load_keys: loads some rows.
        load_keys_on_loop: loads a few rows without a thread, if that can be done.
    """

    def __init__(
        self,
        queryset: Callable[[], AnyQuerySet],
        reader: Reader,
        on_loop: LoopReads,
        *,
        name: str,
        indexes: Sequence[str],
        rows_kept: int,
        pace: Pace,
    ) -> None:
        """Load nothing yet.

        Args:
            queryset: gives what to read, ordered.
            reader: how to read it.
            on_loop: reads without a thread what can be read so.
            name: the key of the list in the JSON.
            indexes: fields to look rows up by.
            rows_kept: how many rows to keep as Python objects.
            pace: lets others go first between two steps.
        """
        self._queryset = queryset
        self._reader = reader
        self._name = name
        self._indexes = indexes
        self._rows_kept = rows_kept
        self._pace = pace
        keyed = KeyedLoader(queryset, reader, on_loop, self._snapshot)
        self.load_keys, self.load_keys_on_loop = keyed.load, keyed.load_on_loop

    def load(self, before: Snapshot[Any] | None) -> Snapshot[Any]:
        """Read all rows.

        Args:
            before: the snapshot that there is.

        Raises:
            InvalidRow: the schema refuses a row, or JSON cannot carry it.
            LazyValue: a row holds something that would query later.
            DatabaseError: as Django raises it.
        """
        snapshot, _ = self.read(self._queryset(), before)
        return snapshot

    def read(
        self, queryset: AnyQuerySet, before: Snapshot[Any] | None
    ) -> tuple[Snapshot[Any], DatabaseJSON | None]:
        """The same of this query, which the repository has made.

        Returns:
            The snapshot, and how the database has made the JSON of all of its rows; None if Python has.
        """
        began = datetime.now(UTC)
        self._pace.begin()
        queryset = pinned(queryset)
        with table_explained(queryset.model, queryset.db), past_caches(queryset.db):
            reader = self._reader
            in_sql = reader.database_json(queryset) if isinstance(reader, ColumnReader) else None
            try:
                table, codec = self._read_table(queryset, before, in_sql)
            except NotExpressible:
                in_sql = None
                table, codec = self._read_table(queryset, before, None)
        return self._made(table, codec, before, began), in_sql

    def take(
        self,
        pages: Iterable[Page],
        codec: RowCodec,
        before: Snapshot[Any] | None,
        loaded_at: datetime,
    ) -> Snapshot[Any]:
        """Make a snapshot of rows that another process has read, and whose JSON the database has made.

        Args:
            pages: all of them, cut as this process would have.
            codec: reads their JSON, once they are here.
            before: the snapshot that there is.
            loaded_at: a time by this process's clock at which the other had not begun to read.

        Raises:
            InvalidRow: ``indexes`` name a field whose values cannot be looked up by.
        """
        self._pace.begin()
        known = None if before is None else before.table
        listed = PageList(self._taken(pages, known))
        return self._made(Table(listed, self._where(listed.pages, known)), codec, before, loaded_at)

    def _taken(self, pages: Iterable[Page], known: Table | None) -> Iterator[Page]:
        for number, page in enumerate(pages):
            yield known_page(page, known)
            if number % STEP == 0:
                self._pace.rest()

    def _made(
        self, table: Table, codec: RowCodec | None, before: Snapshot[Any] | None, began: datetime
    ) -> Snapshot[Any]:
        same_types = before is not None and _types(before.cache.codec) == _types(codec)
        cache = before.cache if before is not None and same_types else RowCache(codec, self._rows_kept)
        if before is not None and not same_types:
            # A migration has changed a column. Pages that are shared with the rows before have rows that were
            # decoded by the types that these had.
            table = Table(PageList(page.apart() for page in table.pages), table.where)
        if before is not None and same_types and before.table.has_same_pages(table):
            # Nothing has changed: what was made of these rows (decoded, joined, compressed) is still good.
            table, indexes = before.table, before.keys_by_value
        else:
            indexes = self._index(table, cache)
        self._pace.end()
        return self._snapshot(table, cache, indexes, before, began, began)

    def let_go(self, pieces: list[Any]) -> None:
        """Free what a table was made of: a large one in one go would stop everybody for that time."""
        self._pace.begin()
        for number in range(len(pieces)):
            pieces.pop()
            if number % STEP == 0:
                self._pace.rest()

    def _read_table(
        self, queryset: AnyQuerySet, before: Snapshot[Any] | None, in_sql: DatabaseJSON | None
    ) -> tuple[Table, RowCodec | None]:
        rows, codec = self._rows(queryset, in_sql)
        # Writers of SQLite wait while its rows are being read, which come one by one: it must be done soon.
        holds_up_others = connections[queryset.db].vendor == "sqlite"
        # Closed here if a row cannot be kept: the error's traceback would keep the rows open, on a connection
        # that others borrow next.
        with closing(rows):
            return self._table_of(rows if holds_up_others else self._paced(rows), before), codec

    def _rows(self, queryset: AnyQuerySet, in_sql: DatabaseJSON | None) -> tuple[Any, RowCodec | None]:
        if in_sql is not None and isinstance(self._reader, ColumnReader):
            codec = RowCodec(self._reader.names, in_sql.kinds)
            return self._reader.read(queryset, codec=codec, in_sql=in_sql), codec
        learning = RowCodec(self._reader.names) if self._reader.as_json else None
        return self._reader.read(queryset, in_python=True, codec=learning), learning

    def _table_of(self, chunks: Iterable[Chunk], before: Snapshot[Any] | None) -> Table:
        known = None if before is None else before.table
        if not self._reader.keyed:
            return Table(PageList(known_page(page, known) for page in cut_evenly(chunks)), None)
        listed = PageList(known_page(page, known) for page in cut(chunks))
        return Table(listed, self._where(listed.pages, known))

    def _paced(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        for chunk in chunks:
            yield chunk
            if len(chunk) == CHUNK:  # or it was the last
                self._pace.rest()

    def _where(self, pages: Sequence[Page], known: Table | None) -> KeyIndex[Hashable]:
        """Where each key is: the index before, changed, if few keys differ; else a new one."""
        where = None if known is None else known_index(pages, known)
        return KeyIndex.of(sum(map(len, pages)), self._keys(pages)) if where is None else where

    def _keys(self, pages: Sequence[Page]) -> Iterator[tuple[Sequence[Hashable], Hashable]]:
        for number, page in enumerate(pages):
            if number % STEP == 0:
                self._pace.rest()
            yield page.keys, page.start

    def _index(self, table: Table, cache: RowCache) -> dict[str, ValueIndex]:
        if not self._indexes:
            return {}
        found: dict[str, dict[Hashable, list[Hashable]]] = {field: {} for field in self._indexes}
        for page in table.pages:
            rows = cache.rows(page)
            for field, keys in found.items():
                pairs = zip((value_of(row, field) for row in rows), page.keys, strict=True)
                for value, key in lookup_pairs(field, list(pairs)):
                    keys.setdefault(value, []).append(key)
            self._pace.rest()
        return {field: ValueIndex.of(keys) for field, keys in found.items()}

    def _snapshot(
        self,
        table: Table,
        cache: RowCache,
        indexes: Mapping[str, ValueIndex],
        before: Snapshot[Any] | None,
        loaded_at: datetime,
        began: datetime,
    ) -> Snapshot[Any]:
        # When it began, and not when it ended: newer rows began to be read after older ones did, whichever
        # worker was quicker, so their dates are in order in all workers.
        modified_at, exact = began, True
        if before is not None:
            if before.table.digest == table.digest:
                modified_at, exact = before.modified_at, before.date_is_exact
            else:
                exact = began.replace(microsecond=0) > before.modified_at
        return Snapshot(
            table,
            cache,
            name=self._name,
            copies=self._reader.copied,
            version=1 if before is None else before.version + 1,
            loaded_at=loaded_at,
            modified_at=modified_at,
            date_is_exact=exact,
            indexes=indexes,
        )


def _types(codec: RowCodec | None) -> Mapping[str, type | None] | None:
    return None if codec is None else codec.types
