"""This package: sync functions on its database threads through `run`."""

from fastapi import FastAPI

from benchmarks.project.bbs.schemas import TopicList, TopicOut
from fastapi_django_orm import DjangoORM, run

DjangoORM.setup()
from benchmarks.project.bbs import reads  # noqa: E402  # models need Django

app = FastAPI(lifespan=DjangoORM.lifespan)


@app.get("/topics/{pk}", response_model=TopicOut)
async def topic(pk: int) -> reads.Row:
    """Read one topic."""
    return await run(reads.get, pk)


@app.get("/latest", response_model=TopicList)
async def latest() -> dict[str, list[reads.Row]]:
    """Read the 20 latest."""
    return {"topics": await run(reads.latest)}
