"""Django's ORM, dicts, and the list's JSON by orjson."""

from typing import Any

import django
import orjson

django.setup()
from benchmarks.project.bbs.models import Topic  # noqa: E402  # models need django.setup()

Kept = tuple[list[dict[str, Any]], bytes]


def load(upto: int) -> Kept:
    """Keep dicts and bytes."""
    rows = list(Topic.objects.filter(pk__lte=upto).values())
    return rows, orjson.dumps({"topics": rows})


def row(kept: Kept, key: int) -> dict[str, Any]:
    """Give the dict."""
    return kept[0][key - 1]
