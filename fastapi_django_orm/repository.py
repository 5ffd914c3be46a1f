"""``Repository``: what a handler holds to read a model's rows.

A repository is declared as a class and named by a model's label, so that declaring one imports nothing of
Django's. The plugin makes its instance at startup.
"""

import re
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Self

from django.db.models import Model, QuerySet

from . import application
from .application import Application
from .errors import InvalidKey, InvalidRepository, NotFound, NotStarted
from .memory.snapshot import RowT
from .queries.filter import Filter, check_filter
from .queries.pages import Pages
from .queries.selecting import Selecting
from .reading import naming, reader_factory, validation
from .reading.batching import Absent
from .reading.codec import EncodedRow
from .reading.live import LiveReads
from .reading.live_queries import LiveQueries
from .reading.on_loop import LoopReads, why_not_constant
from .reading.readers import Reader
from .reading.resolve import resolve_model
from .reading.validation import check_spelling, no_model
from .reading.windows import Windows
from .responses.response import RepositoryResponse
from .responses.selected import SelectedResponse
from .writing.writer import Change, Writer
from .writing.writes import Writes

# By where the class is written: a module that is imported twice (as __main__ and by its name, when a script
# starts its own server) declares the same repository again, and the later one is meant.
_declared: dict[tuple[str, str], "type[Repository[Any]]"] = {}


def declared() -> "list[type[Repository[Any]]]":
    """Every repository class that names a model, in the order of declaration."""
    return list(_declared.values())


def check_models(dependencies: Iterable[Callable[..., Any]]) -> None:
    """Refuse a repository that is a dependency and names no model: the first request would fail.

    Raises:
        InvalidRepository: there is such a class.
    """
    for function in dependencies:
        cls: type[Repository[Any]] | None = getattr(function, "repository", None)
        if cls is not None and _names_no_model(cls):
            raise no_model(cls)


def _names_no_model(cls: "type[Repository[Any]]") -> bool:
    return getattr(cls, "model", None) is None


@contextmanager
def naming_errors(repository: "Repository[Any]") -> Iterator[None]:
    """Add the repository's name to an error that the project's own managers and queries raise."""
    try:
        yield
    except InvalidRepository:  # which has it
        raise
    except Exception as error:
        name = repository.name
        error.add_note(f"Raised while the repository {repository.label} ({name!r}) was being prepared.")
        raise


def _written_at(cls: type[Any]) -> tuple[str, str]:
    module = sys.modules.get(cls.__module__)
    return getattr(module, "__file__", None) or cls.__module__, cls.__qualname__


