"""Django's ORM, dicts."""

from typing import Any

import django

django.setup()
from benchmarks.project.bbs.models import Topic  # noqa: E402  # models need django.setup()


def load(upto: int) -> list[dict[str, Any]]:
    """Keep dicts."""
    return list(Topic.objects.filter(pk__lte=upto).values())


def row(kept: list[dict[str, Any]], key: int) -> dict[str, Any]:
    """Give the dict."""
    return kept[key - 1]
