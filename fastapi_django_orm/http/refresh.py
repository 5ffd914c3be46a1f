"""The refresh route: reads rows again, here and in every other worker, and reports which workers have them.

Only the holder of the token may refresh, or anybody while Django's ``DEBUG`` is on and there is no token.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Any

from django.conf import settings as django_settings
from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, Field, SecretStr

from .. import application
from ..coherence.hints import READ_LIMIT, VERSION, Hint, decode
from ..coherence.roll_call import LONGEST_ROLL_CALL, Attendance
from ..coherence.service import Coherence
from ..coherence.transport import TransportUnavailable
from ..errors import NotFound, NotStarted, RefreshFailed, UnknownModel, nearest
from ..events import logger
from ..memory.refreshing import Load, Refresher
from ..reading.encoding import combine
from ..reading.resolve import model_named
from ..settings import ORMSettings

Refreshers = Mapping[str, Refresher[Any]]

DEFAULT_WAIT = 5.0  # seconds
HOW_TO_ALLOW = "set DJANGO_ORM_REFRESH_TOKEN and send `Authorization: Bearer <token>`"


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

_REFUSALS: dict[int | str, dict[str, Any]] = {
    401: {"description": "No token was sent."},
    403: {"description": "The token is wrong, or none is configured and DEBUG is off."},
    404: {"description": "There is no repository of that name, or no model."},
}
_HINT: dict[str, Any] = {
    "requestBody": {
        "required": False,
        "description": "A hint, as Django processes post it.",
        "content": {"application/json": {"example": {"v": VERSION, "m": "bbs.Topic", "k": [1, 2]}}},
    }
}

# With the first parameter of a route FastAPI imports all of pydantic, and under a clock that a test has
# stopped this import fails. So it happens now.
APIRouter().get("/")(lambda wait: None)


def refresh_operations(token: SecretStr | None, refreshers: Refreshers) -> list[dict[str, Any]]:
    """What the refresh route is made of."""

    async def select(
        repository: Annotated[
            list[str] | None, Query(description="Only these repositories; by default all.")
        ] = None,
    ) -> list[Refresher[Any]]:
        return [_named(name, refreshers) for name in dict.fromkeys(repository or refreshers)]

    Selected = Annotated[list[Refresher[Any]], Depends(select)]

    async def refresh_and_return_rows(selected: Selected, wait: Wait = DEFAULT_WAIT) -> Response:
        """Have every worker load again, and return this one's rows.

        The header `Workers-Missing` names workers that do not serve them yet, and transports by which none
        could be asked, if there are any.
        """
        loads, attendance = await _refresh(_coherence(), selected, wait)
        for load in loads:
            if isinstance(load, BaseException):
                raise load
        body = combine(load.snapshot.json for load in loads if isinstance(load, Load))
        return Response(body, media_type="application/json", headers=_late(attendance))

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
        ways, and the answer does not wait for that; 503 means that the hint was not passed on.
        """
        body = await _body(request)
        if body or model is not None:
            await _follow(decode(body) if body else _all_of(model or ""), wait)
            return Response(status_code=202)
        coherence = _coherence()
        loads, attendance = await _refresh(coherence, selected, wait)
        response.headers.update(_late(attendance))
        if not all(isinstance(load, Load) for load in loads):
            response.status_code = 503
        elif not all(found.complete for found in attendance.values()):
            response.status_code = 504
        return {
            refresher.name: _report(refresher, load, attendance[refresher.name], coherence.roll_call.worker)
            for refresher, load in zip(selected, loads, strict=True)
        }

    guard, reports = [Depends(may_refresh(token))], dict[str, DjangoORMRefreshReport]
    return [
        {
            "endpoint": refresh_and_return_rows,
            "methods": ["GET"],
            "response_model": dict[str, list[dict[str, Any]]],
            "dependencies": guard,
            "responses": {**_REFUSALS, 503: {"description": "A load failed; the old rows are served on."}},
            "summary": "Reload, and return the rows",
        },
        {
            "endpoint": refresh_and_report,
            "methods": ["POST"],
            "response_model": reports,
            "dependencies": guard,
            "responses": {
                **_REFUSALS,
                202: {"model": None, "description": "The hint was received, and is followed from now on."},
                413: {"description": f"The hint is longer than {READ_LIMIT:,} bytes."},
                503: {
                    "model": reports,
                    "description": "At least one load failed here; or a hint was received, and "
                    "could not be passed on.",
                },
                504: {"model": reports, "description": "Not all other workers have it yet."},
            },
            "openapi_extra": _HINT,
            "summary": "Reload, and report what was done; or receive a hint",
        },
    ]


# Who may refresh

