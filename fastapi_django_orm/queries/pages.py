"""The pages of one repository: found by the database, remembered while nothing that they are made of changes.

A page is remembered under what was asked for, and under the state of the repository when its query began:
the version of the snapshot, and how many hints have come that concern filters alone. A hint that concerns the
rows brings another snapshot. So what a query has read before a change is not found after it.

What was asked for is the filter's values, if the repository's query is Django's own and the same for every
caller. Otherwise it is the SQL with its parameters, as compiled in the caller's context, since a manager may
filter by a tenant.
"""

from collections.abc import Callable, Hashable
from contextvars import copy_context
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, TypeVar

from django.db import InterfaceError, OperationalError
from django.utils import timezone
from pydantic_core import to_json

from ..application import Application
from ..coherence.concerns import models_in
from ..coherence.service import Coherence
from ..database.reentrancy import is_bound
from ..errors import ReadFailed, without_values
from ..events import logger
from ..memory.snapshot import Snapshot
from ..reading.batching import outcome
from ..reading.encoding import opening, tag_of
from ..reading.live import LiveReads
from ..reading.live_queries import run_in
from ..reading.on_loop import LoopReads
from ..responses.negotiation import CODINGS
from ..responses.representation import LARGEST, Representation
from .filter import Filter, declaration_of, frozen_values
from .remembered import RememberedPages, size_of
from .selecting import Selected, Selecting, Selection
from .sharing import SharedQueries

T = TypeVar("T")

# Tables in the SQL of filters, of which there are few; only their parameters differ.
_labels_in = lru_cache(maxsize=500)(models_in)


class Page:
    """A page as it is sent.

    Attributes:
        keys: of its rows.
        read: the rows that memory did not have.
        representation: its bytes.
    """

    __slots__ = ("keys", "read", "representation")

    def __init__(self, name: str, selected: Selected, snapshot: Snapshot[Any] | None) -> None:
        """Put the rows together. On the thread that has read."""
        self.read = selected.read
        rows = {} if snapshot is None else snapshot.table.rows_json(selected.keys)
        rows |= {key: row.json for key, row in self.read.items()}
        # A row that was deleted since its key was read is left out.
        self.keys = [key for key in selected.keys if key in rows]
        end = b'],"total":%d,"next":%b}' % (selected.total, to_json(selected.next))
        body = opening(name) + b",".join([rows[key] for key in self.keys]) + end
        kept = snapshot is not None and len(body) <= LARGEST
        self.representation = Representation(
            tag_of(body), body, len(body), varies=snapshot is not None, compressible=kept and not self.read
        )

    @property
    def size(self) -> int:
        """How many bytes it takes, with its compressed forms if clients want all that there are."""
        forms = 1 + len(CODINGS) if self.representation.compressible else 1
        return forms * self.representation.size + size_of(tuple(self.keys))


@dataclass(frozen=True, slots=True)
class _Question:
    """What is asked of the database, for all who ask the same.

    Attributes:
        key: what the page is remembered under; None if it cannot be said what is the same.
        read: finds the page, on a database thread.
        labels: of the models that the page is made of, beside those of the rows.
    """

    key: Hashable
    read: Callable[[], Page]
    labels: frozenset[str]


