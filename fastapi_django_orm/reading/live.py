"""Reads of the database at the moment of asking: one row, or a part of the list."""

import asyncio
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar, cast

from asgiref.sync import AsyncToSync
from django.core.exceptions import FieldDoesNotExist
from django.db import Error
from django.db.models import CompositePrimaryKey, Field, Model, QuerySet

from .. import running
from ..database.executor import DatabaseExecutor
from ..database.reachable import table_explained
from ..database.turns import asking_block
from ..errors import InvalidRepository, NotUnique, nearest
from ..rows.encoding import CLOSING, opening
from ..rows.sharing import copied
from ..snapshots.changing import NewRow
from ..snapshots.pages import Chunk
from .batching import Batcher, Found
from .equality import is_loose, storable
from .on_loop import LoopReads
from .readers import OF_ONE_KEY, AnyQuerySet, Reader, is_final
from .sql_json import NotExpressible

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

Unique = tuple[str, Hashable]  # a unique field, or "pk", and a value
_MOST_ROWS = 2**63 - 1

Window = tuple[int, int | None]  # how many rows to leave out, and how many to give at most


class LiveReads:
    """Reads one repository's rows, in batches where no transaction forbids it."""

    def __init__(
        self,
        queryset: Callable[[], AnyQuerySet],
        ordered: Callable[[], AnyQuerySet],
        reader: Reader,
        on_loop: LoopReads,
        *,
        name: str,
        label: str,
    ) -> None:
        """Get ready.

        Args:
            queryset: gives what there is to read.
            ordered: gives the same in the order of the list.
            reader: how to read it.
            on_loop: reads without a thread what can be read so.
            name: the key of the list in the JSON.
            label: what messages call the repository.
        """
        self._queryset = queryset
        self._ordered = ordered
        self._reader = reader
        self._on_loop = on_loop
        self._name = name
        self._label = label
        self._model: type[Model] = queryset().model
        self._rows: dict[str, Batcher[Hashable, NewRow]] = {}
        self._windows: Batcher[Window, bytes] | None = None

    def key(self, value: Any) -> Hashable:
        """A primary key in the form in which rows have it: 5 for ``"5"``.

        Raises:
            ValueError: no key is like this; or what else the model's field raises.
        """
        pk: Any = self._model._meta.pk
        if isinstance(pk, CompositePrimaryKey):
            parts: Any = pk.fields
            return tuple(part.get_prep_value(of) for part, of in zip(parts, value, strict=True))
        return cast("Hashable", pk.get_prep_value(value))

    def row_key(self, value: Any) -> Hashable:
        """A primary key as rows have it that were read: an address in its short form, a code as an object.

        Raises:
            KeyError: no key is like this.
        """
        pk: Any = self._model._meta.pk
        try:
            stored: Any = self.key(value)
            if isinstance(pk, CompositePrimaryKey):
                parts: Any = pk.fields
                return tuple(part.to_python(of) for part, of in zip(parts, stored, strict=True))
            return cast("Hashable", pk.to_python(stored))
        except OF_ONE_KEY:
            raise KeyError(value) from None

    async def row(self, pk: Any, unique: Mapping[str, Any]) -> Any:
        """The row with this key, or this value of a unique field, as the reader reads rows.

        Raises:
            KeyError: there is none.
            NotUnique: the field is not unique.
        """
        name, value = self._asked(pk, unique)
        if value is None:  # which any number of rows may have, and so names none
            raise KeyError(name)
        found = await self._find(name, value)
        if found.row is None:
            assert self._reader.codec is not None, "rows without objects come with a codec"
            return self._reader.codec.decode(found.json)
        return copied(found.row) if self._reader.copied else found.row

    async def row_json(self, pk: Any) -> bytes:
        """The JSON of the row with this key, which may be a text of it.

        Raises:
            KeyError: there is none, or no key is like this.
        """
        try:
            key = self.key(self._model._meta.pk.to_python(pk))
        except OF_ONE_KEY:
            raise KeyError(pk) from None
        return (await self._find("pk", key)).json

    async def window(self, offset: int, limit: int | None) -> bytes:
        """The bytes of ``{"name": [rows]}`` for some of the rows."""
        window = (offset, limit)
        if self._windows is None:
            self._windows = self._batcher(self._read_windows, self._windows_on_loop)
        return await self._read_by(self._windows, self._read_windows, window)

    def _asked(self, pk: Any, unique: Mapping[str, Any]) -> Unique:
        if len(unique) != (pk is None):
            raise TypeError(f"{self._label}.fetch(): give a key, or one unique field with its value.")
        if not unique:
            return "pk", self.key(pk)
        ((name, value),) = unique.items()
        field = self._unique_field(name)
        return ("pk" if field.primary_key else field.attname), field.get_prep_value(value)

    def _unique_field(self, name: str) -> "Field[Any, Any]":
        meta = self._model._meta
        try:
            field = meta.pk if name == "pk" else meta.get_field(name)
        except FieldDoesNotExist:
            field = None
        if isinstance(field, Field) and field.unique:
            return field
        known = [field.name for field in meta.concrete_fields if field.unique]
        raise NotUnique(
            f"{self._label}.fetch(): {name!r} is no unique field of {meta.label}. {nearest(name, known)}"
        )

    # Where

    def _batcher(
        self,
        read: Callable[[Sequence[K]], Found[K, V]],
        on_loop: Callable[[Sequence[K], Callable[[Found[K, V] | Exception | None], None]], bool],
    ) -> Batcher[K, V]:
        here = running.find(self._label)
        assert here.loop is not None, "the plugin sets it before there are repositories"
        return Batcher(read, here.executor, here.loop, on_loop)

    async def _find(self, name: str, value: Hashable) -> NewRow:
        read = partial(self.read_rows, name)
        if (batcher := self._rows.get(name)) is None:
            on_loop = self._rows_on_loop if name == "pk" else _never
            batcher = self._rows[name] = self._batcher(read, on_loop)
        return await self._read_by(batcher, read, value)

    async def _read_by(
        self,
        batcher: Batcher[K, V],
        read: Callable[[Sequence[K]], Found[K, V]],
        wanted: K,
    ) -> V:
        """Read in a batch, or alone: in a transaction, under async_to_sync, on another event loop."""
        waited_for = getattr(AsyncToSync.executors, "current", None) is not None
        here = batcher.loop is asyncio.get_running_loop()
        if here and not waited_for and asking_block() is None:
            return await batcher.get(wanted)
        executor: DatabaseExecutor = running.find(self._label).executor
        found = (await executor.run(read, [wanted]))[wanted]
        if isinstance(found, Exception):
            raise found
        return found

    # On the event loop

    def _rows_on_loop(
        self,
        keys: Sequence[Hashable],
        done: Callable[[Found[Hashable, NewRow] | Exception | None], None],
    ) -> bool:
        def read(chunk: Chunk | Exception | None) -> None:
            if not isinstance(chunk, Chunk):
                done(chunk)
                return
            rows = _new_rows(chunk)
            found = self._by_value("pk", keys, rows)
            # One that nobody has asked for is a row whose key the database holds for equal to one of these.
            done(found if len(found) == len(rows) else None)

        return self._on_loop.rows(keys, read)

    def _windows_on_loop(
        self,
        windows: Sequence[Window],
        done: Callable[[Found[Window, bytes] | Exception | None], None],
    ) -> bool:
        ((offset, limit), *others) = windows
        if others or limit is None:  # several queries; as many rows as there are
            return False

        def read(chunk: Chunk | Exception | None) -> None:
            done({(offset, limit): self._list([chunk])} if isinstance(chunk, Chunk) else chunk)

        return self._on_loop.window(offset, limit, read)

    # On a database thread

    def read_rows(self, name: str, values: Sequence[Hashable]) -> Found[Hashable, NewRow]:
        """For each of these values of a unique field the row that has it, or why it cannot be read.

        Raises:
            DatabaseError: none of them can.
        """
        alias = self._queryset().db
        values = storable(values, alias)
        with table_explained(self._model, alias):
            if len(values) < 2:
                return {one: row for value in values for one, row in self._read_one(name, value)}
            try:
                return self._read_together(name, values)
            except OF_ONE_KEY:
                return {value: found for one in values for value, found in self._outcome(name, one)}

    def _outcome(self, name: str, value: Hashable) -> list[tuple[Hashable, NewRow | Exception]]:
        try:
            return [*self._read_one(name, value)]
        except OF_ONE_KEY as error:
            return [(value, error)]

    def _read_one(self, name: str, value: Hashable) -> list[tuple[Hashable, NewRow]]:
        try:
            return [(value, row) for row in self._read(name, {name: value})[:1]]
        except OF_ONE_KEY:
            if self._is_refused(name, value):
                return []
            raise

    def _is_refused(self, name: str, value: Hashable) -> bool:
        """Whether the database refuses this very value, which no row can have then, and not the query.

        What a column takes is known to its database and driver alone: PostgreSQL has no NUL in a text, and no
        text but an address where addresses are, SQLite no number beyond 64 bits.
        """
        rows: AnyQuerySet = QuerySet(self._model, using=self._queryset().db)
        try:
            rows.exists()
        except Error:  # the table is missing; the transaction ended with the first error
            return False
        try:
            rows.filter(**{name: value}).exists()
        except OF_ONE_KEY:
            return True
        return False

    def _read_together(self, name: str, values: Sequence[Hashable]) -> Found[Hashable, NewRow]:
        rows = self._read(name, {f"{name}__in": values})
        found = self._by_value(name, values, rows)
        missing = [value for value in values if value not in found]
        unkeyed = any(row.key is None for row in rows)  # the query leaves the field out
        field = self._unique_field(name)
        may_be_there = rows and missing and (unkeyed or is_loose(field, self._queryset().db))
        if may_be_there and self._read(name, {f"{name}__in": missing}):
            # Only the database can tell which of these values it holds for equal to a row's.
            found |= {value: row for one in missing for value, row in self._read_one(name, one)}
        return found

    def _by_value(
        self, name: str, values: Sequence[Hashable], rows: Sequence[NewRow]
    ) -> dict[Hashable, NewRow | Exception]:
        prepare = self._unique_field(name).get_prep_value
        by_value = {prepare(row.key): row for row in rows}
        return {value: by_value[value] for value in values if value in by_value}

    def _read(self, name: str, wanted: Mapping[str, Any]) -> list[NewRow]:
        queryset = self._queryset()
        if is_final(queryset):
            kind = "sliced" if queryset.query.is_sliced else f"a {queryset.query.combinator}()"
            raise InvalidRepository(
                f"{self._label}.fetch(): its queryset() is {kind}, in which Django cannot look for a row. "
                "Declare a repository for fetch() whose queryset() has filters alone, or read the rows of a "
                "CachedRepository with get()."
            )
        chunks = self._chunks(queryset.filter(**wanted).order_by(), name)
        return [row for chunk in chunks for row in _new_rows(chunk)]

    def _chunks(self, queryset: AnyQuerySet, key: str = "pk") -> list[Chunk]:
        try:
            return list(self._reader.read(queryset, key=key))
        except NotExpressible:
            return list(self._reader.read(queryset, key=key, in_python=True))

    def _read_windows(self, windows: Sequence[Window]) -> dict[Window, bytes | Exception]:
        found: dict[Window, bytes | Exception] = {}
        for window in windows:
            try:
                found[window] = self._read_window(*window)
            except OF_ONE_KEY as error:  # of a row that others need not have asked for
                found[window] = error
        return found

    def _read_window(self, offset: int, limit: int | None) -> bytes:
        # No table has more rows than a database can count.
        end = None if limit is None or offset + limit > _MOST_ROWS else offset + limit
        chunks: list[Chunk] = []
        if offset <= _MOST_ROWS:
            queryset = self._ordered()[offset:end]
            with table_explained(self._model, queryset.db):
                chunks = self._chunks(queryset)
        return self._list(chunks)

    def _list(self, chunks: Iterable[Chunk]) -> bytes:
        json = b",".join(row for chunk in chunks for row in chunk.json)
        return opening(self._name) + json + CLOSING


def _new_rows(chunk: Chunk) -> list[NewRow]:
    return list(map(NewRow, chunk.keys, chunk.json, chunk.objects))


def _never(*_: object) -> bool:
    return False
