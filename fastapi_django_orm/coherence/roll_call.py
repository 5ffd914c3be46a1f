"""A roll call: every worker that is connected refreshes, and whoever has asked knows which have.

Everybody who listens on a transport can be named beforehand, so that silence is noticed as well. A worker
answers for itself alone and passes no call on: a call costs one question, and one answer of each. Hints that
one worker was given by name go the same way, and get no answer.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from uuid import uuid4

from ..clock import monotonic
from .hints import Hint
from .link import Link
from .transport import TransportUnavailable
from .workers import (
    EVERY_WORKER,
    LONGEST_ROLL_CALL,
    Answer,
    Connecting,
    News,
    Question,
    channel_of,
    in_news,
    in_questions,
    new_worker,
    read,
    write,
)

LOOK_AGAIN = 1.0  # seconds after which those who are still waited for may have gone
MOST_ANSWERS = 100  # that are worked on at once


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
        """Whether every worker that is connected has it."""
        return not (self.down or self.failed or self.missing)

    def note(self, others: "Attendance") -> None:
        """Add what was found out through another transport."""
        self.asked |= others.asked
        self.down |= others.down
        self.have |= others.have
        self.failed = (self.failed | others.failed) - self.have
        self.missing = (self.missing | others.missing) - self.have - self.failed


class _Call:
    """A question on its way, and the answers so far."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.present: frozenset[str] = frozenset()
        self.answers: dict[str, Answer] = {}
        self._answered = asyncio.Event()

    @property
    def missing(self) -> frozenset[str]:
        return self.present - self.answers.keys()

    def take(self, answer: Answer) -> None:
        if answer.worker in self.present:
            self.answers.setdefault(answer.worker, answer)
        self._answered.set()

    async def answered(self, seconds: float) -> None:
        """Return when somebody has answered, or when the time is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._answered.wait()
        self._answered.clear()


class RollCall:
    """Asks the other workers, and answers them.

    Attributes:
        worker: this one's name.
    """

    def __init__(
        self,
        refresh: Callable[[str], Awaitable[bool]],
        repositories: Collection[str],
        hear: Callable[[Hint], None],
    ) -> None:
        """Ask nobody yet.

        Args:
            refresh: reads a repository anew, and tells whether it could be read.
            repositories: those that can be asked for.
            hear: follows a hint.
        """
        self.worker = new_worker()
        self._refresh = refresh
        self._repositories = repositories
        self._hear = hear
        self._calls: dict[str, _Call] = {}
        self._answering: set[asyncio.Task[None]] = set()

    async def ask(self, links: Mapping[str, Sequence[Link]], wait: float) -> dict[str, Attendance]:
        """Have other workers refresh.

        Args:
            links: for each repository's name, the transports that connect its workers.
            wait: the most seconds to wait for answers; at most ``LONGEST_ROLL_CALL``.

        Returns:
            For each name which workers have it, this one not among them.
        """
        attendance = {name: Attendance() for name in links}
        every = {id(link): link for some in links.values() for link in some}.values()
        calls = [
            self._ask(link, names, min(wait, LONGEST_ROLL_CALL))
            for link in every
            for names in in_questions(name for name, some in links.items() if link in some)
        ]
        for found in await asyncio.gather(*calls):
            for name, others in found.items():
                attendance[name].note(others)
        return attendance

    async def tell(self, links: Iterable[Link], hint: Hint) -> None:
        """Pass a hint on to the other workers.

        Args:
            links: the transports that connect them.
            hint: what to pass on.

        Raises:
            TransportUnavailable: not all were told.
        """
        for link in links:
            for message in in_news(self.worker, hint):
                await _connecting(link).say(EVERY_WORKER, message)

    def said(self, link: Link, message: bytes) -> None:
        """Take what another worker has said. On the event loop; returns at once."""
        match read(message):
            case Answer() as answer if answer.call in self._calls:
                self._calls[answer.call].take(answer)
            case News() as news if news.worker != self.worker:
                self._hear(news.hint)
            case Question() as question if question.worker != self.worker:
                if len(self._answering) < MOST_ANSWERS:
                    task = asyncio.create_task(self._answer(link, question), name="answer a roll call")
                    self._answering.add(task)
                    task.add_done_callback(self._answering.discard)

    async def stop(self) -> None:
        """Answer nobody any more."""
        for task in self._answering:
            task.cancel()
        await asyncio.gather(*self._answering, return_exceptions=True)

    async def _ask(self, link: Link, names: Sequence[str], wait: float) -> dict[str, Attendance]:
        call = _Call(names)
        question = Question(uuid4().hex[:16], self.worker, tuple(names), wait)
        self._calls[question.call] = call
        name, reached = link.listener.name, False
        try:
            async with asyncio.timeout(wait):
                call.present = await self._present(link)
                await _connecting(link).say(EVERY_WORKER, write(question))
                reached = True
                await self._collect(link, call)
        except (TransportUnavailable, TimeoutError):
            pass
        finally:
            del self._calls[question.call]
        return {each: _attendance(call, place, name, reached) for place, each in enumerate(names)}

    async def _collect(self, link: Link, call: _Call) -> None:
        look_again = monotonic() + LOOK_AGAIN
        while call.missing:
            await call.answered(look_again - monotonic())
            if call.missing and monotonic() >= look_again:
                with suppress(TransportUnavailable):  # it may be back before the time is over
                    call.present &= await self._present(link)
                look_again = monotonic() + LOOK_AGAIN

    async def _present(self, link: Link) -> frozenset[str]:
        return await _connecting(link).workers() - {self.worker}

    async def _answer(self, link: Link, question: Question) -> None:
        names = question.repositories
        own = [place for place, name in enumerate(names) if name in self._repositories]
        with suppress(TransportUnavailable, TimeoutError):
            async with asyncio.timeout(question.wait):
                refreshed = await asyncio.gather(*(self._refresh(names[place]) for place in own))
                have = tuple(place for place, success in zip(own, refreshed, strict=True) if success)
                answer = Answer(question.call, self.worker, have, tuple(set(own) - set(have)))
                await _connecting(link).say(channel_of(question.worker), write(answer))


def _attendance(call: _Call, place: int, transport: str, reached: bool) -> Attendance:
    return Attendance(
        asked={transport} if reached else set(),
        down=set() if reached else {transport},
        have={worker for worker, answer in call.answers.items() if place in answer.have},
        failed={worker for worker, answer in call.answers.items() if place in answer.failed},
        missing=set(call.missing),
    )


def _connecting(link: Link) -> Connecting:
    assert isinstance(link.listener, Connecting), "only such links are asked through"
    return link.listener
