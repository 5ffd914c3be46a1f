"""Redis and Valkey: hints between machines, and what is done when the server goes."""

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import redis
from structlog.testing import capture_logs

from fastapi_django_orm.coherence.hints import CHANNEL, Hint, encode
from fastapi_django_orm.coherence.redis import RedisListener, RedisPublisher
from fastapi_django_orm.coherence.service import Coherence, seen
from fastapi_django_orm.coherence.transport import TransportUnavailable
from tests.support.gates import Gate, comments, gated
from tests.support.hearing import DEADLINE, create, eventually, follows, hearing, link, write
from tests.support.playing import outside
from tests.support.repositories import declare
from tests.support.servers import TCPProxy, Valkey

pytestmark = pytest.mark.usefixtures("sqlite")

HEARTBEAT = 0.4  # seconds


@pytest.fixture
def publisher(valkey: Valkey) -> Iterator[RedisPublisher]:
    publisher = RedisPublisher("redis", valkey.url())
    yield publisher
    publisher.close()


@pytest.fixture
def proxy(valkey: Valkey) -> Iterator[TCPProxy]:
    """What stands between the listeners and the server, and nobody else."""
    with TCPProxy("127.0.0.1", valkey.port) as proxy:
        yield proxy
        proxy.resume()


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[Any]]:
    """What is logged, instead of the output."""
    with capture_logs() as entries:
        yield entries


def through(proxy: TCPProxy) -> dict[str, Any]:
    return {"coherence": f"redis://127.0.0.1:{proxy.port}/0", "coherence_heartbeat": HEARTBEAT}


def broker(coherence: Coherence) -> Any:
    return link(coherence, "redis")


def run(main: Any) -> None:
    asyncio.run(main())


@pytest.mark.parametrize("scheme", ["redis", "valkey"])
def test_a_published_hint_is_followed(valkey: Valkey, publisher: RedisPublisher, scheme: str) -> None:
    """Whatever the URL's scheme is called."""

    async def main() -> None:
        async with hearing(declare(), coherence=valkey.url().replace("redis", scheme)) as (topics, _):
            (key,) = await write("one")
            await asyncio.to_thread(publisher.publish, Hint("board.Topic", (key,)))
            await follows(topics, "one")

    run(main)


def test_a_large_hint(valkey: Valkey, publisher: RedisPublisher) -> None:
    """A hundred thousand keys are one message for all rows; ten thousand are a few."""

    async def main() -> None:
        async with hearing(declare(), coherence=valkey.url()) as (topics, _):
            await write("one")
            await asyncio.to_thread(publisher.publish, Hint("board.Topic", tuple(range(100_000))))
            await follows(topics, "one")
            await write("two")
            await asyncio.to_thread(publisher.publish, Hint("board.Topic", tuple(range(10_000))))
            await follows(topics, "one", "two")

    run(main)


@pytest.mark.parametrize("payload", [b"", b"\xff\xfe", b"hello", b'{"v":7}', b"x" * 2_000_000])
def test_messages_that_cannot_be_understood(
    valkey: Valkey, publisher: RedisPublisher, payload: bytes
) -> None:
    """Somebody else's, huge ones, another version's: everything is read anew, and the next is heard."""

    async def main() -> None:
        async with hearing(declare(), coherence=valkey.url()) as (topics, coherence):
            await write("one")
            await asyncio.to_thread(publisher._client.publish, CHANNEL, payload)
            await follows(topics, "one")
            await write("two")
            await asyncio.to_thread(publisher.publish, Hint("board.Topic"))
            await follows(topics, "one", "two")
            assert not broker(coherence).degraded

    run(main)


def test_a_burst_lets_others_run(valkey: Valkey, publisher: RedisPublisher) -> None:
    """Messages that have come together are not read in one go, which would stop every request for seconds."""
    ticks, number = 0, 2000
    heard_at: list[int] = []

    class Receiver:
        def connected(self) -> None:
            up.set()

        def received(self, hint: Hint) -> None:
            heard_at.append(ticks)

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    def publish() -> None:
        with publisher._client.pipeline() as together:
            for key in range(number):
                together.publish(CHANNEL, encode(Hint("board.Topic", (key,)))[0])
            together.execute()

    async def main() -> None:
        listener = RedisListener("redis", valkey.url(), 10)
        tasks = [asyncio.create_task(listener.listen(Receiver())), asyncio.create_task(tick())]
        await asyncio.wait_for(up.wait(), DEADLINE)
        await asyncio.to_thread(publish)
        await eventually(lambda: len(heard_at) == number, "all are heard")
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    up = asyncio.Event()
    run(main)
    assert len(set(heard_at)) > number / 2


def test_a_server_that_dies_in_a_burst(valkey: Valkey, publisher: RedisPublisher) -> None:
    """Hints are lost with it; when it is back, the repository equals the table without any."""
    lost = 0

    def burst() -> None:
        nonlocal lost
        for number in range(200):
            create([str(number)])
            if number == 100:
                valkey.kill()
            try:
                publisher.publish(Hint("board.Topic"))
            except TransportUnavailable:
                lost += 1
            if number == 150:
                # From here on nobody publishes until the end.
                break

    async def main() -> None:
        async with hearing(declare(), coherence=valkey.url()) as (topics, coherence):
            await outside(burst)
            assert lost == 51
            await eventually(lambda: broker(coherence).degraded, "the loss is noticed")
            await asyncio.to_thread(valkey.start)
            await eventually(lambda: len(topics) == 151, "all rows are served")
            assert not broker(coherence).degraded

    run(main)


