"""The package's logger, whose failure is never the caller's.

A log may raise: its disk is full, the reader of its pipe has gone, a processor of the application's fails.
Most lines are written by what must outlive that: the tasks that keep transports and connections, the threads
that send hints and run queries. So no module of this package calls structlog's or logging's logger itself.
"""

import logging
from contextlib import suppress
from typing import Any

import structlog

NAME = "fastapi_django_orm"


class EventLog:
    """Logs through another logger, and raises nothing."""

    def __init__(self, logger: Any) -> None:
        """Write through a logger.

        Args:
            logger: structlog's or logging's.
        """
        self._logger = logger

    def debug(self, event: str, *args: Any, **fields: Any) -> None:
        """Write what only helps to find an error."""
        self._write("debug", event, *args, **fields)

    def info(self, event: str, *args: Any, **fields: Any) -> None:
        """Write what happens in ordinary operation."""
        self._write("info", event, *args, **fields)

    def warning(self, event: str, *args: Any, **fields: Any) -> None:
        """Write what somebody should look at."""
        self._write("warning", event, *args, **fields)

    def error(self, event: str, *args: Any, **fields: Any) -> None:
        """Write what has failed."""
        self._write("error", event, *args, **fields)

    def _write(self, level: str, event: str, *args: Any, **fields: Any) -> None:
        with suppress(Exception):  # there is nowhere to say so: that was the log
            getattr(self._logger, level)(event, *args, **fields)


# structlog's configuration counts when a line is written, and not when this module is imported.
logger = EventLog(structlog.get_logger(NAME))

# For what runs in Django's processes. structlog's default is standard output, where a management command
# writes what it was asked for.
django_logger = EventLog(logging.getLogger(NAME))
