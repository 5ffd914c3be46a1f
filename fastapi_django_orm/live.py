"""Reads of the database at the moment of asking: one row, or a part of the list."""

import asyncio
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any, cast

from asgiref.sync import AsyncToSync
from django.core.exceptions import FieldDoesNotExist
from django.db.models import Field, Model

from . import running
from .batching import Batcher
from .changing import NewRow
from .database.executor import DatabaseExecutor
from .database.reachable import table_explained
from .database.turns import asking_block
from .encoding import CLOSING, opening
from .errors import NotUnique, nearest
from .pages import Chunk
from .readers import OF_ONE_KEY, AnyQuerySet, Reader
from .sharing import copied
from .snapshot import value_of
from .sql_json import NotExpressible

Unique = tuple[str, Hashable]  # a unique field, or "pk", and a value
Window = tuple[int, int | None]  # how many rows to leave out, and how many to give at most


class LiveReads:
    """Reads one repository's rows, in batches where no transaction forbids it."""

    def __init__(
        self,
        queryset: Callable[[], AnyQuerySet],
        ordered: Callable[[], AnyQuerySet],
        reader: Reader,
        *,
        name: str,
        label: str,
    ) -> None:
        """Get ready.

        Args:
            queryset: gives what there is to read.
            ordered: gives the same in the order of the list.
            reader: how to read it.
            name: the key of the list in the JSON.
            label: what messages call the repository.
        """
        self._queryset = queryset
        self._ordered = ordered
        self._reader = reader
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
        return cast("Hashable", self._model._meta.pk.get_prep_value(value))

    async def row(self, pk: Any, unique: Mapping[str, Any]) -> Any:
        """The row with this key, or this value of a unique field, as the reader reads rows.

        Raises:
            KeyError: there is none.
            NotUnique: the field is not unique.
        """
        found = await self._find(*self._asked(pk, unique))
        if found.row is None:
            assert self._reader.codec is not None, "rows without objects come with a codec"
            return self._reader.codec.decode(found.json)
        return copied(found.row) if self._reader.copied else found.row

    async def row_json(self, pk: Any) -> bytes:
        """The JSON of the row with this key.

        Raises:
            KeyError: there is none.
        """
        return (await self._find("pk", self.key(pk))).json

    async def window(self, offset: int, limit: int | None) -> bytes:
        """The bytes of ``{"name": [rows]}`` for some of the rows."""
        window = (offset, limit)
        if (alone := self._alone()) is not None:
            return (await alone.run(self._read_windows, [window]))[window]
        if self._windows is None:
            self._windows = Batcher(self._read_windows, self._executor)
        return await self._windows.get(window)

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

    @property
    def _executor(self) -> DatabaseExecutor:
        return cast("DatabaseExecutor", running.find(self._label).executor)

    def _alone(self) -> DatabaseExecutor | None:
        """Who runs a read that must not be in a batch: in a transaction, or on another event loop."""
        waited_for = getattr(AsyncToSync.executors, "current", None) is not None
        return self._executor if waited_for or asking_block() is not None else None

    async def _find(self, name: str, value: Hashable) -> NewRow:
        alone = self._alone()
        batcher = self._rows.get(name)
        if batcher is None and alone is None:
            batcher = self._rows[name] = Batcher(partial(self.read_rows, name), self._executor)
        if alone is not None or batcher is None or batcher.loop is not asyncio.get_running_loop():
            found = await (alone or self._executor).run(self.read_rows, name, [value])
            outcome = found[value]
            if isinstance(outcome, Exception):
                raise outcome
            return outcome
        return await batcher.get(value)

    # On a database thread

    def read_rows(self, name: str, values: Sequence[Hashable]) -> dict[Hashable, NewRow | Exception]:
        """For each of these values of a unique field the row that has it, or why it cannot be read.

        Raises:
            DatabaseError: none of them can.
        """
        with table_explained(self._model, self._queryset().db):
            if len(values) == 1:
                return dict(self._read_one(name, values[0]))
            try:
                return dict(self._read_together(name, values))
            except OF_ONE_KEY:
                return {value: found for one in values for value, found in self._outcome(name, one)}

    def _outcome(self, name: str, value: Hashable) -> list[tuple[Hashable, NewRow | Exception]]:
        try:
            return [*self._read_one(name, value)]
        except OF_ONE_KEY as error:
            return [(value, error)]

    def _read_one(self, name: str, value: Hashable) -> list[tuple[Hashable, NewRow]]:
        return [(value, row) for row in self._read(self._queryset().filter(**{name: value}))[:1]]

    def _read_together(self, name: str, values: Sequence[Hashable]) -> dict[Hashable, NewRow]:
        rows = self._read(self._queryset().filter(**{f"{name}__in": values}))
        found = dict(zip(self._values(name, rows), rows, strict=True))
        missing = [value for value in values if value not in found]
        if missing and len(found) > len(values) - len(missing):
            # The database holds more for equal than Python does: a collation, a number given as text.
            found |= {value: row for one in missing for value, row in self._read_one(name, one)}
        return found

    def _values(self, name: str, rows: Sequence[NewRow]) -> list[Hashable]:
        if name == "pk":
            return [row.key for row in rows]
        if name in self._reader.names:
            return [value_of(self._decoded(row), name) for row in rows]
        pairs = self._queryset().filter(pk__in=[row.key for row in rows]).values_list("pk", name)
        by_key = dict(pairs)
        return [by_key.get(row.key) for row in rows]

    def _decoded(self, row: NewRow) -> Any:
        return (
            row.row
            if row.row is not None or self._reader.codec is None
            else self._reader.codec.decode(row.json)
        )

    def _read(self, queryset: AnyQuerySet) -> list[NewRow]:
        return [
            NewRow(*row)
            for chunk in self._chunks(queryset.order_by())
            for row in zip(chunk.keys, chunk.json, chunk.objects, strict=True)
        ]

    def _chunks(self, queryset: AnyQuerySet) -> list[Chunk]:
        try:
            return list(self._reader.read(queryset))
        except NotExpressible:
            return list(self._reader.read(queryset, in_python=True))

    def _read_windows(self, windows: Sequence[Window]) -> dict[Window, bytes]:
        return {window: self._read_window(*window) for window in windows}

    def _read_window(self, offset: int, limit: int | None) -> bytes:
        queryset = self._ordered()[offset : None if limit is None else offset + limit]
        with table_explained(self._model, queryset.db):
            chunks = self._chunks(queryset)
        json = b",".join(row for chunk in chunks for row in chunk.json)
        return opening(self._name) + json + CLOSING
