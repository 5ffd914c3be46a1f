"""How a published repository answers: from its snapshot, or from the database."""

import asyncio
from collections.abc import Coroutine, Hashable
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

from django.db import InterfaceError, OperationalError
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from ..cached import CachedRepository
from ..errors import NotFound, NotLoaded, ReadFailed, without_values
from ..events import logger
from ..queries.filter import Filter
from ..reading.batching import Absent
from ..reading.windows import Listed, Window, is_large
from ..repository import Repository
from ..responses.negotiation import SLAB
from ..responses.representation import Header, Representation, Representations
from ..responses.response import RepositoryResponse

T = TypeVar("T")

WHOLE: Window = (0, None)


class Source:
    """Answers for a published repository."""

    def __init__(self, repository: Repository[Any]) -> None:
        self.repository = repository
        self.cache_control: Header = (b"cache-control", repository.cache_control.encode())

    def admitted(self, window: Window | None) -> Window | None:
        """A window as the repository limits it; None if it is larger, or there is none."""
        if window is None:
            return None
        (offset, limit), most = window, self.repository.max_limit
        deepest = self.repository.max_offset
        if (most is not None and (limit or 0) > most) or (deepest is not None and offset > deepest):
            return None
        return window if limit or most is None else (offset, most)

    def filtered(self, where: Filter) -> RepositoryResponse:
        """The answer with a page that a filter selects: the same for everybody, whatever the request is."""
        return self.repository.live.in_public_context(self.repository.response, where)

    def at_hand(self, window: Window | None, key: Hashable) -> Representation | None:
        """What is there without waiting: the rows of a window, or, if that is None, the row with a key."""
        raise NotImplementedError

    async def read(self, window: Window | None, key: Hashable, receive: Receive) -> Representation:
        """The same, or what can be had by waiting, with the request's ``receive()``.

        Raises:
            ClientDisconnect: the client has gone.
            DatabaseBusy: too much was asked for, and was not read in time.
            NotFound: there is no row with this key.
            NotLoaded: there is nothing yet.
            ReadFailed: the database does not answer.
        """
        raise NotImplementedError


class Question(NamedTuple):
    """What a request asks a source for: the rows of a window, or the row with a key if there is no window."""

    source: Source
    window: Window | None
    key: Hashable = None


class CachedSource(Source):
    """Answers from a repository's snapshot."""

    def __init__(self, repository: CachedRepository[Any]) -> None:
        super().__init__(repository)
        self.refresher = repository.refresher

    def at_hand(self, window: Window | None, key: Hashable) -> Representation | None:
        """Everything is there without waiting."""
        if (snapshot := self.refresher.snapshot) is None:
            return None
        representations = Representations.of(snapshot)
        if window is WHOLE:
            return representations.whole
        if window is not None:
            return representations.window(snapshot, *window)
        try:
            return representations.row(snapshot, key)
        except (KeyError, TypeError):  # TypeError: unhashable, which no key is
            return None

    async def read(self, window: Window | None, key: Hashable, receive: Receive) -> Representation:
        """The same, with an error that says why there is nothing."""
        if self.refresher.snapshot is None:
            raise NotLoaded.of(self.repository.name)
        found = self.at_hand(window, key)
        if found is None:  # a row's key, written in another way than the row has it
            with suppress(KeyError):
                found = self.at_hand(None, self.repository.live.row_key(key))
        if found is None:
            raise NotFound.of(self.repository.name, key)
        return found


class LiveSource(Source):
    """Answers from the database, as it is now."""

    def at_hand(self, window: Window | None, key: Hashable) -> Representation | None:
        """None: what the database has now must be waited for."""
        return None

    async def read(self, window: Window | None, key: Hashable, receive: Receive) -> Representation:
        """Ask the database."""
        live, name = self.repository.live, self.repository.name
        try:
            if window is None:
                return _once(Listed(await live.row_json(key)))
            reading = live.listed(window)
            return _once(await (unless_gone(receive, reading) if is_large(window) else reading))
        except Absent:
            raise NotFound.of(name, key) from None
        except (InterfaceError, OperationalError) as error:
            logger.error(
                "live_read_failed", repository=name, error=f"{type(error).__name__}: {without_values(error)}"
            )
            raise ReadFailed(f"{name} cannot be read now.") from error


def source_for(repository: Repository[Any]) -> Source:
    """What answers for a repository."""
    return CachedSource(repository) if isinstance(repository, CachedRepository) else LiveSource(repository)


def _once(listed: Listed) -> Representation:
    """Bytes for one request: compressing them is not worth it, and large ones go as the client takes them."""
    whole = listed.body if len(listed.body) <= SLAB else None
    # The function holds `listed`, whose bytes are counted until they are sent.
    return Representation(listed.tag, whole, len(listed.body), parts=lambda: (listed.body,))


async def unless_gone(receive: Receive, reading: Coroutine[Any, Any, T]) -> T:
    """What this coroutine returns; if the client goes first, cancel it and raise ``ClientDisconnect``."""
    # A server does not cancel the handler: something must wait for its message.
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
