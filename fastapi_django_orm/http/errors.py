"""What Django's exceptions become in an answer, if the application has no handler of its own for them.

Each becomes FastAPI's own exception, an ``HTTPException`` or a ``RequestValidationError``, which the
application's handler of those answers. So errors have one form, also in an application that has another one.
The answer has a status and names of fields; what a database or Django says is in the log, without values.
"""

from collections.abc import Callable, Iterator
from typing import Any

from django.core.exceptions import (
    NON_FIELD_ERRORS,
    BadRequest,
    ObjectDoesNotExist,
    PermissionDenied,
    SuspiciousOperation,
    ValidationError,
)
from django.db import IntegrityError, InterfaceError, OperationalError
from django.http import Http404
from fastapi.exception_handlers import request_validation_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.requests import Request
from starlette._utils import is_async_callable
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import Response

from ..errors import without_values
from ..events import logger
from ..writing.constraints import Violation, violation_of

STATUSES: dict[type[Exception], int] = {
    Http404: 404,
    ObjectDoesNotExist: 404,
    PermissionDenied: 403,
    SuspiciousOperation: 400,
    BadRequest: 400,
    OperationalError: 503,
    InterfaceError: 503,
    IntegrityError: 409,
    ValidationError: 422,
}

_ANSWERED = tuple(STATUSES)
_UNIQUE = frozenset({"unique", "unique_together", "unique_for_date"})
_MESSAGES = {
    "unique": "Another row has this value.",
    "foreign_key": "It refers to a row that does not exist, or other rows refer to it.",
    "null": "A value is missing.",
    "check": "The values contradict a rule for them.",
    "exclusion": "Another row has values that exclude these.",
    "protected": "Other rows refer to this one.",
    "restricted": "Other rows refer to this one.",
    "constraint": "The values contradict a rule for them.",
}


def handler_of(error: Exception) -> Callable[..., Any] | None:
    """Return the handler of an exception that the application has none for; None if it is not Django's."""
    return answer if isinstance(error, _ANSWERED) else None


async def answer(request: Request, error: Exception) -> Response | None:
    """Answer a request that Django's exception has ended, by the application's handler of FastAPI's."""
    if request.scope["type"] != "http":  # a websocket has no status to send
        raise error
    handlers, by_status = request.scope["starlette.exception_handlers"]
    translated: Any = translate(error)
    _log(request, error, translated)
    handler = by_status.get(translated.status_code) if isinstance(translated, HTTPException) else None
    own = (handlers[kind] for kind in type(translated).__mro__ if kind in handlers)
    handler = handler or next(own, request_validation_exception_handler)
    if is_async_callable(handler):
        response: Response | None = await handler(request, translated)
    else:
        response = await run_in_threadpool(handler, request, translated)
    return response


def translate(error: Exception) -> HTTPException | RequestValidationError:
    """Return the exception of FastAPI's that says the same to a client."""
    if isinstance(error, ValidationError):
        fields = _not_unique(error)
        return RequestValidationError(list(_details(error))) if fields is None else _conflict(*fields)
    if isinstance(error, IntegrityError):
        return _conflict(violation_of(error))
    status = next(status for kind, status in STATUSES.items() if isinstance(error, kind))
    return HTTPException(status, headers={"Retry-After": "1"} if status == 503 else None)


def _conflict(violation: Violation, message: str | None = None) -> HTTPException:
    detail: Any = {
        "type": violation.kind,
        "msg": message or _MESSAGES[violation.kind],
        "fields": list(violation.fields),
    }
    return HTTPException(409, detail)


def _not_unique(error: ValidationError) -> tuple[Violation, str] | None:
    """What is taken already, if nothing else is wrong.

    The database says so of a row that another request has written at the same moment, and the answer should
    not depend on the moment.
    """
    every = list(_by_field(error))
    found = [_violation(name, each) for name, each in every]
    if not found or None in found:
        return None
    violations = [each for each in found if each is not None]
    fields = dict.fromkeys(name for each in violations for name in each.fields)
    message = " ".join(each.messages[0] for _, each in every)
    return Violation(violations[0].kind, tuple(fields)), message


def _violation(name: str | None, error: Any) -> Violation | None:
    if error.code not in _UNIQUE:
        return getattr(error, "violation", None)
    checked = (error.params or {}).get("unique_check") or ([] if name is None else [name])
    return Violation("unique", tuple(checked))


def _details(error: ValidationError) -> Iterator[dict[str, Any]]:
    """What is wrong, in the form that FastAPI has for it."""
    position = getattr(error, "position", None)
    for name, each in _by_field(error):
        loc = ["body", *([] if position is None else [position]), *([] if name is None else [name])]
        yield {"type": each.code or "value_error", "loc": loc, "msg": each.messages[0]}


def _by_field(error: ValidationError) -> Iterator[tuple[str | None, Any]]:
    if not hasattr(error, "error_dict"):
        yield from ((None, each) for each in error.error_list)
        return
    for name, errors in error.error_dict.items():
        yield from ((None if name == NON_FIELD_ERRORS else name, each) for each in errors)


def _log(request: Request, error: Exception, translated: Exception) -> None:
    status = translated.status_code if isinstance(translated, HTTPException) else 422
    # The request's id is bound for all that is logged during the request.
    level = logger.error if status == 503 else logger.info if status in (404, 422) else logger.warning
    level(
        "request_failed",
        status=status,
        method=request.method,
        path=request.url.path,
        error=type(error).__name__,
        cause=None if status in (404, 422) else without_values(error),
    )
