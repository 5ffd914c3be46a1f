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
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import pytest
import redis
from django.db import OperationalError, connections, models
from django.db.backends.signals import connection_created
from django.db.models import F
from django.test import override_settings
from django.test.utils import isolate_apps
from structlog.testing import capture_logs

from fastapi_django_orm import ORMSettings
from fastapi_django_orm.application import Application
from fastapi_django_orm.errors import InvalidSettings, RefreshFailed
from fastapi_django_orm.memory.pages import Page, cut
from fastapi_django_orm.queries.remembered import RememberedPages
from fastapi_django_orm.reading.codec import Chunk
from fastapi_django_orm.reading.postgresql_json import DatabaseJSON
from fastapi_django_orm.reading.windows import Windows
from fastapi_django_orm.shared_loads import loader as shared_loader
from fastapi_django_orm.shared_loads import store as shared_store
from fastapi_django_orm.shared_loads.format import Manifest, NotGenuine, NotPortable, kind_of, pack, unpack
from fastapi_django_orm.shared_loads.loader import identity_of
from fastapi_django_orm.shared_loads.store import Room
from tests.project import router
from tests.project.board.models import Topic
from tests.support.databases import created
from tests.support.gates import Gate, add_topics, comments, started
from tests.support.hearing import eventually, write
from tests.support.playing import outside
from tests.support.projects import Project
from tests.support.repositories import declare
from tests.support.servers import PostgreSQL, TCPProxy, Valkey

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


@pytest.fixture
def board(_databases: Any) -> Iterator[str]:
    """The alias of a database with empty tables, chosen for every query."""
    alias = _databases("postgresql")
    router.choose(alias)
    Topic.objects.all().delete()
    yield alias
    connections.close_all()
    router.choose("default")


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[Any]]:
    """What is logged, instead of the output."""
    with capture_logs() as entries:
        yield entries


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    """What every load passes whose rows' JSON the database makes, when it has read."""
    gate, read = Gate(), DatabaseJSON.read

    def gated(self: DatabaseJSON, queryset: Any, size: int) -> Iterator[Any]:
        rows = list(read(self, queryset, size))
        gate.enter()
        return iter(rows)

    monkeypatch.setattr(DatabaseJSON, "read", gated)
    return gate


@asynccontextmanager
async def fleet(count: int, gate: Gate, url: str, **attributes: Any) -> AsyncIterator[list[Any]]:
    """The repositories of so many applications, each with threads of its own, in one process."""
    repository = declare(**{"fields": ("id", "comment"), **attributes})
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


def key_of(broker: redis.Redis, what: str) -> str:
    """The key of the state, the lock or the bell, of the one kind of worker that there is."""
    (state,) = broker.scan_iter("*:state")
    return str(state.decode()).removesuffix("state") + what


def waiting(broker: redis.Redis) -> int:
    """How many workers have left a number that nobody has taken."""
    names = [name for key in broker.scan_iter("*:state") for name in broker.hkeys(key)]
    return sum(len(name) == shared_store.DRAWN for name in names)


async def wait(broker: redis.Redis, count: int) -> None:
    """Return when so many workers wait for the next load."""
    await eventually(lambda: waiting(broker) == count, f"{count} wait")


def ring(broker: redis.Redis) -> None:
    """Have all who wait look again."""
    broker.xadd(key_of(broker, "bell"), {"rung": 1})


async def load_for_two(gate: Gate, broker: redis.Redis, *workers: Any) -> list[asyncio.Task[Any]]:
    """One of two loads for both, and is held back when it has read."""
    broker.set(key_of(broker, "lock"), "a test's")
    gate.close()
    tasks = begin(*workers)
    await wait(broker, 2)
    broker.delete(key_of(broker, "lock"))
    ring(broker)
    await gate.load_begun()
    return tasks


def lost(logs: list[Any]) -> list[str]:
    return [entry["event"] for entry in logs if entry["event"].startswith("shared_snapshots")]


# Together


