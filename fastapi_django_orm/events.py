"""The package's logger, which never raises.

A logger may raise: its disk is full, the reader of its pipe has gone, a processor of the application's fails.
The tasks and threads that keep transports and connections must outlive that. So no module of this package
calls structlog's or logging's logger itself.
"""

import logging
from contextlib import suppress
from functools import partialmethod
from typing import Any

import structlog

NAME = "fastapi_django_orm"


class EventLog:
    """Logs through structlog's or logging's logger, and raises nothing."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def _write(self, level: str, event: str, *args: Any, **fields: Any) -> None:
        with suppress(Exception):  # there is nowhere to say so: that was the log
            getattr(self._logger, level)(event, *args, **fields)

    debug = partialmethod(_write, "debug")
    info = partialmethod(_write, "info")
    warning = partialmethod(_write, "warning")
    error = partialmethod(_write, "error")


# structlog's configuration counts when a line is written, and not when this module is imported.
logger = EventLog(structlog.get_logger(NAME))

# For what runs in Django's processes. structlog's default is standard output, where a management command
# writes what it was asked for.
django_logger = EventLog(logging.getLogger(NAME))
