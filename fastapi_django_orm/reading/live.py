"""Reads of the database at the moment of asking: one row, or a part of the list."""

import asyncio
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar, cast

from django.db.models import CompositePrimaryKey

from .. import running
from ..database.reentrancy import is_bound
from ..rows.sharing import copied
from ..snapshots.changing import NewRow, new_rows
from ..snapshots.pages import Chunk
from .batching import Absent, Batcher, Outcomes
from .live_queries import LiveQueries, Window
from .on_loop import LoopReads
from .readers import OF_ONE_KEY, Reader

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

Unique = tuple[str, Hashable]  # a unique field, or "pk", and a value


class LiveReads:
    """Reads one repository's rows, in batches where no transaction forbids it."""

    def __init__(self, queries: LiveQueries, reader: Reader, on_loop: LoopReads, *, label: str) -> None:
        """Read nothing yet.

        Args:
            queries: what to ask the database.
            reader: how to read rows.
            on_loop: reads without a thread what can be read so.
            label: what messages call the repository.
        """
        self._queries = queries
        self._reader = reader
        self._on_loop = on_loop
        self._label = label
        self._model = self._queries.model
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
        """A primary key as it is in rows that were read: an address in its short form, a code as its object.

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
            Absent: there is none.
            NotUnique: the field is not unique.
        """
        name, value = self._asked(pk, unique)
        if value is None:  # which any number of rows may have, and so names none
            raise Absent(name)
        found = await self._find(name, value)
        if found.row is None:
            assert self._reader.codec is not None, "rows without objects come with a codec"
            return self._reader.codec.decode(found.json)
        return copied(found.row) if self._reader.copied else found.row

    async def row_json(self, pk: Any) -> bytes:
        """The JSON of the row with this key, which may be a text of it.

        Raises:
            Absent: there is none, or no key is like this.
        """
        try:
            key = self.key(self._model._meta.pk.to_python(pk))
        except OF_ONE_KEY:
            raise Absent(pk) from None
        return (await self._find("pk", key)).json

    async def window(self, offset: int, limit: int | None) -> bytes:
        """The bytes of ``{"name": [rows]}`` for some of the rows."""
        window = (offset, limit)
        if self._windows is None:
            self._windows = self._batcher(self._queries.read_windows, self._windows_on_loop)
        return await self._read_by(self._windows, self._queries.read_windows, window)

    def _asked(self, pk: Any, unique: Mapping[str, Any]) -> Unique:
        if len(unique) != (1 if pk is None else 0):
            raise TypeError(f"{self._label}.fetch(): give a key, or one unique field with its value.")
        if not unique:
            return "pk", self.key(pk)
        ((name, value),) = unique.items()
        field = self._queries.unique_field(name)
        return ("pk" if field.primary_key else field.attname), field.get_prep_value(value)

    # In a batch, or alone

    def _batcher(
        self,
        read: Callable[[Sequence[K]], Outcomes[K, V]],
        on_loop: Callable[[Sequence[K], Callable[[Outcomes[K, V] | Exception | None], None]], bool],
    ) -> Batcher[K, V]:
        here = running.find(self._label)
        assert here.loop is not None, "the plugin sets it before there are repositories"
        return Batcher(read, here.executor, here.loop, on_loop)

    async def _find(self, name: str, value: Hashable) -> NewRow:
        read = partial(self._queries.read_rows, name)
        if (batcher := self._rows.get(name)) is None:
            on_loop = self._rows_on_loop if name == "pk" else _never
            batcher = self._rows[name] = self._batcher(read, on_loop)
        return await self._read_by(batcher, read, value)

    async def _read_by(
        self,
        batcher: Batcher[K, V],
        read: Callable[[Sequence[K]], Outcomes[K, V]],
        wanted: K,
    ) -> V:
        """Read in a batch, or alone: in a transaction, under async_to_sync, on another event loop."""
        if batcher.loop is asyncio.get_running_loop() and not is_bound():
            return await batcher.get(wanted)
        executor = running.find(self._label).executor
        found = await executor.run(read, [wanted])
        if wanted not in found:
            raise Absent(wanted)
        if isinstance(outcome := found[wanted], Exception):
            raise outcome
        return outcome

    # On the event loop

    def _rows_on_loop(
        self,
        keys: Sequence[Hashable],
        done: Callable[[Outcomes[Hashable, NewRow] | Exception | None], None],
    ) -> bool:
        def read(chunk: Chunk | Exception | None) -> None:
            if not isinstance(chunk, Chunk):
                done(chunk)
                return
            rows = new_rows(chunk)
            found = self._queries.by_value("pk", keys, rows)
            # One that nobody has asked for is a row whose key the database holds for equal to one of these.
            done(found if len(found) == len(rows) else None)

        return self._on_loop.rows(keys, read)

    def _windows_on_loop(
        self,
        windows: Sequence[Window],
        done: Callable[[Outcomes[Window, bytes] | Exception | None], None],
    ) -> bool:
        ((offset, limit), *others) = windows
        if others or limit is None:  # several queries; as many rows as there are
            return False

        def read(chunk: Chunk | Exception | None) -> None:
            done({(offset, limit): self._queries.listed([chunk])} if isinstance(chunk, Chunk) else chunk)

        return self._on_loop.window(offset, limit, read)


def _never(*_: object) -> bool:
    return False