class Pages:
    """Finds the pages of one repository."""

    def __init__(
        self,
        selecting: Selecting,
        live: LiveReads,
        on_loop: LoopReads,
        here: Application,
        *,
        name: str,
        snapshot: Callable[[], Snapshot[Any]] | None,
    ) -> None:
        """Find pages.

        Args:
            selecting: asks the database.
            live: reads of the same repository.
            on_loop: knows whether the repository's query is Django's own, and the same for all.
            here: the application.
            name: the repository's.
            snapshot: returns the current one, or raises ``NotLoaded``. None: all rows are read each time.
        """
        self._selecting = selecting
        self._live = live
        self._on_loop = on_loop
        self._here = here
        self._name = name
        self._snapshot = snapshot
        self._remembered: RememberedPages[Page] = here[RememberedPages]
        self._queries: SharedQueries[Page] = SharedQueries(here.executor.own)

    def at_hand(self, where: Filter) -> Page | None:
        """Return a remembered page; None if the database has to be asked. On any thread.

        Raises:
            NotLoaded: nothing was loaded yet. In a handler: 503.
        """
        if self._snapshot is None or is_bound():
            return None
        key = self._key_of_values(where, self._snapshot())
        return None if key is None else self._remembered.get(key)

    async def representation(self, where: Filter) -> Representation:
        """Return the bytes of a page.

        Raises:
            InvalidParameter: the filter cannot be used. In a handler: 422.
            ReadFailed: the database does not answer. In a handler: 503.
        """
        try:
            page, _ = await self._find(where)
        except (InterfaceError, OperationalError) as error:
            cause = f"{type(error).__name__}: {without_values(error)}"
            logger.error("live_read_failed", repository=self._name, error=cause)
            raise ReadFailed(f"{self._name} cannot be read now.") from error
        return page.representation

    async def rows(self, where: Filter) -> list[Any]:
        """Return the rows of a page, as the repository gives rows.

        Raises:
            InvalidParameter: the filter cannot be used. In a handler: 422.
            DatabaseError: as Django raises it.
        """
        page, snapshot = await self._find(where)
        return [
            self._live.given(page.read[key]) if snapshot is None or key in page.read else snapshot.row(key)
            for key in page.keys
        ]

    async def _find(self, where: Filter) -> tuple[Page, Snapshot[Any] | None]:
        """A page, and the snapshot that has those of its rows which were not read for it."""
        if not self._live.may_share:
            # In a transaction, say: what it has written is read there, and is not for others.
            return await self._live.run(self._read, where, None), None
        if self._snapshot is None:
            return await self._now(where), None
        snapshot = self._snapshot()
        question = self._by_values(where, snapshot) or await self._by_sql(where, snapshot)
        if question.key is None:
            return await self._answered(question.read), snapshot
        page = self._remembered.get(question.key)
        if page is None:
            page = await self._queries.joined(question.key, question.read, partial(self._keep, question))
        return page, snapshot

    async def _now(self, where: Filter) -> Page:
        """A page of rows that are read after this call."""
        asked = self._asked(where) if self._live.is_for_all else None
        if asked is None:
            return await self._live.run(self._read, where, None)
        return await self._queries.next(asked, partial(run_in, copy_context(), self._read, where, None))

    # What is asked

    def _key_of_values(self, where: Filter, snapshot: Snapshot[Any]) -> Hashable | None:
        """What a page is remembered under if the values say it; None if only the SQL does."""
        asked = self._asked(where)
        return None if asked is None else (self._state(snapshot), asked)

    def _asked(self, where: Filter) -> Hashable | None:
        """What is asked for, the same for callers who want the same; None if the values do not say it."""
        declared = declaration_of(where)
        if declared.own_code is not None or (alias := self._on_loop.alias) is None:
            return None
        # A database router may look at the caller, and a lookup such as `__date` at the time zone.
        zone = timezone.get_current_timezone_name() if declared.has_transform else None
        try:
            return alias, zone, frozen_values(where)
        except TypeError:
            return None

    def _by_values(self, where: Filter, snapshot: Snapshot[Any]) -> _Question | None:
        if (key := self._key_of_values(where, snapshot)) is None:
            return None
        labels = frozenset(model._meta.label for model in declaration_of(where).joined)
        return _Question(key, partial(run_in, copy_context(), self._read, where, snapshot), labels)

    async def _by_sql(self, where: Filter, snapshot: Snapshot[Any]) -> _Question:
        state, context = self._state(snapshot), copy_context()
        compile_ = partial(run_in, context, self._compiled, where)
        selection, compiled = await self._answered(compile_)
        read = partial(run_in, context, self._page, selection, snapshot)
        if compiled is None:
            return _Question(None, read, frozenset())
        query, sql = compiled
        # Two forms of a filter may make one SQL, for pages that differ in their end.
        return _Question((state, query, where.limit, where.offset), read, _labels_in(sql))

    def _state(self, snapshot: Snapshot[Any]) -> Hashable:
        coherence = self._here.get(Coherence)
        return self._name, snapshot.version, 0 if coherence is None else coherence.revision(self._name)

    # On a database thread

    def _compiled(self, where: Filter) -> tuple[Selection, Any]:
        selection = self._selecting.selection(where)
        return selection, selection.compiled()

    def _read(self, where: Filter, snapshot: Snapshot[Any] | None) -> Page:
        return self._page(self._selecting.selection(where), snapshot)

    def _page(self, selection: Selection, snapshot: Snapshot[Any] | None) -> Page:
        known = None if snapshot is None else snapshot.table.where
        return Page(self._name, self._selecting.read(selection, () if known is None else known), snapshot)

    # One query for all who ask the same

    async def _answered(self, read: Callable[[], T]) -> T:
        found = await outcome(None, self._here.executor.own, read)
        try:
            if isinstance(found, Exception):
                raise found
            return found
        finally:
            del found  # the error's traceback has this frame, and they would reference each other

    def _keep(self, question: _Question, page: Page) -> None:
        if page.representation.size <= LARGEST and not page.read and self._is_followed(question.labels):
            self._remembered.keep(question.key, page, page.size)

    def _is_followed(self, labels: frozenset[str]) -> bool:
        """Whether hints of these models come, so that a page of them may be remembered."""
        coherence = self._here.get(Coherence)
        return coherence is not None and coherence.follows(self._name, labels)
