"""Waiting: time that passes although a test has stopped the clock, how long after failures, for tasks to end.

freezegun replaces ``time.monotonic`` and every module's name for it, so a duration measured with it is zero
or fifty years. asyncio uses it, too: under a stopped clock ``asyncio.sleep()`` never ends.
https://github.com/spulec/freezegun/issues/401
"""

import asyncio
import threading
import time
from collections.abc import Callable
from functools import partial
from types import BuiltinFunctionType
from typing import Any

# The same clock as time.monotonic() by another name, which freezegun and time-machine do not replace.
monotonic: Callable[[], float] = partial(time.clock_gettime, time.CLOCK_MONOTONIC)


def backoff(failures: int, first: float, last: float) -> float:
    """Seconds until the next attempt: ``first`` after one failure, twice that after two, up to ``last``."""
    return min(last, first * 2.0 ** min(failures - 1, 10))


async def pause(seconds: float) -> None:
    """Sleep for what really are so many seconds: for waits that others depend on."""
    if isinstance(time.monotonic, BuiltinFunctionType):
        await asyncio.sleep(seconds)
        return
    # A test has replaced the clock. A thread's timer waits in C, which no test replaces.
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    timer = threading.Timer(seconds, loop.call_soon_threadsafe, [over.set])
    timer.daemon = True  # the loop may be closed, and the process end, before it fires
    timer.start()
    try:
        await over.wait()
    finally:
        timer.cancel()


async def cancel(*tasks: "asyncio.Task[Any] | None") -> None:
    """Cancel those tasks that there are, and wait until they have ended, however they do."""
    begun = [task for task in tasks if task is not None]
    for task in begun:
        task.cancel()
    await asyncio.gather(*begun, return_exceptions=True)
