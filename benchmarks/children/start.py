"""Runs a measurement in a process of its own, on the servers' processor."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from benchmarks.peer import Way
from benchmarks.plan import PeerError
from benchmarks.serving import ROOT, TAIL, environment, pin

SECONDS = 600


def outcome(module: str, peer: Way, url: str, processor: int | None, *arguments: object) -> dict[str, Any]:
    """Return what the module prints for this peer.

    Raises `PeerError` with the last lines of its log.
    """
    with subprocess.Popen(
        [sys.executable, "-m", module, peer.module, *map(str, arguments)],
        cwd=ROOT,
        env=environment(peer.environment(), url),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        pin(process, processor)
        try:
            printed, log = process.communicate(timeout=SECONDS)
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        last = log.decode(errors="replace").splitlines()[-TAIL:]
        raise PeerError("\n".join(["ended with an error:", *last]))
    found: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return found
