"""``CachedRepository``: the rows of a model in memory."""

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from datetime import timedelta
from functools import partial
from typing import Any, ClassVar, TypeVar

from django.db import connections
from django.db.models import Model
from pydantic import BaseModel

from . import application
from .application import Application
from .coherence.service import coherence_of, seen
from .errors import (
    NotFound,
    NotIndexed,
    NotLoaded,
    NotStarted,
    RefreshFailed,
    UnknownField,
    nearest,
)
from .memory.loading import Loader, Observed
from .memory.refreshing import Refresher, RowLoader
from .memory.snapshot import RowT, Snapshot
from .queries.filter import Filter, joined_models
from .reading import validation
from .reading.codec import value_of
from .reading.own_ways import not_djangos
from .reading.pacing import Pace
from .repository import Repository, declared
from .responses.response import RepositoryResponse
from .writing.writer import Change

FoundT = TypeVar("FoundT")


# The default for a key. Not None: a handler that passes None by mistake must not send every row.
EVERY_ROW: Hashable = object()


def declared_cached() -> "list[type[CachedRepository[Any]]]":
    """Every repository class that keeps its rows, in the order of declaration."""
    return [cls for cls in declared() if issubclass(cls, CachedRepository)]


class CachedRepository(Repository[RowT]):
    """The rows of a model in memory, loaded at startup and read without waiting.

    Subclass it and name a model::

        class Topics(CachedRepository):
            model = "bbs.Topic"
            ordering = ("-pk",)

        TopicRepo = Annotated[Topics, Depends(Topics.current)]

    With a pydantic model for rows, ``class Topics(CachedRepository[TopicOut])`` tells a type checker too.

    Attributes:
        max_age: data older than this is loaded again in the background, and served until that is done.
        indexes: fields that ``find()`` looks up by.
        max_decoded_rows: how many rows are kept as Python objects. The others are kept as JSON alone, in a
            third of the memory, and become objects when they are read.
        depends_on: labels of further models whose rows these are made of. Models that the query's SQL, its
            prefetches or the schema name are found without it.
        max_limit, max_offset: None by default, since memory gives any part of the list.
    """

    max_limit: ClassVar[int | None] = None
    max_offset: ClassVar[int | None] = None
    max_age: ClassVar[timedelta | None] = None
    indexes: ClassVar[Sequence[str]] = ()
    max_decoded_rows: ClassVar[int] = 10_000
    depends_on: ClassVar[Sequence[str]] = ()

    _how_to_read = (
        "Write `topics.all()`, `topics.get(pk)`, `topics.find(field=value)` or `len(topics)` for the rows in "
        "memory, or query the model itself."
    )

    def __init__(self) -> None:
        super().__init__()
        self.observed = Observed()
        self.filtered_models: Collection[type[Model]] = ()
        self._refresher: Refresher[RowT] | None = None

    def _get_snapshot(self) -> Snapshot[RowT]:
        return self.snapshot

    def follow_filters(self, classes: Iterable[type[Any]]) -> None:
        """Have hints say when the rows change that a filter selects. The plugin calls it.

        Args:
            classes: those of the filters that the application's handlers take, among others.
        """
        own = [] if (published := getattr(self, "filter", None)) is None else [published]
        self.filtered_models = joined_models(self.model_class, [*classes, *own])

    def prepare(self, here: Application) -> None:
        """Check the declaration and get ready to load. The plugin calls it, on a database thread.

        Args:
            here: the application whose instance this is.

        Raises:
            InvalidRepository: the declaration does not fit the models.
        """
        super().prepare(here)
        validation.check_cached(self, self._reader)
        queryset = self.queryset()
        # Code that makes rows, or a query that is not Django's own, may query as it likes.
        is_watched = self._reader.own_code is not None or not_djangos(queryset) is not None
        alias = queryset.db
        own = Loader(
            self.ordered_queryset,
            self._reader,
            self._on_loop,
            name=self.name,
            indexes=self.indexes,
            max_decoded_rows=self.max_decoded_rows,
            pace=Pace(lambda: here.requests),
            watch=lambda: connections[alias].execute_wrapper(self.observed) if is_watched else nullcontext(),
        )
        loader: RowLoader[RowT] = own
        if here.shared is not None:
            loader = here.shared.loader(own, self.ordered_queryset, self._reader)
        self._refresher = Refresher(self.name, loader, self.max_age)

    @property
    def refresher(self) -> Refresher[RowT]:
        """What loads the rows.

        Raises:
            NotStarted: no lifespan of ``DjangoORM`` has made this instance.
        """
        if self._refresher is None:
            raise NotStarted(f"{self.label} holds no data. {application.how_to_get(self.label)}")
        return self._refresher

    @property
    def _state(self) -> str:
        if self._refresher is None:
            return "not started"
        snapshot, age = self._refresher.snapshot, self._refresher.age
        if snapshot is None or age is None:
            return "not loaded yet"
        stale = ", stale" if self._refresher.stale else ""
        return f"{len(snapshot)} rows, version {snapshot.version}, {age:.0f} s old{stale}"

    # Reading: from any thread or task, without I/O and without waiting

    @property
    def snapshot(self) -> Snapshot[RowT]:
        """What was loaded last, whole.

        Raises:
            NotLoaded: nothing was loaded yet.
            NotStarted: no lifespan of ``DjangoORM`` has made this instance.
        """
        snapshot = self.refresher.snapshot
        if snapshot is None:
            raise NotLoaded.of(self.name)
        return snapshot

    def all(self) -> tuple[RowT, ...]:
        """All rows, in order."""
        return self.snapshot.rows

    def get(self, pk: Hashable) -> RowT:
        """The row with this primary key, in any form that Django takes for it.

        Keys are compared exactly: ``"a"`` does not find ``"A"``, even where the database ignores case.

        Raises:
            NotFound: there is none. In a handler: 404.
            NotIndexed: the rows have no keys.
        """
        return self._found(pk, self._keyed("get").row)

    def find(self, **values: Any) -> tuple[RowT, ...]:
        """The rows with these values, in order. At least one field must be in ``indexes``.

        Raises:
            NotIndexed: none of the fields is in ``indexes``.
            UnknownField: the rows do not have one of the fields.
        """
        snapshot = self.snapshot
        indexes = snapshot.indexes
        names = self._reader.names
        if unknown := [name for name in values if name not in names]:
            raise UnknownField(
                f"{self.label}.find(): its rows have no field {unknown[0]!r}. " + nearest(unknown[0], names)
            )
        field = next((name for name in values if name in indexes), None)
        if field is None:
            asked = ", ".join(map(repr, values))
            raise NotIndexed(f"{self.label}.find(): add one of {asked or 'the fields'} to `indexes`.")
        rest = {name: value for name, value in values.items() if name != field}
        try:
            found = indexes[field].get(values[field], ())
        except TypeError:  # unhashable, which no indexed value is
            return ()
        return tuple(row for row in found if all(value_of(row, name) == rest[name] for name in rest))

    def __len__(self) -> int:
        return len(self.snapshot)

    def __bool__(self) -> bool:
        return True  # a repository without rows still is one: `repo or default` must not drop it

    def __iter__(self) -> Iterator[RowT]:
        return iter(self.snapshot)

    def __contains__(self, item: object) -> bool:
        """Whether there is a row with this primary key, or this row."""
        snapshot = self.snapshot
        if isinstance(item, Mapping | BaseModel):
            return any(row == item for row in snapshot)
        where = snapshot.table.where
        if where is None:
            return False
        with suppress(TypeError):  # unhashable, which no key is
            if item in where:
                return True
        with suppress(KeyError, TypeError):
            return self.live.row_key(item) in where
        return False

    def response(
        self, pk: Filter | Hashable = EVERY_ROW, *, offset: int = 0, limit: int | None = None
    ) -> RepositoryResponse:
        """The rows as ``{"name": […]}``, from bytes that were made when they were loaded.

        To be returned by a handler. It answers conditional requests with 304, answers HEAD, and sends the
        content coding that the client prefers; each coding is made once for the same rows.

        Args:
            pk: send the row with this key alone, and not in a list. None is the key of no row. A ``Filter``
                sends a page of the rows that it selects, as ``Repository.response()`` does.
            offset: how many rows to leave out.
            limit: how many rows to send at most; by default all.

        Raises:
            InvalidWindow: ``offset`` is negative, or ``limit`` below 1. In a handler: 422.
            NotFound: there is no row with this key. In a handler: 404.
            NotIndexed: the rows have no keys.
            NotLoaded: nothing was loaded yet.
        """
        if isinstance(pk, Filter):
            if offset or limit is not None:
                raise TypeError(f"{self.label}.response(): offset and limit are in the filter.")
            return super().response(pk)
        if pk is EVERY_ROW:
            return RepositoryResponse.of_list(
                self.snapshot, offset=offset, limit=limit, cache_control=self.cache_control
            )
        snapshot = self._keyed("response")
        answer = partial(RepositoryResponse.of_row, snapshot, cache_control=self.cache_control)
        return self._found(pk, answer)

    def _found(self, pk: Hashable, find: Callable[[Hashable], FoundT]) -> FoundT:
        """Find a row by its key, or by the form that Django gives it: by 5 for ``"5"``, as in ``fetch()``."""
        try:
            return find(pk)
        except (KeyError, TypeError):  # TypeError: unhashable, which no key is
            try:
                return find(self.live.row_key(pk))
            except (KeyError, TypeError):
                raise NotFound.of(self.name, pk) from None

    def _keyed(self, method: str) -> Snapshot[RowT]:
        snapshot = self.snapshot
        if snapshot.table.where is None:
            raise NotIndexed(f"{self.label}.{method}(): its queryset().values() leaves the primary key out.")
        return snapshot

    # Loading

    async def refresh(self, *keys: Hashable) -> Snapshot[RowT]:
        """Load again and serve that; returns what was read after this call.

        Calls that wait at the same moment share a load. Cancelling one does not cancel it for the others.

        Args:
            *keys: primary keys of rows that were written, inserted or deleted; without any, all rows are
                read. The cost is in proportion to the keys if Python can tell where the rows belong: with an
                ``ordering`` by numbers, dates and times among the fields.

        Raises:
            RefreshFailed: the load failed; what was loaded before is still served.
            NotStarted: no lifespan of ``DjangoORM`` has made this instance.
            InvalidKey: no row can have one of the keys. In a handler: 404.
        """
        if self._refresher is None:
            raise NotStarted(f"{self.label} cannot refresh. {application.how_to_get(self.label)}")
        wanted = [self.live.key(key) for key in keys] or None
        return (await self._refresher.refresh("call", wanted)).snapshot

    async def wait_until_current(self) -> Snapshot[RowT]:
        """Wait until this worker serves everything that was committed before this call, and return it.

        With a transport that brings hints in the order of commits (PostgreSQL, SQLite) it waits for those;
        otherwise it loads.

        Raises:
            RefreshFailed: the rows could not be read.
            NotStarted: no lifespan of ``DjangoORM`` runs.
        """
        await seen(self.name)
        return self.snapshot

    refreshed = wait_until_current  # its former name, which programs may still call

    # Writing: see Writes

    async def _serve(self, change: Change) -> None:
        # The write stands. A load that fails is logged and repeated by the refresher.
        with suppress(RefreshFailed):
            await coherence_of(self.name, self.label).refresh_after(self.name, change.hint)

    def _serve_soon(self, change: Change) -> Callable[[], None]:
        return partial(coherence_of(self.name, self.label).follow_soon, change.hint)

    async def _row(self, change: Change, key: Any) -> RowT:
        if not change.is_joined:
            with suppress(NotFound, NotIndexed, NotLoaded):
                return self.get(key)
        return await super()._row(change, key)
