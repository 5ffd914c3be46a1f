"""Reads rows again, here and in every other worker, and reports which workers have them."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response
from pydantic import BaseModel, Field, SecretStr

from .. import running
from ..coherence.hints import READ_LIMIT, VERSION, Hint, decode
from ..coherence.roll_call import LONGEST_ROLL_CALL, Attendance
from ..coherence.service import Coherence
from ..coherence.transport import TransportUnavailable
from ..errors import NotFound, NotStarted, RefreshFailed, UnknownModel, nearest
from ..reading.models import model_named
from ..reading.refresh import Load, Refresher
from ..rows.encoding import combine
from .access import may_refresh

Refreshers = Mapping[str, Refresher[Any]]

DEFAULT_WAIT = 5.0  # seconds


class DjangoORMWorkers(BaseModel):
    """Which worker processes serve what was committed before the request."""

    asked_by: list[str] = Field(
        description="The transports by which other workers were asked. Empty: only this one has answered, "
        "for itself, since no transport connects workers, or wait is 0."
    )
    down: list[str] = Field(description="Transports by which workers should be asked and could not be.")
    have: list[str] = Field(description="They serve it. A worker's name is host:pid: and a random part.")
    failed: list[str] = Field(description="They could not read it, and serve what they had.")
    missing: list[str] = Field(description="They are connected and have not answered in time.")


class DjangoORMRefreshReport(BaseModel):
    """What one repository's refresh did."""

    rows: int | None = Field(description="How many rows are served now.")
    version: int | None
    duration_ms: float | None = Field(description="How long the load took, in milliseconds.")
    trigger: str | None = Field(description="What asked first for the load that this request shared.")
    error: str | None = Field(default=None, description="The class of the error, if the load failed.")
    workers: DjangoORMWorkers


Wait = Annotated[
    float,
    Query(
        ge=0,
        le=LONGEST_ROLL_CALL,
        description="The most seconds to wait for the other workers that are connected; 0: do not ask them.",
    ),
]


# With the first parameter of a route FastAPI imports all of pydantic, and under a clock that a test has
# stopped this import fails. So it happens now.
APIRouter().get("/")(lambda wait: None)


def add_refresh(router: APIRouter, path: str, token: SecretStr | None, refreshers: Refreshers) -> None:
    """Add the route for these repositories."""
    guard = [Depends(may_refresh(token))]
    refusals: dict[int | str, dict[str, Any]] = {
        401: {"description": "No token was sent."},
        403: {"description": "The token is wrong, or none is configured and DEBUG is off."},
        404: {"description": "There is no repository of that name, or no model."},
    }

    async def select(
        repository: Annotated[
            list[str] | None, Query(description="Only these repositories; by default all.")
        ] = None,
    ) -> list[Refresher[Any]]:
        return [_named(name, refreshers) for name in dict.fromkeys(repository or refreshers)]

    Selected = Annotated[list[Refresher[Any]], Depends(select)]

    @router.get(
        path,
        response_model=dict[str, list[dict[str, Any]]],
        dependencies=guard,
        responses={**refusals, 503: {"description": "A load failed; the old rows are served on."}},
        summary="Reload, and return the rows",
    )
    async def refresh_and_return_rows(selected: Selected, wait: Wait = DEFAULT_WAIT) -> Response:
        """Have every worker load again, and return this one's rows.

        The header `Workers-Missing` names workers that do not serve them yet, and transports by which none
        could be asked, if there are any.
        """
        refreshed = await _refresh(selected, wait)
        for load in refreshed.loads:
            if isinstance(load, BaseException):
                raise load
        body = combine(load.snapshot.json for load in refreshed.loads if isinstance(load, Load))
        return Response(body, media_type="application/json", headers=refreshed.headers)

    @router.post(
        path,
        response_model=dict[str, DjangoORMRefreshReport],
        dependencies=guard,
        responses={
            **refusals,
            202: {"model": None, "description": "A hint was heard, and is followed from now on."},
            413: {"description": f"The hint is longer than {READ_LIMIT:,} bytes."},
            503: {
                "model": dict[str, DjangoORMRefreshReport],
                "description": "At least one load failed here; or a hint was heard, and could "
                "not be passed on.",
            },
            504: {
                "model": dict[str, DjangoORMRefreshReport],
                "description": "Not all other workers have it yet.",
            },
        },
        openapi_extra=_HINT,
        summary="Reload, and report what was done; or hear a hint",
    )
    async def refresh_and_report(
        request: Request,
        selected: Selected,
        response: Response,
        wait: Wait = DEFAULT_WAIT,
        model: Annotated[
            str | None, Query(description="Rows of this model have changed: a hint, answered at once.")
        ] = None,
    ) -> Any:
        """Have every worker load again, and report which have; 200 means all that are connected.

        With a model, or a hint as the body, the workers follow it, as they follow those that come by other
        ways, and the answer does not wait for that; 503 means that the others could not be told.
        """
        body = await _body(request)
        if body or model is not None:
            await _follow(decode(body) if body else _all_of(model or ""), wait)
            return Response(status_code=202)
        refreshed = await _refresh(selected, wait)
        response.status_code = refreshed.status
        response.headers.update(refreshed.headers)
        return refreshed.report()


