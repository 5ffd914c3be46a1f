"""A process beside the run that ends when its input does, and tells in lines what it has done."""

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from tests.soak.place import ROOT
from tests.support.servers.guard import guard, kill_tree

START_SECONDS = 60.0
PATIENCE = 90.0  # seconds until it has ended: a write may wait for another's locks
TAIL = 30  # lines


class ChildError(RuntimeError):
    """A process has failed; the message ends with the last that it said."""


class Child:
    """``python -m MODULE …``.

    Args:
        arguments: the module and its arguments.
        environment: its variables.
        said: called with each line that it prints; by default lines are kept.
        voices: how many lines it prints when it has begun.
    """

    def __init__(
        self,
        *arguments: str,
        environment: Mapping[str, str],
        said: Callable[[str], None] | None = None,
        voices: int = 1,
    ) -> None:
        self.lines: list[str] = []
        self.errors: list[str] = []
        self._arguments = arguments
        self._environment = environment
        self._said = said or self.lines.append
        self._process: Process | None = None
        self._silent = voices
        self._begun = asyncio.Event()
        self._readers: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start it."""
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", *self._arguments),
            env=self._environment,
            cwd=ROOT,
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            limit=2**26,  # a list is one line
        )
        guard().add(self._process.pid)
        for stream, said in (self._process.stdout, self._hear), (self._process.stderr, self.errors.append):
            assert stream is not None
            self._readers.append(asyncio.create_task(_read(stream, said)))

    async def begun(self) -> None:
        """Wait until it has said that it has.

        Raises:
            ChildError: it does not.
        """
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._begun.wait()
        except TimeoutError:
            raise self._error(f"has not begun within {START_SECONDS:g} s") from None

    async def finish(self) -> list[str]:
        """End its input, and return what it has said when it has ended.

        Raises:
            ChildError: it has failed, or did not end.
        """
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(PATIENCE):
                code = await self._process.wait()
        except TimeoutError:
            raise self._error(f"did not end within {PATIENCE:g} s") from None
        await asyncio.gather(*self._readers)
        if code != 0:
            raise self._error(f"failed with code {code}")
        return self.lines

    def check(self) -> None:
        """Find it running.

        Raises:
            ChildError: it has ended.
        """
        if self._process is None or self._process.returncode is not None:
            raise self._error("has ended by itself")

    async def kill(self) -> None:
        """Make sure that nothing is left."""
        if self._process is None:
            return
        if self._process.returncode is None:
            await asyncio.to_thread(kill_tree, self._process.pid)
        await self._process.wait()
        guard().discard(self._process.pid)
        await asyncio.gather(*self._readers)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.kill()

    def _hear(self, line: str) -> None:
        self._said(line)
        self._silent -= 1
        if self._silent == 0:
            self._begun.set()

    def _error(self, what: str) -> ChildError:
        said = "\n".join([*self.lines[-TAIL:], *self.errors[-TAIL:]])
        return ChildError(f"python -m {' '.join(self._arguments)} {what}.\n--- its output ---\n{said}")


async def _read(stream: asyncio.StreamReader, said: Callable[[str], None]) -> None:
    async for line in stream:
        said(line.decode(errors="replace").rstrip("\n"))


async def run(*arguments: str, environment: Mapping[str, str]) -> list[str]:
    """Run it to its end; what it has said."""
    async with Child(*arguments, environment=environment) as child:
        return await child.finish()
