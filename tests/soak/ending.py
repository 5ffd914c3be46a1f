"""The end: every worker's lists, held row for row against what Django and FastAPI make of the table."""

import asyncio
import json
import time
from collections.abc import Iterator

import httpx

from tests.soak import child
from tests.soak.errors import Wrong
from tests.soak.lists import LISTS
from tests.soak.place import Place


async def expected_bodies(place: Place) -> dict[str, str]:
    """For each path the body, made without the package."""
    lines = await child.run("tests.soak.project.plain", environment=place.environment())
    bodies: dict[str, str] = json.loads(lines[-1])
    assert set(bodies) == {served.path for served in LISTS}
    return bodies


async def settle(urls: list[str], expected: dict[str, str], patience: float) -> float:
    """Wait until all workers serve this, with the same entity tags; the seconds that it took from now on.

    Raises:
        Wrong: they do not within the time; with the first difference.
    """
    began = time.monotonic()
    async with httpx.AsyncClient(timeout=30, trust_env=False) as client:
        while True:
            wrong = await _difference(client, urls, expected)
            if wrong is None:
                return time.monotonic() - began
            if time.monotonic() > began + patience:
                raise Wrong(f"after {patience:g} s without a write, {wrong}")
            await asyncio.sleep(0.05)


async def _difference(client: httpx.AsyncClient, urls: list[str], expected: dict[str, str]) -> str | None:
    for path, body in expected.items():
        answers = await asyncio.gather(*(client.get(url + path) for url in urls))
        for worker, answer in enumerate(answers):
            if answer.text != body:
                return f"worker {worker} differs from the table in {path}: {_first(body, answer.text)}"
        tags = {answer.headers["ETag"] for answer in answers}
        if len(tags) != 1:
            return f"the same bytes of {path} have the ETags {sorted(tags)}"
    return None


def _first(expected: str, served: str) -> str:
    """The first difference between two lists."""
    try:
        (wanted,), (found,) = json.loads(expected).values(), json.loads(served).values()
    except ValueError:
        return f"it serves {served[:300]!r}"
    return next(_differences(wanted, found), "only the JSON is written otherwise")


def _differences(wanted: list[dict[str, object]], found: list[dict[str, object]]) -> Iterator[str]:
    if len(wanted) != len(found):
        keys, others = {row["id"] for row in wanted}, {row["id"] for row in found}
        yield (
            f"{len(found)} rows and not {len(wanted)}; "
            f"missing {sorted(map(str, keys - others))[:5]}, too many {sorted(map(str, others - keys))[:5]}"
        )
    for number, (one, other) in enumerate(zip(wanted, found, strict=False)):
        if one != other:
            yield f"row {number} is {other} and not {one}"
