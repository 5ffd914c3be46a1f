"""Coherence of one application: its transports, and its repositories that follow the hints they bring."""

import asyncio
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, Self

from asgiref.sync import sync_to_async

from .. import application
from ..clock import cancel
from ..database.engines import kind_of
from ..errors import RefreshFailed
from ..events import logger
from ..memory.refreshing import Refresher
from ..reading.validation import DeclaredCached
from ..settings import ORMSettings
from .choice import django_announces, has_route, how_to_announce, is_named, listeners
from .concerns import Concern, concern_of
from .follower import Follower
from .hints import Hint
from .origins import Origins
from .planned import concerns_of
from .process import ProcessListener
from .roll_call import Attendance, RollCall
from .transport import Listener, TransportSupervisor

FIRST_CONNECTIONS_PATIENCE = 5.0  # seconds

LATE = (
    "Its database was away when the application started, and further tables that it reads were found later. "
    "Restart the application.",
)
REPLICA = (
    "Its rows are read from a replica, {alias!r}, which may have a change later than the hint of it comes. "
    "Read them from the primary (by a database router, or .using() in queryset()), or give the repository a "
    "max_age."
)
ELSEWHERE = (
    "{transport} listens at another server or database than the one that its rows are read from. "
    "Correct DJANGO_ORM_COHERENCE_DSN, or leave it out where DATABASES leads there directly; or give the "
    "repository a max_age."
)
DOWN = "{transport} is down. It is tried again; the log says why."
UNANNOUNCED = "{transport} does not carry the writes to {labels}. Run manage.py coherence install{option}."


