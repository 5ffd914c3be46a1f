"""Plain `def` handlers with a response model, which FastAPI runs on AnyIO's 40 threads."""

import django
from fastapi import FastAPI

from benchmarks.project.bbs.schemas import TopicList, TopicOut

django.setup()
from benchmarks.project.bbs import reads  # noqa: E402  # models need django.setup()

app = FastAPI()


@app.get("/topics/{pk}", response_model=TopicOut)
def topic(pk: int) -> reads.Row:
    """Read one topic."""
    return reads.get(pk)


@app.get("/latest", response_model=TopicList)
def latest() -> dict[str, list[reads.Row]]:
    """Read the 20 latest."""
    return {"topics": reads.latest()}
