"""One load of one peer: `python -m benchmarks.children.loading MODULE ROWS` prints what it took.

A load of a few rows goes before, so that connecting and compiling are in neither the time nor the memory.
"""

from __future__ import annotations

import importlib
import json
import sys
import time

from benchmarks.children.memory import forget_peak, peak, settled

FEW = 1_000


def measure(module: str, rows: int) -> dict[str, float]:
    """Load once; return seconds, and bytes beyond those that the process had before."""
    peer = importlib.import_module(module)
    peer.load(FEW)
    before = settled()
    forget_peak()
    started = time.perf_counter()
    kept = peer.load(rows)
    seconds = time.perf_counter() - started
    most = peak()
    after = settled()
    for key in range(1, rows + 1):
        peer.row(kept, key)
    return {
        "seconds": seconds,
        "kept": after - before,
        "kept_when_read": settled() - before,
        "peak": most - before,
    }


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
