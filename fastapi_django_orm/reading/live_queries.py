"""What a live read asks the database, on a database thread, and which row answers which question."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from contextvars import Context, copy_context
from typing import Any, TypeVar

from django.core.exceptions import FieldDoesNotExist
from django.db import Error
from django.db.models import Field, Model, QuerySet

from ..database.calls import take_over
from ..database.startup_checks import table_explained
from ..errors import DjangoORMError, InvalidRepository, InvalidRow, NotUnique, nearest
from .batching import Outcomes
from .codec import EncodedRow
from .encoding import CLOSING, opening
from .keys import OF_ONE_KEY, AnyQuerySet, is_loose, prepared, storable
from .own_ways import TOGETHER, not_djangos, not_djangos_lookups, note, pinned
from .pacing import switching_sooner
from .past_caches import past_caches
from .postgresql_json import NotExpressible
from .readers import Reader, depends_on_others, is_final
from .windows import IsWanted, Listed, Window

T = TypeVar("T")

_MOST_ROWS = 2**63 - 1

_Found = dict[Hashable, EncodedRow | Exception]


class ReadAlone(Exception):
    """What one caller asks for cannot be read together with what others ask for."""


class Asked:
    """A value that a caller asks for, with a copy of the caller's context: the language, the tenant."""

    __slots__ = ("context", "value")

    def __init__(self, value: Hashable) -> None:
        self.value = value
        self.context = copy_context()


def run_in(context: Context, function: Callable[..., T], *args: Any) -> T:
    """Call a function on this thread in a context that another thread has made, and that nothing runs in."""

    def call() -> T:
        take_over()
        return function(*args)

    return context.run(call)


