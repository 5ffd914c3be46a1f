"""A real uvicorn in a process of its own, as a user starts it."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import psutil

from .base import ADDRESS_IN_USE
from .guard import guard, kill_tree
from .ports import free_port, listens


def _leave_after_an_error(response: httpx.Response) -> None:
    """Close the connection of a 500: uvicorn closes it a moment later, and no header announces that."""
    if response.status_code == 500:
        response.read()
        response.extensions["network_stream"].close()


# Options of an httpx.Client that sends no request on a connection that uvicorn is about to close: it closes
# one after an unhandled error, and after five seconds without a request.
KEEP_ALIVE: dict[str, Any] = {
    "event_hooks": {"response": [_leave_after_an_error]},
    "limits": httpx.Limits(keepalive_expiry=2.0),
}


class UvicornError(RuntimeError):
    """Uvicorn did not do what the test waited for; the message ends with all of its output."""


class Uvicorn:
    """`python -m uvicorn APP` on a free port of 127.0.0.1.

    Args:
        app: What uvicorn is told to run, `"main:app"`.
        directory: The folder to run in, where `main.py` is.
        env: Variables on top of this process's own; None removes one.
        args: Further options, such as `["--workers", "2"]`.
        deadline: Seconds that a start, a stop or a request may take.

    """

    _ending = signal.SIGINT

    def __init__(
        self,
        app: str = "main:app",
        *,
        directory: str | Path = ".",
        env: Mapping[str, str | None] | None = None,
        args: Sequence[str] = (),
        deadline: float = 30.0,
    ) -> None:
        self.deadline = deadline
        self.port = 0
        self._app = app
        self._args = args
        self._directory = directory
        variables = {**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})}
        self._env = {name: value for name, value in variables.items() if value is not None}
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._client: httpx.Client | None = None
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._ended = True

    @classmethod
    def fails(
        cls,
        app: str = "main:app",
        *,
        directory: str | Path = ".",
        env: Mapping[str, str | None] | None = None,
        args: Sequence[str] = (),
        deadline: float = 30.0,
    ) -> tuple[int, str]:
        """Run an application that must not start and return its exit code and output.

        Raises:
            UvicornError: It started, or did not end within the deadline.

        """
        server = cls(app, directory=directory, env=env, args=args, deadline=deadline)
        try:
            if server._start_once():
                raise server._error("started, though it should have failed")
            return server._exit_code(), server.output()
        finally:
            server.close()

    @property
    def url(self) -> str:
        """The address to send requests to, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process id of uvicorn, or of its supervisor with several workers."""
        if self._process is None:
            raise UvicornError("Uvicorn has not been started.")
        return self._process.pid

    @property
    def client(self) -> httpx.Client:
        """The one client of this server, whose connections stay open until `stop`."""
        if self._client is None:
            self._client = httpx.Client(
                base_url=self.url,
                timeout=self.deadline,
                # A proxy from the environment is not for 127.0.0.1.
                trust_env=False,
                **KEEP_ALIVE,
            )
        return self._client

    def get(self, path: str, **options: Any) -> httpx.Response:
        """Send a GET request; the options are those of `httpx.Client.get`."""
        return self.client.get(path, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        """Send a POST request; the options are those of `httpx.Client.post`."""
        return self.client.post(path, **options)

    def start(self) -> Self:
        """Start uvicorn and return when it listens, which it does after the lifespan's start-up.

        A server that was stopped starts again on the same port.

        Raises:
            UvicornError: It ended, or did not listen in time.

        """
        try:
            if not self._start_once():
                raise self._error(f"ended with code {self._exit_code()} while starting")
        except BaseException:
            self.close()
            raise
        return self

    def stop(self) -> int:
        """End the server as an operator does and return its exit code; kill it after the deadline.

        Raises:
            UvicornError: It had to be killed.

        """
        if self._process is None:
            raise UvicornError("Uvicorn has not been started.")
        self._close_client()
        if self._process.poll() is None:
            self._process.send_signal(self._ending)
        try:
            return self._exit_code()
        finally:
            self.close()

    def kill(self) -> None:
        """End uvicorn and its workers with SIGKILL."""
        self.close()

    def close(self) -> None:
        """Make sure that nothing is left: no process, no thread, no open file; output is kept."""
        self._close_client()
        process, self._process = self._process, None
        if process is None:
            return
        kill_tree(process.pid)
        # A supervisor that has ended by itself may have left workers behind in its session.
        for orphan in _session(process.pid):
            kill_tree(orphan)
        process.wait(self.deadline)
        guard().discard(process.pid)
        assert self._reader is not None
        self._reader.join(self.deadline)
        assert process.stdout is not None
        process.stdout.close()

    def output(self) -> str:
        """Return all that was written so far, standard error included."""
        with self._changed:
            return "".join(self._lines)

    def wait_for_output(self, pattern: str, deadline: float | None = None) -> re.Match[str]:
        """Wait until the output since the start matches a regular expression.

        Args:
            pattern: What to search for, over lines with `^` and `$` at their ends.
            deadline: Seconds to wait; by default the server's own.

        Raises:
            UvicornError: The output ended, or the deadline passed, without a match.

        """
        regex = re.compile(pattern, re.MULTILINE)
        end = time.monotonic() + (self.deadline if deadline is None else deadline)
        with self._changed:
            while True:
                match = regex.search("".join(self._lines))
                if match is not None:
                    return match
                if self._ended or not self._changed.wait(end - time.monotonic()):
                    raise self._error(f"did not write {pattern!r}")

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close() if self._process is None or error is not None else self.stop()

    def _start_once(self) -> bool:
        """Start uvicorn; tell whether it listens (True) or has ended (False)."""
        end = time.monotonic() + self.deadline
        first = self.port == 0
        while True:
            if first:
                self.port = free_port()
            self._spawn()
            if self._wait_listening(end):
                return True
            # The race that `ports` explains.
            if ADDRESS_IN_USE not in self.output().lower() or time.monotonic() > end:
                return False
            self.close()

    def _spawn(self) -> None:
        if self._process is not None:
            raise UvicornError("Uvicorn runs already.")
        self._lines.clear()
        self._ended = False
        self._process = subprocess.Popen(
            [sys.executable, "-m", *self._command(), *self._args],
            cwd=self._directory,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            # Ctrl-C in a terminal is for the tests, whose fixtures then stop uvicorn.
            start_new_session=True,
        )
        guard().add(self._process.pid)
        self._reader = threading.Thread(target=self._read, args=[self._process], name="uvicorn")
        self._reader.start()

    def _command(self) -> Sequence[str]:
        return ("uvicorn", self._app, "--host", "127.0.0.1", "--port", str(self.port))

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            with self._changed:
                self._lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _wait_listening(self, end: float) -> bool:
        assert self._process is not None
        while not listens(self._process.pid, self.port):
            if self._process.poll() is not None:
                self._exit_code()
                return False
            if time.monotonic() > end:
                raise self._error(f"did not listen within {self.deadline} s")
            time.sleep(0.02)
        return True

    def _exit_code(self) -> int:
        """Wait for the end and for the last line of output."""
        assert self._process is not None
        assert self._reader is not None
        try:
            code = self._process.wait(self.deadline)
        except subprocess.TimeoutExpired:
            raise self._error(f"did not end within {self.deadline} s and was killed") from None
        for orphan in _session(self._process.pid):
            kill_tree(orphan)
        self._reader.join(self.deadline)
        return code

    def _close_client(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def _error(self, what: str) -> UvicornError:
        return UvicornError(f"uvicorn {self._app} {what}.\n--- its output ---\n{self.output()}")


class Gunicorn(Uvicorn):
    """`python -m gunicorn APP` in the same way; name the worker's class in `args`."""

    _ending = signal.SIGTERM  # after SIGINT, uvicorn-worker 0.4 waits for half a minute

    def _command(self) -> Sequence[str]:
        return ("gunicorn", self._app, "--bind", f"127.0.0.1:{self.port}")


def _session(session: int) -> list[int]:
    """Return the processes of a session whose leader has ended."""
    found = []
    for pid in psutil.pids():
        try:
            if pid != session and os.getsid(pid) == session:
                found.append(pid)
        except (ProcessLookupError, PermissionError):
            continue
    return found
