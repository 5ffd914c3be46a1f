"""How one repository follows the hints about it: one refresh at a time, for all that has come meanwhile.

However many hints come, at most one refresh runs and one set of keys waits.
"""

import asyncio
import random
from collections.abc import Collection, Hashable
from contextvars import copy_context
from typing import Any

from ..clock import monotonic, pause
from ..memory.refreshing import Refresher
from .hints import MOST_KEYS_OF_HINT

PACE = 0.01  # seconds between the beginnings of two refreshes: a burst costs a hundred a second at most
SPREAD = 4  # times what the last full load took


class Follower:
    """Refreshes a repository when it is told to."""

    def __init__(self, refresher: Refresher[Any], spread: float) -> None:
        """Wait to be told.

        Args:
            refresher: the repository's.
            spread: seconds that a full load is delayed at most, by chance, so that many workers that hear
                one hint do not load at the same moment.
        """
        self.refresher = refresher
        self._spread = spread
        self._cost = 0.0
        self._all = False
        self._keys: set[Hashable] = set()
        self._heard = 0
        self._served = 0
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        # Not the context of follow()'s caller, a request or a transaction, whose end this may outlive.
        self._context = copy_context()

    def follow(self, keys: Collection[Hashable] | None) -> None:
        """Have rows refreshed, soon.

        Args:
            keys: the rows' keys, an empty collection for nothing; None: all rows.
        """
        if keys is not None and not keys:
            return
        self._heard += 1
        self._want(keys)
        if self._task is None or self._task.done():
            name = f"follow {self.refresher.name}"
            self._task = asyncio.create_task(self._run(), name=name, context=self._context)

    async def settle(self) -> None:
        """Wait until all that was followed before this call has been refreshed, or has failed to be."""
        wanted = self._heard
        while self._served < wanted:
            await self._changed.wait()

    async def stop(self) -> None:
        """Follow nothing more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._serve(self._heard)

    async def _run(self) -> None:
        while self._all or self._keys:
            if self._all:
                # In proportion to its cost: what is done in an instant need not be spread.
                await pause(random.uniform(0, min(self._spread, SPREAD * self._cost)))
            keys = None if self._all else frozenset(self._keys)
            self._all, self._keys = False, set()
            heard, next_one = self._heard, monotonic() + PACE
            await self._refresh(keys)
            if keys is None or not self._all:
                self._serve(heard)
            await pause(next_one - monotonic())

    async def _refresh(self, keys: Collection[Hashable] | None) -> None:
        try:
            load = await self.refresher.refresh("hint", keys)
        except Exception:  # RefreshFailed, which it has logged; or whatever else must not end this task
            if keys is not None:
                self._want(None)  # a full load it will try again until it succeeds, keys it may forget
        else:
            if keys is None:
                self._cost = load.duration

    def _want(self, keys: Collection[Hashable] | None) -> None:
        if keys is not None and not self._all:
            self._keys.update(keys)
        if keys is None or len(self._keys) > MOST_KEYS_OF_HINT:
            self._all, self._keys = True, set()

    def _serve(self, heard: int) -> None:
        self._served = heard
        self._changed.set()
        self._changed = asyncio.Event()