def test_many_workers_load_once(board: str, valkey: Valkey, broker: redis.Redis, gate: Gate) -> None:
    """All who ask while one loads share the next load; what they serve is the same to the byte."""

    async def main() -> None:
        async with fleet(6, gate, valkey.url(), indexes=("comment",)) as workers:
            await write("new")
            gate.close()
            first = begin(workers[0])
            await gate.load_begun()
            others = begin(*workers[1:])
            await wait(broker, 5)
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
    board: str, valkey: Valkey, broker: redis.Redis, gate: Gate
) -> None:
    """A commit that a load has missed is served to whoever asks after it, and not to those who share it."""

    async def main() -> None:
        async with fleet(4, gate, valkey.url()) as workers:
            first = await load_for_two(gate, broker, *workers[:2])
            await write("new")
            others = begin(*workers[2:])
            await wait(broker, 3)  # one of the first two still does
            gate.open()
            await asyncio.gather(*first, *others)
            assert [comments(worker) for worker in workers[2:]] == [["new"], ["new"]]
            assert [] in [comments(worker) for worker in workers[:2]]  # the other may take the newer rows
            assert gate.loads == 2

    asyncio.run(main())


def test_rows_keep_their_types(board: str, valkey: Valkey, broker: redis.Redis, gate: Gate) -> None:
    """What was taken is read as what it was: times, keys and texts alike."""
    fields = ("id", "comment", "created_at")

    async def main() -> None:
        async with fleet(3, gate, valkey.url(), fields=fields) as workers:
            gate.close()
            await outside(lambda: Topic.objects.bulk_create(Topic(comment=f"é {n}") for n in range(2000)))
            first = begin(workers[0])
            await gate.load_begun()
            others = begin(*workers[1:])
            await wait(broker, 2)
            gate.open()
            await asyncio.gather(*first, *others)
            read = await outside(lambda: list(Topic.objects.order_by("pk").values(*fields)))
            assert [list(worker.all()) == read for worker in workers] == [True] * 3
            assert gate.loads == 2

    asyncio.run(main())


def test_a_repository_alone_stores_no_rows(
    board: str, valkey: Valkey, broker: redis.Redis, gate: Gate
) -> None:
    """What nobody may take is not sent to the server."""

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


def test_what_stays_on_the_server_is_bounded(
    board: str, valkey: Valkey, broker: redis.Redis, gate: Gate
) -> None:
    """Two versions at most, and nothing that stays for ever."""

    async def main() -> None:
        async with fleet(3, gate, valkey.url()) as workers:
            for _ in range(5):
                gate.close()
                first = begin(workers[0])
                await gate.load_begun()
                others = begin(*workers[1:])
                await wait(broker, 2)
                gate.open()
                await asyncio.gather(*first, *others)

    add_topics("one")
    asyncio.run(main())
    keys = list(broker.scan_iter("*"))
    assert len([key for key in keys if key.rsplit(b":", 1)[1].isdigit()]) == 2
    assert all(broker.ttl(key) > 0 for key in keys)


def test_who_waits_for_others_keeps_no_connection(
    board: str, valkey: Valkey, broker: redis.Redis, gate: Gate
) -> None:
    """Of the connections that all of them share, only the one that loads has one."""

    async def main() -> None:
        async with fleet(3, gate, valkey.url()) as workers:
            gate.close()
            first = begin(workers[0])
            await gate.load_begun()
            others = begin(*workers[1:])
            await wait(broker, 2)
            assert workers[0].live._on_loop._queries()._pools(router.chosen)._lent == 1
            gate.open()
            await asyncio.gather(*first, *others)

    asyncio.run(main())


# Faults


@pytest.mark.parametrize("fault", ["refuse", "black_hole"])
def test_a_server_that_is_away(board: str, proxy: TCPProxy, logs: list[Any], fault: str, gate: Gate) -> None:
    """Every worker loads for itself; one line says so, and one that it is over."""

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


