"""A load of everything: rows are read and encoded chunk by chunk, and become a snapshot."""

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from datetime import UTC, datetime
from typing import Any

from django.db import connections

from ..database.startup_checks import table_explained
from ..reading.codec import Chunk, RowCodec, value_of
from ..reading.keys import AnyQuerySet
from ..reading.on_loop import LoopReads
from ..reading.own_ways import pinned
from ..reading.pacing import Pace
from ..reading.past_caches import past_caches
from ..reading.postgresql_json import DatabaseJSON, NotExpressible
from ..reading.readers import CHUNK, ColumnReader, Reader
from .key_index import KeyIndex, ValueIndex, check_values
from .keyed_loading import KeyedLoader
from .pages import Page, cut
from .snapshot import RowCache, Snapshot
from .table import Table

STEP = 8  # pages: half a millisecond
MOST_STATEMENTS = 10_000  # different ones; what an N+1 of literal values may make of them


class Loader:
    """Loads one repository: one load at a time, on a database thread."""

    def __init__(
        self,
        queryset: Callable[[], AnyQuerySet],
        reader: Reader,
        on_loop: LoopReads,
        *,
        name: str,
        indexes: Sequence[str],
        max_decoded_rows: int,
        pace: Pace,
        watch: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Load what ``queryset`` returns, ordered; ``watch`` is entered around each load."""
        self._queryset = queryset
        self._reader = reader
        self._name = name
        self._indexes = indexes
        self._max_decoded_rows = max_decoded_rows
        self._pace = pace
        self._watch = watch
        self._keyed = KeyedLoader(queryset, reader, on_loop, self._snapshot)
        self.load_keys_on_loop = self._keyed.load_on_loop

    def load(self, before: Snapshot[Any] | None) -> Snapshot[Any]:
        """Read all rows.

        Raises:
            InvalidRow: the schema refuses a row, or JSON cannot carry it.
            LazyValue: a row holds something that would query later.
            DatabaseError: as Django raises it.
        """
        with self._watch():
            snapshot, _ = self.read(self._queryset(), before)
        return snapshot

    def load_keys(self, before: Snapshot[Any], keys: Collection[Hashable]) -> Snapshot[Any] | None:
        """Read the rows with these keys; returns None if that needs a load of all."""
        with self._watch():
            return self._keyed.load(before, keys)

    def read(
        self, queryset: AnyQuerySet, before: Snapshot[Any] | None
    ) -> tuple[Snapshot[Any], DatabaseJSON | None]:
        """Read all rows of this query, which the repository has made.

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
        self, pages: Iterable[Page], codec: RowCodec, before: Snapshot[Any] | None, loaded_at: datetime
    ) -> Snapshot[Any]:
        """Make a snapshot of rows that another process has read, and whose JSON the database has made.

        Args:
            pages: all of them, cut as this process would have.
            codec: reads their JSON.
            before: the current snapshot.
            loaded_at: a time by this process's clock at which the other had not begun to read.

        Raises:
            InvalidRow: ``indexes`` name a field whose values cannot be looked up by.
        """
        self._pace.begin()
        table = self._table_of(self._paced(pages), None if before is None else before.table)
        return self._made(table, codec, before, loaded_at)

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
        if in_sql is not None and isinstance(self._reader, ColumnReader):
            codec: RowCodec | None = RowCodec(self._reader.names, in_sql.kinds)
            rows: Any = self._reader.read(queryset, codec=codec, in_sql=in_sql)
        else:
            codec = RowCodec(self._reader.names) if self._reader.as_json else None
            rows = self._reader.read(queryset, in_python=True, codec=codec)
        # Closed here if a row cannot be kept: the error's traceback would keep the rows open, on a connection
        # that others acquire next.
        with closing(rows):
            # Writers of SQLite wait while its rows are being read, so it must be done soon.
            paced = rows if connections[queryset.db].vendor == "sqlite" else self._with_rests(rows)
            pages = cut(paced if self._reader.keyed else _numbered(paced))
            return self._table_of(pages, None if before is None else before.table), codec

    def _with_rests(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        for chunk in chunks:
            yield chunk
            if len(chunk) == CHUNK:  # or it was the last
                self._pace.rest()

    def _paced(self, pages: Iterable[Page]) -> Iterator[Page]:
        for number, page in enumerate(pages):
            yield page
            if number % STEP == 0:
                self._pace.rest()

    def _table_of(self, read: Iterable[Page], known: Table | None) -> Table:
        pages = [page if known is None else known.known(page) for page in read]
        if not self._reader.keyed:
            return Table(pages, None)
        if known is not None and (where := known.index_of(pages)) is not None:
            return Table(pages, where)
        keys = ((page.keys, page.start) for page in self._paced(pages))
        return Table(pages, KeyIndex.of(sum(map(len, pages)), keys))

    def _made(
        self, table: Table, codec: RowCodec | None, before: Snapshot[Any] | None, began: datetime
    ) -> Snapshot[Any]:
        same_types = before is not None and _types(before.cache.codec) == _types(codec)
        cache = before.cache if before is not None and same_types else RowCache(codec, self._max_decoded_rows)
        if before is not None and not same_types:
            # A migration has changed a column. Pages that are shared with the rows before have rows that were
            # decoded by the types that these had.
            table = Table((page.apart() for page in table.pages), table.where)
        if before is not None and same_types and before.table.has_same_pages(table):
            # Nothing has changed: what was made of these rows (decoded, joined, compressed) is still good.
            table, indexes = before.table, before.keys_by_value
        else:
            indexes = self._index(table, cache)
        self._pace.end()
        return self._snapshot(table, cache, indexes, before, began, began)

    def _index(self, table: Table, cache: RowCache) -> dict[str, ValueIndex]:
        if not self._indexes:
            return {}
        found: dict[str, dict[Hashable, list[Hashable]]] = {field: {} for field in self._indexes}
        for page in table.pages:
            rows = cache.rows(page)
            for field, keys in found.items():
                pairs = zip((value_of(row, field) for row in rows), page.keys, strict=True)
                for value, key in check_values(field, list(pairs)):
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
            keys_by_value=indexes,
        )


class Observed:
    """The SQL that loading a repository really executes, and what was found in it.

    Where rows are made of model instances, Python code may query as it likes: a property, a serializer's
    method, a generic foreign key, an iterable of another package. No analysis of the repository finds that,
    so the loads are watched. Threads add statements, and the event loop looks at them.
    """

    changes_nothing = True  # for own_ways, which looks for wrappers that may

    def __init__(self) -> None:
        self._known: set[str] = set()
        self._new: list[str] = []
        self._found: frozenset[str] = frozenset()

    def __call__(self, execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: Any) -> Any:
        """Note a statement, and execute it: Django's protocol of ``execute_wrapper()``.

        It is noted first. A change that commits after the statement has read is announced after that, and
        so whoever looks for its table finds the statement here.
        """
        if sql not in self._known and len(self._known) < MOST_STATEMENTS:
            self._known.add(sql)
            self._new.append(str(sql))
        return execute(sql, params, many, context)

    def found(self, look: Callable[[str], Collection[str]]) -> frozenset[str]:
        """Return what ``look`` finds in all statements so far; it is called once for each."""
        while self._new:
            self._found |= frozenset(look(self._new.pop()))
        return self._found


def _numbered(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    """Give rows without keys their numbers for keys."""
    number = 0
    for chunk in chunks:
        chunk.keys = list(range(number, number + len(chunk)))
        number += len(chunk)
        yield chunk


def _types(codec: RowCodec | None) -> object:
    return None if codec is None else (codec.names, codec.types)
