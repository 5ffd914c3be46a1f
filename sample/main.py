"""The FastAPI application beside manage.py: topics from memory, and the Django site under them."""

from typing import Annotated, Any

from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler
from django.core.asgi import get_asgi_application
from django.http import HttpRequest
from django.template.loader import render_to_string
from fastapi import Depends, Header, Response
from fastapi.responses import HTMLResponse

from fastapi_django_orm import CachedRepository, DjangoORM

try:  # with it /docs has its scripts from here, and without it from the internet
    from fastapi_offline import FastAPIOffline as FastAPI
except ImportError:
    from fastapi import FastAPI

# The lifespan would do this by itself, but Django's own application, mounted below, is built
# at import and needs the settings by then.
DjangoORM.setup()


class Topics(CachedRepository):
    """Every topic of the board, newest first."""

    model = "bbs.Topic"
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
async def detail(pk: int, topics: TopicRepo) -> dict[str, Any]:
    """One topic, or 404."""
    return topics.get(pk)


@app.get("/longest/")
def longest(topics: TopicRepo) -> dict[str, Any] | None:
    """The topic with the longest comment, or null while the board is empty.

    On a thread, as FastAPI runs every handler that is not `async`: it looks at all of them.
    """
    return max(topics.all(), key=lambda topic: len(topic["comment"]), default=None)


# Last, because a mount at "/" takes every path that no route above it has taken.
# django-stubs wants a dict where Starlette promises a mapping; what arrives is a dict.
app.mount("/", ASGIStaticFilesHandler(get_asgi_application()))  # type: ignore[arg-type]
