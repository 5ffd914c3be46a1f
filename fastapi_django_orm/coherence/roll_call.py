"""Roll calls: every connected worker refreshes, and the one that asks learns which have.

Who listens on a transport can be listed beforehand, so silence is noticed as well. A worker answers for
itself alone and passes no call on: a call costs one question, and one answer of each. A hint that one worker
received over HTTP goes to the others the same way, and gets no answer.

These messages have channels of their own, so that a listener that does not understand them never takes them
for hints. Decoding never fails: a message that cannot be understood is ignored.
"""

import asyncio
import json
import os
import re
import socket
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from ..clock import cancel, monotonic
from .hints import CHANNEL, MESSAGE_LIMIT, VERSION, Hint, encode, parts, understood
from .transport import TransportSupervisor, TransportUnavailable

EVERY_WORKER = f"{CHANNEL}_workers"  # the channel for questions
LONGEST_ROLL_CALL = 60.0  # seconds
HOST_LENGTH = 20  # PostgreSQL cuts names of channels and of applications after 63 bytes
LOOK_AGAIN = 1.0  # seconds after which those who are still waited for may have gone
MOST_ANSWERS = 100  # that are worked on at once

_WORKER = re.compile(r"[A-Za-z0-9._-]{1,20}:[0-9]{1,10}:[0-9a-f]{8}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Question:
    """Refresh these repositories, and say when you have, to this worker, within so many seconds."""

    call: str
    worker: str
    repositories: tuple[str, ...]
    wait: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What a worker has refreshed and what it could not, by the repositories' places in the question."""

    call: str
    worker: str
    have: tuple[int, ...]
    failed: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class News:
    """A hint that this worker passes on to all."""

    worker: str
    hint: Hint


def new_worker() -> str:
    """A name for a worker: ``host:pid:`` and a random part."""
    host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:HOST_LENGTH] or "host"
    return f"{host}:{os.getpid()}:{uuid4().hex[:8]}"


def is_worker(name: str) -> bool:
    """Whether ``new_worker()`` may have made this name."""
    return _WORKER.fullmatch(name) is not None


def channel_of(worker: str) -> str:
    """The channel on which one worker gets answers."""
    return f"{CHANNEL}_to_{worker}"


def write(message: Question | Answer) -> bytes:
    """Encode a message."""
    own: dict[str, Any]
    if isinstance(message, Question):
        own = {"r": message.repositories, "s": message.wait}
    else:
        own = {"h": message.have, "f": message.failed}
    common = {"v": VERSION, "c": message.call, "w": message.worker}
    return json.dumps(common | own, separators=(",", ":")).encode()


def read(payload: bytes) -> Question | Answer | News | None:
    """Decode a message; None if this version does not understand it."""
    if len(payload) > MESSAGE_LIMIT:
        return None
    try:
        message = json.loads(payload)
    except (ValueError, RecursionError):
        return None
    match message:
        case {"v": int(version), "w": str(worker)} if version != VERSION or not is_worker(worker):
            return None
        case {"v": int(), "w": str(worker), "n": hint}:
            return News(worker, understood(hint))
        case {"c": str(call)} if len(call) > 64:
            return None
        case {"v": int(), "w": str(worker), "c": str(call), "r": [*names], "s": int() | float() as wait}:
            if _all(names, str) and wait > 0:
                return Question(call, worker, tuple(names), float(min(wait, LONGEST_ROLL_CALL)))
        case {"v": int(), "w": str(worker), "c": str(call), "h": [*have], "f": [*failed]}:
            if _all([*have, *failed], int):
                return Answer(call, worker, tuple(have), tuple(failed))
    return None


def _all(values: Iterable[Any], kind: type[Any]) -> bool:
    return all(isinstance(value, kind) for value in values)


@dataclass(slots=True)
class Attendance:
    """Which workers have refreshed a repository.

    Attributes:
        asked: the transports through which they were asked.
        down: the transports through which they could not be.
        have: workers that have it.
        failed: workers that could not read it, and serve what they had.
        missing: workers that are connected and have not answered in time.
    """

    asked: set[str] = field(default_factory=set)
    down: set[str] = field(default_factory=set)
    have: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    missing: set[str] = field(default_factory=set)

    @property
    def complete(self) -> bool:
        """Whether every connected worker has it."""
        return not (self.down or self.failed or self.missing)


class _Call:
    """A question on its way, and the answers so far."""

    def __init__(self) -> None:
        self.present: frozenset[str] = frozenset()
        self.answers: dict[str, Answer] = {}
        self.answered = asyncio.Event()

    @property
    def missing(self) -> frozenset[str]:
        return self.present - self.answers.keys()

    def add_to(self, attendance: Attendance, place: int) -> None:
        """Add what the answers say about the repository at this place in the question."""
        for worker, answer in self.answers.items():
            if place in answer.have:
                attendance.have.add(worker)
            elif place in answer.failed:
                attendance.failed.add(worker)
        attendance.missing |= self.missing
        # A worker may have been asked through several transports: its best answer counts.
        attendance.failed -= attendance.have
        attendance.missing -= attendance.have | attendance.failed


