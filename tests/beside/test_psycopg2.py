"""psycopg2 instead of psycopg 3: everything works but LISTEN, and health says so."""

from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest

from tests.beside.sites import DEADLINE
from tests.support.interpreter import Interpreter
from tests.support.projects import Project
from tests.support.servers import PostgreSQL

SETTINGS = """
import sys

import dj_database_url

sys.modules["psycopg"] = None  # as if it were not installed
DATABASES = {"default": dj_database_url.parse(URL, conn_max_age=None)}
"""

MAIN = """
from typing import Annotated

from fastapi import Depends, FastAPI
from fastapi_django_orm import CachedRepository, DjangoORM, InTransaction, Repository


class Topics(CachedRepository):
    model = "bbs.Topic"
    fields = ("id", "comment")
    publish = "/topics/"


class Live(Repository):
    model = "bbs.Topic"
    fields = ("id", "comment")
    publish = "/live/"


app = FastAPI(lifespan=DjangoORM.lifespan)


@app.post("/post/")
async def post(comment: str, topics: Annotated[Topics, Depends(Topics.current)], _: InTransaction):
    from bbs.models import Topic

    topic = await Topic.objects.acreate(comment=comment)
    if comment == "refused":
        raise ValueError
    return topic.pk


@app.get("/loop/")
async def loop():
    from bbs.models import Topic

    return [topic.comment async for topic in Topic.objects.aiterator(chunk_size=1)]
"""


def test_psycopg2_does(tmp_path: Path, interpreter: Interpreter, postgresql: PostgreSQL) -> None:
    """Rows are read and written, transactions roll back, and `/health/` names what is missing."""
    if find_spec("psycopg2") is None:
        pytest.skip("psycopg2 is not installed: make beside")
    project = Project(tmp_path, interpreter)
    url = postgresql.create_database("psycopg2")
    project.append("config/settings.py", f"URL = {url!r}\n{SETTINGS}")
    project.write("main.py", MAIN)
    exit_code, output = project.run("manage.py", "migrate", "--verbosity", "0")
    assert exit_code == 0, output
    closing = {"Connection": "close"}  # an error may close it
    with (
        project.uvicorn() as server,
        httpx.Client(base_url=server.url, timeout=DEADLINE, headers=closing) as client,
    ):
        assert client.post("/post/", params={"comment": "kept"}).status_code == 200
        assert client.post("/post/", params={"comment": "refused"}).status_code == 500
        assert client.post("/refresh/").status_code == 200
        rows = [{"id": 1, "comment": "kept"}]
        assert client.get("/topics/").json() == {"topics": rows}
        assert client.get("/live/").json() == {"live": rows}
        assert client.get("/live/1").json() == rows[0]
        assert client.get("/loop/").json() == ["kept"]
        health = client.get("/health/").json()
    assert health["status"] == "degraded"
    assert "psycopg 3" in health["repositories"]["topics"]["unheard"]
