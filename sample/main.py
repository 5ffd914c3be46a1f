"""The FastAPI application beside manage.py: JSON from memory, and the Django site under it."""

from typing import Annotated, Any

from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler
from django.core.asgi import get_asgi_application
from fastapi import Depends, FastAPI, Response

from fastapi_django_orm import CachedRepository, DjangoORM

# The lifespan would do this by itself, but Django's own application, mounted below, is built
# at import and needs the settings by then.
DjangoORM.setup()


class Topics(CachedRepository):
    """Every topic of the board, newest first."""

    model = "bbs.Topic"
    ordering = ("-pk",)


TopicRepo = Annotated[Topics, Depends(Topics.current)]

app = FastAPI(title="Bulletin board", lifespan=DjangoORM.lifespan)


@app.get("/")
async def index(topics: TopicRepo) -> Response:
    """Every topic, as bytes that were made when the topics were loaded."""
    return topics.response()


@app.get("/topics/{pk}")
async def detail(pk: int, topics: TopicRepo) -> dict[str, Any]:
    """One topic, or 404."""
    return topics.get(pk)


@app.get("/longest/")
async def longest(topics: TopicRepo) -> dict[str, Any] | None:
    """The topic with the longest comment, or null while the board is empty."""
    return max(topics.all(), key=lambda topic: len(topic["comment"]), default=None)


# Last, because a mount at "/" takes every path that no route above it has taken.
# django-stubs wants a dict where Starlette promises a mapping; what arrives is a dict.
app.mount("/", ASGIStaticFilesHandler(get_asgi_application()))  # type: ignore[arg-type]
