"""django-ninja's sync views under gunicorn's threads, with Django's persistent connections."""

from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest
from django.urls import path
from ninja import NinjaAPI

from benchmarks.project.bbs.schemas import TopicList, TopicOut

app = get_wsgi_application()
from benchmarks.project.bbs import reads  # noqa: E402  # models need django.setup()

api = NinjaAPI()


@api.get("/topics/{pk}", response=TopicOut)
def topic(request: HttpRequest, pk: int) -> reads.Row:
    """Read one topic."""
    return reads.get(pk)


@api.get("/latest", response=TopicList)
def latest(request: HttpRequest) -> dict[str, list[reads.Row]]:
    """Read the 20 latest."""
    return {"topics": reads.latest()}


urlpatterns = [path("", api.urls)]
