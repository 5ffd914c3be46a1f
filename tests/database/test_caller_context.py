"""What moves work to a thread takes the caller's context along, and brings back what has changed in it."""

import asyncio
import contextvars
import datetime as dt
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from asgiref.local import Local
from asgiref.sync import async_to_sync, sync_to_async
from django.db import transaction
from django.utils import timezone, translation
from django.utils.translation import gettext
from fastapi import FastAPI
from pydantic import BaseModel

from fastapi_django_orm import InTransaction, Repository, atomic, run
from tests.project.board.models import Topic
from tests.support.databases import application, client_of
from tests.support.gates import started
from tests.support.playing import play

local = Local()
variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="nothing")


def seen() -> list[Any]:
    """What the running code sees of its caller's context."""
    language, zone = translation.get_language(), timezone.get_current_timezone_name()
    return [language, gettext("Yes"), zone, getattr(local, "who", None), variable.get()]


EXPECTED = ["de", "Ja", "Asia/Tokyo", "me", "mine"]


def change() -> None:
    local.who, local.more = "changed", "more"
    variable.set("changed")


async def _in_atomic() -> Any:
    async with atomic():
        return await run(seen)


async def _on_commit() -> Any:
    found: list[Any] = []
    async with atomic():
        await run(transaction.on_commit, lambda: found.append(seen()))
    return found[0]


async def _on_commit_asynchronously() -> Any:
    found: list[Any] = []

    async def notify() -> None:
        found.append(seen())

    async with atomic():
        await run(transaction.on_commit, lambda: async_to_sync(notify)())
    return found[0]


async def _nested() -> Any:
    async with atomic(), atomic():
        return await run(lambda: async_to_sync(_deeper)())


async def _deeper() -> Any:
    return await run(seen)


WAYS: dict[str, Callable[[], Awaitable[Any]]] = {
    "run": lambda: run(seen),
    "sync_to_async": lambda: sync_to_async(seen)(),
    "run in atomic": _in_atomic,
    "on_commit": _on_commit,
    "on_commit by async_to_sync": _on_commit_asynchronously,
    "async_to_sync in a nested block": _nested,
}


@pytest.mark.parametrize("way", WAYS)
def test_the_context_goes_along(way: str, default_database: str) -> None:
    """Language, time zone, an asgiref Local and a context variable are the caller's, on whatever thread."""

    async def main() -> None:
        local.who = "me"
        variable.set("mine")
        with translation.override("de"), timezone.override("Asia/Tokyo"):
            assert await WAYS[way]() == EXPECTED

    play(main)


@pytest.mark.parametrize("way", ["run", "run in atomic", "on_commit"])
def test_changes_come_back(way: str, default_database: str) -> None:
    """What the function changes in its context is changed for its caller, and for nobody else."""

    async def in_atomic() -> None:
        async with atomic():
            await run(change)

    async def on_commit() -> None:
        async with atomic():
            await run(transaction.on_commit, change)

    ways = {"run": lambda: run(change), "run in atomic": in_atomic, "on_commit": on_commit}

    async def changed() -> None:
        await ways[way]()
        assert (local.who, local.more, variable.get()) == ("changed", "more", "changed")

    async def main() -> None:
        local.who = "me"
        await asyncio.create_task(changed())
        assert local.who == "me"
        assert not hasattr(local, "more")
        assert (await run(seen))[3:] == ["me", "nothing"]

    play(main)


def test_callers_do_not_meet(default_database: str) -> None:
    """Of a hundred tasks at once, each finds its own value on the thread, however threads take turns."""

    async def one(number: int) -> bool:
        local.who = number
        return await run(lambda: local.who) == number == await run(lambda: local.who)

    async def main() -> None:
        assert all(await asyncio.gather(*(asyncio.create_task(one(number)) for number in range(100))))

    play(main, threads=3)


def test_run_in_a_task_of_no_request(default_database: str) -> None:
    """In a context that knows nothing of the application, run() has a database thread and the context."""

    async def main() -> None:
        async def elsewhere() -> tuple[Any, int]:
            local.who = "elsewhere"
            return await run(lambda: local.who), await run(Topic.objects.count)

        task = asyncio.get_running_loop().create_task(elsewhere(), context=contextvars.Context())
        assert await task == ("elsewhere", 0)

    play(main)


class Out(BaseModel):
    said: str
    when: dt.datetime


class Speaking(Topic):
    said = property(lambda self: gettext("Yes"))
    when = property(lambda self: timezone.localtime(self.created_at))

    class Meta:
        app_label = "board"
        proxy = True


def test_returned_instances_are_read_in_the_handlers_context(default_database: str) -> None:
    """Properties of what a handler returns are read in its language and time zone."""
    app = FastAPI()

    @app.middleware("http")
    async def choose(request: Any, call_next: Any) -> Any:
        with translation.override(request.headers["accept-language"]), timezone.override("Asia/Tokyo"):
            return await call_next(request)

    @app.get("/instance")
    async def instance() -> Out:
        return await Speaking.objects.aget()  # type: ignore[return-value]

    @app.get("/query")
    async def query() -> list[Out]:
        return Speaking.objects.all()  # type: ignore[return-value]

    @app.get("/transaction")
    async def inside(_: InTransaction) -> list[Out]:
        return Speaking.objects.all()  # type: ignore[return-value]

    async def main() -> None:
        async with client_of(app) as client:
            for path in ("/instance", "/query", "/transaction"):
                for language, said in (("de", "Ja"), ("en", "Yes"), ("fr", "Oui")):
                    answer = (await client.get(path, headers={"accept-language": language})).json()
                    row = answer if path == "/instance" else answer[0]
                    assert row["said"] == said
                    assert row["when"].endswith("+09:00")

    Topic.objects.create(comment="-")
    asyncio.run(main())


def test_what_a_validator_changes(sqlite: str) -> None:
    """A context variable that validation sets has its value in the handler's task afterwards."""
    app = FastAPI()
    later: list[str] = []

    class Setting(Topic):
        @property
        def said(self) -> str:
            local.who = "by the property"
            return "-"

        class Meta:
            app_label = "board"
            proxy = True

    class Said(BaseModel):
        said: str

    class After:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, *args: Any) -> None:
            await self.app(*args)
            later.append(getattr(local, "who", "-"))

    app.add_middleware(After)

    @app.get("/")
    async def handler() -> Said:
        return await Setting.objects.aget()  # type: ignore[return-value]

    async def main() -> None:
        async with client_of(app) as client:
            assert (await client.get("/")).json() == {"said": "-"}
        assert later == ["by the property"]

    Topic.objects.create(comment="-")
    asyncio.run(main())


def test_reads_in_a_transaction_are_made_in_the_callers_context(default_database: str) -> None:
    """fetch() inside of atomic() runs a repository's queryset() in the context of its caller."""

    class Mine(Repository):
        model = "board.Topic"
        fields = ("id", "comment")

        def queryset(self) -> Any:
            return super().queryset().filter(comment=getattr(local, "who", "nobody"))

    async def main() -> None:
        async with started(Mine) as (mine,):
            pk = (await Topic.objects.acreate(comment="me")).pk
            local.who = "me"
            async with atomic():
                assert (await mine.fetch(pk))["comment"] == "me"

    asyncio.run(main())


def test_a_lifespan_of_ones_own_runs_with_the_handlers_threads(sqlite: str) -> None:
    """Code in the lifespan beside the plugin's may query, as handlers do."""

    async def main() -> None:
        async with application(threads=1):
            local.who = "lifespan"
            assert await sync_to_async(lambda: [local.who, Topic.objects.count()])() == ["lifespan", 0]

    asyncio.run(main())
