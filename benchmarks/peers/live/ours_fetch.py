"""This package: a repository that keeps nothing, and whose reads are made together."""

from typing import Annotated, Any

from fastapi import Depends, FastAPI

from benchmarks.project.bbs.schemas import TopicList, TopicOut
from fastapi_django_orm import DjangoORM, Repository, run

DjangoORM.setup()
from benchmarks.project.bbs import reads  # noqa: E402  # models need Django


class Topics(Repository):
    """Every topic of the board."""

    model = "bbs.Topic"


TopicRepo = Annotated[Topics, Depends(Topics.current)]

app = FastAPI(lifespan=DjangoORM.lifespan)


@app.get("/topics/{pk}", response_model=TopicOut)
async def topic(pk: int, topics: TopicRepo) -> Any:
    """Read one topic."""
    return await topics.fetch(pk)


@app.get("/latest", response_model=TopicList)
async def latest() -> dict[str, list[reads.Row]]:
    """Read the 20 latest."""
    return {"topics": await run(reads.latest)}
