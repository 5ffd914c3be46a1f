"""Triggers that write into the table of hints, and what is in it."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any

from django.db import connections

from fastapi_django_orm.coherence.table import TABLE
from fastapi_django_orm.django import triggers
from fastapi_django_orm.django.tables import table_of
from tests.project import router
from tests.support.hearing import execute
from tests.support.playing import outside


def install(*models: type[Any]) -> None:
    """Have the tables of these models write hints."""
    for model in models:
        triggers.install(router.chosen, table_of(model), into_table=True)


@contextmanager
def installed(*models: type[Any]) -> Iterator[None]:
    """The same, for the length of the block."""
    install(*models)
    try:
        yield
    finally:
        triggers.uninstall_all(router.chosen)


@asynccontextmanager
async def installed_outside(*models: type[Any]) -> AsyncIterator[None]:
    """The same beside a running event loop."""
    await outside(partial(install, *models))
    try:
        yield
    finally:
        await outside(partial(triggers.uninstall_all, router.chosen))


def hints() -> list[str]:
    """The messages in the table."""
    with connections[router.chosen].cursor() as cursor:
        cursor.execute(f"SELECT hint FROM {TABLE}")
        return [hint for (hint,) in cursor.fetchall()]


def forget_hints() -> None:
    """Remove all, as whoever restores a table without its rows does."""
    execute(f"TRUNCATE {TABLE}" if router.chosen != "default" else f"DELETE FROM {TABLE}")