_bearer = HTTPBearer(
    # A name of its own: an application may have a bearer scheme, too, and both stand in one document.
    scheme_name="DjangoORMRefreshToken",
    auto_error=False,
    description="The value of DJANGO_ORM_REFRESH_TOKEN.",
)


def may_refresh(token: SecretStr | None) -> Callable[..., Awaitable[None]]:
    """A dependency that lets a request pass or ends it with 401 or 403."""

    async def check(
        credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    ) -> None:
        if token is None:
            if not django_settings.DEBUG:
                raise _refused(403, f"Refreshing is closed: {HOW_TO_ALLOW}.", "no token configured")
        elif credentials is None:
            raise _refused(401, "Send `Authorization: Bearer <token>`.", "no token sent")
        elif not secrets.compare_digest(
            # A header's bytes are read as Latin-1; the token's are UTF-8.
            credentials.credentials.encode("latin-1"),
            token.get_secret_value().encode(),
        ):
            raise _refused(403, "This token may not refresh.", "wrong token")

    return check


def _refused(status: int, detail: str, reason: str) -> HTTPException:
    logger.warning("refresh_refused", status=status, reason=reason)
    return HTTPException(status, detail, {"WWW-Authenticate": "Bearer"} if status == 401 else None)


def warn_if_closed(settings: ORMSettings) -> None:
    """Log who may refresh, if the settings have no token."""
    if settings.refresh_token is None:
        logger.warning(
            "refresh_open_to_all" if django_settings.DEBUG else "refresh_closed",
            path=settings.refresh_path,
            hint=HOW_TO_ALLOW,
        )


# Refreshing


async def _refresh(
    coherence: Coherence, selected: Sequence[Refresher[Any]], wait: float
) -> tuple[Sequence[Load[Any] | BaseException], Mapping[str, Attendance]]:
    """Load here, and meanwhile elsewhere: the loads, and by repository which other workers have loaded."""
    names = [refresher.name for refresher in selected]
    loads, attendance = await asyncio.gather(
        asyncio.gather(*(refresher.refresh("route") for refresher in selected), return_exceptions=True),
        coherence.call_roll(names, wait),
    )
    return loads, attendance


def _late(attendance: Mapping[str, Attendance]) -> dict[str, str]:
    every = attendance.values()
    late = set[str]().union(*(found.failed | found.missing | found.down for found in every))
    return {"Workers-Missing": ", ".join(sorted(late))} if late else {}


def _coherence() -> Coherence:
    coherence = application.find("The refresh route").get(Coherence)
    if coherence is None:
        raise NotStarted("The application ends.")
    return coherence


def _named(name: str, refreshers: Refreshers) -> Refresher[Any]:
    try:
        return refreshers[name]
    except KeyError:
        raise NotFound(f"There is no repository {name!r}. {nearest(name, refreshers)}") from None


def _report(
    refresher: Refresher[Any], load: Load[Any] | BaseException, others: Attendance, worker: str
) -> DjangoORMRefreshReport:
    if not isinstance(load, Load | RefreshFailed):
        raise load
    loaded = load if isinstance(load, Load) else None
    snapshot = refresher.snapshot if loaded is None else loaded.snapshot
    return DjangoORMRefreshReport(
        rows=None if snapshot is None else len(snapshot),
        version=None if snapshot is None else snapshot.version,
        duration_ms=None if loaded is None else round(loaded.duration * 1000, 3),
        trigger=None if loaded is None else loaded.trigger,
        error=type(load.__cause__ or load).__name__ if isinstance(load, RefreshFailed) else None,
        workers=DjangoORMWorkers(
            asked_by=sorted(others.asked),
            down=sorted(others.down),
            have=sorted(others.have if loaded is None else others.have | {worker}),
            failed=sorted(others.failed | {worker} if loaded is None else others.failed),
            missing=sorted(others.missing),
        ),
    )


# Hints


async def _body(request: Request) -> bytes:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > READ_LIMIT:
            raise HTTPException(413, f"A hint has at most {READ_LIMIT:,} bytes.")
    return body


def _all_of(label: str) -> Hint:
    """A hint for all rows of the model with this label."""
    # A hint in a body is taken as it is: the Django process that posts it may have models that are not here.
    try:
        return Hint(model_named(label)._meta.label)
    except UnknownModel as error:
        raise NotFound(str(error)) from None


async def _follow(hint: Hint, wait: float) -> None:
    coherence = _coherence()
    if not wait:
        coherence.follow_hint(hint)
        return
    try:
        await coherence.announce(hint)
    except TransportUnavailable as error:
        cause = type(error).__name__
        raise HTTPException(
            503, f"This worker follows the hint, and could not pass it on ({cause})."
        ) from error
