"""How one repository follows hints: at most one refresh at a time, for all hints that have come meanwhile."""

import asyncio
import random
from collections.abc import Collection, Hashable
from contextlib import suppress
from contextvars import copy_context
from typing import Any

from ..clock import cancel, monotonic, pause
from ..memory.refreshing import Refresher
from .hints import MOST_KEYS_OF_HINT

PACE = 0.01  # seconds between the beginnings of two refreshes: a burst costs a hundred a second at most
SPREAD = 4  # times what the last full load took


class Follower:
    """Refreshes a repository after hints."""

    def __init__(self, refresher: Refresher[Any], spread: float) -> None:
        """Delay full loads at random, by ``spread`` seconds at most, for workers not to load at once."""
        self.refresher = refresher
        self._spread = spread
        self._cost = 0.0
        self._keys: set[Hashable] | None = set()  # what waits to be refreshed; None: all rows
        self._asked = 0
        self._served = 0
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        # Not the context of follow()'s caller, a request or a transaction, whose end this may outlive.
        self._context = copy_context()

    def follow(self, keys: Collection[Hashable] | None) -> None:
        """Have the rows with these keys refreshed soon; None: all rows."""
        if keys is not None and not keys:
            return
        self._asked += 1
        if keys is not None and self._keys is not None:
            self._keys.update(keys)
        if keys is None or len(self._keys or ()) > MOST_KEYS_OF_HINT:
            self._keys = None
        if self._task is None or self._task.done():
            name = f"follow {self.refresher.name}"
            self._task = asyncio.create_task(self._run(), name=name, context=self._context)

    async def settle(self) -> None:
        """Wait until all that was followed before this call has been refreshed, or has failed to be."""
        wanted = self._asked
        while self._served < wanted:
            await self._changed.wait()

    async def stop(self) -> None:
        """Follow nothing more."""
        await cancel(self._task)
        self._serve(self._asked)

    async def _run(self) -> None:
        while self._keys is None or self._keys:
            if self._keys is None:
                # In proportion to its cost: what is done in an instant need not be spread.
                await pause(random.uniform(0, min(self._spread, SPREAD * self._cost)))
            keys, self._keys = self._keys, set()
            asked, next_one = self._asked, monotonic() + PACE
            # What fails is logged, and the refresher tries a load of everything until one succeeds.
            with suppress(Exception):
                load = await self.refresher.refresh("hint", keys)
                if keys is None:
                    self._cost = load.duration
            self._serve(asked)
            await pause(next_one - monotonic())

    def _serve(self, asked: int) -> None:
        self._served = asked
        self._changed.set()
        self._changed = asyncio.Event()
