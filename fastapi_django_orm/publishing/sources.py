"""How a published repository answers: what its routes call, and what the layer in front of them asks first.

The layer asks for what is written plainly. The rest it leaves to the routes, which validate and explain.
"""

import re
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any, Protocol, TypeAlias
from uuid import UUID

from django.db import InterfaceError, OperationalError

from ..cached import CachedRepository
from ..errors import NotFound, NotLoaded, ReadFailed, without_values
from ..events import logger
from ..reading.batching import Absent
from ..reading.live_queries import Window
from ..repository import Repository
from ..responses.editions import Content, Edition, Header, Stamp, cache_control_header
from ..responses.representation import RepositoryResponse
from ..snapshots.snapshot import Snapshot

Served: TypeAlias = tuple[Content, Snapshot[Any] | None]

WHOLE: Window = (0, None)

_WINDOW = re.compile(rb"(?:offset=(\d{1,15}))?(?:(?:^|(?<=.)&)limit=([1-9]\d{0,14}))?").fullmatch
_INTEGER = re.compile(r"0|-?[1-9]\d{0,17}", re.ASCII).fullmatch
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch


class Source(Protocol):
    """What answers for a published repository.

    Attributes:
        repository: whose rows it has.
        cache_control: that header of its answers.
    """

    @property
    def repository(self) -> Repository[Any]: ...  # noqa: D102

    cache_control: Header

    def at_hand(self, window: Window | None, key: Hashable) -> Served | None:
        """What is there without waiting: the rows of a window, or else the row with a key."""

    async def read(self, window: Window | None, key: Hashable) -> Served:
        """The same, or what can be had by waiting.

        Raises:
            NotFound: there is no row with this key.
            NotLoaded: there is nothing yet.
            ReadFailed: the database does not answer.
        """


class CachedSource:
    """Answers from a repository's snapshot."""

    def __init__(self, repository: CachedRepository[Any]) -> None:
        """Answer for a repository."""
        self.repository = repository
        self.cache_control = cache_control_header(repository.cache_control)
        self._refresher = repository.refresher

    def at_hand(self, window: Window | None, key: Hashable) -> Served | None:
        """What is there without waiting, which is all."""
        snapshot = self._refresher.snapshot
        if snapshot is None:
            return None
        edition = Edition.of(snapshot)
        if window is WHOLE:
            return edition.whole, snapshot
        if window is not None:
            return edition.window(snapshot, *window), snapshot
        try:
            return edition.row(snapshot, key), snapshot
        except (KeyError, TypeError):  # TypeError: unhashable, which no key is
            return None

    async def read(self, window: Window | None, key: Hashable) -> Served:
        """The same, with an error that says why there is nothing."""
        if self._refresher.snapshot is None:
            raise NotLoaded.of(self.repository.name)
        found = self.at_hand(window, key)
        if found is None:  # a row's key, written in another way than the row has it
            with suppress(KeyError):
                found = self.at_hand(None, self.repository.live.row_key(key))
        if found is None:
            raise NotFound.of(self.repository.name, key)
        return found


class LiveSource:
    """Answers from the database, as it is now."""

    def __init__(self, repository: Repository[Any]) -> None:
        """Answer for a repository."""
        self.repository = repository
        self.cache_control = cache_control_header(repository.cache_control)
        self._stamp = Stamp()

    def at_hand(self, window: Window | None, key: Hashable) -> Served | None:
        """None: what the database has now must be waited for."""
        return None

    async def read(self, window: Window | None, key: Hashable) -> Served:
        """Ask the database."""
        live = self.repository.live
        try:
            body = await (live.row_json(key) if window is None else live.window(*window))
        except Absent:
            raise NotFound.of(self.repository.name, key) from None
        except (InterfaceError, OperationalError) as error:
            name = self.repository.name
            logger.error(
                "live_read_failed", repository=name, error=f"{type(error).__name__}: {without_values(error)}"
            )
            raise ReadFailed(f"{name} cannot be read now.") from error
        return Content.plain(self._stamp, body), None


def source_of(repository: Repository[Any]) -> Source:
    """What answers for a repository."""
    return CachedSource(repository) if isinstance(repository, CachedRepository) else LiveSource(repository)


def response_to(found: Served, repository: Repository[Any]) -> RepositoryResponse:
    """A response, for a handler to return."""
    content, snapshot = found
    return RepositoryResponse(snapshot, content, repository.cache_control)


def plain_window(query: bytes) -> Window | None:
    """The window that a URL's query asks for, if it is written plainly."""
    if not query:
        return WHOLE
    if (match := _WINDOW(query)) is None:
        return None
    offset, limit = match.groups()
    return int(offset or 0), int(limit) if limit else None


def plain_keys(key_type: Any) -> Callable[[str], Hashable]:
    """A function that reads a key from a path's text; it gives None for what is not in the plain form."""
    if key_type is str:
        return str
    if key_type is int:
        return lambda text: int(text) if _INTEGER(text) else None
    if key_type is UUID:
        return lambda text: UUID(text) if _UUID(text) else None
    return lambda text: None
