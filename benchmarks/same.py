"""Whether peers answer the same: a fast answer counts only if it is the right one."""

from __future__ import annotations

import json
import urllib.request
from datetime import UTC, datetime
from typing import Any

from benchmarks.serving import PeerError


def answers(base: str, paths: list[str]) -> dict[str, Any]:
    """Fetch the paths and read their JSON, with times as times: `Z` and `+00:00` are the same."""
    found = {}
    for path in paths:
        with urllib.request.urlopen(base + path, timeout=60) as response:
            found[path] = json.load(response, object_hook=times)
    return found


def times(row: dict[str, Any]) -> dict[str, Any]:
    """Replace the text of a time by the time, to the millisecond: django-ninja sends no more."""
    if isinstance(written := row.get("created_at"), str):
        time = datetime.fromisoformat(written).astimezone(UTC)
        row["created_at"] = time.replace(microsecond=time.microsecond // 1000 * 1000)
    return row


def check(seen: dict[str, Any], expected: dict[str, Any]) -> None:
    """Raise `PeerError` for the first path that is answered differently than by the limit."""
    for path, answer in seen.items():
        if answer != expected[path]:
            raise PeerError(
                f"answers differently than the limit on {path}:\n"
                f"{str(answer)[:300]}\ninstead of\n{str(expected[path])[:300]}"
            )