class RollCall:
    """Asks the other workers, and answers them.

    Attributes:
        worker: this one's name.
    """

    def __init__(
        self,
        refresh: Callable[[str], Awaitable[bool]],
        repositories: Collection[str],
        follow: Callable[[Hint], None],
    ) -> None:
        """Have ``refresh`` read a repository and return whether it could, and ``follow`` follow a hint."""
        self.worker = new_worker()
        self._refresh = refresh
        self._repositories = repositories
        self._follow = follow
        self._calls: dict[str, _Call] = {}
        self._answering: set[asyncio.Task[None]] = set()

    async def ask(
        self, transports: Mapping[str, Collection[TransportSupervisor]], wait: float
    ) -> dict[str, Attendance]:
        """Have other workers refresh, and return for each repository which of them have.

        The transports are, for each repository's name, those that connect its workers.
        """
        attendance = {name: Attendance() for name in transports}
        for_names: dict[TransportSupervisor, list[str]] = {}
        for name, some in transports.items():
            for transport in some:
                for_names.setdefault(transport, []).append(name)
        wait = min(wait, LONGEST_ROLL_CALL)
        calls = [
            self._ask(transport, question, wait, attendance)
            for transport, names in for_names.items()
            for question in _in_questions(names)
        ]
        await asyncio.gather(*calls)
        return attendance

    async def pass_on(self, transports: Iterable[TransportSupervisor], hint: Hint) -> None:
        """Pass a hint on to the other workers, or raise TransportUnavailable."""
        sender = json.dumps(self.worker).encode()
        for transport in transports:
            for message in encode(hint, MESSAGE_LIMIT - 200):
                news = b'{"v":%d,"w":%s,"n":%s}' % (VERSION, sender, message)
                await transport.listener.say(EVERY_WORKER, news)

    def said(self, transport: TransportSupervisor, message: bytes) -> None:
        """Take a message of another worker. On the event loop; returns at once."""
        match read(message):
            case Answer() as answer if (call := self._calls.get(answer.call)) is not None:
                if answer.worker in call.present:
                    call.answers.setdefault(answer.worker, answer)
                call.answered.set()
            case News() as news if news.worker != self.worker:
                self._follow(news.hint)
            case Question() as question if question.worker != self.worker:
                if len(self._answering) < MOST_ANSWERS:
                    task = asyncio.create_task(self._answer(transport, question), name="answer a roll call")
                    self._answering.add(task)
                    task.add_done_callback(self._answering.discard)

    async def stop(self) -> None:
        """Stop answering."""
        await cancel(*self._answering)

    async def _ask(
        self,
        transport: TransportSupervisor,
        names: Sequence[str],
        wait: float,
        attendance: Mapping[str, Attendance],
    ) -> None:
        call, number, reached = _Call(), uuid4().hex[:16], False
        self._calls[number] = call
        try:
            async with asyncio.timeout(wait):
                call.present = await self._present(transport)
                question = Question(number, self.worker, tuple(names), wait)
                await transport.listener.say(EVERY_WORKER, write(question))
                reached = True
                await self._collect(transport, call)
        except (TransportUnavailable, TimeoutError):
            pass
        finally:
            del self._calls[number]
        for place, name in enumerate(names):
            found = attendance[name]
            (found.asked if reached else found.down).add(transport.name)
            call.add_to(found, place)

    async def _collect(self, transport: TransportSupervisor, call: _Call) -> None:
        look_again = monotonic() + LOOK_AGAIN
        while call.missing:
            with suppress(TimeoutError):
                async with asyncio.timeout(look_again - monotonic()):
                    await call.answered.wait()
            call.answered.clear()
            if call.missing and monotonic() >= look_again:
                with suppress(TransportUnavailable):  # it may be back before the time is over
                    call.present &= await self._present(transport)
                look_again = monotonic() + LOOK_AGAIN

    async def _present(self, transport: TransportSupervisor) -> frozenset[str]:
        return await transport.listener.workers() - {self.worker}

    async def _answer(self, transport: TransportSupervisor, question: Question) -> None:
        names = question.repositories
        own = [place for place, name in enumerate(names) if name in self._repositories]
        with suppress(TransportUnavailable, TimeoutError):
            async with asyncio.timeout(question.wait):
                refreshed = await asyncio.gather(*(self._refresh(names[place]) for place in own))
                have = tuple(place for place, success in zip(own, refreshed, strict=True) if success)
                answer = Answer(question.call, self.worker, have, tuple(set(own) - set(have)))
                await transport.listener.say(channel_of(question.worker), write(answer))


def _in_questions(names: Iterable[str]) -> Iterator[list[str]]:
    """Repositories' names, as many at a time as fit into one question."""
    for part in parts([json.dumps(name).encode() for name in names], MESSAGE_LIMIT - 500):
        yield [json.loads(name) for name in part]
