"""What every server process of the tests has in common: start, stop, kill, wait, clean up.

One class holds the life cycle, so that each server states only its command and how to ask whether
it is ready. A server keeps its port for life: clients under test reconnect to the same URL after a
kill.
"""

import os
import shutil
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

import pytest

from .account import Identity, make_directory, unprivileged
from .guard import guard, kill_tree
from .ports import free_port, listens

ADDRESS_IN_USE = "already in use"
_LOG_LINES = 60


class ServerError(RuntimeError):
    """A server did not start or stop; the message ends with the last lines of its log."""


class Server(ABC):
    """A server process on 127.0.0.1, or one that an environment variable names.

    A server from the environment is used as it is: `start` only checks that it answers, and what
    would end it skips the test with the reason.

    Args:
        deadline: Seconds that a start or a stop may take.

    """

    name: ClassVar[str]
    variable: ClassVar[str]
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(self, *, deadline: float = 30.0) -> None:
        self.deadline = deadline
        self.external = os.environ.get(self.variable) or None
        self.port = 0
        self._directory: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @classmethod
    def unavailable(cls) -> str | None:
        """Return why this server cannot be used here, for `pytest.skip`, or None if it can."""
        return None if os.environ.get(cls.variable) else cls._missing()

    @property
    def pid(self) -> int | None:
        """The process id while the server runs; None for a server from the environment."""
        return None if self._process is None else self._process.pid

    @property
    def directory(self) -> Path:
        """The temporary directory that holds everything of this server."""
        if self._directory is None:
            raise ServerError(f"{self.name} has no directory before its first start().")
        return self._directory

    def start(self) -> Self:
        """Start the server and return when it answers.

        The data of an earlier start is kept, also after `kill`.

        Raises:
            ServerError: It died or did not answer in time.

        """
        if self.external is not None:
            self._wait_ready()
            return self
        if self._process is not None:
            raise ServerError(f"{self.name} runs already.")
        try:
            if self._directory is None:
                self._create()
            self._spawn()
        except BaseException:
            self.close()
            raise
        return self

    def stop(self) -> None:
        """Ask the server to end now, cutting its clients off, and wait until it has.

        Raises:
            ServerError: It had to be killed after the deadline.

        """
        self._skip_if_external("stopped")
        if self._process is None:
            return
        self._process.send_signal(self.stop_signal)
        try:
            self._process.wait(self.deadline)
        except subprocess.TimeoutExpired:
            self.kill()
            message = f"{self.name} did not stop within {self.deadline} s and was killed."
            raise ServerError(f"{message}\n{self.log_tail()}") from None
        self._forget_process()

    def kill(self) -> None:
        """End every process of the server with SIGKILL, as a crash would."""
        self._skip_if_external("killed")
        if self._process is None:
            return
        kill_tree(self._process.pid, deadline=self.deadline)
        self._process.wait(self.deadline)
        self._forget_process()

    def restart(self) -> None:
        """Stop the server and start it on the same port with the same data."""
        self.stop()
        self.start()

    def close(self) -> None:
        """End the server and delete its directory; a server from the environment stays."""
        if self.external is not None:
            return
        self.kill()
        if self._directory is not None:
            shutil.rmtree(self._directory)
            guard().discard(self._directory)
            self._directory = None

    def log_tail(self) -> str:
        """Return the last lines of the log since the last start."""
        if self._directory is None:
            return ""
        lines = self._log_since_start().splitlines()[-_LOG_LINES:]
        return "\n".join([f"--- log of {self.name} ---", *lines])

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @classmethod
    @abstractmethod
    def _missing(cls) -> str | None:
        """Return what to install for this server, or None if all is here."""

    @abstractmethod
    def _command(self) -> list[str]:
        """Return the command that runs the server in the foreground on `self.port`."""

    @abstractmethod
    def _ping(self) -> bool:
        """Tell whether the server answers a client; until it does, it may still be starting."""

    def _initialise(self) -> None:  # noqa: B027 - nothing to do for a server without data
        """Fill the new directory: once, before the first start."""

    def _identity(self) -> Identity:
        return unprivileged()

    def _create(self) -> None:
        reason = self._missing()
        if reason is not None:
            raise ServerError(reason)
        self._directory = make_directory(self.name.lower(), self._identity())
        guard().add(self._directory)
        self._initialise()

    def _run(self, command: list[str]) -> None:
        """Run a set-up command to its end, with its output in the log."""
        with self._log_path.open("ab") as log:
            process = self._popen(command, log.fileno())
        try:
            code = process.wait(self.deadline)
        except BaseException:
            kill_tree(process.pid)
            process.wait()
            raise
        finally:
            guard().discard(process.pid)
        if code != 0:
            raise ServerError(f"{command[0]} failed with code {code}.\n{self.log_tail()}")

    def _spawn(self) -> None:
        end = time.monotonic() + self.deadline
        first = self.port == 0
        while True:
            if first:
                self.port = free_port()
            with self._log_path.open("ab") as log:
                self._log_start = log.seek(0, os.SEEK_END)
                self._process = self._popen(self._command(), log.fileno())
            try:
                self._wait_ready(end)
            except ServerError:
                # The race that `ports` explains; after the first start clients know the port, so
                # whoever took it has to let go of it within the deadline.
                taken = ADDRESS_IN_USE in self._log_since_start().lower()
                if not taken or time.monotonic() > end:
                    raise
                self.kill()
                time.sleep(0.05)
            else:
                return

    def _popen(self, command: list[str], log: int) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=self.directory,
            # The caller's locale and server settings (PGDATA, MYSQL_HOME, ...) must not matter.
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"},
            # Ctrl-C in a terminal is for the tests, whose fixtures then stop the servers.
            start_new_session=True,
            **self._identity(),
        )
        guard().add(process.pid)
        return process

    def _wait_ready(self, end: float | None = None) -> None:
        end = end or time.monotonic() + self.deadline
        while not (self._listens() and self._ping()):
            if self._process is not None and self._process.poll() is not None:
                message = f"{self.name} ended with code {self._process.returncode} while starting."
                raise ServerError(f"{message}\n{self.log_tail()}")
            if time.monotonic() > end:
                message = f"{self.name} did not answer within {self.deadline} s."
                raise ServerError(f"{message}\n{self.log_tail()}")
            time.sleep(0.02)

    def _listens(self) -> bool:
        return self._process is None or listens(self._process.pid, self.port)

    def _forget_process(self) -> None:
        if self._process is not None:
            guard().discard(self._process.pid)
            self._process = None

    def _skip_if_external(self, verb: str) -> None:
        if self.external is not None:
            pytest.skip(
                f"{self.variable} names a server that these tests did not start; "
                f"unset it to let them run one that can be {verb}."
            )

    def _log_since_start(self) -> str:
        if not self._log_path.exists():
            return ""
        with self._log_path.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    @property
    def _log_path(self) -> Path:
        return self.directory / "log"