def test_a_server_that_dies_while_workers_wait(
    board: str, valkey: Valkey, broker: redis.Redis, gate: Gate
) -> None:
    """Who waits loads for itself, and who loads is not disturbed."""

    async def main() -> None:
        async with fleet(3, gate, valkey.url()) as workers:
            await write("new")
            gate.close()
            first = begin(workers[0])
            await gate.load_begun()
            others = begin(*workers[1:])
            await wait(broker, 2)
            await asyncio.to_thread(valkey.kill)
            gate.open()
            await asyncio.gather(*first, *others)
            assert [comments(worker) for worker in workers] == [["new"]] * 3
            assert gate.loads == 3

    asyncio.run(main())


def test_a_full_server(board: str, valkey: Valkey, broker: redis.Redis, logs: list[Any], gate: Gate) -> None:
    """A server without memory takes nothing, and every worker loads for itself."""

    async def main() -> None:
        async with fleet(4, gate, valkey.url()) as workers:
            await write("new")
            first = await load_for_two(gate, broker, *workers[:2])
            others = begin(*workers[2:])
            await wait(broker, 3)
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
    board: str, valkey: Valkey, broker: redis.Redis, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lock is kept up for as long as it takes, so that nobody else begins."""
    monkeypatch.setattr(shared_store, "LOCK", 1.5)  # it is renewed far more often

    async def main() -> None:
        async with fleet(2, gate, valkey.url()) as workers:
            tasks = await load_for_two(gate, broker, *workers)
            await asyncio.sleep(1.5 * shared_store.LOCK)
            gate.open()
            await asyncio.gather(*tasks)
            assert gate.loads == 1

    asyncio.run(main())


def everything(broker: redis.Redis) -> None:
    """As after a restart."""
    broker.flushall()


def numbers(broker: redis.Redis) -> None:
    """As by a server short of memory, which keeps the lock."""
    broker.delete(key_of(broker, "state"))


@pytest.mark.parametrize("forget", [everything, numbers])
def test_a_server_that_forgets(
    board: str, valkey: Valkey, broker: redis.Redis, gate: Gate, forget: Callable[[redis.Redis], None]
) -> None:
    """Who asks after the loss is not satisfied by what began to be read before it; who waited still is."""

    async def main() -> None:
        async with fleet(4, gate, valkey.url()) as workers:
            first = await load_for_two(gate, broker, *workers[:2])
            forget(broker)
            await write("new")
            others = begin(*workers[2:])
            await eventually(lambda: waiting(broker) >= 2 or gate.loads > 1, "the others ask")
            gate.open()
            await asyncio.gather(*first, *others)
            assert comments(workers[2]) == comments(workers[3]) == ["new"]

    asyncio.run(main())


def test_a_server_that_goes_back_in_time(board: str, valkey: Valkey, broker: redis.Redis, gate: Gate) -> None:
    """A replica that lags has old numbers and an old manifest: nobody takes old rows for new ones."""

    async def main() -> None:
        async with fleet(4, gate, valkey.url()) as workers:
            state = key_of(broker, "state")
            values = broker.hgetall(state)
            first = await load_for_two(gate, broker, *workers[:2])
            broker.delete(state, key_of(broker, "lock"))
            broker.hset(state, mapping=values)
            await write("new")
            others = begin(*workers[2:])
            await eventually(lambda: gate.loads > 1, "one of the others loads")
            gate.open()
            await asyncio.gather(*first, *others)
            assert comments(workers[2]) == comments(workers[3]) == ["new"]

    asyncio.run(main())


def test_a_load_that_fails(board: str, valkey: Valkey, broker: redis.Redis, gate: Gate) -> None:
    """Its caller is told, and the next in line loads."""

    async def main() -> None:
        async with fleet(3, gate, valkey.url()) as workers:
            await write("new")
            gate.close()
            first = begin(workers[0])
            await gate.load_begun()
            others = begin(*workers[1:])
            await wait(broker, 2)
            gate.error = OperationalError("for once")
            gate.open()
            with pytest.raises(RefreshFailed):
                await first[0]
            gate.error = None
            await asyncio.gather(*others, return_exceptions=True)  # the next may have met it as well
            await asyncio.gather(*begin(*workers))
            assert [comments(worker) for worker in workers] == [["new"]] * 3

    asyncio.run(main())


def test_a_lock_that_was_lost_during_a_load(
    board: str, valkey: Valkey, broker: redis.Redis, gate: Gate
) -> None:
    """Who was stopped for longer than its lock lives serves what it has read, and gives it to nobody."""

    async def main() -> None:
        async with fleet(2, gate, valkey.url()) as workers:
            gate.close()
            first = begin(workers[0])
            await gate.load_begun()
            broker.set(key_of(broker, "lock"), "another's", px=600)
            await write("new")
            second = begin(workers[1])
            await wait(broker, 1)
            gate.open()
            await asyncio.gather(*first, *second)
            assert comments(workers[0]) == []
            assert comments(workers[1]) == ["new"]

    asyncio.run(main())


# Damage, and others who write to the server


def state_is_a_text(broker: redis.Redis) -> None:
    broker.set(key_of(broker, "state"), "x")


def lock_without_an_end(broker: redis.Redis) -> None:
    broker.set(key_of(broker, "lock"), "x")


def lock_for_a_year(broker: redis.Redis) -> None:
    broker.set(key_of(broker, "lock"), "x", ex=365 * 86400)


def lock_is_a_list(broker: redis.Redis) -> None:
    broker.lpush(key_of(broker, "lock"), "x")


def bell_is_a_text(broker: redis.Redis) -> None:
    bell = key_of(broker, "bell")
    lock_without_an_end(broker)
    broker.set(bell, "x")


def bell_was_rung_at_the_end_of_time(broker: redis.Redis) -> None:
    broker.xadd(key_of(broker, "bell"), {"rung": 1}, id=f"{2**64 - 1}-{2**64 - 1}")


def manifest(value: bytes) -> Callable[[redis.Redis], None]:
    """As if another had loaded while we wait, and left this."""

    def damage(broker: redis.Redis) -> None:
        lock_without_an_end(broker)
        broker.hset(key_of(broker, "state"), "manifest", value)

    return damage


def strange_fields(broker: redis.Redis) -> None:
    odd = {"covers": 10**9, "version": "abc", "parts": "x", "asked": "x", b"\xff" * 16: "x", "0" * 16: "x"}
    broker.hset(key_of(broker, "state"), mapping=odd)


def many_fields(broker: redis.Redis) -> None:
    fields = {f"{number:016}": "" for number in range(2 * shared_store.MOST_NUMBERS)}
    broker.hset(key_of(broker, "state"), mapping=fields)


def commands(broker: redis.Redis) -> int:
    return sum(
        stats["calls"]
        for name, stats in broker.info("commandstats").items()
        if name in ("cmdstat_eval", "cmdstat_xread", "cmdstat_getrange")
    )


@pytest.mark.parametrize(
    "damage",
    [
        state_is_a_text,
        lock_without_an_end,
        lock_for_a_year,
        lock_is_a_list,
        bell_is_a_text,
        bell_was_rung_at_the_end_of_time,
        strange_fields,
        many_fields,
        pytest.param(manifest(b""), id="empty manifest"),
        pytest.param(manifest(b"x"), id="short manifest"),
        pytest.param(manifest(b"\xff" * 5000), id="manifest of garbage"),
        pytest.param(manifest(b"\xff" * (shared_store.MOST_BYTES + 1)), id="large manifest"),
    ],
)
def test_keys_that_are_damaged(
    postgresql_board: None,
    valkey: Valkey,
    broker: redis.Redis,
    gate: Gate,
    logs: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[redis.Redis], None],
) -> None:
    """The load succeeds, soon and with few commands; one line at most is logged; and the next is shared."""
    monkeypatch.setattr(shared_store, "LOCK", 0.3)

    async def main() -> None:
        async with fleet(2, gate, valkey.url()) as workers:
            await write("new")
            damage(broker)
            before = commands(broker)
            for worker in workers:
                await worker.refresh()
                assert comments(worker) == ["new"]
            assert commands(broker) - before < 50
            assert lost(logs) in ([], ["shared_snapshots_lost"])
            monkeypatch.setattr(shared_loader, "REST", 0)
            await asyncio.gather(*begin(*workers))  # has made all keys again
            gate.reset()
            first = await load_for_two(gate, broker, *workers)
            gate.open()
            await asyncio.gather(*first)
            assert gate.loads == 1

    asyncio.run(main())


@pytest.fixture
def postgresql_board(_databases: Any) -> Iterator[None]:
    router.choose(_databases("postgresql"))
    Topic.objects.all().delete()
    yield
    connections.close_all()
    router.choose("default")


def parts_of(broker: redis.Redis) -> list[bytes]:
    return sorted(key for key in broker.scan_iter("*") if key.rsplit(b":", 1)[1].isdigit())


@pytest.mark.parametrize("damage", ["changed", "cut", "longer", "list", "gone"])
def test_parts_that_are_damaged(
    board: str,
    valkey: Valkey,
    broker: redis.Redis,
    gate: Gate,
    monkeypatch: pytest.MonkeyPatch,
    damage: str,
) -> None:
    """They are not used: the worker loads for itself."""
    release = Room.release

    def damaged(room: Room, turn: Any, manifest: bytes) -> None:
        for key in parts_of(broker):
            part = broker.get(key)
            broker.delete(key)
            if damage == "list":
                broker.lpush(key, part)
            elif damage != "gone":
                bad = {"changed": part.replace(b"new", b"bad"), "cut": part[:-9], "longer": part + b"x" * 9}
                broker.set(key, bad[damage])
        release(room, turn, manifest)

    monkeypatch.setattr(Room, "release", damaged)

    async def main() -> None:
        async with fleet(3, gate, valkey.url()) as workers:
            await write("new")
            first = await load_for_two(gate, broker, *workers[:2])
            gate.open()
            await asyncio.gather(*first)
            assert parts_of(broker) or damage == "gone"
            assert [comments(worker) for worker in workers[:2]] == [["new"]] * 2
            assert gate.loads == 2

    asyncio.run(main())


def test_old_rows_that_somebody_writes_again(
    board: str,
    valkey: Valkey,
    broker: redis.Redis,
    gate: Gate,
    logs: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rows that were signed for another question are not taken for an answer, genuine as they are."""
    monkeypatch.setattr(shared_store, "LOCK", 0.5)

    async def main() -> None:
        async with fleet(2, gate, valkey.url()) as workers:
            first = await load_for_two(gate, broker, *workers)
            gate.open()
            await asyncio.gather(*first)
            state = key_of(broker, "state")
            old, parts = broker.hget(state, "manifest"), {key: broker.get(key) for key in parts_of(broker)}
            assert old is not None
            await write("new")
            await workers[0].refresh()  # alone, with a manifest of its own
            lock_without_an_end(broker)
            asking = begin(workers[1])
            await wait(broker, 1)
            broker.mset(parts or {"none": ""})
            broker.hset(state, "manifest", old)
            ring(broker)
            await asyncio.gather(*asking)
            assert comments(workers[1]) == ["new"]
            assert lost(logs) == []

    asyncio.run(main())


