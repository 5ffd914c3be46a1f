"""Refreshes one after the other, from `/busy` to `/idle`: the same for every peer."""

import asyncio
from collections.abc import Awaitable, Callable
from itertools import count

from asgiref.sync import sync_to_async
from django.db import connection

SERVED = 100  # rows, those that clients ask for; the others change
PARTS = 100  # of the rows that change, one for each refresh

UPDATE = "UPDATE bbs_topic SET comment = md5(random()::text) WHERE id > %s AND id %% %s = %s"


class Refreshing:
    """A task that refreshes until it is told to stop."""

    def __init__(self, refresh: Callable[[], Awaitable[object]] | None) -> None:
        self.refresh = refresh
        self.done = 0
        self.error: BaseException | None = None
        self.task: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Change some rows, refresh, and again."""
        assert self.refresh is not None
        for number in count():
            await sync_to_async(change)(number)
            await self.refresh()
            self.done += 1

    async def busy(self) -> int:
        """Begin."""
        if self.refresh is not None and self.task is None:
            self.task = asyncio.create_task(self.run())
        return self.done

    async def idle(self) -> int:
        """End; fail if a refresh did."""
        task, self.task = self.task, None
        if task is not None:
            task.cancel()
            (ended,) = await asyncio.gather(task, return_exceptions=True)
            if not isinstance(ended, asyncio.CancelledError):
                raise RuntimeError("a refresh failed") from ended
        return self.done


def change(number: int) -> None:
    """Change every hundredth row."""
    with connection.cursor() as cursor:
        cursor.execute(UPDATE, [SERVED, PARTS, number % PARTS])
