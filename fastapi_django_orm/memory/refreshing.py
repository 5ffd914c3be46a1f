"""When to load: one load at a time, and nobody gets data older than the question.

A caller that arrives while a load runs does not join it, since that load may have read before the
caller's commit; it joins the next one, together with everybody else who waits. So any number of callers
costs at most the load that runs and one more. Callers who name keys share a load of all those keys,
unless another one who waits with them wants everything.
"""

import asyncio
import random
from collections.abc import Collection, Hashable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, Literal, Protocol

import structlog
from asgiref.sync import sync_to_async
from django.db import DatabaseError

from .. import application, metrics
from ..clock import backoff, cancel, monotonic
from ..errors import DatabaseBusy, DjangoORMError, InvalidRow, RefreshFailed, may_quote, without_values
from ..events import logger
from ..reading.pacing import switching_sooner
from .snapshot import RowT, Snapshot

FIRST_RETRY = 0.5  # seconds
LAST_RETRY = 30.0

PIECES_AT_ONCE = 100  # pieces of an old snapshot that are freed in one go

# Up to so many keys, or this share of the rows, it is cheaper to read those than everything.
FEW_KEYS = 100
SHARE_OF_KEYS = 0.02

MOST_KEYS_ON_LOOP = 4  # that the event loop reads itself; each may cost it a millisecond in a large table


Trigger = Literal["startup", "call", "route", "hint", "max_age", "retry"]


class RowLoader(Protocol[RowT]):
    """What reads the rows, on a database thread if nothing else is said: ``Loader``, or one around it."""

    def load(self, before: Snapshot[RowT] | None) -> Snapshot[RowT]:
        """Read all rows."""

    def load_keys(self, before: Snapshot[RowT], keys: Collection[Hashable]) -> Snapshot[RowT] | None:
        """Read the rows with these keys; returns None if that needs a load of all."""

    async def load_keys_on_loop(
        self, before: Snapshot[RowT], keys: Collection[Hashable]
    ) -> Snapshot[RowT] | None:
        """Do the same on the event loop; returns None if a thread is needed."""

    def let_go(self, pieces: list[Any]) -> None:
        """Free what a snapshot was made of."""


@dataclass(frozen=True, slots=True)
class Load(Generic[RowT]):
    """A load that succeeded.

    Attributes:
        snapshot: what it read.
        duration: seconds.
        trigger: what asked first.
        keys: how many rows were read, None for all.
    """

    snapshot: Snapshot[RowT]
    duration: float
    trigger: Trigger
    keys: int | None = None


@dataclass(slots=True)
class _Pending(Generic[RowT]):
    """A load that callers wait for.

    Attributes:
        done: its outcome, for all who wait.
        trigger: what asked first.
        request: the log fields of the request that asked first.
        keys: which rows; None for all.
    """

    done: "asyncio.Future[Load[RowT]]"
    trigger: Trigger
    request: dict[str, Any]
    keys: set[Hashable] | None


