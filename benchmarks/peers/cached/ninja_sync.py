"""django-ninja under gunicorn, the answer kept by Django's `cache_page` as ninja's guide shows."""

from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest
from django.urls import path
from django.views.decorators.cache import cache_page
from ninja import NinjaAPI
from ninja.decorators import decorate_view

from benchmarks.project.bbs.schemas import TopicList

app = get_wsgi_application()
from benchmarks.project.bbs.models import Topic  # noqa: E402  # models need django.setup()

api = NinjaAPI()


@api.get("/topics", response=TopicList)
@decorate_view(cache_page(3600))
def index(request: HttpRequest) -> dict[str, object]:
    """Read on the first request only."""
    return {"topics": list(Topic.objects.values())}


urlpatterns = [path("", api.urls)]
