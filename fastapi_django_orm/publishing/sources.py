"""How a published repository answers, and which questions can be read without FastAPI's help."""

import asyncio
import re
from collections.abc import Callable, Coroutine, Hashable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeAlias, TypeVar
from uuid import UUID

from django.db import InterfaceError, OperationalError
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive

from ..cached import CachedRepository
from ..errors import NotFound, NotLoaded, ReadFailed, without_values
from ..events import logger
from ..memory.snapshot import Snapshot
from ..reading.batching import Absent
from ..reading.windows import Listed, Window, is_large
from ..repository import Repository
from ..responses.editions import Content, Edition, Header, Stamp, cache_control_header
from ..responses.representation import RepositoryResponse

T = TypeVar("T")

Served: TypeAlias = tuple[Content, Snapshot[Any] | None]

WHOLE: Window = (0, None)

# What nginx calls it; nobody will see it, but logs and metrics should not take it for an answer or an error.
GONE = Response(status_code=499)

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

    def admitted(self, window: Window | None) -> Window | None:
        """A window as the repository limits it; None if it is larger, or there is none."""

    async def read(self, window: Window | None, key: Hashable, receive: Receive) -> Served:
        """The same, or what can be had by waiting.

        Args:
            window: which rows of the list; None for one row.
            key: of the row.
            receive: the request's.

        Raises:
            ClientDisconnect: the client has gone.
            DatabaseBusy: too much was asked for, and was not read in time.
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

    async def read(self, receive: Receive) -> Served:
        """The answer, or what can be had by waiting; raises what ``Source.read()`` does."""
        return await self.source.read(self.window, self.key, receive)


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

    def admitted(self, window: Window | None) -> Window | None:
        """A window as the repository limits it."""
        return _admitted(self.repository, window)

    async def read(self, window: Window | None, key: Hashable, receive: Receive) -> Served:
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

    def admitted(self, window: Window | None) -> Window | None:
        """A window as the repository limits it."""
        return _admitted(self.repository, window)

    async def read(self, window: Window | None, key: Hashable, receive: Receive) -> Served:
        """Ask the database."""
        live = self.repository.live
        try:
            if window is None:
                return Content.plain(self._stamp, await live.row_json(key)), None
            reading = live.listed(window)
            return _ListedContent.of(
                self._stamp, await (unless_gone(receive, reading) if is_large(window) else reading)
            ), None
        except Absent:
            raise NotFound.of(self.repository.name, key) from None
        except (InterfaceError, OperationalError) as error:
            name = self.repository.name
            logger.error(
                "live_read_failed", repository=name, error=f"{type(error).__name__}: {without_values(error)}"
            )
            raise ReadFailed(f"{name} cannot be read now.") from error


class _ListedContent(Content):
    """A part of a list, which is counted for as long as it is being sent."""

    __slots__ = ("_listed",)
    _listed: Listed

    @classmethod
    def of(cls, stamp: Stamp, listed: Listed) -> Self:
        content = cls.plain(stamp, listed.body, listed.tag)
        content._listed = listed
        return content


async def unless_gone(receive: Receive, reading: Coroutine[Any, Any, T]) -> T:
    """What this coroutine returns; it is cancelled if the client goes first.

    Servers do not tell a handler that its client has gone: whoever wants to know has to listen.

    Raises:
        ClientDisconnect: the client has gone.
    """
    read, gone = asyncio.create_task(reading), asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait((read, gone), return_when=asyncio.FIRST_COMPLETED)
        if not read.done() and gone.exception() is None:
            raise ClientDisconnect
        return await read
    finally:
        read.cancel()
        gone.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _admitted(repository: Repository[Any], window: Window | None) -> Window | None:
    if window is None:
        return None
    offset, limit = window
    most, deepest = repository.max_limit, repository.max_offset
    if (most is not None and (limit or 0) > most) or (deepest is not None and offset > deepest):
        return None
    return window if limit or most is None else (offset, most)


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