class Coherence:
    """Receives hints of writes anywhere, and has the repositories concerned refreshed.

    Attributes:
        transports: the ways by which hints come, each under its supervisor.
        roll_call: asks the other workers, and answers them.
    """

    @classmethod
    async def of(cls, settings: ORMSettings, repositories: Mapping[str, DeclaredCached]) -> Self:
        """Find out which hints concern which repositories, from the databases as well.

        A database that does not answer within some seconds delays nothing further, and is asked again.
        Raises what ``concern_of()`` and ``listeners()`` raise.
        """
        asking = asyncio.create_task(sync_to_async(concerns_of)(repositories))
        await asyncio.wait([asking], timeout=FIRST_CONNECTIONS_PATIENCE)
        concerns = asking.result() if asking.done() else {}
        coherence = await sync_to_async(cls)(settings, repositories, concerns)
        # It owns the question, too, whose thread may still wait for the database.
        coherence._asking = asyncio.create_task(coherence._ask_again(asking), name="ask what queries read")
        return coherence

    def __init__(
        self,
        settings: ORMSettings,
        repositories: Mapping[str, DeclaredCached],
        concerns: Mapping[str, Concern],
    ) -> None:
        """As ``of()``, on a database thread, with the concerns that are known."""
        self._settings = settings
        self._repositories = repositories
        self._asking: asyncio.Task[None] | None = None
        self._concerns = {
            name: concerns.get(name) or concern_of(repository) for name, repository in repositories.items()
        }
        self._followers: dict[str, Follower] = {}
        self._revisions = dict.fromkeys(repositories, 0)
        self._loop: asyncio.AbstractEventLoop | None = None
        self.roll_call = RollCall(self._load, self._followers, self.follow_hint)
        self.transports = [
            TransportSupervisor(listener, self._needed(listener), self._follow, self.roll_call.said)
            for listener in listeners(settings, self._concerns.values())
        ]
        for transport in self.transports:
            transport.listener.worker = self.roll_call.worker
        aliases = {concern.alias for concern in self._concerns.values()}
        self._origins = Origins(aliases, settings.coherence_heartbeat, self._moved)

    async def start(self) -> None:
        """Listen. Returns when all transports are up, or are known to be down, or after some seconds."""
        self._loop = asyncio.get_running_loop()
        if not self.transports:  # off
            return
        for transport in self.transports:
            transport.start()
        self._origins.start()
        known = [transport.tried for transport in self.transports] + [self._origins.looked]
        tried = [asyncio.create_task(event.wait()) for event in known]
        _, slow = await asyncio.wait(tried, timeout=FIRST_CONNECTIONS_PATIENCE)
        await cancel(*slow)
        self._warn_of_unheard(self._concerns)

    def follow(self, refreshers: Mapping[str, Refresher[Any]]) -> None:
        """Have these follow the hints that come from now on. Their first loads must begin later."""
        for name, refresher in refreshers.items():
            # Loads need no spreading where the database is a file: there is no server to protect, and the
            # workers look at the file at different moments.
            is_file = kind_of(self._concerns[name].alias) == "sqlite"
            self._followers[name] = Follower(refresher, 0.0 if is_file else self._settings.coherence_spread)

    async def stop(self) -> None:
        """Stop listening and following."""
        await cancel(self._asking)
        await asyncio.gather(self._origins.stop(), *(transport.stop() for transport in self.transports))
        await self.roll_call.stop()
        await asyncio.gather(*(follower.stop() for follower in self._followers.values()))

    def why_unheard(self, name: str) -> str | None:
        """Why writes elsewhere may not reach a repository, and what to do; None if they do.

        One rule for all databases: some transport that is up carries the writes to every table that the
        repository reads, from the server that it reads; or its ``max_age`` refreshes it; or nothing is
        expected (``off``).
        """
        if not self.transports or self._repositories[name].max_age is not None:
            return None
        concern = self._concerns[name]
        if self._is_replica(concern.alias):
            return REPLICA.format(alias=concern.alias)
        reasons = self._why_not_carried(concern, concern.tables.values())
        if None not in reasons and not has_route(self._settings):
            return reasons[0] if reasons else how_to_announce(self._settings, concern.alias)
        named = {each.name for each in self.transports}
        listening = not named.isdisjoint((f"postgresql:{concern.alias}", f"table:{concern.alias}"))
        return concern.why_unannounced(listening, by_django=django_announces(self._settings))

    def _why_not_carried(self, concern: Concern, labels: Iterable[str]) -> list[str | None]:
        """For each transport why it does not carry every write to these models; None if it does."""
        return [
            self._why_not(each, concern, labels)
            for each in self.transports
            # The process's own carries no writes of others.
            if each.carries(concern.alias) and not isinstance(each.listener, ProcessListener)
        ]

    def follow_hint(self, hint: Hint) -> None:
        """Follow a hint that has come another way. On the application's event loop."""
        self._follow(None, hint)

    def follow_soon(self, hint: Hint) -> None:
        """Follow a hint, from any thread."""
        if self._loop is not None:
            with suppress(RuntimeError):  # it has closed, and the application with it
                self._loop.call_soon_threadsafe(self.follow_hint, hint)

    async def refresh_after(self, name: str, hint: Hint) -> None:
        """Wait until a repository has been read again after a write of this process.

        Raises:
            RefreshFailed: it could not be.
        """
        keys = self._concerns[name].keys(hint)
        await self._followers[name].refresher.refresh("call", keys)

    async def announce(self, hint: Hint) -> None:
        """Follow a hint that has come another way, and have the other workers follow it.

        Raises:
            TransportUnavailable: a transport that connects workers has been up, and is down.
        """
        self.follow_hint(hint)
        up = [each for each in self.transports if each.listener.connects_workers and each.has_been_up]
        await self.roll_call.pass_on(up, hint)

    async def seen(self, name: str) -> None:
        """Wait until a repository has what was committed before this call, or RefreshFailed. On any loop."""
        if self._loop is not None and asyncio.get_running_loop() is not self._loop:
            return await application.on_loop(self._loop, self.seen(name), f"{name}: wait_until_current()")
        follower, orderly = self._followers[name], self._orderly(name)
        if orderly is not None and await orderly.listener.caught_up() and orderly is self._orderly(name):
            await follower.settle()
            if follower.refresher.error is None:
                return None
        await follower.refresher.refresh("call")
        return None

    def revision(self, name: str) -> int:
        """How many hints have come that concern a repository's filters and not its rows."""
        return self._revisions[name]

    def follows(self, name: str, labels: frozenset[str]) -> bool:
        """Whether what a filter selects of a repository can be remembered, by the models that it reads.

        One rule, as for the rows: a transport that is up carries the writes to each of them; or ``max_age``
        loads the repository again; or nothing is expected.
        """
        concern = self._concerns[name]
        if not self.transports or self._repositories[name].max_age is not None:
            return True
        # If it is not known all that the rows are read from, any hint loads them again, if it comes.
        related = frozenset(concern.tables.values()) if concern.related is None else concern.related
        rest = labels - concern.own - related
        if not rest or not rest.issubset(concern.filtered.values()):
            return not rest
        return has_route(self._settings) or None in self._why_not_carried(concern, rest)

    async def call_roll(self, names: Collection[str], wait: float) -> dict[str, Attendance]:
        """Have the other connected workers refresh repositories, and return for each name which have.

        Args:
            names: the repositories'.
            wait: the most seconds to wait for them; 0: do not ask.
        """
        connecting = [each for each in self.transports if each.listener.connects_workers and wait]
        transports = {
            name: [each for each in connecting if each.carries(self._concerns[name].alias)] for name in names
        }
        return await self.roll_call.ask(transports, wait)

    def _needed(self, listener: Listener) -> frozenset[str] | None:
        """Labels of the models whose writes only this transport carries; None: a setting names it."""
        if is_named(self._settings, listener):
            return None
        if django_announces(self._settings):
            return frozenset()
        aliases = listener.aliases
        return frozenset(
            label
            for name, concern in self._concerns.items()
            if self._repositories[name].max_age is None and (aliases is None or concern.alias in aliases)
            for label in concern.tables.values()
        )

    def _is_replica(self, alias: str) -> bool:
        """Whether rows come from a replica, which may have a commit later than its hint comes."""
        origin = self._origins.known.get(alias)
        return origin is not None and origin.is_replica

    def _why_not(self, transport: TransportSupervisor, concern: Concern, labels: Iterable[str]) -> str | None:
        """Why a transport does not carry every write to these models; None if it does."""
        if transport.connected_since is None:
            return DOWN.format(transport=transport.name)
        listening, origin = transport.listener.server, self._origins.known.get(concern.alias)
        if listening is not None and origin is not None and listening != origin.server:
            return ELSEWHERE.format(transport=transport.name)
        if unheard := sorted(transport.listener.unheard.intersection(labels)):
            option = " --table" if transport.name.startswith("table:") else ""
            if kind_of(concern.alias) == "mysql":
                option += ", or set DJANGO_ORM_COHERENCE=redis://…, here and where Django writes"
            return UNANNOUNCED.format(transport=transport.name, labels=", ".join(unheard), option=option)
        return None

    def _orderly(self, name: str) -> TransportSupervisor | None:
        """A database's transport that carries all writes that concern a repository, in order of commits."""
        concern = self._concerns[name]
        unannounced = concern.why_unannounced(listening=True, by_django=False)
        doubtful = concern.related is None or unannounced is not None
        if doubtful or self._is_replica(concern.alias):
            return None
        for each in self.transports:
            carries = concern.alias in (each.listener.aliases or ())
            if carries and self._why_not(each, concern, concern.tables.values()) is None:
                return each
        return None

    async def _load(self, name: str) -> bool:
        follower = self._followers[name]
        follower.follow(None)
        await follower.settle()
        return follower.refresher.error is None

    def _moved(self, alias: str) -> None:
        """Distrust what was read of a database whose rows come from elsewhere now."""
        names = [name for name, concern in self._concerns.items() if concern.alias == alias]
        self._warn_of_unheard(names)
        for name in names:
            if (follower := self._followers.get(name)) is not None:
                follower.follow(None)

    async def _ask_again(self, asking: "asyncio.Task[dict[str, Concern]]") -> None:
        """Ask a database that was away at the start, or about a table that was locked, until all is known."""
        while True:
            with suppress(Exception):  # whatever it is, the next time may do
                self._learn(await asking)
            left = {
                name: self._repositories[name] for name, known in self._concerns.items() if not known.asked
            }
            if not left:
                return
            await asyncio.sleep(self._settings.coherence_heartbeat)
            asking = asyncio.create_task(sync_to_async(concerns_of)(left))

    def _learn(self, concerns: Mapping[str, Concern]) -> None:
        for name, found in concerns.items():
            if found.asked and not self._concerns[name].asked:
                # The transports look at the tables that were known when they were made.
                late = found.tables.keys() - self._concerns[name].tables.keys()
                self._concerns[name] = replace(found, unannounced=LATE if late else found.unannounced)

    def _warn_of_unheard(self, names: Iterable[str]) -> None:
        unheard: dict[str, list[str]] = {}  # by the reason
        for name in names:
            if (reason := self.why_unheard(name)) is not None:
                unheard.setdefault(reason, []).append(name)
        for hint, repositories in unheard.items():
            logger.warning("writes_elsewhere_unheard", repositories=repositories, hint=hint)

    def _follow(self, transport: TransportSupervisor | None, hint: Hint) -> None:
        for name, follower in self._followers.items():
            concern = self._concerns[name]
            if transport is not None and not transport.carries(concern.alias):
                continue
            if concern.is_hit(hint):
                follower.follow(concern.keys(hint))
            elif hint.label in concern.filtered.values():
                self._revisions[name] += 1


def coherence_of(name: str, owner: str) -> Coherence:
    """The coherence of the application that this code runs under; ``owner`` asks for it.

    Raises:
        NotStarted: it runs under none.
        RefreshFailed: the application is still starting.
    """
    coherence = application.find(owner).get(Coherence)
    if coherence is None:
        raise RefreshFailed(f"{name} cannot be refreshed: the application is still starting.")
    return coherence


async def seen(name: str) -> None:
    """``Coherence.seen()`` of the application that this code runs under, or NotStarted."""
    await coherence_of(name, "wait_until_current()").seen(name)
