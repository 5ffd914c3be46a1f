# mypy: disable-error-code="import-untyped,untyped-decorator"
"""django-bolt with its own server: an async handler that returns rows already in memory."""

from django_bolt import BoltAPI

from benchmarks.project.bbs.models import Topic

api = BoltAPI(enable_logging=False, compression=False)
topics = list(Topic.objects.values())
by_key = {topic["id"]: topic for topic in topics}


@api.get("/topics")
async def index() -> dict[str, object]:
    """Let msgspec encode the rows."""
    return {"topics": topics}


@api.get("/topics/{pk}")
async def topic(pk: int):  # type: ignore[no-untyped-def]  # an annotation would make bolt validate
    """Let msgspec encode one row."""
    return by_key[pk]
