"""Reads of the database at the moment of asking: one row, or a part of the list."""

import asyncio
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar, cast

from django.db.models import CompositePrimaryKey

from .. import running
from ..database.reentrancy import is_bound
from ..errors import InvalidKey, InvalidRow
from ..rows.sharing import copied
from ..snapshots.changing import NewRow, new_rows
from ..snapshots.pages import Chunk
from .batching import Absent, Batcher, Outcomes
from .live_queries import LiveQueries
from .on_loop import LoopReads
from .readers import OF_ONE_KEY, Reader
from .windows import Found, Listed, Window, WindowRead

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

Unique = tuple[str, Hashable]  # a unique field, or "pk", and a value


class LiveReads:
    """Reads one repository's rows, in batches where no transaction forbids it."""

    def __init__(
        self, queries: LiveQueries, reader: Reader, on_loop: LoopReads, *, name: str, label: str
    ) -> None:
        """Read nothing yet.

        Args:
            queries: what to ask the database.
            reader: how to read rows.
            on_loop: reads without a thread what can be read so.
            name: the repository's.
            label: what messages call the repository.
        """
        self._queries = queries
        self._reader = reader
        self._on_loop = on_loop
        self._name = name
        self._label = label
        self._model = self._queries.model
        self._rows: dict[str, Batcher[Hashable, NewRow]] = {}

    def key(self, value: Any) -> Hashable:
        """A primary key in the form in which rows have it: 5 for ``"5"``.

        Raises:
            InvalidKey: no key is like this. In a handler: 404.
        """
        if value is None:
            raise InvalidKey(f"{self._name}: None is the key of no row.")
        try:
            key = self._prepared(value)
            hash(key)
        except OF_ONE_KEY as error:
            # What comes from a URL is the client's mistake, and what the field says of it is no help there.
            kind = type(value).__name__
            raise InvalidKey(f"{self._name} has no row with the key {value!r}, a {kind}.") from error
        return key

    def _prepared(self, value: Any) -> Hashable:
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
            stored: Any = self._prepared(value)
            if isinstance(pk, CompositePrimaryKey):
                parts: Any = pk.fields
                return tuple(part.to_python(of) for part, of in zip(parts, stored, strict=True))
            return cast("Hashable", pk.to_python(stored))
        except OF_ONE_KEY:
            raise KeyError(value) from None

    async def row(self, pk: tuple[Any, ...], unique: Mapping[str, Any]) -> Any:
        """The row with this key, or this value of a unique field, as the reader reads rows.

        Raises:
            Absent: there is none.
            InvalidKey: no row can have this value.
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
            key = self._prepared(self._model._meta.pk.to_python(pk))
        except OF_ONE_KEY:
            raise Absent(pk) from None
        return (await self._find("pk", key)).json

    async def window(self, offset: int, limit: int | None) -> bytes:
        """The bytes of ``{"name": [rows]}`` for some of the rows."""
        return (await self.listed((offset, limit))).body

    async def listed(self, window: Window) -> Listed:
        """The same with their tag, for as long as they are being sent.

        Raises:
            DatabaseBusy: too much was asked for, and was not read in time.
        """
        here = running.find(self._label)
        if here.windows.loop is not asyncio.get_running_loop() or is_bound():
            return await here.executor.run(self._queries.read_window, window)
        read = WindowRead(partial(self._queries.read_window, window), partial(self._window_on_loop, window))
        return await here.windows.get(self, window, read)

    def _asked(self, pk: tuple[Any, ...], unique: Mapping[str, Any]) -> Unique:
        if len(pk) + len(unique) != 1:
            raise TypeError(f"{self._label}.fetch(): give a key, or one unique field with its value.")
        if pk:
            return "pk", self.key(pk[0])
        ((name, value),) = unique.items()
        field = self._queries.unique_field(name)
        try:
            prepared = field.get_prep_value(value)
            hash(prepared)
        except OF_ONE_KEY as error:
            kind = type(value).__name__
            raise InvalidKey(f"{self._name} has no row with {name} {value!r}, a {kind}.") from error
        return ("pk" if field.primary_key else field.attname), prepared

    # In a batch, or alone

    def _batcher(
        self,
        read: Callable[[Sequence[K]], Outcomes[K, V]],
        on_loop: Callable[[Sequence[K], Callable[[Outcomes[K, V] | Exception | None], None]], bool],
    ) -> Batcher[K, V]:
        here = running.find(self._label)
        assert here.loop is not None, "the plugin sets it before there are repositories"
        return Batcher(read, here.executor.own, here.loop, on_loop)

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
        try:
            return await self._read_somehow(batcher, read, wanted)
        except InvalidRow as error:
            error.repository = self._name
            raise

    async def _read_somehow(
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

    def _window_on_loop(self, window: Window, done: Callable[[Found], None]) -> bool:
        def read(chunk: Chunk | Exception | None) -> None:
            done(self._queries.listed([b",".join(chunk.json)]) if isinstance(chunk, Chunk) else chunk)

        offset, limit = window
        return limit is not None and self._on_loop.window(offset, limit, read)


def _never(*_: object) -> bool:
    return False
