"""Django's ORM without dicts."""

from typing import Any

import django

django.setup()
from benchmarks.project.bbs.models import Topic  # noqa: E402  # models need django.setup()


def load(upto: int) -> list[tuple[Any, ...]]:
    """Keep tuples."""
    return list(Topic.objects.filter(pk__lte=upto).values_list())


def row(kept: list[tuple[Any, ...]], key: int) -> tuple[Any, ...]:
    """Give the tuple."""
    return kept[key - 1]
