# mypy: disable-error-code="import-untyped,untyped-decorator"
"""django-bolt with its own server: an async handler that returns rows already in memory."""

from django_bolt import BoltAPI

from benchmarks.project.bbs.models import Topic

api = BoltAPI()
topics = list(Topic.objects.values())


@api.get("/topics")
async def index() -> dict[str, object]:
    """Let msgspec encode the rows."""
    return {"topics": topics}
