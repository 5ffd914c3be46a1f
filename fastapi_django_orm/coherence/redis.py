"""Redis or Valkey carry hints between machines: published after a commit, received by every worker.

A message is lost while a worker is not connected; it reads everything again when it connects. So a lost
connection must be noticed, and redis-py must not replace it silently.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from ..errors import InvalidSettings
from .hints import CHANNEL, Hint, decode, encode
from .roll_call import EVERY_WORKER, channel_of, is_worker
from .transport import Listener, Publisher, TransportSupervisor, TransportUnavailable

REDIS_PATIENCE = 3.0  # seconds to connect, or to get an answer
REDIS_MESSAGE_LIMIT = 100_000  # bytes


class RedisListener(Listener):
    """Receives what is published on a server. A hint comes after its commit, so it is never caught up."""

    connects_workers = True

    def __init__(self, name: str, url: str, heartbeat: float) -> None:
        """Ask for an answer after ``heartbeat`` seconds of silence; InvalidSettings: an unusable URL."""
        _client(url)
        self.name = name
        self._url = url
        self._heartbeat = heartbeat
        self._client: redis.asyncio.Redis | None = None

    async def listen(self, receiver: TransportSupervisor) -> None:
        """Subscribe, and pass on what comes."""
        client = redis.asyncio.from_url(
            self._url,
            socket_connect_timeout=REDIS_PATIENCE,
            socket_timeout=REDIS_PATIENCE,
            socket_keepalive=True,
            retry=AsyncRetry(NoBackoff(), 0),
        )
        try:
            async with client, aclosing(client.pubsub()) as pubsub:
                # The channel of hints last: when it is confirmed, so are the others.
                await pubsub.subscribe(EVERY_WORKER, channel_of(self.worker), CHANNEL)
                self._client = client
                try:
                    await self._pass_on(pubsub, receiver)
                finally:
                    self._client = None  # first: a closed client connects again when it is used
        except (redis.RedisError, OSError) as error:
            raise self._unavailable(error) from error

    async def _pass_on(self, pubsub: "redis.asyncio.client.PubSub", receiver: TransportSupervisor) -> None:
        waits_for_pong = False
        task = asyncio.current_task()
        while True:
            limit = min(REDIS_PATIENCE, self._heartbeat) if waits_for_pong else self._heartbeat
            message = await pubsub.get_message(timeout=limit)
            if task is not None and task.cancelling():
                raise asyncio.CancelledError  # redis-py takes one at the end of its own timeout for that
            if message is not None:
                waits_for_pong = False
                _dispatch(message, receiver)
                await asyncio.sleep(0)  # what has come at once is read without a wait, and others want to run
            elif waits_for_pong:
                raise redis.TimeoutError("the server does not answer")
            else:
                async with asyncio.timeout(REDIS_PATIENCE):
                    await pubsub.ping()
                waits_for_pong = True

    async def workers(self) -> frozenset[str]:
        """The workers that are subscribed to their channels for answers."""
        prefix = channel_of("").encode()
        async with self._connected() as client:
            channels = await client.pubsub_channels(prefix + b"*")
        names = (
            channel.removeprefix(prefix).decode("ascii", "replace")
            for channel in channels
            if isinstance(channel, bytes)
        )
        return frozenset(filter(is_worker, names))

    async def say(self, channel: str, message: bytes) -> None:
        """Publish a message on this channel."""
        async with self._connected() as client:
            await client.publish(channel, message)

    @asynccontextmanager
    async def _connected(self) -> "AsyncIterator[redis.asyncio.Redis]":
        client = self._client
        if client is None:
            raise TransportUnavailable(f"{self.name} is not connected.")
        try:
            yield client
        except (redis.RedisError, OSError) as error:
            raise self._unavailable(error) from error
        except TypeError as error:
            # What asyncio (3.12 and 3.13) raises where something is written to a transport that was closed.
            if client is self._client:
                raise
            raise self._unavailable(error) from error
        finally:
            if client is not self._client:
                await client.aclose()  # it was closed before, and may have connected again since

    def _unavailable(self, error: Exception) -> TransportUnavailable:
        return TransportUnavailable(f"{self.name}: {str(error) or type(error).__name__}")


def _dispatch(message: dict[str, object], receiver: TransportSupervisor) -> None:
    match message:
        case {"type": "subscribe", "channel": bytes(channel)} if channel == CHANNEL.encode():
            receiver.connected()
        case {"type": "message", "channel": bytes(channel), "data": bytes(payload)}:
            if channel == CHANNEL.encode():
                receiver.received(decode(payload))
            else:
                receiver.said(payload)


class RedisPublisher(Publisher):
    """Publishes on a server."""

    def __init__(self, name: str, url: str) -> None:
        self.name = name
        self._client = _client(url)

    def publish(self, hint: Hint) -> None:
        """Publish a hint."""
        with self._explained():
            for message in encode(hint, REDIS_MESSAGE_LIMIT):
                self._client.publish(CHANNEL, message)

    def check(self) -> None:
        """Ask the server for an answer."""
        with self._explained():
            self._client.ping()

    def close(self) -> None:
        """Disconnect."""
        self._client.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except redis.RedisError as error:
            raise TransportUnavailable(f"{self.name}: {error}") from error


def _client(url: str) -> redis.Redis:
    # One retry, for a connection that the server has closed since it was used last.
    client = redis.Redis.from_url(
        url, socket_connect_timeout=REDIS_PATIENCE, socket_timeout=REDIS_PATIENCE, retry=Retry(NoBackoff(), 1)
    )
    try:
        client.connection_pool.make_connection()
    except (TypeError, ValueError) as error:
        raise InvalidSettings(f"DJANGO_ORM_COHERENCE names a redis:// URL with a mistake: {error}.") from None
    return client