class Refresher(Generic[RowT]):
    """Loads one repository, for all who ask.

    The plugin starts and stops it; ``refresh()`` may be called on any event loop.

    Attributes:
        name: the repository's.
        snapshot: what was loaded last.
        error: why the last load failed, None if it did not.
    """

    def __init__(self, name: str, loader: RowLoader[RowT], max_age: timedelta | None) -> None:
        self.name = name
        self.snapshot: Snapshot[RowT] | None = None
        self.error: BaseException | None = None
        self._loader = loader
        self._max_age = max_age
        self._failures = 0
        self._read_at = 0.0  # by the monotonic clock
        self._next: _Pending[RowT] | None = None
        self._wake = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def age(self) -> float | None:
        """Seconds since the data was read, or None if there is none."""
        if self.snapshot is None:
            return None
        # The system's clock may be set back, and the other stands still while the system sleeps.
        by_date = (datetime.now(UTC) - self.snapshot.loaded_at).total_seconds()
        return max(by_date, monotonic() - self._read_at)

    @property
    def stale(self) -> bool:
        """Whether the data is missing, older than ``max_age``, or has a failed refresh behind it."""
        if self.age is None or self.error is not None:
            return True
        return self._max_age is not None and self.age > self._max_age.total_seconds()

    async def refresh(self, trigger: Trigger, keys: Collection[Hashable] | None = None) -> Load[RowT]:
        """Wait for a load that starts after this call.

        Args:
            trigger: what asks.
            keys: of the rows to read; by default all rows.

        Raises:
            RefreshFailed: it failed.
            NotStarted: the event loop of the application stands still.
        """
        loop = asyncio.get_running_loop()
        if self._loop is None or self._task is None or self._task.done():
            raise self._shut_down()
        if loop is not self._loop:  # asgiref's async_to_sync may run its own
            return await application.on_loop(
                self._loop, self.refresh(trigger, keys), f"{self.name}: refreshing"
            )
        if self._next is None:
            bound = structlog.contextvars.get_contextvars()
            request = {"request_id": bound["request_id"]} if "request_id" in bound else {}
            self._next = _Pending(loop.create_future(), trigger, request, set())
            self._wake.set()
        if keys is None or self._next.keys is None:
            self._next.keys = None
        else:
            self._next.keys.update(keys)
        done = self._next.done
        try:
            # The future belongs to everybody who waits: a caller that gives up must not cancel it.
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if done.cancelled() and caller is not None and not caller.cancelling():
                raise self._shut_down() from None
            raise
        except Exception as error:
            raise RefreshFailed(f"{self.name} could not be refreshed ({type(error).__name__}).") from error

    def _shut_down(self) -> RefreshFailed:
        return RefreshFailed(f"{self.name} cannot be refreshed: the application has shut down.")

    def start(self) -> None:
        """Begin to load when asked, in a task of the running loop."""
        self._loop = asyncio.get_running_loop()
        metrics.repositories.add(self)
        self._task = self._loop.create_task(self._run(), name=f"refresh {self.name}")

    async def stop(self) -> None:
        """End the task; callers that wait for a load get an error."""
        self._loop = None
        metrics.repositories.discard(self)
        await cancel(self._task)
        if self._next is not None:
            self._next.done.cancel()

    async def _run(self) -> None:
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._until_due())
            self._wake.clear()
            # However the wait has ended: with rows that are always too old it times out though a caller asks.
            pending, self._next = self._next, None
            if pending is None:  # a load is due that nobody waits for
                trigger: Trigger = "retry" if self.error is not None else "max_age"
                pending = _Pending(asyncio.get_running_loop().create_future(), trigger, {}, None)
            with structlog.contextvars.bound_contextvars(**pending.request):
                await self._load(pending)

    def _until_due(self) -> float | None:
        """Seconds until a load is due that nobody asks for."""
        if self._failures:
            delay = backoff(self._failures, FIRST_RETRY, LAST_RETRY)
            return delay * random.uniform(0.5, 1.0)  # or all workers would come back at once
        if self._max_age is None or self.age is None:
            return None
        return max(0.0, self._max_age.total_seconds() - self.age)

    async def _load(self, pending: _Pending[RowT]) -> None:
        started = monotonic()
        try:
            snapshot = await self._read_on_loop(pending)
            if snapshot is None:
                with switching_sooner():
                    snapshot = await sync_to_async(self._read)(pending)
        except asyncio.CancelledError:
            pending.done.cancel()
            raise
        except Exception as error:
            if isinstance(error, InvalidRow):
                error.repository = self.name
            else:  # at startup it is raised as it is, and may come from any manager
                error.add_note(f"Raised while the repository {self.name!r} was loading.")
            pending.done.set_exception(error)
            metrics.count_load(self.name, pending.trigger, monotonic() - started, error)
            pending.done.exception()  # or asyncio would complain if nobody waits for it any more
            self._failed(error, pending.trigger)
        else:
            keys = None if pending.keys is None else len(pending.keys)
            old = [] if keys is not None or self.snapshot is None else self.snapshot.table.pieces()
            load = Load(snapshot, monotonic() - started, pending.trigger, keys)
            metrics.count_load(self.name, pending.trigger, load.duration)
            if keys is None:
                self._read_at = started
            self._succeeded(load)
            pending.done.set_result(load)
            if len(old) > PIECES_AT_ONCE:
                with suppress(DatabaseBusy):  # then they go now
                    await sync_to_async(self._loader.let_go)(old)

    async def _read_on_loop(self, pending: _Pending[RowT]) -> Snapshot[RowT] | None:
        before, keys = self.snapshot, self._few(pending, MOST_KEYS_ON_LOOP)
        return None if before is None or not keys else await self._loader.load_keys_on_loop(before, keys)

    def _read(self, pending: _Pending[RowT]) -> Snapshot[RowT]:
        before = self.snapshot
        if before is not None:
            keys = self._few(pending, max(FEW_KEYS, len(before) * SHARE_OF_KEYS))
            if keys is not None and (found := self._loader.load_keys(before, keys)) is not None:
                return found
        pending.keys = None
        return self._loader.load(before)

    def _few(self, pending: _Pending[RowT], most: float) -> set[Hashable] | None:
        """The keys to read, if reading those alone will do, and they are no more than this."""
        # A load that has failed may have been asked for keys that nobody will name again.
        few = pending.keys is not None and self.error is None and len(pending.keys) <= most
        return pending.keys if few else None

    def _succeeded(self, load: Load[RowT]) -> None:
        self.snapshot, self.error, self._failures = load.snapshot, None, 0
        logger.info(
            "repository_loaded" if load.snapshot.version == 1 else "repository_refreshed",
            repository=self.name,
            rows=len(load.snapshot),
            version=load.snapshot.version,
            duration_ms=round(load.duration * 1000, 3),
            trigger=load.trigger,
            **({} if load.keys is None else {"keys": load.keys}),
        )

    def _failed(self, error: Exception, trigger: Trigger) -> None:
        self._failures += 1
        self.error = error
        # For errors of a database or of this package one line is enough. A traceback would add nothing, and
        # some log renderers print the variables of its frames, where the driver has the password and code its
        # rows.
        expected = isinstance(error, DatabaseError | DjangoORMError) or may_quote(error)
        logger.error(
            "refresh_failed",
            repository=self.name,
            trigger=trigger,
            failures=self._failures,
            error=type(error).__name__,
            cause=without_values(error),
            serving=None if self.snapshot is None else self.snapshot.version,
            **({} if expected else {"exc_info": error}),
        )
