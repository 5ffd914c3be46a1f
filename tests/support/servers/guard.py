"""Kill what the tests started, also when the tests themselves are killed.

Fixtures stop their servers, and they also run on Ctrl-C. They do not run after SIGTERM, SIGKILL or
a crash of the interpreter. For those cases a second process, the guard, holds one end of a pipe and
a list of what is alive; when the pipe closes, for whatever reason, it kills and deletes what is
still on the list.

`PR_SET_PDEATHSIG` was rejected: it exists on Linux only, needs `preexec_fn` (unsafe with threads),
fires when the *thread* that started the server ends, and deletes no directory.

The guard runs this file as a script, so nothing here may import from the package.
"""

import atexit
import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil


def kill_tree(pid: int, *, deadline: float = 10.0) -> None:
    """Kill a process and its descendants with SIGKILL and wait until they have ended.

    A process group would not do: every PostgreSQL backend is a session of its own. The root is
    stopped first, so that it neither starts another child nor handles the death of one.

    Args:
        pid: The root of the tree; it is no error if it has ended already.
        deadline: Seconds to wait for the processes to end.

    Raises:
        TimeoutError: A process is still there after the deadline.

    """
    try:
        root = psutil.Process(pid)
        root.suspend()
        tree = [*root.children(recursive=True), root]
    except psutil.NoSuchProcess:
        return
    for process in tree:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    end = time.monotonic() + deadline
    while any(is_alive(process) for process in tree):
        if time.monotonic() > end:
            raise TimeoutError(f"Processes did not end after SIGKILL: {tree}")
        time.sleep(0.005)


def is_alive(process: psutil.Process) -> bool:
    """Tell whether a process still runs; a zombie that nobody has waited for does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Guard:
    """The pipe to the guard process of this process."""

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._process = subprocess.Popen(
            # -P: the modules beside this file are not for it, `uvicorn` least of all.
            [sys.executable, "-P", __file__],
            stdin=subprocess.PIPE,
            text=True,
            # In a session of its own Ctrl-C in a terminal does not reach it.
            start_new_session=True,
        )

    def add(self, item: int | Path) -> None:
        """Kill this process, or delete this directory, when the tests are gone."""
        self._send("+", item)

    def discard(self, item: int | Path) -> None:
        """Forget a process or directory that has been dealt with."""
        self._send("-", item)

    def leave_to_parent(self) -> None:
        """Let go of the pipe in a forked child: the parent's death must close its last end."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                os.close(self._process.stdin.fileno())

    def close(self) -> None:
        """End the guard process; what is still on its list is killed and deleted."""
        if self._owner == os.getpid():
            self._process.communicate(timeout=30)

    def _send(self, sign: str, item: int | Path) -> None:
        if self._owner != os.getpid():
            raise RuntimeError("A forked child cannot start or stop servers of its parent's tests.")
        assert self._process.stdin is not None
        self._process.stdin.write(f"{sign}{item}\n")
        self._process.stdin.flush()


@functools.cache
def guard() -> Guard:
    """Return the guard of this process, started on first use and ended with the interpreter."""
    process = Guard()
    atexit.register(process.close)
    os.register_at_fork(after_in_child=process.leave_to_parent)
    return process


def main() -> None:
    """Collect the list from standard input; when that ends, kill and delete what is on it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    items: dict[str, None] = {}
    for line in sys.stdin:
        sign, item = line[0], line[1:].rstrip("\n")
        if sign == "+":
            items[item] = None
        else:
            items.pop(item, None)
    for item in (item for item in items if item.isdigit()):
        with contextlib.suppress(TimeoutError):
            kill_tree(int(item))
    for item in (item for item in items if not item.isdigit()):
        shutil.rmtree(item, ignore_errors=True)


if __name__ == "__main__":
    main()
