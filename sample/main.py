"""The FastAPI application beside manage.py: topics from memory, and the Django site under them."""

from datetime import datetime
from typing import Annotated

from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler
from django.core.asgi import get_asgi_application
from django.http import HttpRequest
from django.template.loader import render_to_string
from fastapi import Depends, Header, Response
from fastapi.responses import HTMLResponse

from fastapi_django_orm import CachedRepository, DjangoORM, Filter, ModelSchema

try:  # with it /docs has its scripts from here, and without it from the internet
    from fastapi_offline import FastAPIOffline as FastAPI
except ImportError:
    from fastapi import FastAPI


class AuthorOut(ModelSchema, model="bbs.Author", fields=("id", "name")):
    """Declaring a schema sets Django up, as ``DjangoORM.setup()`` does."""


class TopicOut(ModelSchema, model="bbs.Topic", fields=("id", "comment", "created_at")):
    author: AuthorOut | None  # joined, because the schema reads it


class TopicIn(ModelSchema, model="bbs.Topic", fields=("comment", "author")):
    """What a client may write; the author by its key."""


class TopicFilter(Filter, model="bbs.Topic", search=("comment", "author__name"), ordering=("created_at",)):
    author: int | None = None
    author__name: str | None = None
    created_at__gte: datetime | None = None


class Topics(CachedRepository[TopicOut]):
    """Every topic of the board, newest first."""

    model = "bbs.Topic"
    schema = TopicOut
    ordering = ("-pk",)


TopicRepo = Annotated[Topics, Depends(Topics.current)]

app = FastAPI(title="Bulletin board", lifespan=DjangoORM.lifespan)

SHOWN = 100


@app.get("/")
async def index(topics: TopicRepo, accept: Annotated[str, Header()] = "*/*") -> Response:
    """Every topic: bytes that were made when the topics were loaded. Or a page, for a browser."""
    answer: Response = page(topics) if prefers_html(accept) else topics.response()
    answer.headers.add_vary_header("Accept")
    return answer


def page(topics: Topics) -> Response:
    """The newest topics as a page: a template of Django's, and rows that are in memory."""
    return HTMLResponse(render_to_string("bbs/topics.html", {"topics": topics.all()[:SHOWN]}))


def prefers_html(accept: str) -> bool:
    """Whether a client asks for a page rather than for JSON, which who takes anything gets."""
    request = HttpRequest()
    request.META["HTTP_ACCEPT"] = accept
    return request.get_preferred_type(["application/json", "text/html"]) == "text/html"


@app.get("/topics/{pk}")
async def detail(pk: int, topics: TopicRepo) -> TopicOut:
    """One topic, or 404."""
    return topics.get(pk)


@app.get("/longest/")
def longest(topics: TopicRepo) -> TopicOut | None:
    """The topic with the longest comment, or null while the board is empty.

    On a thread, as FastAPI runs every handler that is not `async`: it looks at all of them.
    """
    return max(topics.all(), key=lambda topic: len(topic.comment), default=None)


# GET /api/topics/?search=…, GET /api/topics/1, and POST, for which `write_dependencies` may say who may post.
app.include_router(Topics.router(filter=TopicFilter, create=TopicIn), prefix="/api/topics", tags=["Topics"])

# Last, because a mount at "/" takes every path that no route above it has taken.
# django-stubs wants a dict where Starlette promises a mapping; what arrives is a dict.
app.mount("/", ASGIStaticFilesHandler(get_asgi_application()))  # type: ignore[arg-type]
