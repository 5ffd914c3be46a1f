"""Telling others from a thread: no write waits for it, fails for it, or is forgotten."""

import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from fastapi import FastAPI

from fastapi_django_orm import DjangoORM
from fastapi_django_orm.coherence import publishers as http_transport
from fastapi_django_orm.coherence import redis as redis_transport
from fastapi_django_orm.coherence.choice import publishers
from fastapi_django_orm.coherence.hints import (
    CHANNEL,
    EVERYTHING,
    MOST_KEYS_PENDING,
    Hint,
    PendingHints,
    decode,
)
from fastapi_django_orm.django import hint_sender
from fastapi_django_orm.django.hint_sender import HintSender
from fastapi_django_orm.settings import ORMSettings
from tests.support.databases import wait_until
from tests.support.gates import Gate, gated
from tests.support.projects import Project
from tests.support.servers import TCPProxy, Valkey
from tests.support.serving import serving

DEADLINE = 20.0  # seconds
TOPICS = "bbs.Topic"

APP = 'INSTALLED_APPS += ["fastapi_django_orm.django"]\n'


class Subscriber:
    """Hears what is published on a broker."""

    def __init__(self, client: "redis.Redis") -> None:
        self._pubsub = client.pubsub()
        self._pubsub.subscribe(CHANNEL)
        assert self._next()["type"] == "subscribe"

    def hint(self) -> Hint:
        """The next one."""
        return decode(self._next()["data"])

    def until(self, *keys: Any) -> set[Any]:
        """The keys of all hints until these have come; a hint for all rows has them."""
        found: set[Any] = set()
        while not found.issuperset(keys):
            hint = self.hint()
            found.update(keys if hint.keys is None else hint.keys)
        return found

    def _next(self) -> Any:
        message = self._pubsub.get_message(timeout=DEADLINE)
        assert message is not None, "nothing came"
        return message

    def close(self) -> None:
        self._pubsub.close()


@pytest.fixture
def subscriber(valkey: Valkey) -> Iterator[Subscriber]:
    """Somebody who listens, on a connection that a test of the other one must not cut."""
    with redis.Redis.from_url(valkey.url()) as client:
        subscriber = Subscriber(client)
        yield subscriber
        subscriber.close()


def sender_to(*urls: str) -> HintSender:
    """A sender that publishes there."""
    return HintSender(lambda: publishers(ORMSettings(coherence=urls, refresh_token="token")))


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the log says."""
    return [record.getMessage() for record in caplog.records if record.name == "fastapi_django_orm"]


def test_published(valkey: Valkey, subscriber: Subscriber) -> None:
    """A hint that is put in comes out at the broker."""
    sender = sender_to(valkey.url())
    sender.put(Hint(TOPICS, (1,)))
    assert subscriber.hint() == Hint(TOPICS, (1,))
    assert sender.flush(DEADLINE)


def test_a_burst(valkey: Valkey, subscriber: Subscriber) -> None:
    """Ten thousand hints are put in without waiting, and the last is heard of in fewer messages."""
    sender = sender_to(valkey.url())
    for key in range(10_000):
        sender.put(Hint(TOPICS, (key,)))
    assert 9_999 in subscriber.until(9_999)
    assert sender.flush(DEADLINE)


def test_merged() -> None:
    """Hints that wait are one for each model; too many keys are all rows; everything leaves nothing else."""
    waiting = PendingHints()
    for key in range(MOST_KEYS_PENDING):
        waiting.add(Hint(TOPICS, (key,)))
        waiting.add(Hint(TOPICS, (key,)))
    (hint,) = waiting.take()
    assert set(hint.keys or ()) == set(range(MOST_KEYS_PENDING))
    assert not waiting
    for hint in (
        Hint(TOPICS, tuple(range(MOST_KEYS_PENDING + 1))),
        Hint(TOPICS, (1,)),
        Hint("bbs.Author", ()),
    ):
        waiting.add(hint)
    assert waiting.take() == [Hint(TOPICS), Hint("bbs.Author", ())]
    waiting.add(Hint(TOPICS, (1,)))
    waiting.add(EVERYTHING)
    assert waiting.take() == [EVERYTHING]


def test_the_broker_dies(valkey: Valkey, caplog: pytest.LogCaptureFixture) -> None:
    """While the broker is away nothing blocks; one line says so, one that it is back; then all is told."""
    caplog.set_level(logging.INFO)
    sender = sender_to(valkey.url())
    sender.put(Hint(TOPICS, (0,)))
    assert sender.flush(DEADLINE)
    valkey.kill()
    for key in range(1, 101):
        sender.put(Hint(TOPICS, (key,)))
    (destination,) = sender._destinations or []
    wait_until(lambda: destination.failures >= 2, "it has been tried, and tried again")
    assert not sender.flush(0.1)
    assert len(lines(caplog)) == 1
    assert "cannot be told of writes through redis" in lines(caplog)[0]
    valkey.start()
    with redis.Redis.from_url(valkey.url()) as client:
        subscriber = Subscriber(client)
        assert subscriber.until(100) >= set(range(1, 101))
        subscriber.close()
    assert sender.flush(DEADLINE)
    assert len(lines(caplog)) == 2
    assert lines(caplog)[1].endswith("through redis again")


def test_a_broker_that_is_back_is_told_at_the_end(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A process that ends does not wait for the next attempt of its own accord, which may be too late."""
    monkeypatch.setattr(hint_sender, "LAST_RETRY", 3600.0)
    sender = sender_to(valkey.url())
    valkey.kill()
    sender.put(Hint(TOPICS, (1,)))
    assert not sender.flush(0.1)
    (destination,) = sender._destinations or []
    destination.failures = 20  # as after a long time
    assert not sender.flush(0.8)
    valkey.start()
    assert sender.flush(DEADLINE)  # which is far sooner than the next attempt of its own accord
    assert destination.failures == 0


