"""Full loads that many workers share: who loads, who takes what, and what happens when something fails."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis
from django.db import OperationalError, connections
from django.test import override_settings
from structlog.testing import capture_logs

from fastapi_django_orm import ORMSettings
from fastapi_django_orm.errors import InvalidSettings, RefreshFailed
from fastapi_django_orm.rows.codec import RowCodec
from fastapi_django_orm.shared_loads import identity as shared_identity
from fastapi_django_orm.shared_loads import loader as shared_loader
from fastapi_django_orm.shared_loads import store as shared_store
from fastapi_django_orm.shared_loads.format import NotGenuine, NotPortable, pack, unpack
from fastapi_django_orm.shared_loads.identity import Identity
from fastapi_django_orm.snapshots.pages import Chunk, cut, cut_evenly
from tests.gates import Gate, add_topics, comments, gated, started
from tests.hearing import eventually, write
from tests.playing import outside
from tests.project import router
from tests.project.board.models import Topic
from tests.projects import Project
from tests.repositories import declare
from tests.servers import PostgreSQL, TCPProxy, Valkey

DEADLINE = 40.0  # seconds
KEY = b"k" * 32


@pytest.fixture
def broker(valkey: Valkey) -> Iterator[redis.Redis]:
    """A look at what is on the server."""
    with redis.Redis.from_url(valkey.url()) as client:
        yield client


@pytest.fixture
def proxy(valkey: Valkey) -> Iterator[TCPProxy]:
    """What stands between the workers and the server, and nobody else."""
    with TCPProxy("127.0.0.1", valkey.port) as proxy:
        yield proxy
        proxy.resume()


@pytest.fixture(params=["sqlite", "postgresql"])
def board(request: pytest.FixtureRequest, _databases: Any) -> Iterator[str]:
    """A database with empty tables, chosen for every query."""
    router.choose(_databases(request.param))
    Topic.objects.all().delete()
    yield request.param
    connections.close_all()
    router.choose("default")


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[Any]]:
    """What is logged, instead of the output."""
    with capture_logs() as entries:
        yield entries


@asynccontextmanager
async def fleet(count: int, gate: Gate, url: str, **attributes: Any) -> AsyncIterator[list[Any]]:
    """The repositories of so many applications, each with threads of its own, in one process."""
    repository = gated(gate, **attributes)
    async with asyncio.timeout(DEADLINE), AsyncExitStack() as stack:
        workers = [
            (await stack.enter_async_context(started(repository, shared=url)))[0] for _ in range(count)
        ]
        gate.reset()
        try:
            yield workers
        finally:
            gate.open()


def begin(*workers: Any) -> list[asyncio.Task[Any]]:
    return [asyncio.create_task(worker.refresh()) for worker in workers]


def states(broker: redis.Redis) -> dict[bytes, dict[bytes, bytes]]:
    return {key: broker.hgetall(key) for key in broker.scan_iter("*:state")}  # type: ignore[misc]


async def have_asked(broker: redis.Redis, count: int) -> None:
    """Return when so many numbers have been drawn since the server was empty."""
    await eventually(
        lambda: sum(int(state[b"asked"]) for state in states(broker).values()) >= count, f"{count} ask"
    )


async def load_for_two(gate: Gate, broker: redis.Redis, *workers: Any) -> list[asyncio.Task[Any]]:
    """One of two loads for both, and is held back when it has read."""
    ((state, drawn),) = states(broker).items()
    lock, bell = (state.replace(b"state", name) for name in (b"lock", b"bell"))
    broker.set(lock, "a test's")
    gate.close()
    tasks = begin(*workers)
    await have_asked(broker, int(drawn[b"asked"]) + 2)
    broker.delete(lock)
    broker.xadd(bell, {"rung": 1})
    await gate.load_begun()
    return tasks


def lost(logs: list[Any]) -> list[str]:
    return [entry["event"] for entry in logs if entry["event"].startswith("shared_snapshots")]


# Together


def test_many_workers_load_once(board: str, valkey: Valkey, broker: redis.Redis) -> None:
    """All who ask while one loads share the next load; what they serve is the same to the byte."""
    gate = Gate()

    async def main() -> None:
        async with fleet(6, gate, valkey.url(), indexes=("comment",)) as workers:
            before = sum(int(state[b"asked"]) for state in states(broker).values())
            await write("new")
            gate.close()
            first = begin(workers[0])
            await gate.load_begun()
            others = begin(*workers[1:])
            await have_asked(broker, before + 6)
            gate.open()
            await asyncio.gather(*first, *others)
            assert gate.loads == 2
            assert gate.most == 1
            for worker in workers:
                assert comments(worker) == ["old", "new"]
                assert len(worker.find(comment="new")) == 1
                assert worker.get(worker.all()[1]["id"])["comment"] == "new"
            assert len({worker.snapshot.etag for worker in workers}) == 1
            assert len({worker.snapshot.json for worker in workers}) == 1

    add_topics("old")
    asyncio.run(main())


def test_rows_that_were_read_before_somebody_asked_are_not_for_them(
    board: str, valkey: Valkey, broker: redis.Redis
) -> None:
    """A commit that a load has missed is served to whoever asks after it, and not to those who share it."""
    gate = Gate()

    async def main() -> None:
        async with fleet(4, gate, valkey.url()) as workers:
            first = await load_for_two(gate, broker, *workers[:2])
            await write("new")
            others = begin(*workers[2:])
            await have_asked(broker, 8)
            gate.open()
            await asyncio.gather(*first, *others)
            assert [comments(worker) for worker in workers] == [[], [], ["new"], ["new"]]
            assert gate.loads == 2

    asyncio.run(main())


def test_rows_keep_their_types(board: str, valkey: Valkey, broker: redis.Redis) -> None:
    """What was taken is read as what it was: times, keys and texts alike."""
    gate = Gate()
    fields = ("id", "comment", "created_at")

    async def main() -> None:
        async with fleet(3, gate, valkey.url(), fields=fields) as workers:
            gate.close()
            await outside(lambda: Topic.objects.bulk_create(Topic(comment=f"é {n}") for n in range(2000)))
            first = begin(workers[0])
            await gate.load_begun()
            others = begin(*workers[1:])
            await have_asked(broker, 6)
            gate.open()
            await asyncio.gather(*first, *others)
            read = await outside(lambda: list(Topic.objects.order_by("pk").values(*fields)))
            assert [list(worker.all()) == read for worker in workers] == [True] * 3
            assert gate.loads == 2

    asyncio.run(main())


def test_a_repository_alone_stores_nothing(board: str, valkey: Valkey, broker: redis.Redis) -> None:
    """What nobody may take is not sent to the server."""
    gate = Gate()

    async def main() -> None:
        async with fleet(1, gate, valkey.url()) as (topics,):
            for number in range(3):
                await write(str(number))
                await topics.refresh()
            assert comments(topics) == ["0", "1", "2"]
            assert gate.loads == 3

    asyncio.run(main())
    kinds = sorted(key.rsplit(b":", 1)[1] for key in broker.scan_iter("*"))
    assert kinds == [b"bell", b"state"]


def test_what_stays_on_the_server_is_bounded(board: str, valkey: Valkey, broker: redis.Redis) -> None:
    """Two versions at most, and nothing that stays for ever."""
    gate = Gate()

    async def main() -> None:
        async with fleet(3, gate, valkey.url()) as workers:
            for number in range(5):
                gate.close()
                first = begin(workers[0])
                await gate.load_begun()
                others = begin(*workers[1:])
                await have_asked(broker, 6 + 3 * number)
                gate.open()
                await asyncio.gather(*first, *others)

    asyncio.run(main())
    keys = list(broker.scan_iter("*"))
    assert len([key for key in keys if key.rsplit(b":", 1)[1].isdigit()]) == 2
    assert all(broker.ttl(key) > 0 for key in keys)


def test_rows_that_are_more_than_their_json(board: str, valkey: Valkey, broker: redis.Redis) -> None:
    """Every worker reads those for itself, and none waits for another for long."""
    gate = Gate()

    async def main() -> None:
        async with fleet(3, gate, valkey.url(), fields=("id", "comment", "tags")) as workers:
            await write("new")
            await asyncio.gather(*begin(*workers))  # of the empty table nothing was known
            gate.reset()
            await asyncio.gather(*begin(*workers))
            assert gate.loads == 3
            assert [list(worker.all()[0]["tags"]) for worker in workers] == [[]] * 3

    asyncio.run(main())


# Faults


@pytest.mark.parametrize("fault", ["refuse", "black_hole"])
def test_a_server_that_is_away(board: str, proxy: TCPProxy, logs: list[Any], fault: str) -> None:
    """Every worker loads for itself; one line says so, and one that it is over."""
    gate = Gate()

    async def main(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shared_store, "STORE_PATIENCE", 0.3)
        async with fleet(1, gate, f"redis://127.0.0.1:{proxy.port}/0") as (topics,):
            getattr(proxy, fault)()
            for number in range(3):
                await write(str(number))
                await topics.refresh()
                assert len(topics) == number + 1
            assert lost(logs) == ["shared_snapshots_lost"]
            proxy.resume()
            monkeypatch.setattr(shared_loader, "REST", 0)
            await topics.refresh()
            assert lost(logs) == ["shared_snapshots_lost", "shared_snapshots_back"]

    with pytest.MonkeyPatch.context() as monkeypatch:
        asyncio.run(main(monkeypatch))


def test_a_server_that_dies_while_workers_wait(board: str, valkey: Valkey, broker: redis.Redis) -> None:
    """Who waits loads for itself, and who loads is not disturbed."""
    gate = Gate()

    async def main() -> None:
        async with fleet(3, gate, valkey.url()) as workers:
            await write("new")
            gate.close()
            first = begin(workers[0])
            await gate.load_begun()
            others = begin(*workers[1:])
            await have_asked(broker, 6)
            await asyncio.to_thread(valkey.kill)
            gate.open()
            await asyncio.gather(*first, *others)
            assert [comments(worker) for worker in workers] == [["new"]] * 3
            assert gate.loads == 3

    asyncio.run(main())


def test_a_full_server(board: str, valkey: Valkey, broker: redis.Redis, logs: list[Any]) -> None:
    """A server without memory takes nothing, and every worker loads for itself."""
    gate = Gate()

    async def main() -> None:
        async with fleet(4, gate, valkey.url()) as workers:
            await write("new")
            first = await load_for_two(gate, broker, *workers[:2])
            others = begin(*workers[2:])
            await have_asked(broker, 8)
            broker.config_set("maxmemory", 1)
            gate.open()
            try:
                await asyncio.gather(*first, *others)
            finally:
                broker.config_set("maxmemory", 0)
            assert [comments(worker) for worker in workers] == [["new"]] * 4
            assert set(lost(logs)) == {"shared_snapshots_lost"}

    asyncio.run(main())


def test_a_load_that_takes_long(
    board: str, valkey: Valkey, broker: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lock is kept up for as long as it takes, so that nobody else begins."""
    monkeypatch.setattr(shared_store, "LOCK", 0.6)
    gate = Gate()

    async def main() -> None:
        async with fleet(2, gate, valkey.url()) as workers:
            tasks = await load_for_two(gate, broker, *workers)
            await asyncio.sleep(3 * shared_store.LOCK)
            gate.open()
            await asyncio.gather(*tasks)
            assert gate.loads == 1

    asyncio.run(main())


