"""Applications that hear of writes elsewhere, and writers elsewhere."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from typing import Any

from django.db import connections, transaction

from fastapi_django_orm import application
from fastapi_django_orm.coherence.service import Coherence
from fastapi_django_orm.coherence.transport import TransportSupervisor
from fastapi_django_orm.django import triggers
from fastapi_django_orm.django.tables import table_of
from fastapi_django_orm.django.trigger_sql import EVENTS
from tests.project import router
from tests.project.board.models import Author, Topic
from tests.support.gates import comments, started
from tests.support.playing import outside

DEADLINE = 20.0  # seconds


def install_triggers(*models: type[Any]) -> None:
    """Have the tables announce every write, but those under session_replication_role = replica."""
    for model in models or (Topic, Author):
        triggers.install(router.chosen, table_of(model))
        for event in EVENTS:
            execute(f"ALTER TABLE {model._meta.db_table} ENABLE TRIGGER fastapi_django_orm_{event}")


def uninstall_triggers() -> None:
    """Have no table announce anything."""
    for model in (Topic, Author):
        triggers.uninstall(router.chosen, table_of(model))


def execute(statement: str, *values: Any) -> None:
    """Run a statement on the chosen database."""
    with connections[router.chosen].cursor() as cursor:
        cursor.execute(statement, values)


def notify(payload: str) -> None:
    """Say something on the channel of hints."""
    execute("SELECT pg_notify('fastapi_django_orm', %s)", payload)


@asynccontextmanager
async def hearing(*repositories: type[Any], **settings: Any) -> AsyncIterator[tuple[Any, Coherence]]:
    """An application that hears of writes: its first repository, and its coherence."""
    settings.setdefault("coherence", "auto")
    async with asyncio.timeout(3 * DEADLINE), started(*repositories, **settings) as instances:
        yield instances[0], application.find("a test").get(Coherence)


def link(coherence: Coherence, kind: str) -> TransportSupervisor:
    """The only transport of a kind."""
    (found,) = [link for link in coherence.transports if link.listener.name.split(":")[0] == kind]
    return found


async def eventually(condition: Callable[[], Any], what: str) -> None:
    """Return when the condition holds."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"not within {DEADLINE} s: {what}"
        await asyncio.sleep(0.002)


async def follows(repository: Any, *expected: str) -> None:
    """Return when the repository serves topics with these comments."""
    await eventually(lambda: sorted(comments(repository)) == sorted(expected), f"{expected} are served")


async def write(*new: str) -> list[int]:
    """Topics, written elsewhere in one transaction; their keys."""
    keys: list[int] = []
    await outside(lambda: keys.extend(create(new)))
    return keys


def create(new: Collection[str]) -> list[int]:
    with transaction.atomic(using=router.chosen):
        return [Topic.objects.create(comment=comment).pk for comment in new]


def roll_back() -> None:
    """A topic that nobody shall see."""
    with transaction.atomic(using=router.chosen):
        Topic.objects.create(comment="never")
        transaction.set_rollback(True, using=router.chosen)
