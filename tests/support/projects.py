"""Small projects in folders of their own, run as a user runs them.

Django can be set up once in a process, so whatever is about setting it up needs a process for each try.
"""

import json
import os
import sqlite3
from pathlib import Path
from textwrap import dedent
from typing import Any

import fastapi_django_orm
from tests.support.interpreter import Interpreter
from tests.support.servers import Uvicorn

STARTUP_FAILURE = 3  # uvicorn's exit code

SETTINGS = """\
from pathlib import Path

BASE = Path(__file__).parent.parent
SECRET_KEY = "for tests only"
DEBUG = True
USE_TZ = True
INSTALLED_APPS = ["bbs"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": BASE / "db.sqlite3"}}
"""

ON_SERVER = """
import dj_database_url

DATABASES = {"default": dj_database_url.parse(URL)}
"""

MANAGE = """\
import os
import sys

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)
"""

MODELS = """\
from django.db import models


class Topic(models.Model):
    comment = models.CharField(max_length=2000)
"""

MIGRATION = """\
from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True
    operations = [
        migrations.CreateModel(
            "Topic",
            [("id", models.BigAutoField(primary_key=True)), ("comment", models.CharField(max_length=2000))],
        )
    ]
"""

MAIN = """\
from typing import Annotated

from fastapi import Depends, FastAPI

from fastapi_django_orm import CachedRepository, DjangoORM


class Topics(CachedRepository):
    model = "bbs.Topic"
    ordering = ("-pk",)


TopicRepo = Annotated[Topics, Depends(Topics.current)]

app = FastAPI(lifespan=DjangoORM.lifespan)


@app.get("/")
async def index(topics: TopicRepo):
    return topics.response()
"""


PUBLISHING = """\
from fastapi import FastAPI

from fastapi_django_orm import CachedRepository, DjangoORM


class Topics(CachedRepository):
    model = "bbs.Topic"
    fields = ("id", "comment")
    publish = "/topics/"


app = FastAPI(lifespan=DjangoORM.lifespan)
"""


class Project:
    """A Django project with ``main.py`` beside ``manage.py``, and one topic in an SQLite database.

    Args:
        directory: an empty folder to write it into.
        interpreter: what runs its code.
    """

    def __init__(self, directory: Path, interpreter: Interpreter) -> None:
        self.directory = directory
        self._interpreter = interpreter
        self.write("config/__init__.py", "")
        self.write("config/settings.py", SETTINGS)
        self.write("bbs/__init__.py", "")
        self.write("bbs/models.py", MODELS)
        self.write("bbs/migrations/__init__.py", "")
        self.write("bbs/migrations/0001_initial.py", MIGRATION)
        self.write("manage.py", MANAGE)
        self.write("main.py", MAIN)
        self.create_table()
        self.add_topic("first")

    def write(self, name: str, text: str) -> None:
        """Write a file."""
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text), encoding="utf-8")

    def append(self, name: str, text: str) -> None:
        """Write something at a file's end, which may be its beginning."""
        path = self.directory / name
        self.write(name, (path.read_text(encoding="utf-8") if path.exists() else "") + dedent(text))

    def remove(self, name: str) -> None:
        """Delete a file."""
        (self.directory / name).unlink()

    def use_server(self, url: str) -> None:
        """Take the database server's database instead of the SQLite file."""
        self.append("config/settings.py", ON_SERVER.replace("URL", repr(url)))

    def create_table(self) -> None:
        """Create the table of topics in the SQLite file, as a migration would, and sooner."""
        self._execute("CREATE TABLE bbs_topic (id integer PRIMARY KEY, comment varchar(2000) NOT NULL)")

    def drop_table(self) -> None:
        """Drop it."""
        self._execute("DROP TABLE bbs_topic")

    def empty_table(self) -> None:
        """Delete every topic."""
        self._execute("DELETE FROM bbs_topic")

    def add_topic(self, comment: str) -> None:
        """Insert a topic, behind Django's back."""
        self._execute("INSERT INTO bbs_topic (comment) VALUES (?)", comment)

    def fill_table(self, rows: int) -> None:
        """Have as many topics as this."""
        self.empty_table()
        self._execute(
            "INSERT INTO bbs_topic (comment) WITH RECURSIVE counter(n) AS"
            f" (SELECT 1 UNION ALL SELECT n + 1 FROM counter WHERE n < {rows})"
            " SELECT 'topic ' || n FROM counter"
        )

    def environment(self, **variables: str | None) -> dict[str, str | None]:
        """What to change in a process's environment: nothing of this process's own Django may reach it."""
        unwanted = [name for name in os.environ if name.startswith("DJANGO_")]
        root = str(Path(fastapi_django_orm.__file__).parents[1])
        return {**dict.fromkeys(unwanted), "PYTHONPATH": root, "PYTHONWARNINGS": "error", **variables}

    def run(self, *arguments: str, **variables: str | None) -> tuple[int, str]:
        """Run Python with these arguments in the project's folder; the exit code and the output."""
        environment = {**os.environ, **self.environment(**variables)}
        wanted = {name: value for name, value in environment.items() if value is not None}
        return self._interpreter.run(arguments, self.directory, wanted)

    def python(self, code: str, **variables: str | None) -> str:
        """Run code that must succeed, and return what it writes."""
        exit_code, output = self.run("-c", dedent(code), **variables)
        assert exit_code == 0, output
        return output

    def migrate(self) -> None:
        """Do what an error message about a missing table says."""
        exit_code, output = self.run("manage.py", "migrate")
        assert exit_code == 0, output

    def uvicorn(self, *arguments: str, **variables: str | None) -> Uvicorn:
        """A uvicorn for ``main:app``, which is not started yet."""
        return Uvicorn(directory=self.directory, env=self.environment(**variables), args=arguments)

    def fails(self, *arguments: str, **variables: str | None) -> str:
        """What ``uvicorn main:app`` writes, which must not start."""
        exit_code, output = self.run("-m", "uvicorn", "main:app", "--port", "0", *arguments, **variables)
        assert exit_code == STARTUP_FAILURE, output
        return output

    def _execute(self, statement: str, *values: str) -> None:
        connection = sqlite3.connect(self.directory / "db.sqlite3")
        with connection:
            connection.execute(statement, values)
        connection.close()


def events(output: str) -> list[dict[str, Any]]:
    """The lines of an output that are JSON objects."""
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def explanation(output: str) -> str:
    """The message that a uvicorn which did not start ends with, below the last traceback.

    It must be the last thing to read, except for uvicorn's own farewell.
    """
    lines = output.strip().splitlines()
    assert lines.pop() == "ERROR:    Application startup failed. Exiting.", output
    start = max(number for number, line in enumerate(lines) if line.startswith("  ")) + 1
    return "\n".join(lines[start:]).strip()