class LiveQueries:
    """Asks for some of one repository's rows.

    Attributes:
        model: the repository's.
        alone: why what several callers ask for is not read in one query, as far as that is known; None if it
            is.
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
        """Read what ``queryset`` returns, and ``ordered`` in the order of the list."""
        self._queryset = queryset
        self._ordered = ordered
        self._reader = reader
        self._name = name
        self._label = label
        self.model: type[Model] = queryset().model
        self.alone = reader.own_code
        note(reader.reasons, TOGETHER, self.alone)

    def unique_field(self, name: str) -> "Field[Any, Any]":
        """Return the field of this name, by which rows are asked for; "pk" is the primary key.

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

    # Rows

    def read_rows(
        self, name: str, values: Sequence[Hashable], *, alias: str | None = None
    ) -> Outcomes[Hashable, EncodedRow]:
        """Return for each of these values of a unique field the row that has it, or why it cannot be read.

        The query is made once, by code that may look at the context that this runs in. The alias is given if
        the database was chosen already.

        Raises:
            DatabaseError: none of them can be read.
        """
        queryset = self._queryset()
        queryset = pinned(queryset) if alias is None else queryset.using(alias)
        return self._read_rows(queryset, name, values)

    def read_asked(self, name: str, asked: Sequence[Asked]) -> Outcomes[Asked, EncodedRow]:
        """Do the same for several callers, each in its own context.

        Those whose query for the list is the same, in its SQL, its parameters and its database, share one.
        """
        if len(asked) == 1:
            (one,) = asked
            rows = run_in(one.context, self.read_rows, name, [one.value])
            return dict.fromkeys(asked, row) if (row := rows.get(one.value)) is not None else {}
        groups: dict[Hashable, tuple[Asked, AnyQuerySet, dict[Hashable, list[Asked]]]] = {}
        found: dict[Asked, EncodedRow | Exception] = {}
        for one in asked:
            compiled = _tried(run_in, one.context, self._compiled, name)
            if isinstance(compiled, Exception):
                found[one] = compiled
                continue
            _, _, wanted = groups.setdefault(compiled[1], (one, compiled[0], {}))
            wanted.setdefault(one.value, []).append(one)
        for first, queryset, wanted in groups.values():
            outcomes = _tried(run_in, first.context, self._read_rows, queryset, name, list(wanted))
            if isinstance(outcomes, Exception):
                outcomes = dict.fromkeys(wanted, outcomes)
            found |= {one: outcomes[value] for value in outcomes for one in wanted[value]}
        return found

    def _compiled(self, name: str) -> tuple[AnyQuerySet, Hashable]:
        """Return the query of the running code's context, and what it is for the database.

        Raises:
            ReadAlone: that does not say which rows the query gives.
        """
        queryset = pinned(self._queryset())
        if self._why_one_by_one(queryset, name) or self._reader.own_code:
            raise ReadAlone
        try:
            sql, params = queryset.query.get_compiler(using=queryset.db).as_sql()
            query = queryset.db, sql, tuple((type(each), each) for each in params)
            hash(query)
        except Exception:  # no rows, a value that cannot be compared; what cannot be SQL will say so alone
            raise ReadAlone from None
        return queryset, query

    def _why_one_by_one(self, queryset: AnyQuerySet, name: str) -> str | None:
        """Return why one key may be answered otherwise than several: a soft deletion, for one."""
        reason = not_djangos(queryset) or not_djangos_lookups(self.unique_field(name))
        self.alone = self._reader.own_code or reason
        note(self._reader.reasons, TOGETHER, self.alone)
        return reason

    def _read_rows(self, queryset: AnyQuerySet, name: str, values: Sequence[Hashable]) -> _Found:
        values = storable(values, queryset.db)
        with table_explained(self.model, queryset.db), past_caches(queryset.db):
            if self._why_one_by_one(queryset, name) is None:
                return self._outcomes(queryset, name, values)
            each = (self._outcomes(queryset, name, [value]) for value in values)
            return {value: row for outcomes in each for value, row in outcomes.items()}

    def _outcomes(self, queryset: AnyQuerySet, name: str, values: Sequence[Hashable]) -> _Found:
        try:
            if len(values) < 2:
                return {value: row for value in values for row in self._read_one(queryset, name, value)}
            return self._read_together(queryset, name, values)
        except Exception as error:
            if not _is_of_one_key(error):
                raise
            if len(values) < 2:
                return dict.fromkeys(values, error)
        # One of them is to blame: the half without it is read in one query.
        middle = len(values) // 2
        return self._outcomes(queryset, name, values[:middle]) | self._outcomes(
            queryset, name, values[middle:]
        )

    def _read_one(self, queryset: AnyQuerySet, name: str, value: Hashable) -> list[EncodedRow]:
        try:
            return self._read(queryset, name, {name: value})[:1]
        except OF_ONE_KEY:
            if self._is_refused(name, value, queryset.db):
                return []
            raise

    def _is_refused(self, name: str, value: Hashable, alias: str) -> bool:
        """Whether the database refuses this very value, which no row can have then, and not the query.

        Only a column's database and driver know what it takes: PostgreSQL has no NUL in a text, and no
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

    def _read_together(self, queryset: AnyQuerySet, name: str, values: Sequence[Hashable]) -> _Found:
        rows = self._read(queryset, name, {f"{name}__in": values})
        found = self.by_value(name, values, rows)
        missing = [value for value in values if value not in found]
        # A row that nobody has asked for is one whose value equals one of these only to the database, or
        # whose value the query leaves out.
        may_be_there = len(found) < len(rows) or is_loose(self.unique_field(name), queryset.db)
        if rows and missing and may_be_there and self._read(queryset, name, {f"{name}__in": missing}):
            # Only the database can tell which of these values a row equals.
            found |= {value: row for value in missing for row in self._read_one(queryset, name, value)}
        return found

    def by_value(self, name: str, values: Sequence[Hashable], rows: Sequence[EncodedRow]) -> _Found:
        """Return for each of these values the row that has it, if one of these has."""
        field = self.unique_field(name)
        by_value = {prepared(field, row.key): row for row in rows}
        return {value: by_value[value] for value in values if value in by_value}

    def _read(self, queryset: AnyQuerySet, name: str, wanted: Mapping[str, Any]) -> list[EncodedRow]:
        if (reason := why_final(queryset)) is not None:
            raise InvalidRepository(
                f"{self._label}.fetch(): its queryset() {reason}, so Django cannot look for a row "
                "in it. Declare a repository for fetch() whose queryset() has filters alone, or read rows of "
                "a CachedRepository with get()."
            )
        found = queryset.filter(**wanted)
        if not_djangos(found) is None:
            found = found.order_by()
        with self._named():
            try:
                chunks = list(self._reader.read(found, key=name))
            except NotExpressible:
                chunks = list(self._reader.read(found, key=name, in_python=True))
        return [row for chunk in chunks for row in chunk.rows()]

    # Parts of the list

    def read_window(self, window: Window, is_wanted: IsWanted = lambda: True) -> Listed:
        """Return a part of the list; between two chunks of rows asks whether anybody still waits for it."""
        offset, limit = window
        # No table has more rows than a database can count.
        end = None if limit is None or offset + limit > _MOST_ROWS else offset + limit
        if offset > _MOST_ROWS:
            return self.listed([])
        queryset = pinned(self._ordered()[offset:end])
        # A thread that computes holds the interpreter, and the loop answers others meanwhile.
        with table_explained(self.model, queryset.db), past_caches(queryset.db), switching_sooner():
            try:
                return self.listed(self._joined(queryset, is_wanted, in_python=False))
            except NotExpressible:
                return self.listed(self._joined(queryset, is_wanted, in_python=True))

    def _joined(self, queryset: AnyQuerySet, is_wanted: IsWanted, *, in_python: bool) -> Iterator[bytes]:
        """Yield the rows' JSON, chunk by chunk; it ends early if nobody waits for it."""
        chunks: Any = self._reader.read(queryset, in_python=in_python)
        with closing(chunks), self._named():
            for chunk in chunks:
                if not is_wanted():
                    return
                yield b",".join(chunk.json)

    def listed(self, rows: Iterable[bytes]) -> Listed:
        """Return the bytes of ``{"name": [rows]}``, of parts with commas between their rows."""
        return Listed(opening(self._name) + b",".join(rows) + CLOSING)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Add the repository's name to the error of a row that cannot be served."""
        try:
            yield
        except InvalidRow as error:
            error.repository = self._name
            raise


def _tried(function: Callable[..., T], *args: Any) -> T | Exception:
    """Return what a function returns or raises; the traceback ends here."""
    try:
        return function(*args)
    except Exception as error:
        return error


def why_final(queryset: AnyQuerySet) -> str | None:
    """Return why Django cannot look for rows in this query, as a part of a sentence; None if it can."""
    if not (is_final(queryset) or depends_on_others(queryset)):
        return None
    query = queryset.query
    if query.is_sliced:
        return "is sliced"
    if query.combinator:
        return f"is a {query.combinator}()"
    return "has distinct() on fields" if query.distinct_fields else "has window functions"


def _is_of_one_key(error: Exception) -> bool:
    """Whether others that were asked for in the same query may be readable."""
    return isinstance(error, OF_ONE_KEY) or not isinstance(error, Error | DjangoORMError | OSError)
