"""A peer's server process: started, pinned, waited for, stopped with all its children."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

import psutil

from benchmarks.peer import Peer
from benchmarks.plan import PeerError

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 60
STOP_SECONDS = 15
TAIL = 12


def processors() -> tuple[int, int] | None:
    """Return the servers' processor and everything else's; None where nothing can be pinned."""
    if not hasattr(os, "sched_getaffinity"):
        return None  # macOS
    available = sorted(os.sched_getaffinity(0))
    return (available[0], available[1]) if len(available) > 1 else None


@contextlib.contextmanager
def apart() -> Iterator[int | None]:
    """Keep this process and its children off the servers' processor; give that processor."""
    pair = processors()
    if pair is None:
        yield None
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {pair[1]})
    try:
        yield pair[0]
    finally:
        os.sched_setaffinity(0, before)


@dataclass(frozen=True)
class Server:
    """A peer's server that runs: where it answers, and its process."""

    base: str
    pid: int

    def processor_seconds(self) -> float:
        """Return what its processes have had of a processor so far."""
        process = psutil.Process(self.pid)
        times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
        return sum(each.user + each.system for each in times)


@contextlib.contextmanager
def serve(peer: Peer, kind: str, path: str, url: str, processor: int | None) -> Iterator[Server]:
    """Run a peer's server for a kind of cell until the block ends; give it once it answers.

    Raises `PeerError` with the last lines of its log unless `path` gives something good.
    """
    with tempfile.TemporaryFile() as log, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        process = subprocess.Popen(
            peer.command(port, kind),
            cwd=ROOT,
            env=environment(peer.environment(), url),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        pin(process, processor)
        try:
            base = f"http://127.0.0.1:{port}"
            if trouble := trouble_at(process, base + path):
                raise PeerError(f"{trouble}:\n{tail(log.fileno())}")
            yield Server(base, process.pid)
        finally:
            stop(process)


def pin(process: subprocess.Popen[bytes], processor: int | None) -> None:
    """Keep a process on a processor, if there is one: called before it can have started a thread."""
    if processor is not None:
        os.sched_setaffinity(process.pid, {processor})


def environment(settings: dict[str, str], database_url: str) -> dict[str, str]:
    """Return the environment of a peer's process; nothing of the caller's Django gets in."""
    ours = ("DJANGO_", "BENCHMARK_", "PGOPTIONS")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**kept, **settings, "DATABASE_URL": database_url, "PYTHONPATH": path}


def trouble_at(process: subprocess.Popen[bytes], url: str) -> str | None:
    """Wait until the server answers 200 or 304; return what went wrong otherwise."""
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=START_SECONDS):
                return None
        except urllib.error.HTTPError as error:
            return None if error.code == HTTPStatus.NOT_MODIFIED else f"answered {error.code}"
        except OSError:
            if time.monotonic() > deadline:
                return f"did not answer within {START_SECONDS} s"
            time.sleep(0.05)
    return "did not start"


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the server as its operator would, and by force if it does not listen."""
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # its own group: children that it left behind
    process.wait()


def tail(log: int) -> str:
    """Return the last lines of a log."""
    size = os.fstat(log).st_size
    lines = os.pread(log, 8_192, max(0, size - 8_192)).decode(errors="replace").splitlines()
    return "\n".join(lines[-TAIL:]) or "(it wrote nothing)"