def everything(broker: redis.Redis) -> None:
    """As after a restart."""
    broker.flushall()


def numbers(broker: redis.Redis) -> None:
    """As by a server short of memory, which keeps the lock."""
    broker.delete(*states(broker))


@pytest.mark.parametrize("forget", [everything, numbers])
def test_a_server_that_forgets(
    board: str, valkey: Valkey, broker: redis.Redis, forget: Callable[[redis.Redis], None]
) -> None:
    """Numbers that are drawn anew after a loss are not satisfied by what began to be read before it."""
    gate = Gate()

    async def main() -> None:
        async with fleet(4, gate, valkey.url()) as workers:
            first = await load_for_two(gate, broker, *workers[:2])
            forget(broker)
            await write("new")
            others = begin(*workers[2:])
            await have_asked(broker, 2)
            gate.open()
            await asyncio.gather(*first, *others)
            assert comments(workers[2]) == comments(workers[3]) == ["new"]

    asyncio.run(main())


def test_a_server_that_goes_back_in_time(board: str, valkey: Valkey, broker: redis.Redis) -> None:
    """A replica that lags gives numbers again that were given: what was loaded before is refused."""
    gate = Gate()

    async def main() -> None:
        async with fleet(4, gate, valkey.url()) as workers:
            ((state, values),) = states(broker).items()
            first = await load_for_two(gate, broker, *workers[:2])
            broker.delete(state, state.replace(b"state", b"lock"))
            broker.hset(state, mapping=values)
            await write("new")
            others = begin(*workers[2:])
            await have_asked(broker, 6)
            gate.open()
            await asyncio.gather(*first, *others)
            assert comments(workers[2]) == comments(workers[3]) == ["new"]

    asyncio.run(main())


