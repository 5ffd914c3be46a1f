"""What a live read asks the database, on a database thread, and which row answers which question."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from contextvars import Context, copy_context
from typing import Any, TypeVar

from django.core.exceptions import FieldDoesNotExist
from django.db import Error
from django.db.models import Field, Model, QuerySet

from ..database.carrying import take_over
from ..database.reachable import table_explained
from ..errors import DjangoORMError, InvalidRepository, InvalidRow, NotUnique, nearest
from ..rows.encoding import CLOSING, opening
from ..snapshots.changing import NewRow, new_rows
from ..snapshots.pages import Chunk
from .batching import Outcomes
from .equality import is_loose, storable
from .key_columns import AnyQuerySet
from .own_ways import TOGETHER, not_djangos, not_djangos_lookups, note, pinned
from .pacing import switching_sooner
from .past_caches import past_caches
from .readers import OF_ONE_KEY, Reader, depends_on_others, is_final
from .sql_json import NotExpressible
from .windows import IsWanted, Listed, Window

T = TypeVar("T")

_MOST_ROWS = 2**63 - 1


class ReadAlone(Exception):
    """What one asks for cannot be read together with what others ask for."""


class Asked:
    """What somebody asks for, and the context of the one who asks: the language, the tenant."""

    __slots__ = ("_context", "_items", "value")

    def __init__(self, value: Hashable) -> None:
        """Ask for this, in a copy of the running code's context."""
        self.value = value
        self._context = copy_context()
        self._items: Sequence[Any] = ()

    def surroundings(self) -> Hashable:
        """What is in the context: whoever has the very same objects there asks the same."""
        self._items = tuple(self._context.items())  # kept, so that no other object gets their numbers
        return frozenset((id(variable), id(value)) for variable, value in self._items)

    def run(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function in that context, on any thread."""
        return run_in(self._context, function, *args)


def run_in(context: Context, function: Callable[..., T], *args: Any) -> T:
    """Call a function in a context that another thread has made.

    Args:
        context: the context, which nobody else may be running in.
        function: what to call.
        *args: its arguments.
    """

    def call() -> T:
        take_over()
        return function(*args)

    return context.run(call)


class LiveQueries:
    """Asks for some of one repository's rows.

    Attributes:
        model: the repository's.
        alone: why what several ask for is not read in one query, as far as that is known; None if it is.
    """

    def __init__(
        self,
        queryset: Callable[[], AnyQuerySet],
        ordered: Callable[[], AnyQuerySet],
        reader: Reader,
        *,
        name: str,
        label: str,
    ) -> None:
        """Ask for nothing yet.

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
        self.model: type[Model] = queryset().model
        self.alone = reader.own_code
        note(reader.reasons, TOGETHER, self.alone)

    def unique_field(self, name: str) -> "Field[Any, Any]":
        """The field of this name, by which rows are asked for; "pk" is the primary key.

        Raises:
            NotUnique: the model has no such field, or several rows may have one value of it.
        """
        meta = self.model._meta
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

    def read_rows(
        self, name: str, values: Sequence[Hashable], *, alias: str | None = None
    ) -> Outcomes[Hashable, NewRow]:
        """For each of these values of a unique field the row that has it, or why it cannot be read.

        The query is made once, by code that may look at the context that this runs in.

        Args:
            name: the field.
            values: what is asked for.
            alias: the database, if it was chosen already.

        Raises:
            DatabaseError: none of them can be read.
        """
        queryset = self._queryset()
        queryset = pinned(queryset) if alias is None else queryset.using(alias)
        return self._read_rows(queryset, name, values)

    def read_asked(self, name: str, asked: Sequence[Asked]) -> Outcomes[Asked, NewRow]:
        """The same for several who ask, each in its own context.

        Whose query for the list is the same, in its SQL, its parameters and its database, shares one.
        """
        if len(asked) == 1:
            return {one: row for one in asked for row in one.run(self.read_rows, name, [one.value]).values()}
        groups: dict[Hashable, tuple[Asked, AnyQuerySet, dict[Hashable, list[Asked]]]] = {}
        made: dict[Hashable, tuple[AnyQuerySet, Hashable] | Exception] = {}  # by what is in the context
        found: dict[Asked, NewRow | Exception] = {}
        for one in asked:
            surroundings = one.surroundings()
            if surroundings not in made:
                made[surroundings] = _tried(one.run, self._compiled, name)
            compiled = made[surroundings]
            if isinstance(compiled, Exception):
                found[one] = compiled
                continue
            _, _, of_query = groups.setdefault(compiled[1], (one, compiled[0], {}))
            of_query.setdefault(one.value, []).append(one)
        for first, queryset, wanted in groups.values():
            outcomes = _tried(first.run, self._read_rows, queryset, name, list(wanted))
            if isinstance(outcomes, Exception):
                outcomes = dict.fromkeys(wanted, outcomes)
            found |= {one: outcomes[value] for value in outcomes for one in wanted[value]}
        return found

    def _compiled(self, name: str) -> tuple[AnyQuerySet, Hashable]:
        """The query of the running code's context, and what it is for the database.

        Raises:
            ReadAlone: that does not say all of what rows it gives.
        """
        queryset = pinned(self._queryset())
        if self._why_alone(queryset, name) is not None:
            raise ReadAlone
        try:
            sql, params = queryset.query.get_compiler(using=queryset.db).as_sql()
            query = queryset.db, sql, tuple((type(each), each) for each in params)
            hash(query)
        except Exception:  # no rows, a value that cannot be compared; what cannot be SQL will say so alone
            raise ReadAlone from None
        return queryset, query

    def _why_alone(self, queryset: AnyQuerySet, name: str) -> str | None:
        """Why what the running code's caller asks for is not read together with what others ask for."""
        self.alone = self._reader.own_code or self._why_one_by_one(queryset, name)
        note(self._reader.reasons, TOGETHER, self.alone)
        return self.alone

    def _why_one_by_one(self, queryset: AnyQuerySet, name: str) -> str | None:
        """Why one key may be answered otherwise than several: a row that was deleted softly, for one."""
        return not_djangos(queryset) or not_djangos_lookups(self.unique_field(name))

    def _read_rows(
        self, queryset: AnyQuerySet, name: str, values: Sequence[Hashable]
    ) -> dict[Hashable, NewRow | Exception]:
        values = storable(values, queryset.db)
        self._why_alone(queryset, name)
        with table_explained(self.model, queryset.db), past_caches(queryset.db):
            if self._why_one_by_one(queryset, name) is None:
                return self._outcomes(queryset, name, values)
            each = (self._outcomes(queryset, name, [value]) for value in values)
            return {value: row for outcomes in each for value, row in outcomes.items()}

    def _outcomes(
        self, queryset: AnyQuerySet, name: str, values: Sequence[Hashable]
    ) -> dict[Hashable, NewRow | Exception]:
        try:
            if len(values) < 2:
                return dict(outcome for value in values for outcome in self._read_one(queryset, name, value))
            return self._read_together(queryset, name, values)
        except Exception as error:
            if not _is_of_one_key(error):
                raise
            if len(values) < 2:
                return dict.fromkeys(values, error)
        middle = len(values) // 2
        return self._outcomes(queryset, name, values[:middle]) | self._outcomes(
            queryset, name, values[middle:]
        )

    def _read_one(self, queryset: AnyQuerySet, name: str, value: Hashable) -> list[tuple[Hashable, NewRow]]:
        try:
            return [(value, row) for row in self._read(queryset, name, {name: value})[:1]]
        except OF_ONE_KEY:
            if self._is_refused(name, value, queryset.db):
                return []
            raise

    def _is_refused(self, name: str, value: Hashable, alias: str) -> bool:
        """Whether the database refuses this very value, which no row can have then, and not the query.

        What a column takes is known to its database and driver alone: PostgreSQL has no NUL in a text, and no
        text but an address where addresses are, SQLite no number beyond 64 bits.
        """
        rows: AnyQuerySet = QuerySet(self.model, using=alias)
        try:
            rows.exists()
        except Error:  # the table is missing; the transaction ended with the first error
            return False
        try:
            rows.filter(**{name: value}).exists()
        except OF_ONE_KEY:
            return True
        return False

    def _read_together(
        self, queryset: AnyQuerySet, name: str, values: Sequence[Hashable]
    ) -> dict[Hashable, NewRow | Exception]:
        rows = self._read(queryset, name, {f"{name}__in": values})
        found = self.by_value(name, values, rows)
        missing = [value for value in values if value not in found]
        # A row that nobody has asked for is one whose value the database holds for equal to one of these, or
        # whose value the query leaves out.
        may_be_there = len(found) < len(rows) or is_loose(self.unique_field(name), queryset.db)
        if rows and missing and may_be_there and self._read(queryset, name, {f"{name}__in": missing}):
            # Only the database can tell which of these values it holds for equal to a row's.
            found |= {value: row for one in missing for value, row in self._read_one(queryset, name, one)}
        return found

    def by_value(
        self, name: str, values: Sequence[Hashable], rows: Sequence[NewRow]
    ) -> dict[Hashable, NewRow | Exception]:
        """For each of these values the row that has it, if one of these has."""
        prepare = self.unique_field(name).get_prep_value
        by_value = {prepare(row.key): row for row in rows}
        return {value: by_value[value] for value in values if value in by_value}

    def _read(self, queryset: AnyQuerySet, name: str, wanted: Mapping[str, Any]) -> list[NewRow]:
        if is_final(queryset) or depends_on_others(queryset):
            raise InvalidRepository(
                f"{self._label}.fetch(): its queryset() {_kind(queryset)}, so Django cannot look for a row "
                "in it. Declare a repository for fetch() whose queryset() has filters alone, or read rows of "
                "a CachedRepository with get()."
            )
        found = queryset.filter(**wanted)
        chunks = self._chunks(found.order_by() if not_djangos(found) is None else found, name)
        return [row for chunk in chunks for row in new_rows(chunk)]

    def _chunks(self, queryset: AnyQuerySet, key: str = "pk") -> list[Chunk]:
        with self._named():
            try:
                return list(self._reader.read(queryset, key=key))
            except NotExpressible:
                return list(self._reader.read(queryset, key=key, in_python=True))

    def read_window(self, window: Window, is_wanted: IsWanted = lambda: True) -> Listed:
        """A part of the list.

        Args:
            window: which.
            is_wanted: whether anybody still waits for it; asked between two chunks of rows.

        Raises:
            DatabaseError: as Django raises it.
        """
        offset, limit = window
        # No table has more rows than a database can count.
        end = None if limit is None or offset + limit > _MOST_ROWS else offset + limit
        if offset > _MOST_ROWS:
            return self.listed([])
        queryset = pinned(self._ordered()[offset:end])
        # Whoever computes holds the interpreter, and the loop answers others meanwhile.
        with table_explained(self.model, queryset.db), past_caches(queryset.db), switching_sooner():
            try:
                return self.listed(self._joined(queryset, is_wanted, in_python=False))
            except NotExpressible:
                return self.listed(self._joined(queryset, is_wanted, in_python=True))

    def _joined(self, queryset: AnyQuerySet, is_wanted: IsWanted, *, in_python: bool) -> Iterator[bytes]:
        """The rows' JSON, chunk by chunk; it ends early if nobody waits for it."""
        chunks: Any = self._reader.read(queryset, in_python=in_python)
        with closing(chunks), self._named():
            for chunk in chunks:
                if not is_wanted():
                    return
                yield b",".join(chunk.json)

    def listed(self, rows: Iterable[bytes]) -> Listed:
        """The bytes of ``{"name": [rows]}``, of parts with commas between their rows."""
        return Listed(opening(self._name) + b",".join(rows) + CLOSING)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Have the error of a row that cannot be served say whose it was."""
        try:
            yield
        except InvalidRow as error:
            error.repository = self._name
            raise


def _tried(function: Callable[..., T], *args: Any) -> T | Exception:
    """What a function gives or raises; the traceback ends here, so no frame holds what holds the error."""
    try:
        return function(*args)
    except Exception as error:
        return error


def _kind(queryset: AnyQuerySet) -> str:
    query = queryset.query
    if query.is_sliced:
        return "is sliced"
    if query.combinator:
        return f"is a {query.combinator}()"
    return "has distinct() on fields" if query.distinct_fields else "has window functions"


def _is_of_one_key(error: Exception) -> bool:
    """Whether others that were asked for in the same query may be readable."""
    return isinstance(error, OF_ONE_KEY) or not isinstance(error, Error | DjangoORMError | OSError)
