"""django-polymorphic: a row of the base model is read from the table of the child that it is."""

from importlib.util import find_spec

import psycopg
import pytest

from tests.support.databases import wait_until
from tests.support.projects import Project
from tests.support.servers import PostgreSQL

if find_spec("polymorphic") is None:
    pytest.skip("django-polymorphic is not installed: make beside", allow_module_level=True)

DATABASE = "polymorphic"

SETTINGS = """
INSTALLED_APPS += ["django.contrib.contenttypes", "polymorphic", "fastapi_django_orm.django"]
"""

MODELS = """\
from django.db import models
from polymorphic.models import PolymorphicModel


class Person(models.Model):
    name = models.CharField(max_length=50)


class Content(PolymorphicModel):
    title = models.CharField(max_length=50)


class Movie(Content):
    length = models.IntegerField(default=0)
    director = models.ForeignKey(Person, models.CASCADE)


class Text(Content):
    class Meta:
        proxy = True


class Book(Text):
    pages = models.IntegerField(default=0)
"""

MAIN = """\
from fastapi import FastAPI
from pydantic import BaseModel

from fastapi_django_orm import CachedRepository, DjangoORM


class PersonOut(BaseModel):
    name: str


class ContentOut(BaseModel):
    id: int
    title: str
    length: int | None = None
    director: PersonOut | None = None
    pages: int | None = None


class Contents(CachedRepository[ContentOut]):
    model = "bbs.Content"
    schema = ContentOut
    ordering = ("pk",)
    publish = "/contents/"


app = FastAPI(lifespan=DjangoORM.lifespan)
"""

ROWS = """\
from bbs.models import *
Movie.objects.create(title="m", length=90, director=Person.objects.create(name="d"))
Book.objects.create(title="b", pages=10)
"""

MOVIE = {"id": 1, "title": "m", "length": 90, "director": {"name": "d"}, "pages": None}
BOOK = {"id": 2, "title": "b", "length": None, "director": None, "pages": 10}


def test_children_are_followed(project: Project, postgresql: PostgreSQL) -> None:
    """What only a child's table says, or one that only a child leads to, is followed, and all is well."""
    project.use_server(postgresql.create_database(DATABASE))
    project.append("config/settings.py", SETTINGS)
    project.write("bbs/models.py", MODELS)
    project.write("main.py", MAIN)
    project.remove("bbs/migrations/0001_initial.py")
    for command in (["makemigrations", "bbs"], ["migrate"], ["coherence", "install"], ["shell", "-c", ROWS]):
        code, output = project.run("manage.py", *command)
        assert code == 0, output
    try:
        with (
            project.uvicorn() as server,
            psycopg.connect(postgresql.url(DATABASE), autocommit=True) as writer,
        ):

            def served() -> object:
                return server.get("/contents/").json()["contents"]

            assert served() == [MOVIE, BOOK]
            writer.execute("UPDATE bbs_movie SET length = 91")
            wait_until(lambda: served() == [MOVIE | {"length": 91}, BOOK], "the movie's length")
            writer.execute("UPDATE bbs_book SET pages = 11")
            wait_until(lambda: served() == [MOVIE | {"length": 91}, BOOK | {"pages": 11}], "the book's pages")
            writer.execute("UPDATE bbs_person SET name = 'e'")
            changed = MOVIE | {"length": 91, "director": {"name": "e"}}
            wait_until(lambda: served() == [changed, BOOK | {"pages": 11}], "the director's name")
            assert server.get("/health/").json()["status"] == "ok"
    finally:
        postgresql.drop_database(DATABASE)
