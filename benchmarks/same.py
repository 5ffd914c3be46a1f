"""Whether peers answer the same: a fast answer counts only if it is the right one."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from datetime import UTC, datetime
from typing import Any

from benchmarks.plan import PeerError

NOTHING_NEW = 304


def answers(base: str, paths: list[str], headers: dict[str, str]) -> list[Any]:
    """Fetch the paths and read their JSON, with times as times: `Z` and `+00:00` are the same.

    Of an answer that there is nothing new, which has no JSON, the status is given.
    """
    return [answer(urllib.request.Request(base + path, headers=headers)) for path in paths]


def answer(request: urllib.request.Request) -> Any:
    """Fetch one path."""
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response, object_hook=times)
    except urllib.error.HTTPError as error:
        if error.code != NOTHING_NEW:
            raise
        return NOTHING_NEW


def etag(url: str) -> str:
    """Return the entity tag of what is there."""
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            found = response.headers["ETag"]
    except urllib.error.HTTPError as error:
        found = error.headers["ETag"]
    if found is None:
        raise PeerError(f"sends no ETag with {url}")
    return str(found)


def times(row: dict[str, Any]) -> dict[str, Any]:
    """Replace the text of a time by the time, to the millisecond: django-ninja sends no more."""
    if isinstance(written := row.get("created_at"), str):
        time = datetime.fromisoformat(written).astimezone(UTC)
        row["created_at"] = time.replace(microsecond=time.microsecond // 1000 * 1000)
    return row


def check(paths: list[str], seen: list[Any], expected: list[Any]) -> None:
    """Raise `PeerError` for the first path that is answered differently than by the limit."""
    for path, found, wanted in zip(paths, seen, expected, strict=True):
        if found != wanted:
            raise PeerError(
                f"answers differently than the limit on {path}:\n"
                f"{str(found)[:300]}\ninstead of\n{str(wanted)[:300]}"
            )
