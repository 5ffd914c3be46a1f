"""How a published repository answers, and which questions can be read without FastAPI's help."""

import re
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias
from uuid import UUID

import structlog
from django.db import InterfaceError, OperationalError

from ..cached import CachedRepository
from ..errors import NotFound, NotLoaded, ReadFailed
from ..reading.batching import Absent
from ..reading.live_queries import Window
from ..repository import Repository
from ..responses.editions import Content, Edition, Stamp
from ..responses.representation import RepositoryResponse
from ..snapshots.snapshot import Snapshot

logger = structlog.get_logger("fastapi_django_orm")

Served: TypeAlias = tuple[Content, Snapshot[Any] | None]

WHOLE: Window = (0, None)

_WINDOW = re.compile(rb"(?:offset=(\d{1,15}))?(?:(?:^|(?<=.)&)limit=([1-9]\d{0,14}))?").fullmatch
_INTEGER = re.compile(r"0|-?[1-9]\d{0,17}", re.ASCII).fullmatch
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch


class Source(Protocol):
    """What answers for a published repository.

    Attributes:
        repository: whose rows it has.
    """

    @property
    def repository(self) -> Repository[Any]: ...  # noqa: D102

    def at_hand(self, window: Window | None, key: Hashable) -> Served | None:
        """What is there without waiting: the rows of a window, or else the row with a key."""

    async def read(self, window: Window | None, key: Hashable) -> Served:
        """The same, or what can be had by waiting.

        Raises:
            NotFound: there is no row with this key.
            NotLoaded: there is nothing yet.
            ReadFailed: the database does not answer.
        """


@dataclass(frozen=True, slots=True)
class Question:
    """What a request asks a source for.

    Attributes:
        source: what answers it.
        window: which rows of the list; None for one row.
        key: of the row.
    """

    source: Source
    window: Window | None
    key: Hashable = None

    def at_hand(self) -> Served | None:
        """The answer, if there is one without waiting."""
        return self.source.at_hand(self.window, self.key)

    async def read(self) -> Served:
        """The answer, or what can be had by waiting; raises what ``Source.read()`` does."""
        return await self.source.read(self.window, self.key)


class CachedSource:
    """Answers from a repository's snapshot."""

    def __init__(self, repository: CachedRepository[Any]) -> None:
        """Answer for a repository."""
        self.repository = repository
        self._refresher = repository.refresher
        self._cache_control = repository.cache_control

    def at_hand(self, window: Window | None, key: Hashable) -> Served | None:
        """What is there without waiting, which is all."""
        snapshot = self._refresher.snapshot
        if snapshot is None:
            return None
        edition: Edition = snapshot.table.kept.get("edition") or Edition.of(snapshot, self._cache_control)
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
        self._stamp = Stamp(repository.cache_control)

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
            logger.error("live_read_failed", repository=name, error=f"{type(error).__name__}: {error}")
            raise ReadFailed(f"{name} cannot be read now.") from error
        return Content.plain(self._stamp, body), None


def source_of(repository: Repository[Any]) -> Source:
    """What answers for a repository."""
    return CachedSource(repository) if isinstance(repository, CachedRepository) else LiveSource(repository)


def response_to(found: Served) -> RepositoryResponse:
    """A response, for a handler to return."""
    content, snapshot = found
    return RepositoryResponse(snapshot, content)


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
