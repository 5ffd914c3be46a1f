"""This package: Django's own async API in `async def` handlers; only the lifespan is added."""

from fastapi import FastAPI

from benchmarks.project.bbs.schemas import TopicList, TopicOut
from fastapi_django_orm import DjangoORM

DjangoORM.setup()
from benchmarks.project.bbs import reads  # noqa: E402  # models need Django

app = FastAPI(lifespan=DjangoORM.lifespan)


@app.get("/topics/{pk}", response_model=TopicOut)
async def topic(pk: int) -> reads.Row:
    """Read one topic."""
    return await reads.aget(pk)


@app.get("/latest", response_model=TopicList)
async def latest() -> dict[str, list[reads.Row]]:
    """Read the 20 latest."""
    return {"topics": await reads.alatest()}
