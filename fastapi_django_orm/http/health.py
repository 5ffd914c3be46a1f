"""The health route: whether the databases answer, and how fresh what is served is.

The models have names that no application will have: FastAPI renames both where two have one name.
"""

import asyncio
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Literal

from asgiref.sync import sync_to_async
from fastapi import Response
from pydantic import BaseModel, Field

from .. import application
from ..clock import cancel
from ..coherence.service import Coherence
from ..coherence.transport import TransportSupervisor
from ..database.startup_checks import check_reachable
from ..errors import DatabaseUnreachable
from ..memory.refreshing import Refresher
from ..repository import Repository

DATABASE_TIMEOUT = 2.0  # seconds that a database has to answer


class DjangoORMRepositoryHealth(BaseModel):
    """The state of one repository."""

    rows: int | None = Field(description="How many rows are served; null if none were loaded yet.")
    version: int | None
    age: float | None = Field(description="Seconds since the rows were read.")
    stale: bool = Field(description="Missing, older than max_age, or with a failed refresh behind it.")
    error: str | None = Field(description="The class of the last refresh's error, if it failed.")
    unheard: str | None = Field(
        description="Why writes elsewhere may not reach it, and what to do; null if they do."
    )


class DjangoORMTransportHealth(BaseModel):
    """The state of one way by which hints of changes come."""

    connected_since: datetime | None = Field(description="Null while it is down.")
    last_hint: datetime | None = Field(description="When the last hint has come.")
    unheard: list[str] = Field(description="Models whose writes it should announce and does not.")
    error: str | None = Field(description="The class of the error, while it is down.")


class DjangoORMHealth(BaseModel):
    """The state of the application.

    ``ok``: all is fresh. ``degraded``: what is served is stale, or may be: a transport is down, or writes
    elsewhere may not reach a repository, which says why.
    ``unavailable`` (503): a database does not answer, or a repository has no rows to serve.
    """

    status: Literal["ok", "degraded", "unavailable"]
    databases: dict[str, bool] = Field(description="For each database, whether it answers.")
    repositories: dict[str, DjangoORMRepositoryHealth]
    transports: dict[str, DjangoORMTransportHealth]
    not_taken: dict[str, dict[str, str]] = Field(
        description="For each repository the quicker ways of reading that were not taken last, and why."
    )


class DatabaseProbe:
    """Asks a database whether it answers; callers that ask at the same time share the question."""

    def __init__(self, alias: str) -> None:
        self._alias = alias
        self._asking: asyncio.Task[bool] | None = None

    async def answers(self) -> bool:
        """Whether the database answers, within two seconds."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        # By the time that this caller goes on, another may have begun the next question.
        asking = self._asking
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
        """Cancel a question that was not answered."""
        await cancel(self._asking)


def health_operations(
    probes: Mapping[str, DatabaseProbe], refreshers: Mapping[str, Refresher[Any]]
) -> list[dict[str, Any]]:
    """What the health route is made of."""

    async def health(response: Response) -> DjangoORMHealth:
        now = await report(probes, refreshers.values())
        if now.status == "unavailable":
            response.status_code = 503
        return now

    get: dict[str, Any] = {
        "endpoint": health,
        "methods": ["GET"],
        "responses": {503: {"model": DjangoORMHealth, "description": "Something needed is not there."}},
        "summary": "Whether the database answers, and how fresh the data is",
    }
    # Monitoring often asks with HEAD. The server leaves the body out.
    return [get, {"endpoint": health, "methods": ["HEAD"], "include_in_schema": False}]


async def report(
    probes: Mapping[str, DatabaseProbe], refreshers: Iterable[Refresher[Any]]
) -> DjangoORMHealth:
    """The state of the application now."""
    probes, refreshers = dict(probes), list(refreshers)  # an application that ends clears them
    answers = await asyncio.gather(*(probe.answers() for probe in probes.values()))
    here = application.find("The health route")
    coherence = here.get(Coherence)
    repositories = {refresher.name: _state(refresher, coherence) for refresher in refreshers}
    transports = coherence.transports if coherence is not None else []
    status: Literal["ok", "degraded", "unavailable"] = "ok"
    if any(transport.degraded for transport in transports) or any(
        state.stale or state.unheard for state in repositories.values()
    ):
        status = "degraded"
    if not all(answers) or any(state.rows is None for state in repositories.values()):
        status = "unavailable"
    return DjangoORMHealth(
        status=status,
        databases=dict(zip(probes, answers, strict=True)),
        repositories=repositories,
        transports={transport.listener.name: _transport(transport) for transport in transports},
        not_taken={of.name: of.reasons for of in here.all_of(Repository) if of.reasons},
    )


def _state(refresher: Refresher[Any], coherence: Coherence | None) -> DjangoORMRepositoryHealth:
    snapshot = refresher.snapshot
    return DjangoORMRepositoryHealth(
        rows=None if snapshot is None else len(snapshot),
        version=None if snapshot is None else snapshot.version,
        age=refresher.age,
        stale=refresher.stale,
        # The class and never the text, which may hold a host, a user or a row's values.
        error=None if refresher.error is None else type(refresher.error).__name__,
        unheard=None if coherence is None else coherence.why_unheard(refresher.name),
    )


def _transport(transport: TransportSupervisor) -> DjangoORMTransportHealth:
    return DjangoORMTransportHealth(
        connected_since=transport.connected_since,
        last_hint=transport.last_hint,
        unheard=sorted(transport.listener.unheard),
        error=None if transport.error is None else type(transport.error).__name__,
    )
