"""Django's ORM, validated pydantic models, and the list's JSON by pydantic."""

import django
from pydantic import TypeAdapter

from benchmarks.project.bbs.schemas import TopicOut

django.setup()
from benchmarks.project.bbs.models import Topic  # noqa: E402  # models need django.setup()

topics = TypeAdapter(list[TopicOut])

Kept = tuple[list[TopicOut], bytes]


def load(upto: int) -> Kept:
    """Keep models and bytes."""
    rows = topics.validate_python(Topic.objects.filter(pk__lte=upto).values())
    return rows, topics.dump_json(rows)


def row(kept: Kept, key: int) -> TopicOut:
    """Give the model."""
    return kept[0][key - 1]
