"""What the health route tells: does the database answer, and how fresh is what is served."""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from asgiref.sync import sync_to_async
from pydantic import BaseModel, Field

from .database.reachable import check_reachable
from .errors import DatabaseUnreachable
from .refresh import Refresher

DATABASE_TIMEOUT = 2.0  # seconds that a database has to answer


class RepositoryHealth(BaseModel):
    """The state of one repository."""

    rows: int | None = Field(description="How many rows are served; null if none were loaded yet.")
    version: int | None
    age: float | None = Field(description="Seconds since the rows were read.")
    stale: bool = Field(description="Missing, older than max_age, or with a failed refresh behind it.")
    error: str | None = Field(description="The class of the last refresh's error, if it failed.")


class Health(BaseModel):
    """The state of the application.

    ``ok``: all is fresh. ``degraded``: something is stale, and served. ``unavailable`` (503): a database does
    not answer, or a repository has no rows to serve.
    """

    status: Literal["ok", "degraded", "unavailable"]
    databases: dict[str, bool] = Field(description="For each database, whether it answers.")
    repositories: dict[str, RepositoryHealth]


class DatabaseProbe:
    """Asks a database whether it answers; callers that ask at the same time share the question."""

    def __init__(self, alias: str) -> None:
        """Ask this database.

        Args:
            alias: its key in ``DATABASES``.
        """
        self._alias = alias
        self._asking: asyncio.Task[bool] | None = None

    async def answers(self) -> bool:
        """Whether the database answers, within two seconds."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        asking = (
            self._asking
        )  # by the time that this caller goes on, another may have begun the next question
        # Not cancelled: a question that hangs keeps its thread, and the next caller must not start another.
        done, _ = await asyncio.wait([asking], timeout=DATABASE_TIMEOUT)
        return bool(done) and asking.result()

    async def _ask(self) -> bool:
        try:
            await sync_to_async(check_reachable)(self._alias)
        except DatabaseUnreachable:
            return False
        return True

    async def stop(self) -> None:
        """Give up a question that nobody has answered."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)


async def report(probes: Mapping[str, DatabaseProbe], refreshers: Iterable[Refresher[Any]]) -> Health:
    """The state of the application now."""
    answers = await asyncio.gather(*(probe.answers() for probe in probes.values()))
    databases = dict(zip(probes, answers, strict=True))
    repositories = {refresher.name: _state(refresher) for refresher in refreshers}
    status: Literal["ok", "degraded", "unavailable"] = "ok"
    if any(state.stale for state in repositories.values()):
        status = "degraded"
    if not all(answers) or any(state.rows is None for state in repositories.values()):
        status = "unavailable"
    return Health(status=status, databases=databases, repositories=repositories)


def _state(refresher: Refresher[Any]) -> RepositoryHealth:
    snapshot = refresher.snapshot
    return RepositoryHealth(
        rows=None if snapshot is None else len(snapshot),
        version=None if snapshot is None else snapshot.version,
        age=refresher.age,
        stale=refresher.stale,
        # The class and never the text, which may hold a host, a user or a row's values.
        error=None if refresher.error is None else type(refresher.error).__name__,
    )