def test_a_connection_that_goes_silent(proxy: TCPProxy) -> None:
    """The heartbeat finds it, sooner than the network, and everything is read anew afterwards."""

    async def main() -> None:
        async with hearing(declare(), **through(proxy)) as (topics, coherence):
            await asyncio.to_thread(proxy.black_hole)
            await write("one")
            await eventually(lambda: broker(coherence).degraded, "the silence is noticed")
            await asyncio.to_thread(proxy.resume)
            await follows(topics, "one")

    run(main)


def test_silence_without_a_fault(proxy: TCPProxy) -> None:
    """A server that has nothing to say stays connected for many heartbeats."""

    async def main() -> None:
        # An answer must come within a heartbeat, which this process may be too busy to read in 0.4 s.
        calm = through(proxy) | {"coherence_heartbeat": 1.0}
        async with hearing(declare(), **calm) as (_, coherence):
            since = broker(coherence).connected_since
            await asyncio.sleep(3.5)
            assert broker(coherence).connected_since == since

    run(main)


def test_an_end_at_a_heartbeat(valkey: Valkey) -> None:
    """A listener that is cancelled at the moment of a heartbeat ends."""

    class Receiver:
        def __init__(self) -> None:
            self.up = asyncio.Event()

        def connected(self) -> None:
            self.up.set()

        def received(self, hint: Hint) -> None: ...

        def said(self, message: bytes) -> None: ...

    async def end(delay: float) -> None:
        receiver = Receiver()
        listener = RedisListener("redis", valkey.url(), 0.01)
        listening = asyncio.create_task(listener.listen(receiver))
        await asyncio.wait_for(receiver.up.wait(), DEADLINE)
        await asyncio.sleep(delay)
        listening.cancel()
        done, _ = await asyncio.wait([listening], timeout=DEADLINE)
        assert done

    async def main() -> None:
        await asyncio.gather(*(end(0.0095 + number * 0.00002) for number in range(50)))

    run(main)


def test_what_is_said_while_it_ends(valkey: Valkey) -> None:
    """Whoever speaks while the listener ends is refused, or heard; no connection stays open for it."""

    class Quiet:
        def connected(self) -> None: ...
        def received(self, hint: Any) -> None: ...
        def said(self, payload: bytes) -> None: ...

    async def speak(listener: RedisListener) -> None:
        for _ in range(50):
            with suppress(TransportUnavailable):
                await listener.say("nobody's", b"1")
            await asyncio.sleep(0)

    async def main() -> None:
        listener = RedisListener("redis", valkey.url(), HEARTBEAT)
        task = asyncio.create_task(listener.listen(Quiet()))
        await eventually(lambda: listener._client is not None, "it listens")
        speakers = [asyncio.create_task(speak(listener)) for _ in range(3)]
        await asyncio.sleep(0.005)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.gather(*speakers)
        with redis.Redis.from_url(valkey.url()) as client:
            await eventually(lambda: len(client.client_list()) == 1, "only this connection")

    run(main)


def test_a_connection_that_is_reset(proxy: TCPProxy, logs: list[Any]) -> None:
    """It is never mended in silence: everything is read anew."""

    async def main() -> None:
        async with hearing(declare(), **through(proxy)) as (topics, coherence):
            since = broker(coherence).connected_since
            await write("one")
            await asyncio.to_thread(proxy.reset)
            await follows(topics, "one")
            assert broker(coherence).connected_since > since

    run(main)
    assert [entry["transport"] for entry in logs if entry["event"] == "coherence_lost"] == ["redis"]


def test_a_server_that_is_away_at_startup(proxy: TCPProxy) -> None:
    """The application starts and serves; when the server is there, everything is read anew."""
    proxy.refuse()

    async def main() -> None:
        async with hearing(declare(), **through(proxy)) as (topics, coherence):
            assert broker(coherence).degraded
            await write("one")
            assert comments(topics) == []
            await asyncio.to_thread(proxy.resume)
            await follows(topics, "one")

    run(main)


def test_seen_reads_the_database(valkey: Valkey) -> None:
    """A hint comes some time after its commit, so nothing that has come tells that all has."""
    gate = Gate()

    async def main() -> None:
        async with hearing(gated(gate), coherence=valkey.url(), gate=gate) as (topics, _):
            await write("one")
            await seen("topics")
            assert comments(topics) == ["one"]

    run(main)


def test_a_publisher_without_a_server(proxy: TCPProxy) -> None:
    """It says so within seconds, and works again with the server."""
    publisher = RedisPublisher("redis", f"redis://127.0.0.1:{proxy.port}/0")
    publisher.check()
    proxy.refuse()
    proxy.reset()
    for attempt in (publisher.check, lambda: publisher.publish(Hint("board.Topic"))):
        with pytest.raises(TransportUnavailable, match="redis"):
            attempt()
    proxy.resume()
    publisher.publish(Hint("board.Topic"))
    publisher.close()
