"""Coherence of one application: its transports, and its repositories that follow the hints they bring."""

import asyncio
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, Self

from asgiref.sync import sync_to_async

from .. import application
from ..errors import RefreshFailed
from ..events import logger
from ..memory.refreshing import Refresher
from ..reading.validation import DeclaredCached
from ..settings import ORMSettings
from .choice import is_named, is_told_by_django, listeners
from .concerns import Concern, concern_of
from .coverage import is_elsewhere, why_unheard
from .follower import Follower
from .hints import Hint
from .link import Link
from .origins import Origins
from .planned import concerns_of
from .roll_call import Attendance, RollCall
from .transport import Listener
from .workers import Connecting

FIRST_CONNECTIONS_PATIENCE = 5.0  # seconds

LATE = (
    "Its database was away when the application started, and further tables that it reads were found later. "
    "Restart the application.",
)


class Coherence:
    """Hears of writes anywhere, and has the rows concerned refreshed.

    Attributes:
        links: the transports.
        roll_call: asks the other workers, and answers them.
    """

    @classmethod
    async def of(cls, settings: ORMSettings, repositories: Mapping[str, DeclaredCached]) -> Self:
        """Find out which hints concern which repositories, from the databases as well.

        A database that does not answer within some seconds keeps nothing from starting, and is asked again.

        Args:
            settings: the application's.
            repositories: by name.

        Raises:
            InvalidSettings: a transport is named whose package is not installed.
            InvalidRepository: a ``depends_on`` cannot be used.
        """
        asking = asyncio.create_task(sync_to_async(concerns_of)(repositories))
        await asyncio.wait([asking], timeout=FIRST_CONNECTIONS_PATIENCE)
        concerns = asking.result() if asking.done() else {}
        coherence = await sync_to_async(cls)(settings, repositories, concerns)
        # It owns the question, too, whose thread may wait for the database for a while yet.
        coherence._asking = asyncio.create_task(coherence._ask_again(asking), name="ask what queries read")
        return coherence

    def __init__(
        self,
        settings: ORMSettings,
        repositories: Mapping[str, DeclaredCached],
        concerns: Mapping[str, Concern],
    ) -> None:
        """Choose the transports. On a database thread.

        Args:
            settings: the application's.
            repositories: by name.
            concerns: what they read, by name, of those of which it is known.

        Raises:
            InvalidSettings: a transport is named whose package is not installed.
            InvalidRepository: a ``depends_on`` cannot be used.
        """
        self._settings = settings
        self._repositories = repositories
        self._asking: asyncio.Task[None] | None = None
        self._spread = settings.coherence_spread
        self._concerns = {
            name: concerns.get(name) or concern_of(repository) for name, repository in repositories.items()
        }
        self._of_alias: dict[str, list[str]] = {}
        for name, concern in self._concerns.items():
            self._of_alias.setdefault(concern.alias, []).append(name)
        self._bounded_by_age = {name for name, each in repositories.items() if each.max_age is not None}
        self._followers: dict[str, Follower] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self.roll_call = RollCall(self._load, self._followers, self.hear)
        self.links = [
            Link(
                listener,
                self._needed(listener, repositories),
                self._dispatch,
                self.roll_call.said,
            )
            for listener in listeners(settings, self._concerns.values())
        ]
        for link in self.links:
            if isinstance(link.listener, Connecting):
                link.listener.worker = self.roll_call.worker
        self._origins = Origins(self._of_alias, settings.coherence_heartbeat, self._moved)

    async def start(self) -> None:
        """Listen. Returns when all transports are up, or are known to be down, or after some seconds."""
        self._loop = asyncio.get_running_loop()
        if not self.links:  # off
            return
        for link in self.links:
            link.start()
        self._origins.start()
        known = [link.tried for link in self.links] + [self._origins.looked]
        tried = [asyncio.create_task(event.wait()) for event in known]
        _, slow = await asyncio.wait(tried, timeout=FIRST_CONNECTIONS_PATIENCE)
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)
        self._tell_of_deaf(self._concerns)

    def follow(self, refreshers: Mapping[str, Refresher[Any]]) -> None:
        """Have these follow the hints that come from now on. Their first loads must begin later.

        Args:
            refreshers: by the repositories' names.
        """
        for name, refresher in refreshers.items():
            # There is no server to spare where the database is a file, and its watchers look at moments of
            # their own.
            spread = 0.0 if self._concerns[name].embedded else self._spread
            self._followers[name] = Follower(refresher, spread)

    async def stop(self) -> None:
        """Stop listening, and follow nothing more."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
        await asyncio.gather(self._origins.stop(), *(link.stop() for link in self.links))
        await self.roll_call.stop()
        await asyncio.gather(*(follower.stop() for follower in self._followers.values()))

    def why_unheard(self, name: str) -> str | None:
        """Why writes elsewhere may not reach a repository, and what to do; None if they do.

        Nothing is missed where nothing is expected: with ``off``, or with a ``max_age``.
        """
        if not self.links or name in self._bounded_by_age:
            return None
        concern = self._concerns[name]
        listening = f"postgresql:{concern.alias}" in {link.name for link in self.links}
        return why_unheard(
            self._settings, concern, self.links, self._origins.known.get(concern.alias)
        ) or concern.why_unannounced(listening, told=is_told_by_django(self._settings))

    def hear(self, hint: Hint) -> None:
        """Follow a hint that has come another way. On the application's event loop."""
        self._follow(hint, None)

    async def tell(self, hint: Hint) -> None:
        """Follow a hint that has come another way, and have the other workers follow it.

        Raises:
            TransportUnavailable: a transport that connects workers has been up, and is down.
        """
        self.hear(hint)
        links = [link for link in self.links if isinstance(link.listener, Connecting) and link.has_been_up]
        await self.roll_call.tell(links, hint)

    async def seen(self, name: str) -> None:
        """Wait until a repository has what was committed before this call. On any event loop.

        Args:
            name: the repository's.

        Raises:
            RefreshFailed: it could not be read.
        """
        if self._loop is not None and asyncio.get_running_loop() is not self._loop:
            return await application.on_loop(self._loop, self.seen(name), f"{name}: wait_until_current()")
        follower, link = self._followers[name], self._orderly(name)
        if link is not None and await link.listener.caught_up() and link is self._orderly(name):
            await follower.settle()
            if follower.refresher.error is None:
                return None
        await follower.refresher.refresh("call")
        return None

    async def call_roll(self, names: Collection[str], wait: float) -> dict[str, Attendance]:
        """Have the other workers that are connected refresh.

        Args:
            names: the repositories'.
            wait: the most seconds to wait for them; 0: do not ask.

        Returns:
            For each name, which other workers have now what was committed before this call.
        """
        return await self.roll_call.ask(
            {name: self._connecting(name) if wait else [] for name in names}, wait
        )

    def _needed(
        self, listener: Listener, repositories: Mapping[str, DeclaredCached]
    ) -> frozenset[str] | None:
        """Labels of the models of whose writes nothing but this transport tells; None: it was asked for."""
        if is_named(self._settings, listener):
            return None
        if is_told_by_django(self._settings):
            return frozenset()
        aliases = listener.aliases
        return frozenset(
            label
            for name, concern in self._concerns.items()
            if repositories[name].max_age is None and (aliases is None or concern.alias in aliases)
            for label in concern.tables.values()
        )

    def _connecting(self, name: str) -> list[Link]:
        """The transports through which the workers can be reached that read a repository's database."""
        alias = self._concerns[name].alias
        links = [link for link in self.links if isinstance(link.listener, Connecting)]
        return [link for link in links if link.listener.aliases is None or alias in link.listener.aliases]

    async def _load(self, name: str) -> bool:
        follower = self._followers[name]
        follower.follow(None)
        await follower.settle()
        return follower.refresher.error is None

    def _moved(self, alias: str) -> None:
        """Distrust what was read of a database whose rows come from elsewhere now."""
        names = self._of_alias[alias]
        self._tell_of_deaf(names)
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

    def _tell_of_deaf(self, names: Iterable[str]) -> None:
        deaf: dict[str, list[str]] = {}  # by what helps
        for name in names:
            if (reason := self.why_unheard(name)) is not None:
                deaf.setdefault(reason, []).append(name)
        for hint, repositories in deaf.items():
            logger.warning("writes_elsewhere_unheard", repositories=repositories, hint=hint)

    def _orderly(self, name: str) -> Link | None:
        """A transport that carries all writes that concern a repository, in the order of commits."""
        concern = self._concerns[name]
        origin = self._origins.known.get(concern.alias)
        labels = frozenset(concern.tables.values())
        if origin is not None and origin.is_replica:  # which may have a commit later than its hint comes
            return None
        for link in self.links:
            aliases = link.listener.aliases
            if aliases is None or concern.alias not in aliases or link.connected_since is None:
                continue
            if is_elsewhere(link, origin) or concern.why_unannounced(listening=True, told=False) is not None:
                continue
            if concern.related is not None and labels.isdisjoint(link.listener.unheard):
                return link
        return None

    def _dispatch(self, link: Link, hint: Hint) -> None:
        self._follow(hint, link.listener.aliases)

    def _follow(self, hint: Hint, aliases: frozenset[str] | None) -> None:
        for name, follower in self._followers.items():
            concern = self._concerns[name]
            if (aliases is None or concern.alias in aliases) and concern.is_hit(hint):
                follower.follow(concern.keys(hint))


async def seen(name: str) -> None:
    """Wait until a repository of the application that this code runs under has all commits before this call.

    Args:
        name: the repository's.

    Raises:
        NotStarted: no lifespan of ``DjangoORM`` runs.
        RefreshFailed: it could not be read.
    """
    coherence = application.find("wait_until_current()").get(Coherence)
    if coherence is None:
        raise RefreshFailed(f"{name} cannot be refreshed: the application is still starting.")
    await coherence.seen(name)
