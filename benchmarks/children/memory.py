"""The memory of this process: now, and at its peak since a moment.

Resident memory, because tracemalloc sees neither what compiled extensions allocate for themselves nor what
a heap full of holes keeps, and slows the measured code.
"""

from __future__ import annotations

import ctypes
import gc
import re
import resource
import sys
from pathlib import Path

import psutil

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")


def settled() -> int:
    """Return the bytes that are in use, after all that is free has been released."""
    gc.collect()
    if sys.platform == "linux":
        malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)  # glibc's alone
        malloc_trim(0)
    return int(psutil.Process().memory_info().rss)


def forget_peak() -> None:
    """Let the peak begin now: https://www.kernel.org/doc/html/latest/filesystems/proc.html."""
    if CLEAR.exists():
        CLEAR.write_text("5")


def peak() -> int:
    """Return the most bytes since `forget_peak`; since the process began where no system tells more."""
    if CLEAR.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())):
        return int(found[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