# In processes of their own

WORKER = """
import asyncio, json, os, sys, time
from datetime import datetime as real, timedelta
from fastapi import FastAPI
from fastapi_django_orm import CachedRepository, DjangoORM, ORMSettings
from fastapi_django_orm.shared_loads import loader as shared_loader
from fastapi_django_orm.memory import loading

SKEW = timedelta(seconds=float(os.environ.get("SKEW", "0")))
loads = 0

class Skewed(real):
    @classmethod
    def now(cls, tz=None):
        return real.now(tz) + SKEW

loading.datetime = shared_loader.datetime = Skewed
DjangoORM.setup()
from fastapi_django_orm.reading.postgresql_json import DatabaseJSON

read = DatabaseJSON.read

def held(self, queryset, size):
    global loads
    loads += 1
    rows = list(read(self, queryset, size))
    if os.environ.get("HOLD"):
        print("read", flush=True)
        sys.stdin.readline()
    return iter(rows)

DatabaseJSON.read = held

class Topics(CachedRepository):
    model = "bbs.Topic"

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
    wait_for(lambda: waiting(broker) == 1)
    assert broker.exists(lock)
    victim.send_signal(signal.SIGKILL)
    served = answer(heir)  # which it gives sooner than LONGEST_WAIT_FOR_OTHERS
    assert served["rows"] == ["one"]
    assert served["loads"] == 1


def test_clocks_that_differ_by_an_hour(processes: Any, valkey: Valkey, broker: redis.Redis) -> None:
    """No clock is compared with another: rows are taken, and their age is told by one's own."""
    holder = processes(valkey.url(), HOLD="1")
    wait_for(lambda: "read" in holder.stdout.readline())
    # Both ask while the first loads: one of them loads next, for both.
    others = [processes(valkey.url(), SKEW=skew) for skew in ("3600", "-3600")]
    wait_for(lambda: waiting(broker) == 2)
    answers = [answer(process) for process in (holder, *others)]
    assert sum(told["loads"] for told in answers) == 2
    assert len({told["etag"] for told in answers}) == 1
    assert [round(told["ahead"] / 60) for told in answers] == [0, 60, -60]


