"""Applications that hear of writes elsewhere, and writers elsewhere."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from typing import Any

from django.db import connections, transaction

from fastapi_django_orm import running
from fastapi_django_orm.coherence.link import Link
from fastapi_django_orm.coherence.service import Coherence
from tests.gates import comments, started
from tests.playing import outside
from tests.project import router
from tests.project.board.models import Author, Topic

DEADLINE = 20.0  # seconds

_FUNCTION = """
CREATE OR REPLACE FUNCTION fastapi_django_orm_{table}() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE keys json;
BEGIN
    IF TG_OP <> 'TRUNCATE' THEN
        SELECT json_agg(id) INTO keys FROM changed;
    END IF;
    PERFORM pg_notify('fastapi_django_orm',
        json_strip_nulls(json_build_object('v', 1, 'm', '"{label}"'::json, 'k', keys))::text);
    RETURN NULL;
END $$"""

_TRIGGER = """
CREATE OR REPLACE TRIGGER fastapi_django_orm_{event} AFTER {event} ON {table} {rows}
FOR EACH STATEMENT EXECUTE FUNCTION fastapi_django_orm_{table}()"""

_EVENTS = {
    "insert": "REFERENCING NEW TABLE AS changed",
    "update": "REFERENCING NEW TABLE AS changed",
    "delete": "REFERENCING OLD TABLE AS changed",
    "truncate": "",
}


def install_triggers(*models: type[Any]) -> None:
    """The least that announces every kind of write."""
    for model in models or (Topic, Author):
        table = model._meta.db_table
        execute(_FUNCTION.format(table=table, label=model._meta.label))
        for event, rows in _EVENTS.items():
            execute(_TRIGGER.format(table=table, event=event, rows=rows))


def uninstall_triggers() -> None:
    """None."""
    for model in (Topic, Author):
        for event in (*_EVENTS, "rekey"):
            execute(f"DROP TRIGGER IF EXISTS fastapi_django_orm_{event} ON {model._meta.db_table}")


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
        yield instances[0], running.find("a test").coherence


def link(coherence: Coherence, kind: str) -> Link:
    """The only transport of a kind."""
    (found,) = [link for link in coherence.links if link.listener.name.split(":")[0] == kind]
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
