"""django-ninja's async views on uvicorn; `catalog.py` runs them with and without a pool."""

from django.core.asgi import get_asgi_application
from django.http import HttpRequest
from django.urls import path
from ninja import NinjaAPI

from benchmarks.project.bbs.schemas import TopicList, TopicOut

app = get_asgi_application()
from benchmarks.project.bbs import reads  # noqa: E402  # models need django.setup()

api = NinjaAPI()


@api.get("/topics/{pk}", response=TopicOut)
async def topic(request: HttpRequest, pk: int) -> reads.Row:
    """Read one topic."""
    return await reads.aget(pk)


@api.get("/latest", response=TopicList)
async def latest(request: HttpRequest) -> dict[str, list[reads.Row]]:
    """Read the 20 latest."""
    return {"topics": await reads.alatest()}


urlpatterns = [path("", api.urls)]
