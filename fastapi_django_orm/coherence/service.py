"""Coherence of one application: its transports, and its repositories that follow the hints they bring."""

import asyncio
from collections.abc import Collection, Mapping
from typing import Any

import structlog

from .. import running
from ..errors import RefreshFailed
from ..reading.declaration import DeclaredCached
from ..reading.refresh import Refresher
from ..settings import ORMSettings
from .choice import how_to_hear, is_named, is_told_by_django, listeners
from .concerns import concern_of
from .follower import Follower
from .hints import Hint
from .link import Link
from .process import ProcessListener
from .roll_call import Attendance, RollCall
from .transport import Listener
from .workers import Connecting

logger = structlog.get_logger("fastapi_django_orm")

FIRST_CONNECTIONS_PATIENCE = 5.0  # seconds


class Coherence:
    """Hears of writes anywhere, and has the rows concerned refreshed.

    Attributes:
        links: the transports.
        roll_call: asks the other workers, and answers them.
    """

    def __init__(self, settings: ORMSettings, repositories: Mapping[str, DeclaredCached]) -> None:
        """Find out which hints concern which repositories. On a database thread.

        Args:
            settings: the application's.
            repositories: by name.

        Raises:
            InvalidSettings: a transport is named whose package is not installed.
            InvalidRepository: a ``depends_on`` cannot be used.
        """
        self._settings = settings
        self._spread = settings.coherence_spread
        self._concerns = {name: concern_of(repository) for name, repository in repositories.items()}
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

    async def start(self) -> None:
        """Listen. Returns when all transports are up, or are known to be down, or after some seconds."""
        self._loop = asyncio.get_running_loop()
        for link in self.links:
            link.start()
        tried = [asyncio.create_task(link.tried.wait()) for link in self.links]
        if tried:
            _, slow = await asyncio.wait(tried, timeout=FIRST_CONNECTIONS_PATIENCE)
            for task in slow:
                task.cancel()
            await asyncio.gather(*slow, return_exceptions=True)
        if self.links:
            self._tell_of_deaf()

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
        await asyncio.gather(*(link.stop() for link in self.links))
        await self.roll_call.stop()
        await asyncio.gather(*(follower.stop() for follower in self._followers.values()))

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
            return await running.on_loop(self._loop, self.seen(name), f"{name}: refreshed()")
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

    def _tell_of_deaf(self) -> None:
        deaf: dict[str, list[str]] = {}  # by what helps
        for name, concern in self._concerns.items():
            if not self._hears_elsewhere(name):
                deaf.setdefault(how_to_hear(self._settings, concern.alias), []).append(name)
        for hint, names in deaf.items():
            logger.warning("writes_elsewhere_unheard", repositories=names, hint=hint)

    def _hears_elsewhere(self, name: str) -> bool:
        """Whether a transport is there that carries writes of other processes."""
        alias = self._concerns[name].alias
        listeners = [link.listener for link in self.links if not isinstance(link.listener, ProcessListener)]
        return any(listener.aliases is None or alias in listener.aliases for listener in listeners)

    def _orderly(self, name: str) -> Link | None:
        """A transport that carries all writes that concern a repository, in the order of commits."""
        concern = self._concerns[name]
        labels = frozenset(concern.tables.values())
        for link in self.links:
            aliases = link.listener.aliases
            if aliases is None or concern.alias not in aliases or link.connected_since is None:
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
    coherence = running.find("refreshed()").coherence
    if coherence is None:
        raise RefreshFailed(f"{name} cannot be refreshed: the application is still starting.")
    await coherence.seen(name)
