"""Read rows beside a package that caches queries, and print what was read: ``python -m … PACKAGE BROKER``."""

import asyncio
import json
import sqlite3
import sys
import tempfile
from pathlib import Path
from typing import Any

from django.conf import settings

package, broker = sys.argv[1:]
directory = tempfile.TemporaryDirectory()
file = Path(directory.name) / "db.sqlite3"

settings.configure(
    SECRET_KEY="for tests only",
    USE_TZ=True,
    INSTALLED_APPS=[package, "django.contrib.contenttypes", "django.contrib.auth"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": str(file)}},
    CACHES={"default": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": broker}},
    CACHEOPS_REDIS=broker,
    CACHEOPS={"*.*": {"ops": "all", "timeout": 600}},
)

import django

django.setup()

from django.contrib.auth.models import Permission
from django.core.management import call_command
from fastapi import FastAPI
from pydantic import BaseModel

from fastapi_django_orm import CachedRepository, DjangoORM, ORMSettings, Repository, run


class TypeOut(BaseModel):
    model: str


class PermissionOut(BaseModel):
    id: int
    name: str
    content_type: TypeOut


class Kept(CachedRepository):
    """Every permission, in memory."""

    model = "auth.Permission"
    schema = PermissionOut
    ordering = ("pk",)


class Live(Repository):
    """Every permission, read now."""

    model = "auth.Permission"
    schema = PermissionOut
    ordering = ("pk",)


def by_django() -> list[str]:
    """As any view of the project reads, and so from the cache."""
    first, *_ = Permission.objects.order_by("pk")
    return [first.name, first.content_type.model]


def write(value: str) -> None:
    """Write as another program does, which tells no cache of it."""
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE auth_permission SET name = ?", [value])
        connection.execute("UPDATE django_content_type SET model = id || ?", [value])


def shown(row: Any) -> list[str]:
    return [row.name, row.content_type.model.lstrip("0123456789")]


async def main() -> dict[str, list[str]]:
    """What was read after writes, by the way in which it was read."""
    app = FastAPI()
    found: dict[str, list[str]] = {}
    async with DjangoORM(ORMSettings(coherence="off"), repositories=[Kept, Live]).lifespan(app):
        kept, live = await Kept.current(), await Live.current()
        found["before"] = await run(by_django)
        write("all")
        await kept.refresh()
        found["all"] = shown(kept.all()[0])
        write("keys")
        await kept.refresh(kept.all()[0].id)
        found["keys"] = shown(kept.all()[0])
        write("live")
        found["live"] = shown(await live.fetch(kept.all()[0].id))
        write("window")
        first = json.loads(await live.live.window(0, 1))[live.name][0]
        found["window"] = shown(PermissionOut.model_validate(first))
        found["django"] = await run(by_django)
    return found


if __name__ == "__main__":
    call_command("migrate", verbosity=0)
    by_django()
    print(json.dumps(asyncio.run(main())))
