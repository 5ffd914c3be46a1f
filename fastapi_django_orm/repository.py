"""``CachedRepository``: what a handler holds.

A repository is declared as a class and named by a model's label, so that declaring one imports nothing of
Django's. The plugin makes its instance at startup.
"""

import re
import sys
from collections.abc import Hashable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, ClassVar, Generic, Self

from django.db.models import Model, QuerySet
from pydantic import BaseModel
from starlette.responses import Response

from . import declaration, loading, running
from .database.reachable import table_explained
from .errors import NotFound, NotIndexed, NotLoaded, NotStarted, UnknownField, nearest
from .refresh import Refresher
from .snapshot import RowT, Snapshot, value_of

# By where the class is written: a module that is imported twice (as __main__ and by its name, when a script
# starts its own server) declares the same repository again, and the later one is meant.
_declared: dict[tuple[str, str], "type[CachedRepository[Any]]"] = {}


def declared() -> "list[type[CachedRepository[Any]]]":
    """Every repository class that names a model, in the order of declaration."""
    return list(_declared.values())


def _written_at(cls: type[Any]) -> tuple[str, str]:
    module = sys.modules.get(cls.__module__)
    return getattr(module, "__file__", None) or cls.__module__, cls.__qualname__


class CachedRepository(Generic[RowT]):
    """The rows of a model in memory, loaded at startup and read without waiting.

    Subclass it and name a model::

        class Topics(CachedRepository):
            model = "bbs.Topic"
            ordering = ("-pk",)

        TopicRepo = Annotated[Topics, Depends(Topics.current)]

    With a pydantic model for rows, ``class Topics(CachedRepository[TopicOut])`` tells a type checker too.

    Attributes:
        model: a label such as ``"bbs.Topic"``, or the model class.
        name: the key in responses, logs and reports; by default the class's name in snake case.
        fields: which columns and annotations the rows have, relations' (``"author__name"``) included; by
            default all columns and annotations.
        ordering: as in ``order_by()``; by default the query's own, then the primary key.
        schema: a pydantic model, or a DRF serializer class; rows are its instances (its dicts) then.
        max_age: data older than this is loaded again in the background, and served until that is done.
        indexes: fields that ``find()`` looks up by.
    """

    model: ClassVar[str | type[Model]]
    name: ClassVar[str]
    fields: ClassVar[Sequence[str] | None] = None
    ordering: ClassVar[Sequence[str]] = ()
    schema: ClassVar[type[Any] | None] = None
    max_age: ClassVar[timedelta | None] = None
    indexes: ClassVar[Sequence[str]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in cls.__dict__:
            cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", cls.__name__).lower()
        if getattr(cls, "model", None) is not None:
            _declared[_written_at(cls)] = cls

    def __init__(self) -> None:
        self._refresher: Refresher[RowT] | None = None
        self._names: Sequence[str] = ()

    # How it comes to be

    def prepare(self) -> Refresher[RowT]:
        """Check the declaration and get ready to load. The plugin calls it, on a database thread.

        Raises:
            InvalidRepository: the declaration does not fit the models.
        """
        declaration.check_shape(self)
        declaration.check_ordering(self)
        reader = declaration.choose_reader(self, self.queryset())

        def load(version: int) -> Snapshot[RowT]:
            queryset = declaration.ordered(self.queryset(), self.ordering)
            with table_explained(queryset.model, queryset.db):
                return loading.load(queryset, reader, name=self.name, version=version, indexes=self.indexes)

        self._names = reader.names
        self._refresher = Refresher(self.name, load, self.max_age)
        return self._refresher

    @classmethod
    async def current(cls) -> Self:
        """The repository of the application that this code runs under: the dependency to inject.

        A coroutine, since FastAPI would spend a thread on each call of anything else.

        Raises:
            NotStarted: no lifespan of ``DjangoORM`` runs, or the class was declared after it began.
        """
        repository = running.find(cls.__qualname__).repositories.get(cls)
        if repository is None:
            raise NotStarted(
                f"{cls.__qualname__} was declared when the application had already started. Import "
                f"the module {cls.__module__} where the application is made."
            )
        return repository  # type: ignore[no-any-return]

    @property
    def label(self) -> str:
        """What messages call this repository."""
        return type(self).__qualname__

    @property
    def model_class(self) -> type[Model]:
        """The model; Django must be set up."""
        return declaration.resolve_model(self.label, self.model)

    def queryset(self) -> "QuerySet[Any, Any]":
        """What to load. Override it to filter, annotate or follow relations, on ``super().queryset()``."""
        return self.model_class._default_manager.all()

    # Reading: from any thread or task, without I/O and without waiting

    @property
    def snapshot(self) -> Snapshot[RowT]:
        """What was loaded last, whole.

        Raises:
            NotLoaded: nothing was loaded yet.
            NotStarted: no lifespan of ``DjangoORM`` has made this instance.
        """
        if self._refresher is None:
            raise NotStarted(f"{self.label} holds no data. {running.HOW_TO_START}")
        if self._refresher.snapshot is None:
            raise NotLoaded(f"{self.name} has not been loaded yet.")
        return self._refresher.snapshot

    def all(self) -> tuple[RowT, ...]:
        """All rows, in order."""
        return tuple(self.snapshot.rows)

    def get(self, pk: Hashable) -> RowT:
        """The row with this primary key.

        Raises:
            NotFound: there is none. In a handler: 404.
        """
        by_key = self.snapshot.by_key
        if by_key is None:
            raise NotIndexed(f"{self.label}.get(): its queryset().values() leaves the primary key out.")
        try:
            return by_key[pk]
        except (KeyError, TypeError):  # TypeError: unhashable, which no key is
            raise NotFound(f"{self.name} has no row with the key {pk!r}.") from None

    def find(self, **values: Any) -> tuple[RowT, ...]:
        """The rows with these values, in order. At least one field must be in ``indexes``.

        Raises:
            NotIndexed: none of the fields is.
            UnknownField: the rows do not have one of the fields.
        """
        snapshot = self.snapshot
        field = next((name for name in values if name in snapshot.indexes), None)
        if field is None:
            asked = ", ".join(map(repr, values))
            raise NotIndexed(f"{self.label}.find(): add one of {asked or 'the fields'} to `indexes`.")
        if unknown := [name for name in values if name not in self._names]:
            raise UnknownField(
                f"{self.label}.find(): its rows have no field {unknown[0]!r}. "
                + nearest(unknown[0], self._names)
            )
        rest = {name: value for name, value in values.items() if name != field}
        try:
            found = snapshot.indexes[field].get(values[field], ())
        except TypeError:  # unhashable, which no indexed value is
            return ()
        return tuple(row for row in found if all(value_of(row, name) == rest[name] for name in rest))

    def __len__(self) -> int:
        return len(self.snapshot.rows)

    def __bool__(self) -> bool:
        return True  # a repository without rows still is one: `repo or default` must not drop it

    def __iter__(self) -> Iterator[RowT]:
        return iter(self.all())

    def __contains__(self, item: object) -> bool:
        """Whether there is a row with this primary key, or this row."""
        snapshot = self.snapshot
        if isinstance(item, Mapping | BaseModel):
            return item in snapshot.rows
        try:
            return snapshot.by_key is not None and item in snapshot.by_key
        except TypeError:  # unhashable, which no key is
            return False

    def response(self) -> Response:
        """All rows as ``{"name": […]}``, from bytes that were made when they were loaded."""
        snapshot = self.snapshot
        return Response(snapshot.json, media_type="application/json", headers={"ETag": snapshot.etag})

    # Loading

    async def refresh(self) -> Snapshot[RowT]:
        """Load again and serve that; returns what was read after this call.

        Calls that wait at the same moment share a load. Cancelling one does not cancel it for the others.

        Raises:
            RefreshFailed: the load failed; what was loaded before is served on.
        """
        if self._refresher is None:
            raise NotStarted(f"{self.label} cannot refresh. {running.HOW_TO_START}")
        return (await self._refresher.refresh("call")).snapshot