# Who shares with whom


def identity(**attributes: Any) -> str | None:
    """The fingerprint of a repository with these attributes."""
    repository = declare(**{"fields": ("id", "comment"), **attributes})()
    executor: Any = SimpleNamespace(own=None)  # nothing is read
    here = Application(executor=executor, loop=cast("Any", None))
    here.hold(Windows(here.executor, here.loop, patience=0))
    here.hold(RememberedPages(0))
    repository.prepare(here)
    queryset = repository.ordered_queryset()
    in_sql = repository._reader.database_json(queryset)
    return identity_of(in_sql, queryset)


@pytest.mark.usefixtures("board")
def test_the_same_question_to_the_same_database_shares() -> None:
    """Two workers that would send the same SQL have one fingerprint, whatever they call the rows."""
    assert identity() == identity() == identity(name="others") is not None


@pytest.mark.usefixtures("board")
@pytest.mark.parametrize(
    "other",
    [
        {"fields": ("id",)},
        {"fields": ("comment", "id")},
        {"ordering": ("comment",)},
        {"queryset": lambda self: Topic.objects.filter(pk__gt=1)},
        {"queryset": lambda self: Topic.objects.filter(pk__gt=2)},
        {"queryset": lambda self: Topic.objects.filter(comment="2")},
    ],
)
def test_another_question_does_not(other: dict[str, Any]) -> None:
    """Other fields, another order, another query or other values in it: other rows."""
    base = {"queryset": lambda self: Topic.objects.filter(pk__gt=3)} if "queryset" in other else {}
    assert identity(**other) not in (identity(**base), None)


