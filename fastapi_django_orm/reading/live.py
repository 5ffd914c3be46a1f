"""Reads of the database at the moment of asking: one row, or a part of the list."""

import asyncio
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import Any, TypeVar

from django.db import router

from ..database import current
from ..database.executor import DatabaseExecutor
from ..database.reentrancy import is_bound
from ..errors import InvalidKey
from .batching import Absent, Batcher, Outcomes
from .codec import Chunk, EncodedRow
from .keys import OF_ONE_KEY, as_in_rows, prepared
from .live_queries import Asked, LiveQueries, ReadAlone, run_in
from .on_loop import LoopReads
from .readers import Reader
from .row import copied
from .windows import Listed, Window, Windows

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


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
        """Read with these; messages call the repository by its name, or by its label."""
        self._queries = queries
        self._reader = reader
        self._on_loop = on_loop
        self._name = name
        self._label = label
        self._pk: Any = queries.model._meta.pk
        self._windows = windows
        self._loop = windows.loop
        self._executor = executor
        # By the field, and the database if that is known before the query is made.
        self._batchers: dict[tuple[str, str | None], Batcher[Hashable, EncodedRow]] = {}
        self._batchers_of_asked: dict[str, Batcher[Asked, EncodedRow]] = {}
        # What is published is read on nobody's behalf: in the context in which the application started.
        self._public = copy_context()

    # Keys

    def key(self, value: Any) -> Hashable:
        """Return a primary key in the form in which queries use it: 5 for ``"5"``.

        Raises:
            InvalidKey: no key is like this. In a handler: 404.
        """
        if value is None:
            raise InvalidKey(f"{self._name}: None is the key of no row.")
        return self._prepared(self._pk, value, "the key")

    def _prepared(self, field: Any, value: Any, what: str) -> Hashable:
        try:
            key = prepared(field, value)
            hash(key)
        except OF_ONE_KEY as error:
            # What comes from a URL is the client's mistake, and the field's own message is no help there.
            kind = type(value).__name__
            raise InvalidKey(f"{self._name} has no row with {what} {value!r}, a {kind}.") from error
        return key

    def row_key(self, value: Any) -> Hashable:
        """Return a primary key in the form that rows have: an address in its short form, say.

        Raises:
            KeyError: no key is like this.
        """
        try:
            return as_in_rows(self._pk, value)
        except OF_ONE_KEY:
            raise KeyError(value) from None

    # Rows

    async def row(self, pk: tuple[Any, ...], unique: Mapping[str, Any]) -> Any:
        """Return the row with this key, or this value of a unique field, as the reader reads rows.

        Raises:
            Absent: there is none.
            InvalidKey: no row can have this value.
            NotUnique: the field is not unique.
        """
        if len(pk) + len(unique) != 1:
            raise TypeError(f"{self._label}.fetch(): give a key, or one unique field with its value.")
        if pk:
            name, value = "pk", self.key(pk[0])
        else:
            ((name, value),) = unique.items()
            field = self._queries.unique_field(name)
            value = self._prepared(field, value, name)
            name = "pk" if field.primary_key else field.attname
        if value is None:  # which any number of rows may have, and so names none
            raise Absent(name)
        return self.given(await self._find(name, value))

    def given(self, found: EncodedRow) -> Any:
        """Return a row as the reader gives rows, of what was read of it."""
        if found.row is None:
            assert found.codec is not None, "rows without objects come with a codec"
            return found.codec.decode(found.json)
        return copied(found.row) if self._reader.copied else found.row

    def read_here(self, key: Hashable, alias: str) -> EncodedRow | Exception | None:
        """Return the row with this key, in the caller's transaction on a database thread.

        Returns:
            The error of a row that cannot be served; None if there is no row.
        """
        return self._queries.read_rows("pk", [key], alias=alias).get(key)

    def read_unfiltered(self, key: Hashable, alias: str) -> EncodedRow | Exception | None:
        """Return the same without what ``queryset()`` adds, for a row that it leaves out."""
        model = self._queries.model
        everything = LiveQueries(
            model._base_manager.all, model._base_manager.all, self._reader, name=self._name, label=self._label
        )
        return everything.read_rows("pk", [key], alias=alias).get(key)

    async def row_json(self, pk: Any) -> bytes:
        """Return the JSON of the row with this key, which may be a text of it.

        Raises:
            Absent: there is none, or no key is like this.
        """
        try:
            key = prepared(self._pk, self._pk.to_python(pk))
        except OF_ONE_KEY:
            raise Absent(pk) from None
        if self.may_share:
            return (await self._batcher("pk", self._public_alias()).get(key)).json
        return (await self._read_alone("pk", key)).json

    async def window(self, offset: int, limit: int | None) -> bytes:
        """Return the bytes of ``{"name": [rows]}`` for some of the rows."""
        return (await self.listed((offset, limit))).body

    async def listed(self, window: Window) -> Listed:
        """Return the same with their tag; keep it for as long as the bytes are being sent.

        Raises:
            DatabaseBusy: too much was asked for, and was not read in time.
        """
        if not self.may_share:
            return await self.run(self._queries.read_window, window)
        on_thread = partial(self._in_public, self._queries.read_window, window)
        return await self._windows.get(self, window, on_thread, partial(self._window_on_loop, window))

    # In a batch, or alone

    async def run(self, read: Callable[..., T], *args: Any) -> T:
        """Call a function that reads on a database thread, in the caller's context and transaction.

        Raises:
            NotStarted: the application has ended.
        """
        current.find(self._label)  # which says so if the application has ended
        return await self._executor.run(read, *args)

    @property
    def may_share(self) -> bool:
        """Whether what runs may read with others: one in a transaction or async_to_sync has its thread."""
        return self._loop is asyncio.get_running_loop() and not is_bound()

    @property
    def is_for_all(self) -> bool:
        """Whether a row is made without the project's code, which may look at who asks."""
        return self._reader.own_code is None

    async def _find(self, name: str, value: Hashable) -> EncodedRow:
        """Read in a batch what is the same for everybody, or proves to be; else alone.

        What a query gives may depend on who asks: a manager may filter by the tenant of the context. So
        none of the project's code runs in another context than the caller's.
        """
        if self.is_for_all and self.may_share:
            if (alias := self._on_loop.alias) is not None:  # the query is Django's own, whoever asks
                return await self._batcher(name, alias).get(value)
            if self._queries.alone is None:
                with suppress(ReadAlone):
                    return await self._batcher_of_asked(name).get(Asked(value))
        return await self._read_alone(name, value)

    async def _read_alone(self, name: str, value: Hashable) -> EncodedRow:
        """Read in the caller's context."""
        found: Outcomes[Hashable, EncodedRow] = await self.run(self._queries.read_rows, name, [value])
        if value not in found:
            raise Absent(value)
        try:
            if isinstance(outcome := found[value], Exception):
                raise outcome
            return outcome
        finally:
            del found, outcome  # the error's traceback has this frame, and they would reference each other

    def _batcher(self, name: str, alias: str | None) -> Batcher[Hashable, EncodedRow]:
        """What collects the values of a field that are read on nobody's behalf."""
        if (batcher := self._batchers.get((name, alias))) is None:
            read = partial(self._in_public, partial(self._queries.read_rows, name, alias=alias))
            on_loop = None if name != "pk" or alias is None else partial(self._rows_on_loop, alias)
            batcher = self._batchers[name, alias] = self._new_batcher(read, on_loop)
        return batcher

    def _batcher_of_asked(self, name: str) -> Batcher[Asked, EncodedRow]:
        if (batcher := self._batchers_of_asked.get(name)) is None:
            read = partial(self._queries.read_asked, name)
            batcher = self._batchers_of_asked[name] = self._new_batcher(read, None)
        return batcher

    def _new_batcher(
        self, read: Callable[[Sequence[K]], Outcomes[K, EncodedRow]], on_loop: Any
    ) -> Batcher[K, EncodedRow]:
        return Batcher(read, self._executor.own, self._loop, on_loop)

    def in_public_context(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function on this thread in the context in which the application started."""
        return self._public.copy().run(function, *args)

    def _in_public(self, read: Callable[..., T], *args: Any) -> T:
        return run_in(self._public.copy(), read, *args)

    def _public_alias(self) -> str | None:
        if not router.routers:  # so it is the same for all
            return self._on_loop.alias
        return run_in(self._public.copy(), lambda: self._on_loop.alias)

    # On the event loop

    async def _rows_on_loop(
        self, alias: str, keys: Sequence[Hashable]
    ) -> Outcomes[Hashable, EncodedRow] | Exception | None:
        chunk = await self._on_loop.rows(alias, keys)
        if not isinstance(chunk, Chunk):
            return chunk
        rows = chunk.rows()
        found = self._queries.by_value("pk", keys, rows)
        # One that nobody has asked for is a row whose key equals one of these only to the database.
        return found if len(found) == len(rows) else None

    async def _window_on_loop(self, window: Window) -> Listed | Exception | None:
        offset, limit = window
        if limit is None or (alias := self._public_alias()) is None:  # as many rows as there are
            return None
        chunk = await self._on_loop.window(alias, offset, limit)
        return self._queries.listed([b",".join(chunk.json)]) if isinstance(chunk, Chunk) else chunk