class Repository(Writes[RowT]):
    """The rows of a model, read from the database when they are asked for.

    Subclass it and name a model::

        class Topics(Repository):
            model = "bbs.Topic"

        TopicRepo = Annotated[Topics, Depends(Topics.current)]

    Reads that wait at the same moment, in whatever requests, become one query. With a pydantic model for
    rows, ``class Topics(Repository[TopicOut])`` tells a type checker too.

    Attributes:
        model: a label such as ``"bbs.Topic"``, or the model class.
        name: the key in responses, logs and reports; by default the class's name in snake case.
        fields: which columns and annotations the rows have, relations' (``"author__name"``) included; by
            default all columns and annotations, unless there is a secret among them.
        ordering: as in ``order_by()``; by default the query's own, then the primary key.
        schema: a pydantic model, or a DRF serializer class; rows are then its instances, or its dicts.
        publish: a path such as ``"/topics/"`` at which everybody may read the list, and each row under its
            key, without a handler. It is public: no dependency of yours guards it, and so it wants ``fields``
            or a ``schema``.
        max_limit: how many rows of a published list a request gets at most, and without ``?limit``; None for
            no limit. A larger ``?limit`` is refused.
        max_offset: how many rows of it a request may leave out, which costs the database as much as to give
            them; None for no limit.
        filter: a ``Filter``, whose query parameters the published list takes.
        cache_control: the ``Cache-Control`` header of responses; by default clients revalidate each time.
    """

    model: ClassVar[str | type[Model]]
    name: ClassVar[str]
    fields: ClassVar[Sequence[str] | None] = None
    ordering: ClassVar[Sequence[str]] = ()
    schema: ClassVar[type[Any] | None] = None
    publish: ClassVar[str | None] = None
    filter: ClassVar[type[Filter]]  # without a value, so that `topics.filter(…)` says what to write
    max_limit: ClassVar[int | None] = 1000
    max_offset: ClassVar[int | None] = 100_000
    cache_control: ClassVar[str] = "no-cache"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in cls.__dict__:
            cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", cls.__name__).lower()
        if not _names_no_model(cls):
            _declared[_written_at(cls)] = cls

    _reader: Reader  # from prepare() on
    _on_loop: LoopReads

    def __init__(self) -> None:
        self._live: LiveReads | None = None
        self._pages: Pages | None = None

    # Before it can be read

    def prepare(self, here: Application) -> None:
        """Check the declaration and get ready to read. The plugin calls it, on a database thread.

        Args:
            here: the application whose instance this is.

        Raises:
            InvalidRepository: the declaration does not fit the models.
        """
        check_spelling(type(self))
        validation.check_shape(self)
        validation.check_ordering(self)
        queryset = self.queryset()
        naming.check_named(self, queryset)
        self._reader = reader_factory.choose_reader(self, queryset)
        self._on_loop = LoopReads(
            lambda: here.executor.on_loop,
            self.model_class._default_manager,
            self.ordered_queryset,
            self._reader,
            why_not=self._why_not_constant(),
        )
        queries = LiveQueries(
            self.queryset, self.ordered_queryset, self._reader, name=self.name, label=self.label
        )
        self._live = LiveReads(
            queries,
            self._reader,
            self._on_loop,
            here[Windows],
            here.executor,
            name=self.name,
            label=self.label,
        )
        if (where := getattr(self, "filter", None)) is not None:
            check_filter(where, self.model_class, self.label)
        selecting = Selecting(self.ordered_queryset, queries, self._reader, name=self.name, label=self.label)
        self._pages = Pages(
            selecting, self._live, self._on_loop, here, name=self.name, snapshot=self._get_snapshot
        )

    # Returns the rows in memory, in a repository that has them.
    _get_snapshot: Callable[[], Any] | None = None

    def _why_not_constant(self) -> str | None:
        """Why a subclass or a manager may make something else of the query, now or later."""
        kind = type(self)
        for name in ("queryset", "ordered_queryset", "model_class"):
            if getattr(kind, name) is not getattr(Repository, name):
                return f"{self.label} has its own {name}()"
        if not isinstance(kind.ordering, list | tuple):  # but a property
            return f"{self.label}.ordering may change"
        return why_not_constant(self.model_class._default_manager)

    @property
    def reasons(self) -> dict[str, str]:
        """Ways of reading that were not taken, and why, for the health report."""
        return {} if self._live is None else dict(self._reader.reasons)

    # A coroutine, since FastAPI would spend a thread on each call of anything else.
    @classmethod
    async def current(cls) -> Self:
        """The repository of the application that this code runs under: the dependency to inject.

        Raises:
            NotStarted: no lifespan of ``DjangoORM`` runs, or the class was declared after it began.
            InvalidRepository: the class names no model.
        """
        repository = application.find(cls.__qualname__).get(cls)
        if repository is None:
            if _names_no_model(cls):
                raise no_model(cls)
            raise NotStarted(
                f"{cls.__qualname__} was declared when the application had already started, or is not "
                f"among its `repositories`. Import the module {cls.__module__} where the application is made."
            )
        return repository

    if not TYPE_CHECKING:  # which knows by itself what there is

        def __getattr__(self, name: str) -> Any:
            message = f"{type(self).__name__!r} object has no attribute {name!r}"
            if name == "objects" or (not name.startswith("_") and hasattr(QuerySet, name)):
                message += f". A repository is neither a manager nor a query. {self._how_to_read}"
            raise AttributeError(message, name=name, obj=self)

    _how_to_read: ClassVar[str] = (
        "Write `await topics.fetch(pk)` for one row, query the model itself for others, or extend "
        "CachedRepository to have the rows in memory."
    )

    def __repr__(self) -> str:
        return f"<{self.label} {self.name!r}: {self._state}>"

    @property
    def _state(self) -> str:
        return "not started" if self._live is None else "read from the database"

    @property
    def label(self) -> str:
        """What messages call this repository."""
        return type(self).__qualname__

    @property
    def model_class(self) -> type[Model]:
        """The model; Django must be set up."""
        if _names_no_model(type(self)):
            raise no_model(type(self))
        return resolve_model(f"{self.label}.model", self.model)

    def queryset(self) -> "QuerySet[Any, Any]":
        """What to read. Override it to filter, annotate or follow relations, on ``super().queryset()``."""
        return self.model_class._default_manager.all()

    def ordered_queryset(self) -> "QuerySet[Any, Any]":
        """What to read, in the order of the list."""
        return validation.ordered(self.queryset(), self.ordering)

    # Reading from the database

    @property
    def live(self) -> LiveReads:
        """Reads of the database, now.

        Raises:
            NotStarted: no lifespan of ``DjangoORM`` has made this instance.
        """
        if self._live is None:
            raise NotStarted(f"{self.label} cannot read. {application.how_to_get(self.label)}")
        return self._live

    async def fetch(self, *pk: Hashable, **unique: Any) -> RowT:
        """The row with this primary key, or with this value of a unique field, as the database has it now.

        ``await topics.fetch(5)``, ``await topics.fetch(slug="news")``. Calls that wait at the same moment
        share a query; inside ``atomic()`` each has its own, in the transaction.

        Args:
            *pk: the key, if no unique field is named. None is the key of no row.
            **unique: one field of the model that is unique, and its value.

        Raises:
            NotFound: there is no such row in ``queryset()``, or can be none. In a handler: 404.
            NotUnique: the field is not unique.
            InvalidRepository: in ``queryset()`` a row depends on others: it is sliced, a union, or the like.
            DatabaseError: as Django raises it.
        """
        try:
            row: RowT = await self.live.row(pk, unique)
        except Absent:
            asked = f"the key {pk[0]!r}" if pk else " ".join(f"{k} {v!r}" for k, v in unique.items())
            raise NotFound(f"{self.name} has no row with {asked}.") from None
        return row

    @property
    def pages(self) -> Pages:
        """What finds the rows of a filter.

        Raises:
            NotStarted: no lifespan of ``DjangoORM`` has made this instance.
        """
        if self._pages is None:
            raise NotStarted(f"{self.label} cannot read. {application.how_to_get(self.label)}")
        return self._pages

    async def select(self, where: Filter) -> list[RowT]:
        """The rows of a page that a filter selects: ``await topics.select(TopicFilter(author=5))``.

        Args:
            where: which rows, in which order, and which part of them.

        Raises:
            InvalidFilter: it is a filter of another model.
            InvalidParameter: a value or the cursor cannot be used. In a handler: 422.
            DatabaseError: as Django raises it.
        """
        return await self.pages.rows(where)

    def response(self, where: Filter, /) -> RepositoryResponse:
        """A page of the rows that a filter selects: ``{"name": […], "total": n, "next": cursor or null}``.

        To be returned by a handler. The database is asked when the response is sent, in the context of this
        call. It answers conditional requests with 304, answers HEAD, and sends the content coding that the
        client prefers.

        Args:
            where: which rows, in which order, and which part of them.
        """
        page = self.pages.at_hand(where)
        if page is not None:
            return RepositoryResponse(page.representation, self.cache_control)
        return SelectedResponse(partial(self.pages.representation, where), self.cache_control)

    # Set by http.router, since a repository knows no FastAPI.
    router: ClassVar[Callable[..., Any]]

    # Writing: see Writes

    @property
    def _writer(self) -> Writer:
        return Writer(self.queryset, self.live, name=self.name, label=self.label)

    async def _row(self, change: Change, key: Any) -> RowT:
        if not change.is_read_elsewhere:
            with suppress(Absent, InvalidKey):
                row: RowT = await self.live.row((key,), {})
                return row
        return await self.live.run(self._written, change, key)

    def _written(self, change: Change, key: Any) -> RowT:
        found = self.live.read_here(key, change.alias) if change.is_read_elsewhere else None
        if found is None:
            found = self.live.read_unfiltered(key, change.alias)
        if isinstance(found, EncodedRow):
            row: RowT = self.live.given(found)
            return row
        raise NotFound(f"The row of {self.name} was written, and its queryset() leaves it out.") from found


class _FunctionOfClass:
    """A class method that is a plain function for each class.

    FastAPI asks about a dependency again and again in each request (is it a coroutine function, is it
    wrapped), and a method takes microseconds longer to answer.
    """

    def __init__(self, method: Any) -> None:
        self._method = method.__func__

    def __get__(self, instance: object, owner: type[Any]) -> Callable[[], Any]:
        function: Any = vars(owner).get("_current")  # its own, and not its base's
        if function is None:

            async def function() -> Any:
                return await self._method(owner)

            function.__doc__ = self._method.__doc__
            function.repository = owner
            owner._current = function
        return function  # type: ignore[no-any-return]


Repository.current = _FunctionOfClass(Repository.current)  # type: ignore[assignment,method-assign]