_HINT: dict[str, Any] = {
    "requestBody": {
        "required": False,
        "description": "A hint, as Django processes post it.",
        "content": {"application/json": {"example": {"v": VERSION, "m": "bbs.Topic", "k": [1, 2]}}},
    }
}


async def _body(request: Request) -> bytes:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > READ_LIMIT:
            raise HTTPException(413, f"A hint has at most {READ_LIMIT:,} bytes.")
    return body


def _all_of(label: str) -> Hint:
    """A hint for all rows of the model with this label.

    A hint in a body is taken as it is: a Django process that posts it may have models that this one has not.

    Raises:
        NotFound: there is no such model.
    """
    try:
        return Hint(model_named(label)._meta.label)
    except UnknownModel as error:
        raise NotFound(str(error)) from None


def _coherence() -> Coherence:
    coherence = running.find("The refresh route").coherence
    if coherence is None:
        raise NotStarted("The application ends.")
    return coherence


@dataclass(frozen=True, slots=True)
class _Refreshed:
    """What was loaded here, and by whom else."""

    selected: Sequence[Refresher[Any]]
    loads: Sequence[Load[Any] | BaseException]
    attendance: Mapping[str, Attendance]
    worker: str

    @property
    def status(self) -> int:
        if any(isinstance(load, BaseException) for load in self.loads):
            return 503
        return 200 if all(found.complete for found in self.attendance.values()) else 504

    @property
    def headers(self) -> dict[str, str]:
        every = self.attendance.values()
        late = set[str]().union(*(found.failed | found.missing | found.down for found in every))
        return {"Workers-Missing": ", ".join(sorted(late))} if late else {}

    def report(self) -> dict[str, DjangoORMRefreshReport]:
        return {
            refresher.name: _report(refresher, load, self._workers(refresher.name, isinstance(load, Load)))
            for refresher, load in zip(self.selected, self.loads, strict=True)
        }

    def _workers(self, name: str, have: bool) -> DjangoORMWorkers:
        others = self.attendance[name]
        own = {self.worker}
        return DjangoORMWorkers(
            asked_by=sorted(others.asked),
            down=sorted(others.down),
            have=sorted(others.have | own if have else others.have),
            failed=sorted(others.failed if have else others.failed | own),
            missing=sorted(others.missing),
        )


async def _follow(hint: Hint, wait: float) -> None:
    coherence = _coherence()
    if not wait:
        coherence.hear(hint)
        return
    try:
        await coherence.tell(hint)
    except TransportUnavailable as error:
        cause = type(error).__name__
        raise HTTPException(
            503, f"This worker has heard it, and cannot tell the others ({cause})."
        ) from error


async def _refresh(selected: Sequence[Refresher[Any]], wait: float) -> _Refreshed:
    """Load here, and meanwhile elsewhere."""
    coherence, names = _coherence(), [refresher.name for refresher in selected]
    loads, attendance = await asyncio.gather(
        asyncio.gather(*(refresher.refresh("route") for refresher in selected), return_exceptions=True),
        coherence.call_roll(names, wait),
    )
    return _Refreshed(selected, loads, attendance, coherence.roll_call.worker)


def _named(name: str, refreshers: Refreshers) -> Refresher[Any]:
    try:
        return refreshers[name]
    except KeyError:
        raise NotFound(f"There is no repository {name!r}. {nearest(name, refreshers)}") from None


def _report(
    refresher: Refresher[Any], load: Load[Any] | BaseException, workers: DjangoORMWorkers
) -> DjangoORMRefreshReport:
    if isinstance(load, Load):
        return DjangoORMRefreshReport(
            rows=len(load.snapshot),
            version=load.snapshot.version,
            duration_ms=round(load.duration * 1000, 3),
            trigger=load.trigger,
            workers=workers,
        )
    if not isinstance(load, RefreshFailed):
        raise load
    old, cause = refresher.snapshot, load.__cause__ or load
    return DjangoORMRefreshReport(
        rows=None if old is None else len(old),
        version=None if old is None else old.version,
        duration_ms=None,
        trigger=None,
        error=type(cause).__name__,
        workers=workers,
    )
