"""Reads of the database at the moment of asking: one row, or a part of the list."""

import asyncio
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import Any, TypeVar, cast

from django.db import router
from django.db.models import CompositePrimaryKey

from .. import running
from ..database.turns import is_bound
from ..rows.sharing import copied
from ..snapshots.changing import NewRow, new_rows
from ..snapshots.pages import Chunk
from .batching import Absent, Batcher, Outcomes
from .live_queries import Asked, LiveQueries, ReadAlone, Window, run_in
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
        self._loop = running.find(label).loop
        # By the field, and the database if that is known before the query is made.
        self._rows: dict[tuple[str, str | None], Batcher[Hashable, NewRow]] = {}
        self._asked: dict[str, Batcher[Asked, NewRow]] = {}
        # What is published is read for nobody in particular: in the context in which the application started.
        self._public = copy_context()
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
        name, value = self._wanted(pk, unique)
        if value is None:  # which any number of rows may have, and so names none
            raise Absent(name)
        found = await self._find(name, value)
        if found.row is None:
            assert found.codec is not None, "rows without objects come with a codec"
            return found.codec.decode(found.json)
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
        batcher = self._batcher_of("pk", self._public_alias())
        return (await self._read_by(batcher, partial(self._queries.read_rows, "pk"), key)).json

    async def window(self, offset: int, limit: int | None) -> bytes:
        """The bytes of ``{"name": [rows]}`` for some of the rows."""
        window = (offset, limit)
        if self._windows is None:
            read = partial(self._in_public, self._queries.read_windows)
            self._windows = self._batcher(read, self._windows_on_loop)
        return await self._read_by(self._windows, self._queries.read_windows, window)

    def _wanted(self, pk: Any, unique: Mapping[str, Any]) -> Unique:
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
        assert self._loop is not None, "the plugin sets it before there are repositories"
        return Batcher(read, running.find(self._label).executor, self._loop, on_loop)

    def _in_public(self, read: Callable[[Sequence[K]], Outcomes[K, V]], keys: Sequence[K]) -> Outcomes[K, V]:
        return run_in(self._public.copy(), read, keys)

    def _public_alias(self) -> str | None:
        if not router.routers:  # so it is the same for all
            return self._on_loop.alias
        return run_in(self._public.copy(), lambda: self._on_loop.alias)

    def _batcher_of(self, name: str, alias: str | None) -> Batcher[Hashable, NewRow]:
        """What collects the values of a field that are read for nobody in particular."""
        if (batcher := self._rows.get((name, alias))) is None:
            read = partial(self._in_public, partial(self._queries.read_rows, name, alias=alias))
            on_loop = _never if name != "pk" or alias is None else partial(self._rows_on_loop, alias)
            batcher = self._rows[name, alias] = self._batcher(read, on_loop)
        return batcher

    async def _find(self, name: str, value: Hashable) -> NewRow:
        """Read in a batch what is the same for everybody, or proves to be; else alone.

        What a query gives may depend on who asks: a manager may filter by the tenant of the context. So
        nothing of the project's code runs in another context than the caller's.
        """
        read = partial(self._queries.read_rows, name)
        # Whoever has a transaction, or waits in async_to_sync, reads on the thread that goes with it.
        if self._loop is asyncio.get_running_loop() and not is_bound() and self._reader.own_code is None:
            if (alias := self._on_loop.alias) is not None:  # the query is Django's own, whoever asks
                return await self._batcher_of(name, alias).get(value)
            if self._queries.alone is None:
                with suppress(ReadAlone):
                    return await self._batcher_of_asked(name).get(Asked(value))
        return await self._read_alone(read, value)

    def _batcher_of_asked(self, name: str) -> Batcher[Asked, NewRow]:
        if (batcher := self._asked.get(name)) is None:
            batcher = self._asked[name] = self._batcher(partial(self._queries.read_asked, name), _never)
        return batcher

    async def _read_by(
        self,
        batcher: Batcher[K, V],
        read: Callable[[Sequence[K]], Outcomes[K, V]],
        wanted: K,
    ) -> V:
        """Read in a batch, or alone: in a transaction, under async_to_sync, on another event loop."""
        if batcher.loop is asyncio.get_running_loop() and not is_bound():
            return await batcher.get(wanted)
        return await self._read_alone(read, wanted)

    async def _read_alone(self, read: Callable[[Sequence[K]], Outcomes[K, V]], wanted: K) -> V:
        """Read in the caller's context."""
        executor = running.find(self._label).executor
        found = await executor.run(Asked(wanted).run, read, [wanted])
        if wanted not in found:
            raise Absent(wanted)
        try:
            if isinstance(outcome := found[wanted], Exception):
                raise outcome
            return outcome
        finally:
            del found, outcome  # the error's traceback has this frame, and they would hold each other

    # On the event loop

    def _rows_on_loop(
        self,
        alias: str,
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

        return self._on_loop.rows(alias, keys, read)

    def _windows_on_loop(
        self,
        windows: Sequence[Window],
        done: Callable[[Outcomes[Window, bytes] | Exception | None], None],
    ) -> bool:
        ((offset, limit), *others) = windows
        alias = self._public_alias()
        if others or limit is None or alias is None:  # several queries; as many rows as there are
            return False

        def read(chunk: Chunk | Exception | None) -> None:
            done({(offset, limit): self._queries.listed([chunk])} if isinstance(chunk, Chunk) else chunk)

        return self._on_loop.window(alias, offset, limit, read)


def _never(*_: object) -> bool:
    return False
