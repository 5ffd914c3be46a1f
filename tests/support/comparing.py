"""What a repository serves, held against Django, FastAPI and a repository that has just loaded everything."""

import asyncio
from collections.abc import Callable, Coroutine, Hashable, Iterable
from typing import Any

import httpx
from django.db.models import QuerySet
from fastapi import FastAPI
from pydantic import BaseModel

from fastapi_django_orm import DjangoORM, run
from fastapi_django_orm.memory.pages import begins_page

DEADLINE = 30.0  # seconds

Row = dict[str, Any]


def finish(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run it to its end, which must come."""

    async def limited() -> Any:
        async with asyncio.timeout(DEADLINE):
            return await main()

    return asyncio.run(limited())


def plain(value: Any) -> Any:
    """A driver's view of a binary column as the bytes that it shows, and anything else as it is."""
    return bytes(value) if isinstance(value, memoryview) else value


def values(queryset: QuerySet[Any, Any], *names: str) -> list[Row]:
    """Django's own rows."""
    return [{name: plain(value) for name, value in row.items()} for row in queryset.values(*names)]


async def sent_by_fastapi(name: str, rows: list[Row]) -> bytes:
    """The body that FastAPI sends for these rows under a response model."""
    app = FastAPI()

    @app.get("/")
    async def answer() -> dict[str, list[Row]]:
        return {name: rows}

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=DEADLINE) as client:
        response = await client.get("/")
    assert response.status_code == 200
    return response.content


def typed(rows: Iterable[Row]) -> list[list[tuple[str, type, str]]]:
    """Rows in a form that tells 1 from True and -0.0 from 0.0, and has NaN equal to NaN."""
    return [[(name, _kind(value), repr(value)) for name, value in row.items()] for row in rows]


def _kind(value: Any) -> type:
    """A value's type; of what cannot be changed, the one that can."""
    return next((kind for kind in (dict, list) if isinstance(value, kind)), type(value))


async def assert_as_loaded_anew(
    kept: Any, *, expected: QuerySet[Any, Any] | None = None, names: tuple[str, ...] = ()
) -> None:
    """Everything that the repository gives is what a new application gives that loads everything.

    Args:
        kept: a repository of a running application.
        expected: the same rows from Django, if Django says in which order they come.
        names: the fields to ask Django for.
    """
    async with DjangoORM(repositories=[type(kept)]).lifespan(FastAPI()):
        assert_same(kept, await type(kept).current())
        if expected is not None:
            rows = await run(values, expected, *names)
            assert typed(kept.all()) == typed(rows)
            assert kept.snapshot.json == await sent_by_fastapi(kept.name, rows)


def assert_same(kept: Any, fresh: Any) -> None:
    """Both repositories give the same, whatever they are asked."""
    one, other = kept.snapshot, fresh.snapshot
    assert one.json == other.json
    assert (one.etag, one.size, len(one)) == (other.etag, other.size, len(other))
    assert b"".join(one.parts()) == one.json
    assert told(one.rows) == told(other.rows)
    assert told(kept) == told(other.rows)
    _assert_same_keys(kept, fresh)
    _assert_same_windows(one, other)
    for field in kept.indexes:
        assert set(one.indexes[field]) == set(other.indexes[field])
        for value in [*other.indexes[field], "absent"]:
            found = kept.find(**{field: value})
            assert told(found) == told(fresh.find(**{field: value}))
            assert len(found) == sum(_field(row, field) == value for row in other.rows)


def told(rows: Iterable[Any]) -> list[Row]:
    """Rows as dicts: instances of a schema are told apart by the application that has made them."""
    return [row.model_dump() if isinstance(row, BaseModel) else row for row in rows]


def _field(row: Any, field: str) -> Any:
    return row[field] if isinstance(row, dict) else getattr(row, field)


def _assert_same_keys(kept: Any, fresh: Any) -> None:
    one, other = kept.snapshot, fresh.snapshot
    if other.by_key is None:
        assert one.by_key is None
        return
    keys = list(other.by_key)
    assert list(one.by_key) == keys
    for key in keys:
        assert one.row_json(key) == other.row_json(key)
        assert told([kept.get(key)]) == told([fresh.get(key)])
        assert key in kept


def _assert_same_windows(one: Any, other: Any) -> None:
    number = len(other)
    for offset in {0, 1, number // 2, max(0, number - 1), number, number + 1}:
        for limit in (0, 1, 3, number, None):
            assert one.window(offset, limit) == other.window(offset, limit)


def beginning_keys(candidates: Iterable[Hashable], count: int) -> list[Any]:
    """Keys of which each begins a page, so that few rows make many pages."""
    found: list[Any] = []
    for key in candidates:
        if begins_page(key):
            found.append(key)
        if len(found) == count:
            break
    return found