def test_other_settings_and_versions_do_not(board: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another deployment, database, type of a column or version: nothing is shared."""
    found = {identity()}
    with override_settings(SECRET_KEY="another"):
        found.add(identity())
    for change in (("_version", lambda: "0.0"), ("FORMAT", 0)):
        with monkeypatch.context() as patch:
            patch.setattr(shared_loader, *change)
            found.add(identity())
    with monkeypatch.context() as patch:
        patch.setitem(connections.settings[board], "NAME", "another")
        found.add(identity())
    with monkeypatch.context() as patch:
        of = DatabaseJSON.of
        patch.setattr(
            DatabaseJSON, "of", lambda *given: setattr(made := of(*given), "kinds", [int, int]) or made
        )
        found.add(identity())
    assert len(found) == 6
    assert None not in found


class Spelt(models.CharField):  # type: ignore[type-arg]
    """A field that makes something else of what is stored: in the next release, something else again."""

    def from_db_value(self, value: str, expression: Any, connection: Any) -> str:
        return f"release 1: {value}"


class Numbered(models.BigAutoField):  # type: ignore[type-arg]
    """A key field of the project's own."""


class AsWritten(models.QuerySet[Any, Any]):
    """A query whose rows pass through the project's code."""

    def iterator(self, *args: Any, **options: Any) -> Iterator[Any]:
        return super().iterator(*args, **options)


@pytest.fixture
def spelt(board: str) -> Iterator[tuple[type[models.Model], ...]]:
    with isolate_apps("tests.project.board"):

        class Thing(models.Model):
            word = Spelt(max_length=50)

            class Meta:
                app_label = "board"

        class Child(models.Model):
            thing = models.ForeignKey(Thing, models.CASCADE)

            class Meta:
                app_label = "board"

        class Counted(models.Model):
            id = Numbered(primary_key=True)
            comment = models.CharField(max_length=50)

            class Meta:
                app_label = "board"

        with created(Thing, Child, Counted):
            yield Thing, Child, Counted


def test_rows_in_which_code_has_a_part_are_not_shared(
    spelt: tuple[type[models.Model], ...], valkey: Valkey, broker: redis.Redis
) -> None:
    """A field, one of a related model, a key's, an annotation, a query: each worker reads them."""
    thing, child, counted = spelt
    repositories = [
        declare("Things", thing),
        declare("Children", child, fields=("id", "thing__word")),
        declare("Counted", counted),
        declare("Annotated", queryset=lambda self: Topic.objects.annotate(twice=F("comment"))),
        declare("Written", queryset=lambda self: AsWritten(Topic)),
        declare("Tagged", fields=("id", "tags")),
    ]

    async def main() -> None:
        async with started(*repositories, shared=valkey.url()) as all_of_them:
            await asyncio.gather(*begin(*all_of_them))

    asyncio.run(main())
    assert not list(broker.scan_iter("*"))


def test_connections_that_code_prepares_share_nothing(board: str) -> None:
    """What is wrapped around queries may send others; what prepares them may choose another schema."""

    def prepare(**_: Any) -> None:
        pass

    with connections[board].execute_wrapper(lambda execute, *arguments: execute(*arguments)):
        assert identity() is None
    connection_created.connect(prepare)
    try:
        assert identity() is None
    finally:
        connection_created.disconnect(prepare)
    assert identity() is not None


# The bytes


def pages_of(keys: list[Any]) -> list[Page]:
    json_of = [b'{"n":%d}' % number for number in range(len(keys))]
    return list(cut([Chunk(keys, json_of, [None] * len(keys))]))


@pytest.mark.parametrize(
    "keys",
    [
        [],
        list(range(5000)),
        [2**70, -1],
        [f"é{number}" for number in range(300)],
        [uuid4() for _ in range(600)],
    ],
    ids=["none", "int", "large", "text", "uuid"],
)
def test_pages_come_back_as_they_were(keys: list[Any]) -> None:
    """Whatever the keys are, with the same pages and digests."""
    pages = pages_of(keys)
    again = list(unpack(pack(pages), kind_of(pages)))
    for page, other in zip(pages, again, strict=True):
        for attribute in ("start", "keys", "json", "ends", "digest", "objects"):
            assert getattr(page, attribute) == getattr(other, attribute)


@pytest.mark.parametrize(
    "keys", [[1.5], [b"x"], [True], [Decimal(1)], [datetime.now(UTC)], [(1, 2)], [1, "1"]]
)
def test_keys_that_have_no_form(keys: list[Any]) -> None:
    """They are refused rather than changed, and so are keys of several kinds."""
    with pytest.raises(NotPortable):
        kind_of([Page(keys[0], Chunk(keys, [b"1"] * len(keys), [None] * len(keys)))])


def test_every_change_of_a_manifest_is_found() -> None:
    """A changed byte, less or more, another key: nothing of it is believed."""
    made = Manifest(["0" * 16], "version", "int", [(5, "digest")], ("older", 3))
    signed = made.signed(KEY)
    again = Manifest.verified(signed, KEY)
    assert replace(again, parts=[(5, "digest")], before=("older", 3)) == made
    changed = [bytes([*signed[:n], signed[n] ^ 1, *signed[n + 1 :]]) for n in range(len(signed))]
    for damaged in (*changed, b"", signed[:-1], signed + b" ", signed[16:]):
        with pytest.raises(NotGenuine):
            Manifest.verified(damaged, KEY)
    with pytest.raises(NotGenuine):
        Manifest.verified(signed, b"another")


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
