"""This package: a repository's ready response, from a handler."""

from typing import Annotated

from fastapi import Depends, FastAPI, Response

from fastapi_django_orm import CachedRepository, DjangoORM


class Topics(CachedRepository):
    """Every topic of the board."""

    model = "bbs.Topic"
    ordering = ("pk",)


TopicRepo = Annotated[Topics, Depends(Topics.current)]

app = FastAPI(lifespan=DjangoORM.lifespan)


@app.get("/topics")
async def index(topics: TopicRepo) -> Response:
    """Send the bytes that were made when the rows were loaded."""
    return topics.response()


@app.get("/topics/{pk}")
async def topic(pk: int, topics: TopicRepo) -> Response:
    """Send the bytes of one row."""
    return topics.response(pk=pk)
