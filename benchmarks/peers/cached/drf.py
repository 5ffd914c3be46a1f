# mypy: disable-error-code="import-untyped,misc"
"""Django REST framework under gunicorn, kept by `cache_page` as its caching guide shows."""

from typing import Any, ClassVar

from django.core.wsgi import get_wsgi_application
from django.urls import path
from django.utils.decorators import method_decorator
from django.views.decorators.cache import cache_page

app = get_wsgi_application()
from rest_framework.request import Request  # noqa: E402  # needs settings
from rest_framework.response import Response  # noqa: E402
from rest_framework.serializers import ModelSerializer  # noqa: E402
from rest_framework.views import APIView  # noqa: E402

from benchmarks.project.bbs.models import Topic  # noqa: E402  # models need django.setup()


class TopicSerializer(ModelSerializer[Topic]):
    """All columns."""

    class Meta:
        model = Topic
        fields: ClassVar[Any] = ("id", "comment", "created_at")


class Topics(APIView):
    """The list."""

    @method_decorator(cache_page(3600))
    def get(self, request: Request) -> Response:
        """Read on the first request only."""
        return Response({"topics": TopicSerializer(Topic.objects.all(), many=True).data})


urlpatterns = [path("topics", Topics.as_view())]