def test_a_log_that_raises_ends_no_thread(valkey: Valkey) -> None:
    """What cannot be logged is published all the same, when the broker is back."""

    def full(record: logging.LogRecord) -> bool:
        raise OSError("no space left on device")

    log = logging.getLogger("fastapi_django_orm")
    log.addFilter(full)
    try:
        sender = sender_to(valkey.url())
        valkey.kill()
        sender.put(Hint(TOPICS, (1,)))
        assert not sender.flush(0.1)
        valkey.start()
        with redis.Redis.from_url(valkey.url()) as client:
            subscriber = Subscriber(client)
            assert sender.flush(DEADLINE)
            sender.put(Hint(TOPICS, (2,)))
            assert subscriber.until(2)
            subscriber.close()
    finally:
        log.removeFilter(full)


def test_a_black_hole(valkey: Valkey, subscriber: Subscriber, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that keeps silent blocks no writer, and is told when it answers again."""
    monkeypatch.setattr(redis_transport, "REDIS_PATIENCE", 3600.0)
    with TCPProxy("127.0.0.1", valkey.port) as proxy:
        sender = sender_to(valkey.url().replace(str(valkey.port), str(proxy.port)))
        sender.put(Hint(TOPICS, (1,)))
        assert subscriber.hint() == Hint(TOPICS, (1,))
        proxy.black_hole()
        sender.put(Hint(TOPICS, (2,)))  # which would not return before the proxy resumes, if it waited
        assert not sender.flush(0.1)
        proxy.resume()
        assert subscriber.until(2)
        assert sender.flush(DEADLINE)


def test_one_of_two(valkey: Valkey, subscriber: Subscriber, caplog: pytest.LogCaptureFixture) -> None:
    """A transport that is down takes nothing from another."""
    sender = sender_to("http://127.0.0.1:9/refresh/", valkey.url())
    sender.put(Hint(TOPICS, (1,)))
    assert subscriber.hint() == Hint(TOPICS, (1,))
    sender.put(Hint(TOPICS, (2,)))
    assert subscriber.hint() == Hint(TOPICS, (2,))
    assert not sender.flush(0.1)
    wait_until(lambda: any("through http" in line for line in lines(caplog)), "it has been tried")
    assert len([line for line in lines(caplog) if "through http" in line]) == 1


def test_routes_that_hang(
    sqlite: str,
    valkey: Valkey,
    subscriber: Subscriber,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Routes that take a connection and say nothing hold up no other route and no broker."""
    monkeypatch.setattr(http_transport, "HTTP_PATIENCE", 3600.0)
    gate = Gate()
    app = FastAPI(lifespan=DjangoORM(ORMSettings(refresh_token="token"), repositories=[gated(gate)]).lifespan)
    with serving(app) as client, TCPProxy("127.0.0.1", client.base_url.port or 0) as proxy:
        proxy.black_hole()
        hanging = f"http://127.0.0.1:{proxy.port}/refresh/"
        sender = sender_to(
            hanging, hanging, valkey.url(), f"http://127.0.0.1:{client.base_url.port}/refresh/"
        )
        gate.reset()
        for key in (1, 2, 3):
            sender.put(Hint("board.Topic", (key,)))
            assert subscriber.hint() == Hint("board.Topic", (key,))
            gate.wait_for_load()
        assert not sender.flush(0.1)
        proxy.resume()
        assert sender.flush(DEADLINE)
    assert len([line for line in lines(caplog) if "cannot be told" in line]) <= 2  # one for each


def test_many_writers(valkey: Valkey, subscriber: Subscriber) -> None:
    """Threads that write at once are all told of."""
    sender = sender_to(valkey.url())
    barrier = threading.Barrier(8)

    def write(number: int) -> None:
        barrier.wait(DEADLINE)
        for key in range(100):
            sender.put(Hint(TOPICS, (number * 100 + key,)))

    writers = [threading.Thread(target=write, args=[number]) for number in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(DEADLINE)
    assert sender.flush(DEADLINE)
    found: set[int] = set()
    while len(found) < 800:
        found |= set(subscriber.hint().keys or ())
    assert found == set(range(800))


SAVE = """
import django
django.setup()
from bbs.models import Topic
Topic.objects.create(pk=77, comment="new")
"""


@pytest.fixture
def writer(project: Project) -> Project:
    """A project without FastAPI's part, as a Celery worker is."""
    project.append("config/settings.py", APP)
    project.remove("main.py")
    return project


def environment(valkey: Valkey) -> dict[str, str]:
    return {"DJANGO_ORM_COHERENCE": valkey.url(), "DJANGO_SETTINGS_MODULE": "config.settings"}


def test_a_process_that_ends(writer: Project, valkey: Valkey, subscriber: Subscriber) -> None:
    """A command that writes and ends at once has told of it."""
    writer.python(SAVE, **environment(valkey))
    assert subscriber.hint() == Hint(TOPICS, (77,))


def test_a_process_that_ends_without_a_broker(writer: Project, valkey: Valkey) -> None:
    """A command whose broker is away does its work, says so in one line, and ends."""
    valkey.kill()
    output = writer.python(SAVE + 'print(Topic.objects.count(), "topics")', **environment(valkey))
    assert "2 topics" in output
    assert output.count("cannot be told of writes") == 1


FORK = """
import os
import django
django.setup()
from bbs.models import Topic
from django.db import connections
Topic.objects.create(pk=1001, comment="parent")
connections.close_all()
pid = os.fork()
if not pid:
    Topic.objects.create(pk=1002, comment="child")
    connections.close_all()
    from fastapi_django_orm.django import signals
    os._exit(0 if signals._sender.flush(10) else 1)
assert os.waitpid(pid, 0)[1] == 0
Topic.objects.create(pk=1003, comment="parent again")
"""


def test_a_process_that_forks(writer: Project, valkey: Valkey, subscriber: Subscriber) -> None:
    """Both processes tell of what they write, each with a thread and a connection of its own."""
    writer.python(FORK, **environment(valkey))
    assert subscriber.until(1001, 1002, 1003) == {1001, 1002, 1003}


def test_settings_that_cannot_be_read(writer: Project) -> None:
    """A process whose settings are wrong works on, and says what is wrong."""
    output = writer.python(SAVE, DJANGO_ORM_COHERENCE="radish://x", DJANGO_SETTINGS_MODULE="config.settings")
    assert "DJANGO_ORM_COHERENCE" in output
    assert "write one or more" in output
