"""What a live read asks the database, on a database thread, and which row answers which question."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

from django.core.exceptions import FieldDoesNotExist
from django.db import Error
from django.db.models import Field, Model, QuerySet

from ..database.reachable import table_explained
from ..errors import DjangoORMError, InvalidRepository, NotUnique, nearest
from ..rows.encoding import CLOSING, opening
from ..snapshots.changing import NewRow, new_rows
from ..snapshots.pages import Chunk
from .batching import Outcomes
from .equality import is_loose, storable
from .key_columns import AnyQuerySet
from .pacing import switching_sooner
from .readers import OF_ONE_KEY, Reader, depends_on_others, is_final
from .sql_json import NotExpressible
from .windows import IsWanted, Listed, Window

_MOST_ROWS = 2**63 - 1


class LiveQueries:
    """Asks for some of one repository's rows.

    Attributes:
        model: the repository's.
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

    def read_rows(self, name: str, values: Sequence[Hashable]) -> Outcomes[Hashable, NewRow]:
        """For each of these values of a unique field the row that has it, or why it cannot be read.

        Raises:
            DatabaseError: none of them can be read.
        """
        alias = self._queryset().db
        values = storable(values, alias)
        with table_explained(self.model, alias):
            return self._outcomes(name, values)

    def _outcomes(self, name: str, values: Sequence[Hashable]) -> dict[Hashable, NewRow | Exception]:
        try:
            if len(values) < 2:
                return dict(outcome for value in values for outcome in self._read_one(name, value))
            return self._read_together(name, values)
        except Exception as error:
            if not _is_of_one_key(error):
                raise
            if len(values) < 2:
                return dict.fromkeys(values, error)
        middle = len(values) // 2
        return self._outcomes(name, values[:middle]) | self._outcomes(name, values[middle:])

    def _read_one(self, name: str, value: Hashable) -> list[tuple[Hashable, NewRow]]:
        try:
            return [(value, row) for row in self._read(name, {name: value})[:1]]
        except OF_ONE_KEY:
            if self._is_refused(name, value):
                return []
            raise

    def _is_refused(self, name: str, value: Hashable) -> bool:
        """Whether the database refuses this very value, which no row can have then, and not the query.

        What a column takes is known to its database and driver alone: PostgreSQL has no NUL in a text, and no
        text but an address where addresses are, SQLite no number beyond 64 bits.
        """
        rows: AnyQuerySet = QuerySet(self.model, using=self._queryset().db)
        try:
            rows.exists()
        except Error:  # the table is missing; the transaction ended with the first error
            return False
        try:
            rows.filter(**{name: value}).exists()
        except OF_ONE_KEY:
            return True
        return False

    def _read_together(self, name: str, values: Sequence[Hashable]) -> dict[Hashable, NewRow | Exception]:
        rows = self._read(name, {f"{name}__in": values})
        found = self.by_value(name, values, rows)
        missing = [value for value in values if value not in found]
        # A row that nobody has asked for is one whose value the database holds for equal to one of these, or
        # whose value the query leaves out.
        may_be_there = len(found) < len(rows) or is_loose(self.unique_field(name), self._queryset().db)
        if rows and missing and may_be_there and self._read(name, {f"{name}__in": missing}):
            # Only the database can tell which of these values it holds for equal to a row's.
            found |= {value: row for one in missing for value, row in self._read_one(name, one)}
        return found

    def by_value(
        self, name: str, values: Sequence[Hashable], rows: Sequence[NewRow]
    ) -> dict[Hashable, NewRow | Exception]:
        """For each of these values the row that has it, if one of these has."""
        prepare = self.unique_field(name).get_prep_value
        by_value = {prepare(row.key): row for row in rows}
        return {value: by_value[value] for value in values if value in by_value}

    def _read(self, name: str, wanted: Mapping[str, Any]) -> list[NewRow]:
        queryset = self._queryset()
        if is_final(queryset) or depends_on_others(queryset):
            raise InvalidRepository(
                f"{self._label}.fetch(): its queryset() {_kind(queryset)}, so Django cannot look for a row "
                "in it. Declare a repository for fetch() whose queryset() has filters alone, or read rows of "
                "a CachedRepository with get()."
            )
        chunks = self._chunks(queryset.filter(**wanted).order_by(), name)
        return [row for chunk in chunks for row in new_rows(chunk)]

    def _chunks(self, queryset: AnyQuerySet, key: str = "pk") -> list[Chunk]:
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
        queryset = self._ordered()[offset:end]
        # Whoever computes holds the interpreter, and the loop answers others meanwhile.
        with table_explained(self.model, queryset.db), switching_sooner():
            try:
                return self.listed(self._joined(queryset, is_wanted, in_python=False))
            except NotExpressible:
                return self.listed(self._joined(queryset, is_wanted, in_python=True))

    def _joined(self, queryset: AnyQuerySet, is_wanted: IsWanted, *, in_python: bool) -> Iterator[bytes]:
        """The rows' JSON, chunk by chunk; it ends early if nobody waits for it."""
        chunks: Any = self._reader.read(queryset, in_python=in_python)
        with closing(chunks):
            for chunk in chunks:
                if not is_wanted():
                    return
                yield b",".join(chunk.json)

    def listed(self, rows: Iterable[bytes]) -> Listed:
        """The bytes of ``{"name": [rows]}``, of parts with commas between their rows."""
        return Listed(opening(self._name) + b",".join(rows) + CLOSING)


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
