"""Valkey's limit: PUBLISH after the commit, redis-py's `listen()`, and nothing is read."""

import asyncio
import os

from redis.asyncio import Redis

from benchmarks.peers.coherence.listening import Listening
from benchmarks.peers.coherence.seen import Seen


async def listen(seen: Seen, begun: asyncio.Event) -> None:
    """Note each message."""
    async with Redis.from_url(os.environ["BENCHMARK_BROKER"]) as client, client.pubsub() as channel:
        await channel.subscribe("benchmark")
        async for message in channel.listen():
            if message["type"] == "subscribe":
                begun.set()
            else:
                seen.note()


app = Listening(listen)
