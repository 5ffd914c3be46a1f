"""What workers say to each other: "refresh these, and tell me when you have", the answer, and hints.

Such messages travel on channels of their own, so that a listener that does not know them never takes them for
hints. As with hints, reading one is total: what cannot be understood is nothing.
"""

import json
import os
import re
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable
from uuid import uuid4

from .hints import CHANNEL, MESSAGE_LIMIT, VERSION, Hint, encode, parts, understood

EVERY_WORKER = f"{CHANNEL}_workers"  # the channel for questions
LONGEST_ROLL_CALL = 60.0  # seconds
HOST_LENGTH = 20  # PostgreSQL cuts names of channels and of applications after 63 bytes

_WORKER = re.compile(r"[A-Za-z0-9._-]{1,20}:[0-9]{1,10}:[0-9a-f]{8}", re.ASCII)


@runtime_checkable
class Connecting(Protocol):
    """A listener through which workers reach each other. Its receiver is told what they say: ``said()``.

    Attributes:
        worker: the name by which it presents itself; set before it listens.
    """

    worker: str

    async def workers(self) -> frozenset[str]:
        """The workers that listen now, and hear what is said from now on.

        Raises:
            TransportUnavailable: that cannot be found out now.
        """

    async def say(self, channel: str, message: bytes) -> None:
        """Send a message of at most ``MESSAGE_LIMIT`` bytes.

        Args:
            channel: ``EVERY_WORKER``, or one worker's ``channel_of()``.
            message: what to say.

        Raises:
            TransportUnavailable: it was not sent.
        """


@dataclass(frozen=True, slots=True)
class Question:
    """Refresh these repositories, and say when you have.

    Attributes:
        call: what an answer refers to.
        worker: who asks.
        repositories: their names.
        wait: seconds after which nobody waits for the answer.
    """

    call: str
    worker: str
    repositories: tuple[str, ...]
    wait: float


@dataclass(frozen=True, slots=True)
class Answer:
    """Refreshed, as far as I have such repositories.

    Attributes:
        call: the question's.
        worker: who answers.
        have: which repositories serve what was committed before the question, by their place in it.
        failed: which could not be read.
    """

    call: str
    worker: str
    have: tuple[int, ...]
    failed: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class News:
    """A hint that one worker was given, for all.

    Attributes:
        worker: the one that was given it.
        hint: what it says.
    """

    worker: str
    hint: Hint


def new_worker() -> str:
    """A name for a worker: ``host:pid:`` and something that no other process of that number has had."""
    host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:HOST_LENGTH] or "host"
    return f"{host}:{os.getpid()}:{uuid4().hex[:8]}"


def is_worker(name: str) -> bool:
    """Whether a name is one that ``new_worker()`` gives."""
    return _WORKER.fullmatch(name) is not None


def channel_of(worker: str) -> str:
    """The channel on which one worker is answered."""
    return f"{CHANNEL}_to_{worker}"


def in_questions(names: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """Repositories' names, as many at a time as fit into one question."""
    written = [json.dumps(name).encode() for name in names]
    for part in parts(written, MESSAGE_LIMIT - 500):
        yield tuple(json.loads(name) for name in part)


def in_news(worker: str, hint: Hint) -> Iterator[bytes]:
    """A hint as a worker passes it on, in as many messages as it needs."""
    for message in encode(hint, MESSAGE_LIMIT - 200):
        yield b'{"v":%d,"w":%s,"n":%s}' % (VERSION, json.dumps(worker).encode(), message)


def write(message: Question | Answer) -> bytes:
    """A message as it travels."""
    own: dict[str, Any]
    if isinstance(message, Question):
        own = {"r": message.repositories, "s": message.wait}
    else:
        own = {"h": message.have, "f": message.failed}
    common = {"v": VERSION, "c": message.call, "w": message.worker}
    return json.dumps(common | own, separators=(",", ":")).encode()


def read(payload: bytes) -> Question | Answer | News | None:
    """What a message says; None if it says nothing that this version understands."""
    if len(payload) > MESSAGE_LIMIT:
        return None
    try:
        message = json.loads(payload)
    except (ValueError, RecursionError):
        return None
    match message:
        case {"v": int(version), "w": str(worker), **rest} if version == VERSION and is_worker(worker):
            return _read(worker, rest)
    return None


def _read(worker: str, rest: Mapping[Any, Any]) -> Question | Answer | News | None:
    match rest:
        case {"n": hint}:
            return News(worker, understood(hint))
        case {"c": str(call)} if len(call) > 64:
            return None
        case {"c": str(call), "r": [*names], "s": int() | float() as wait} if _all(names, str) and wait > 0:
            return Question(call, worker, tuple(names), float(min(wait, LONGEST_ROLL_CALL)))
        case {"c": str(call), "h": [*have], "f": [*failed]} if _all([*have, *failed], int):
            return Answer(call, worker, tuple(have), tuple(failed))
    return None


def _all(values: Sequence[Any], kind: type[Any]) -> bool:
    return all(isinstance(value, kind) for value in values)
