"""What a user's type checker makes of the package, without this package's own plugins and settings."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import fastapi_django_orm

pytestmark = [
    pytest.mark.skipif(find_spec("mypy") is None, reason="mypy is not installed"),
    pytest.mark.timeout(300),  # it reads FastAPI and Django without a cache
]

CONFIG = """\
[mypy]
ignore_missing_imports = True
"""

USER = """\
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI
from pydantic import BaseModel

from fastapi_django_orm import CachedRepository, DjangoORM, InTransaction, ORMSettings, Row, atomic, run


class TopicOut(BaseModel):
    id: int
    comment: str


class Topics(CachedRepository[TopicOut]):
    model = "bbs.Topic"
    schema = TopicOut
    indexes = ("comment",)


class Plain(CachedRepository[Row]):
    model = "bbs.Topic"


TopicRepo = Annotated[Topics, Depends(Topics.current)]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with DjangoORM(ORMSettings(startup="retry")).lifespan(app):
        yield


@asynccontextmanager
async def by_default(app: FastAPI) -> AsyncIterator[None]:
    async with DjangoORM.lifespan(app):
        yield


app = FastAPI(lifespan=lifespan)
direct = FastAPI(lifespan=DjangoORM.lifespan)
of_an_instance = FastAPI(lifespan=DjangoORM(ORMSettings(startup="retry")))


def count(start: int, *, word: str) -> int:
    return start + len(word)


@app.get("/")
async def index(topics: TopicRepo) -> list[TopicOut]:
    reveal_type(topics)
    reveal_type(topics.get(1))
    reveal_type(topics.all())
    reveal_type(topics.find(comment="x"))
    reveal_type((await topics.refresh()).rows)
    return [topic for topic in topics if topic.comment]


@app.get("/plain")
async def plain(topics: Annotated[Plain, Depends(Plain.current)]) -> list[Row]:
    reveal_type(topics.get(1))
    return list(topics.all())


@app.post("/")
async def post(_: InTransaction) -> int:
    async with atomic():
        reveal_type(await run(count, 1, word="x"))
        return await run(count, 1, word="x")
"""

WRONG = """\
from fastapi_django_orm import ORMSettings, run


def count(start: int) -> int:
    return start


async def wrong() -> None:
    ORMSettings(startup="sometimes")
    await run(count, "x")
    (await run(count, 1)).upper()
"""


def check(folder: Path, text: str) -> tuple[int, str]:
    """Mypy's exit code and output for a module of a user, with a configuration that names no plugin."""
    (folder / "mypy.ini").write_text(CONFIG)
    (folder / "user.py").write_text(text)
    mypy = [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "--cache-dir", os.devnull]
    done = subprocess.run(
        [*mypy, "--config-file", "mypy.ini", "--no-color-output", "--no-error-summary", "user.py"],
        cwd=folder,
        env={**os.environ, "MYPYPATH": str(Path(fastapi_django_orm.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def revealed(output: str) -> list[str]:
    return [line.split('"')[1] for line in output.splitlines() if "Revealed type is" in line]


def test_a_users_module_is_typed_without_plugins(tmp_path: Path) -> None:
    """Under plain `mypy --strict` all that the README shows is without errors, and rows have their types."""
    code, output = check(tmp_path, USER)
    assert code == 0, output
    assert revealed(output) == [
        "user.Topics",
        "user.TopicOut",
        "tuple[user.TopicOut, ...]",
        "tuple[user.TopicOut, ...]",
        "tuple[user.TopicOut, ...]",
        "fastapi_django_orm.reading.row.Row",
        "int",
    ], output


def test_a_users_mistakes_are_found_without_plugins(tmp_path: Path) -> None:
    """A setting's wrong value, a wrong argument of `run()` and a wrong use of its result are errors."""
    code, output = check(tmp_path, WRONG)
    assert code == 1, output
    errors = [line for line in output.splitlines() if ": error: " in line]
    assert [line.split(":")[1] for line in errors] == ["9", "10", "11"], output
    assert "Literal['fail', 'retry']" in errors[0]
    assert 'expected "int"' in errors[1]
    assert '"int" has no attribute "upper"' in errors[2]
