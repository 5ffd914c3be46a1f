"""PostgreSQL's limit: NOTIFY in the writer's transaction, psycopg's `notifies()`, and nothing is read."""

import asyncio
import os

from psycopg import AsyncConnection

from benchmarks.peers.coherence.listening import Listening
from benchmarks.peers.coherence.seen import Seen


async def listen(seen: Seen, begun: asyncio.Event) -> None:
    """Note each notification."""
    async with await AsyncConnection.connect(os.environ["DATABASE_URL"], autocommit=True) as connection:
        await connection.execute("LISTEN benchmark")
        begun.set()
        async for _ in connection.notifies():
            seen.note()


app = Listening(listen)