@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_bytes_that_are_not_what_was_written(
    board: str, valkey: Valkey, broker: redis.Redis, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """They are not used: the worker loads for itself."""
    gate = Gate()
    publish = shared_store.Room.publish

    def damaged(room: Any, turn: Any, version: str, parts: Any) -> bool:
        part = b"".join(parts)
        bad = {"changed": part.replace(b"new", b"bad"), "cut": part[:-9], "gone": part}[damage]
        done = publish(room, turn, version, [bad])
        if damage == "gone":
            broker.delete(*broker.scan_iter(f"*:{version}:*"))
        return done

    monkeypatch.setattr(shared_store.Room, "publish", damaged)

    async def main() -> None:
        async with fleet(3, gate, valkey.url()) as workers:
            await write("new")
            gate.close()
            first = begin(workers[0])
            await gate.load_begun()
            others = begin(*workers[1:])
            await have_asked(broker, 6)
            gate.open()
            await asyncio.gather(*first, *others)
            assert [comments(worker) for worker in workers] == [["new"]] * 3

    asyncio.run(main())


def test_a_load_that_fails(board: str, valkey: Valkey, broker: redis.Redis) -> None:
    """Its caller is told, and the next in line loads."""
    gate = Gate()

    async def main() -> None:
        async with fleet(3, gate, valkey.url()) as workers:
            await write("new")
            gate.close()
            first = begin(workers[0])
            await gate.load_begun()
            others = begin(*workers[1:])
            await have_asked(broker, 6)
            gate.error = OperationalError("for once")
            gate.open()
            with pytest.raises(RefreshFailed):
                await first[0]
            gate.error = None
            await asyncio.gather(*others, return_exceptions=True)  # the next may have met it as well
            await asyncio.gather(*begin(*workers))
            assert [comments(worker) for worker in workers] == [["new"]] * 3

    asyncio.run(main())


def test_a_lock_that_was_lost_during_a_load(board: str, valkey: Valkey, broker: redis.Redis) -> None:
    """Who was stopped for longer than its lock lives serves what it has read, and gives it to nobody."""
    gate = Gate()

    async def main() -> None:
        async with fleet(2, gate, valkey.url()) as workers:
            gate.close()
            first = begin(workers[0])
            await gate.load_begun()
            (lock,) = broker.scan_iter("*:lock")
            broker.set(lock, "another's", px=600)
            await write("new")
            second = begin(workers[1])
            await have_asked(broker, 4)
            gate.open()
            await asyncio.gather(*first, *second)
            assert comments(workers[0]) == []
            assert comments(workers[1]) == ["new"]

    asyncio.run(main())


# In processes of their own

WORKER = """
import asyncio, json, os, sys, time
from datetime import datetime as real, timedelta
from fastapi import FastAPI
from fastapi_django_orm import CachedRepository, DjangoORM, ORMSettings
from fastapi_django_orm.shared_loads import loader as shared_loader
from fastapi_django_orm.reading import loading

SKEW = timedelta(seconds=float(os.environ.get("SKEW", "0")))
loads = 0

class Skewed(real):
    @classmethod
    def now(cls, tz=None):
        return real.now(tz) + SKEW

loading.datetime = shared_loader.datetime = Skewed
DjangoORM.setup()
from django.db.models import QuerySet

class Held(QuerySet):
    def iterator(self, *args, **options):
        global loads
        loads += 1
        rows = list(super().iterator(*args, **options))
        if os.environ.get("HOLD"):
            print("read", flush=True)
            sys.stdin.readline()
        return iter(rows)

class Topics(CachedRepository):
    model = "bbs.Topic"
    def queryset(self):
        return Held(self.model_class)

async def main():
    async with DjangoORM(ORMSettings(shared=sys.argv[1], coherence="off")).lifespan(FastAPI()):
        topics = await Topics.current()
        loaded = (topics.snapshot.loaded_at - real.now(topics.snapshot.loaded_at.tzinfo)).total_seconds()
        rows = [row["comment"] for row in topics.all()]
        print(json.dumps({"rows": rows, "etag": topics.snapshot.etag, "loads": loads, "ahead": loaded}))

asyncio.run(main())
"""


@pytest.fixture
def processes(project: Project, postgresql: PostgreSQL) -> Iterator[Any]:
    """Starts workers of a project on PostgreSQL in processes of their own."""
    name = "shared"
    postgresql.drop_database(name)
    project.use_server(postgresql.create_database(name))
    project.migrate()
    project.python("import django; django.setup(); from bbs.models import Topic; Topic(comment='one').save()",
                   DJANGO_SETTINGS_MODULE="config.settings")  # fmt: skip
    project.write("worker.py", WORKER)
    alive: list[subprocess.Popen[str]] = []

    def start(url: str, **variables: str) -> subprocess.Popen[str]:
        environment = {**os.environ, **project.environment(**variables)}
        process = subprocess.Popen(
            [sys.executable, "worker.py", url],
            cwd=project.directory,
            env={name: value for name, value in environment.items() if value is not None},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        alive.append(process)
        return process

    yield start
    for process in alive:
        process.kill()
        process.communicate()
    postgresql.drop_database(name)


def answer(process: subprocess.Popen[str]) -> Any:
    """What a worker has served."""
    output, _ = process.communicate("\n", timeout=DEADLINE)
    return json.loads(next(line for line in output.splitlines() if line.startswith('{"rows"')))


def wait_for(condition: Any) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_worker_that_is_killed_while_it_loads(processes: Any, valkey: Valkey, broker: redis.Redis) -> None:
    """Its lock ends some seconds later, and one of those who wait loads in its place."""
    victim = processes(valkey.url(), HOLD="1")
    wait_for(lambda: "read" in victim.stdout.readline())
    (lock,) = broker.scan_iter("*:lock")
    heir = processes(valkey.url())
    wait_for(lambda: [int(state[b"asked"]) for state in states(broker).values()] == [2])
    assert broker.exists(lock)
    victim.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    served = answer(heir)
    assert served["rows"] == ["one"]
    assert served["loads"] == 1
    assert time.monotonic() - killed < shared_loader.LONGEST_WAIT_FOR_OTHERS


def test_clocks_that_differ_by_an_hour(processes: Any, valkey: Valkey, broker: redis.Redis) -> None:
    """No clock is compared with another: rows are taken, and their age is told by one's own."""
    holder = processes(valkey.url(), HOLD="1")
    wait_for(lambda: "read" in holder.stdout.readline())
    # Both ask while the first loads: one of them loads next, for both.
    others = [processes(valkey.url(), SKEW=skew) for skew in ("3600", "-3600")]
    wait_for(lambda: [int(state[b"asked"]) for state in states(broker).values()] == [3])
    answers = [answer(process) for process in (holder, *others)]
    assert sum(told["loads"] for told in answers) == 2
    assert len({told["etag"] for told in answers}) == 1
    assert [round(told["ahead"] / 60) for told in answers] == [0, 60, -60]


# Who shares with whom


def identities(**attributes: Any) -> str:
    """The fingerprint of a repository with these attributes."""
    repository = declare(**{"fields": ("id", "comment"), **attributes})()
    repository.prepare()
    return Identity(repository, repository._reader.names).of(repository.ordered_queryset())


@pytest.fixture
def _started(sqlite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastapi_django_orm.running import Running

    monkeypatch.setattr("fastapi_django_orm.running._all", [Running()])


@pytest.mark.usefixtures("_started")
def test_the_same_declaration_shares() -> None:
    """Two workers with the same code and settings have one fingerprint."""
    assert identities() == identities()


@pytest.mark.usefixtures("_started")
@pytest.mark.parametrize(
    "other",
    [
        {"fields": ("id",)},
        {"fields": ("comment", "id")},
        {"ordering": ("comment",)},
        {"name": "Others"},
        {"queryset": lambda self: Topic.objects.filter(pk__gt=1)},
        {"queryset": lambda self: Topic.objects.filter(pk__gt=2)},
        {"queryset": lambda self: Topic.objects.filter(comment="2")},
    ],
)
def test_another_declaration_does_not(other: dict[str, Any]) -> None:
    """Other fields, another order, another query or other values in it: other rows."""
    base = {"queryset": lambda self: Topic.objects.filter(pk__gt=3)} if "queryset" in other else {}
    assert identities(**other) != identities(**base)


@pytest.mark.usefixtures("_started")
def test_other_settings_and_versions_do_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Another deployment, database, time zone, version or source: nothing is shared."""
    found = {identities()}
    with override_settings(SECRET_KEY="another"):
        found.add(identities())
    with override_settings(TIME_ZONE="UTC"):
        found.add(identities())
    for change in (
        ("_version", lambda package: "0.0"),
        ("FORMAT", 0),
        ("_sources", lambda classes: iter([("", "", b"changed")])),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(shared_identity, *change)
            found.add(identities())
    with monkeypatch.context() as patch:
        patch.setitem(connections.settings["default"], "NAME", tmp_path / "another")
        found.add(identities())
    assert len(found) == 7


# The bytes


def packed(keys: list[Any], keyed: bool = True) -> tuple[list[Any], list[bytes]]:
    chunk = Chunk(keys, [b'{"n":%d}' % number for number in range(len(keys))], [None] * len(keys))
    pages = list((cut if keyed else cut_evenly)([chunk]))
    codec = RowCodec(["n"])
    codec.expect([int])
    return pages, list(pack(pages, keyed, codec, KEY))


@pytest.mark.parametrize(
    "keys",
    [
        [],
        list(range(5000)),
        [2**70, -1],
        [f"é{number}" for number in range(300)],
        [uuid4() for _ in range(600)],
        [(number, f"{number}") for number in range(700)],
        [(uuid4(), 1)],
    ],
    ids=["none", "int", "large", "text", "uuid", "composite", "mixed"],
)
def test_pages_come_back_as_they_were(keys: list[Any]) -> None:
    """Whatever the keys are, with the same pages, digests and types."""
    pages, parts = packed(keys)
    codec = RowCodec(["n"])
    again = list(unpack(parts, codec, KEY))
    assert codec.types == {"n": int}
    for page, other in zip(pages, again, strict=True):
        for attribute in ("start", "keys", "json", "ends", "digest", "objects"):
            assert getattr(page, attribute) == getattr(other, attribute)


def test_rows_without_keys_come_back() -> None:
    """They are numbered, and pages begin where they began."""
    pages, parts = packed([None] * 1000, keyed=False)
    again = list(unpack(parts, RowCodec(["n"]), KEY))
    assert [(page.start, page.keys) for page in again] == [(page.start, page.keys) for page in pages]


@pytest.mark.parametrize("key", [1.5, b"x", True, Decimal(1), datetime.now(UTC), (1, 2.5), (1, (2, 3))])
def test_keys_that_have_no_form(key: Any) -> None:
    """They are refused rather than changed."""
    with pytest.raises(NotPortable):
        packed([key])


def test_keys_of_several_kinds_are_refused() -> None:
    """They are not one column's."""
    for keys in ([1, "1"], [(1, 2), (1,)], [(1, 2), 3]):
        with pytest.raises(NotPortable):
            packed(keys)


def test_every_damage_is_found() -> None:
    """A changed byte, a missing or swapped part, another key, another type: nothing of it is used."""
    codec = RowCodec(["n"])
    chunk = Chunk(list(range(40_000)), [b'{"n":"%s"}' % (b"x" * 60)] * 40_000, [None] * 40_000)
    parts = list(pack(list(cut([chunk])), True, codec, KEY))
    assert len(parts) > 2
    last = parts[-1]
    wrong = [
        parts[:-1],
        parts[1:],
        [],
        [parts[1], parts[0], *parts[2:]],
        [*parts[:-1], last[:-1]],
        [*parts[:-1], last[:500] + bytes([last[500] ^ 1]) + last[501:]],
        [b"", *parts],
    ]
    for damaged in wrong:
        with pytest.raises(NotGenuine):
            list(unpack(damaged, RowCodec(["n"]), KEY))
    with pytest.raises(NotGenuine):
        list(unpack(parts, RowCodec(["n"]), b"another"))
    typed, other = RowCodec(["n"]), RowCodec(["n"])
    typed.expect([int])
    other.expect([str])
    with pytest.raises(NotGenuine, match="type"):
        list(unpack(pack([], True, typed, KEY), other, KEY))


# The setting


@pytest.mark.parametrize(
    "url", ["redis", "http://host", "redis://", "redis://host:port", "postgresql://host"]
)
def test_a_url_that_cannot_be_used(url: str) -> None:
    """The variable is named, and what to write."""
    with pytest.raises(InvalidSettings, match=r"DJANGO_ORM_SHARED .*write redis://"):
        ORMSettings(shared=url)


def test_an_option_that_redis_does_not_know(sqlite: str) -> None:
    """It ends the start, and not the first load."""

    async def main() -> None:
        async with started(declare(), shared="redis://host?bogus=1"):
            pass

    with pytest.raises(InvalidSettings, match=r"DJANGO_ORM_SHARED: .*bogus"):
        asyncio.run(main())


@pytest.mark.parametrize("url", ["redis://host", "valkeys://me:secret@host:1/2", "unix:///run/redis.sock"])
def test_a_url_is_not_shown(url: str) -> None:
    """It may have a password."""
    settings = ORMSettings(shared=url)
    assert settings.shared is not None
    assert url not in repr(settings)


def test_repositories_with_a_schema_are_left_alone(sqlite: str, valkey: Valkey, broker: redis.Redis) -> None:
    """Their rows are Python objects: each worker loads them, and asks nobody."""
    from pydantic import BaseModel

    class TopicOut(BaseModel):
        id: int
        comment: str

    async def main() -> None:
        async with started(declare(schema=TopicOut), shared=valkey.url()) as (topics,):
            await topics.refresh()
            assert len(topics) == 1

    add_topics("one")
    asyncio.run(main())
    assert not list(broker.scan_iter("*"))
