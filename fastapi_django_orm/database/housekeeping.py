"""Periodic maintenance: jobs that wait too long, calls that do not end, idle connections."""

import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import FrameType

import asgiref
from django.db.backends.base.base import BaseDatabaseWrapper

from ..clock import monotonic, pause
from ..events import logger
from . import calls
from .calls import Call, running_calls
from .liveness import Waits, cut
from .pool import Pool
from .threads import DatabaseThreads, Job

INTERVAL = 1.0  # seconds

# What stands between a call and the function that it runs.
_WRAPPERS = (str(Path(calls.__file__).parent), str(Path(asgiref.__file__).parent))


async def keep_house(
    every: Sequence[DatabaseThreads],
    pools: Callable[[], Iterable[Pool]],
    thread_timeout: float,
    call_timeout: float,
) -> None:
    """Look after the threads and connections of an application, until cancelled.

    A job that waits for ``thread_timeout`` seconds is given up, a call that runs as long is named in the log,
    and a connection that waits for one answer for ``call_timeout`` seconds (0: any time) is cut.
    """
    named: set[Call] = set()
    waits = Waits()
    interval = min(INTERVAL, thread_timeout / 4, call_timeout / 4 or INTERVAL)
    while True:
        await pause(interval)
        for threads in every:
            threads.expire()
        named = _name_blocked(named, thread_timeout)
        if call_timeout:
            _cut_off(waits, [each for pool in pools() for each in pool.timed()], call_timeout)
        for pool in pools():
            if pool.has_old:
                every[-1].put(Job(pool.sweep))


def _cut_off(waits: Waits, connections: Iterable[BaseDatabaseWrapper], call_timeout: float) -> None:
    for connection in connections:
        if waits.look(connection) > call_timeout:
            logger.error("call_cut_off", databases=[connection.alias], after=call_timeout)
            cut(connection)


def _name_blocked(named: set[Call], thread_timeout: float) -> set[Call]:
    latest = monotonic() - thread_timeout
    blocked = {call for call in tuple(running_calls) if call.started < latest}
    unnamed = blocked - named
    frames = sys._current_frames() if unnamed else {}
    for call in unnamed:
        frame = frames.get(call.ident)
        if frame is not None or not call.ident:
            logger.warning(
                "call_does_not_end",
                seconds=round(monotonic() - call.started, 1),
                databases=call.aliases,
                at=["a query that the event loop waits for"] if frame is None else _places(frame),
            )
    # This function's own frame is among them: they would hold each other, and all that the threads work on.
    frames.clear()
    return blocked


def _places(frame: FrameType) -> list[str]:
    """Where a call is: the function that it runs and what that has called, and where it waits in the end."""
    stack = traceback.extract_stack(frame)
    begin = max((number for number, step in enumerate(stack) if step.filename == calls.__file__), default=-1)
    steps = [step for step in stack[begin + 1 :] if not step.filename.startswith(_WRAPPERS)]
    if len(steps) > 4:
        steps = [*steps[:3], steps[-1]]
    return [f"{step.filename}:{step.lineno} in {step.name}" for step in steps]
