"""One stream of logs from structlog, uvicorn and Django, for applications that want it.

The package logs through structlog and configures nothing by itself. An application calls ``configure()``.
``setup`` repeats that after ``django.setup()``, which applies Django's ``LOGGING`` and so may replace
handlers or disable loggers that exist, uvicorn's access log among them.
"""

import logging
import sys
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from contextlib import suppress
from functools import partial
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

ACCESS_LOGGER = "uvicorn.access"
SERVER_LOGGERS = ("uvicorn", "uvicorn.error", ACCESS_LOGGER, "uvicorn.asgi")
DJANGO_LOGGERS = ("django", "django.server", "django.request")

_configure_again: Callable[[], None] | None = None


def configure(
    *, json: bool | None = None, level: int | str = logging.INFO, stream: TextIO | None = None
) -> None:
    """Send the logs of structlog, uvicorn and Django to one stream in one format.

    Call it where the application is made, before or after ``django.setup()``.

    Args:
        json: one JSON object a line, or lines for a person; by default JSON unless the stream is a terminal.
        level: what to leave out, as in ``logging``.
        stream: where to; by default standard error.
    """
    global _configure_again
    stream = stream or sys.stderr
    as_json = not stream.isatty() if json is None else json
    access = logging.getLogger(ACCESS_LOGGER)
    # `uvicorn --no-access-log` leaves it so; Django's LOGGING may undo that.
    muted = {ACCESS_LOGGER} if not (access.handlers or access.propagate) else set[str]()
    _configure_again = partial(_configure, as_json, level, stream, muted)
    _configure_again()


def mark(error: Exception, request_id: str | None) -> None:
    """Remember the id of the request that an error has ended, for whoever logs the error later."""
    with suppress(AttributeError, TypeError):  # of an error without attributes it is not known
        error._request_id = request_id  # type: ignore[attr-defined]


def configure_again() -> None:
    """Repeat the last ``configure()``, if there was one, over what ``django.setup()`` has configured."""
    if _configure_again is not None:
        _configure_again()


def _configure(as_json: bool, level: int | str, stream: TextIO, muted: AbstractSet[str]) -> None:
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,  # or a logger in use would keep what was configured before
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, _access_fields, _request_of_error],
            processors=_rendering(as_json, stream),
            pass_foreign_args=True,
        )
    )
    root = logging.getLogger()
    _remove_streams(root)
    root.addHandler(handler)
    root.setLevel(level)
    for name in (*SERVER_LOGGERS, *DJANGO_LOGGERS, "fastapi_django_orm"):
        logger = logging.getLogger(name)
        _remove_streams(logger)
        logger.propagate = name not in muted
        logger.disabled = False


def _rendering(as_json: bool, stream: TextIO) -> list[Processor]:
    remove_meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    # structlog's own choices show each frame's variables, the database's password among them.
    if as_json:
        transformer = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        return [
            remove_meta,
            structlog.processors.ExceptionRenderer(transformer),
            structlog.processors.JSONRenderer(default=str),
        ]
    plain = structlog.dev.plain_traceback
    return [remove_meta, structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=plain)]


def _remove_streams(logger: logging.Logger) -> None:
    # Plain streams only: a handler that writes a file or mails the admins was put there on purpose.
    for handler in [handler for handler in logger.handlers if type(handler) is logging.StreamHandler]:
        logger.removeHandler(handler)


def _access_fields(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Give a line of uvicorn's access log fields of their own."""
    args: Any = event.pop("positional_args", ())
    if event["_record"].name == ACCESS_LOGGER and len(args) == 5:
        client, verb, path, version, status = args
        event.update(event="request", client=client, method=verb, path=path, http=version, status=status)
    return event


def _request_of_error(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Log the error of a request with that request's id."""
    exc_info = event["_record"].exc_info
    if exc_info and (request_id := getattr(exc_info[1], "_request_id", None)):
        event.setdefault("request_id", request_id)
    return event
