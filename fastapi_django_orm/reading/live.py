"""Reads of the database at the moment of asking: one row, or a part of the list."""

import asyncio
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import Any, TypeVar, cast

from django.db import router
from django.db.models import CompositePrimaryKey

from ..database import current
from ..database.executor import DatabaseExecutor
from ..database.reentrancy import is_bound
from ..errors import InvalidKey
from ..rows.sharing import copied
from ..snapshots.changing import NewRow, new_rows
from ..snapshots.pages import Chunk
from .batching import Absent, Batcher, Outcomes
from .live_queries import Asked, LiveQueries, ReadAlone, run_in
from .on_loop import LoopReads
from .readers import OF_ONE_KEY, Reader
from .windows import Found, Listed, Window, WindowRead, Windows

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
T = TypeVar("T")

Unique = tuple[str, Hashable]  # a unique field, or "pk", and a value


class LiveReads:
    """Reads one repository's rows, in batches where no transaction forbids it."""

    def __init__(
        self,
        queries: LiveQueries,
        reader: Reader,
        on_loop: LoopReads,
        windows: Windows,
        executor: DatabaseExecutor,
        *,
        name: str,
        label: str,
    ) -> None:
        """Read nothing yet.

        Args:
            queries: what to ask the database.
            reader: how to read rows.
            on_loop: reads without a thread what can be read so.
            windows: reads parts of the list.
            executor: runs what is read alone.
            name: the repository's.
            label: what messages call the repository.
        """
        self._queries = queries
        self._reader = reader
        self._on_loop = on_loop
        self._name = name
        self._label = label
        self._model = self._queries.model
        self._windows = windows
        self._loop = windows.loop
        self._executor = executor
        # By the field, and the database if that is known before the query is made.
        self._rows: dict[tuple[str, str | None], Batcher[Hashable, NewRow]] = {}
        self._asked: dict[str, Batcher[Asked, NewRow]] = {}
        # What is published is read for nobody in particular: in the context in which the application started.
        self._public = copy_context()

    def key(self, value: Any) -> Hashable:
        """A primary key in the form in which rows have it: 5 for ``"5"``.

        Raises:
            InvalidKey: no key is like this. In a handler: 404.
        """
        if value is None:
            raise InvalidKey(f"{self._name}: None is the key of no row.")
        return self._hashable(self._prepared, value, "the key")

    def _hashable(self, prepare: Callable[[Any], Hashable], value: Any, what: str) -> Hashable:
        try:
            prepared = prepare(value)
            hash(prepared)
        except OF_ONE_KEY as error:
            # What comes from a URL is the client's mistake, and what the field says of it is no help there.
            kind = type(value).__name__
            raise InvalidKey(f"{self._name} has no row with {what} {value!r}, a {kind}.") from error
        return prepared

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
            key = self._prepared(self._model._meta.pk.to_python(pk))
        except OF_ONE_KEY:
            raise Absent(pk) from None
        if self._may_share:
            return (await self._batcher_of("pk", self._public_alias()).get(key)).json
        return (await self._read_alone("pk", key)).json

    async def window(self, offset: int, limit: int | None) -> bytes:
        """The bytes of ``{"name": [rows]}`` for some of the rows."""
        return (await self.listed((offset, limit))).body

    async def listed(self, window: Window) -> Listed:
        """The same with their tag, for as long as they are being sent.

        Raises:
            DatabaseBusy: too much was asked for, and was not read in time.
        """
        if not self._may_share:
            return await self._run(self._queries.read_window, window)
        on_thread = partial(self._in_public, self._queries.read_window, window)
        return await self._windows.get(
            self, window, WindowRead(on_thread, partial(self._window_on_loop, window))
        )

    def _wanted(self, pk: tuple[Any, ...], unique: Mapping[str, Any]) -> Unique:
        if len(pk) + len(unique) != 1:
            raise TypeError(f"{self._label}.fetch(): give a key, or one unique field with its value.")
        if pk:
            return "pk", self.key(pk[0])
        ((name, value),) = unique.items()
        field = self._queries.unique_field(name)
        prepared = self._hashable(field.get_prep_value, value, name)
        return ("pk" if field.primary_key else field.attname), prepared

    # In a batch, or alone

    async def _run(self, read: Callable[..., T], *args: Any) -> T:
        current.find(self._label)  # which says so if the application has ended
        return await self._executor.run(read, *args)

    @property
    def _may_share(self) -> bool:
        """Whether what runs may read with others: one in a transaction or async_to_sync has its thread."""
        return self._loop is asyncio.get_running_loop() and not is_bound()

    def _batcher(
        self,
        read: Callable[[Sequence[K]], Outcomes[K, V]],
        on_loop: Callable[[Sequence[K], Callable[[Outcomes[K, V] | Exception | None], None]], bool],
    ) -> Batcher[K, V]:
        return Batcher(read, self._executor.own, self._loop, on_loop)

    def _in_public(self, read: Callable[..., T], *args: Any) -> T:
        return run_in(self._public.copy(), read, *args)

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
        if self._reader.own_code is None and self._may_share:
            if (alias := self._on_loop.alias) is not None:  # the query is Django's own, whoever asks
                return await self._batcher_of(name, alias).get(value)
            if self._queries.alone is None:
                with suppress(ReadAlone):
                    return await self._batcher_of_asked(name).get(Asked(value))
        return await self._read_alone(name, value)

    def _batcher_of_asked(self, name: str) -> Batcher[Asked, NewRow]:
        if (batcher := self._asked.get(name)) is None:
            batcher = self._asked[name] = self._batcher(partial(self._queries.read_asked, name), _never)
        return batcher

    async def _read_alone(self, name: str, value: Hashable) -> NewRow:
        """Read in the caller's context."""
        found: Outcomes[Hashable, NewRow] = await self._run(self._queries.read_rows, name, [value])
        if value not in found:
            raise Absent(value)
        try:
            if isinstance(outcome := found[value], Exception):
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

    def _window_on_loop(self, window: Window, done: Callable[[Found], None]) -> bool:
        offset, limit = window
        if limit is None or (alias := self._public_alias()) is None:  # as many rows as there are
            return False

        def read(chunk: Chunk | Exception | None) -> None:
            done(self._queries.listed([b",".join(chunk.json)]) if isinstance(chunk, Chunk) else chunk)

        return self._on_loop.window(alias, offset, limit, read)


def _never(*_: object) -> bool:
    return False
