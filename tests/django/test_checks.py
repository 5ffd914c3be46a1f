"""System checks: what would leave workers with old data, said before it does."""

from collections.abc import Iterator

import django
import psycopg
import pytest

from tests.django.test_commands import TABLE, manage
from tests.support.projects import Project
from tests.support.servers import MariaDB, PostgreSQL

DATABASE = "checks"

APP = 'INSTALLED_APPS += ["fastapi_django_orm.django"]\n'

NOTHING = "System check identified no issues"

IDS = [f"fastapi_django_orm.{number}" for number in ("E001", "W001", "W002", "W003", "W004", "I001")]


@pytest.fixture
def board(project: Project, postgresql: PostgreSQL) -> Iterator[Project]:
    """The project with its tables on PostgreSQL, and the app installed."""
    project.use_server(postgresql.create_database(DATABASE))
    project.append("config/settings.py", APP)
    with psycopg.connect(postgresql.url(DATABASE), autocommit=True) as connection:
        connection.execute(TABLE)
    yield project
    postgresql.drop_database(DATABASE)


@pytest.fixture
def on_sqlite(project: Project) -> Project:
    """The project on SQLite, and the app installed."""
    project.append("config/settings.py", APP)
    return project


def check(project: Project, *arguments: str, **variables: str) -> str:
    """What `manage.py check` writes."""
    return project.run("manage.py", "check", *arguments, **variables)[1]


def found(output: str) -> list[str]:
    """The ids of our checks in an output."""
    return [name for name in IDS if f"({name})" in output]


def test_triggers(board: Project) -> None:
    """Missing triggers are told of when a database is checked, with the command to run, until it has run."""
    output = check(board, "--database", "default")
    assert found(output) == ["fastapi_django_orm.W001"]
    assert "The triggers of bbs_topic are missing" in output
    assert "HINT: Run `manage.py coherence install bbs.Topic --database default`." in output
    direct = "postgresql://127.0.0.1:9"
    assert found(check(board, "--database", "default", DJANGO_ORM_COHERENCE=direct)) == [
        "fastapi_django_orm.W001"
    ]
    manage(board, "coherence", "install", "bbs.Topic", "--database", "default")
    assert NOTHING in check(board, "--database", "default")


def test_outdated_triggers(board: Project, postgresql: PostgreSQL) -> None:
    """Triggers of another version are told of, too."""
    manage(board, "coherence", "install")
    with psycopg.connect(postgresql.url(DATABASE), autocommit=True) as connection:
        connection.execute("DROP TRIGGER fastapi_django_orm_update ON bbs_topic")
    assert "The triggers of bbs_topic are outdated" in check(board, "--database", "default")


def test_triggers_that_nobody_wants(board: Project) -> None:
    """With other transports alone, no triggers are asked for."""
    assert NOTHING in check(board, "--database", "default", DJANGO_ORM_COHERENCE="redis://127.0.0.1:9")
    assert NOTHING in check(board, "--database", "default", DJANGO_ORM_COHERENCE="off")


def test_quiet_without_a_database(board: Project) -> None:
    """An ordinary check, as before every command, looks at no database and imports no application."""
    board.write("main.py", "raise RuntimeError('imported')\n")
    assert NOTHING in check(board)


def test_before_the_first_migration(board: Project, postgresql: PostgreSQL) -> None:
    """`migrate`, which checks the database first, is not told of tables that are not there yet."""
    with psycopg.connect(postgresql.url(DATABASE), autocommit=True) as connection:
        connection.execute("DROP TABLE bbs_topic")
    assert found(manage(board, "migrate")) == []


def test_a_broken_application(board: Project) -> None:
    """An application that cannot be imported does not stop the checks."""
    board.write("main.py", "raise RuntimeError('broken')\n")
    assert NOTHING in check(board, "--database", "default")


def test_unreachable(on_sqlite: Project) -> None:
    """A broker that does not answer is named, without its password."""
    url = "redis://:secret@127.0.0.1:9"
    output = check(on_sqlite, "--deploy", DJANGO_ORM_COHERENCE=url)
    assert found(output) == ["fastapi_django_orm.W002"]
    assert "secret" not in output


def test_wrong_settings(on_sqlite: Project) -> None:
    """Settings that cannot be read are an error, with the variable's name."""
    output = check(on_sqlite, "--deploy", DJANGO_ORM_COHERENCE="radish://host")
    assert found(output) == ["fastapi_django_orm.E001"]
    assert "DJANGO_ORM_COHERENCE" in output


def test_unknown_settings(on_sqlite: Project) -> None:
    """A variable that does not exist is told of once, however often the settings are read."""
    output = check(on_sqlite, "--deploy", DJANGO_ORM_REFRSH_TOKEN="s3cret")
    assert output.count("unknown_setting") == 1


def test_sqlite_is_heard(on_sqlite: Project) -> None:
    """SQLite needs nothing."""
    assert found(check(on_sqlite, "--deploy")) == []


def test_no_transport(on_sqlite: Project) -> None:
    """A repository that nothing tells of other processes' writes is named, with what to set."""
    output = check(on_sqlite, "--deploy", DJANGO_ORM_COHERENCE="process")
    assert found(output) == ["fastapi_django_orm.W003"]
    assert "main.Topics does not hear of writes by other processes" in output
    assert "redis://host" in output
    assert found(check(on_sqlite, "--deploy", DJANGO_ORM_COHERENCE="off")) == []


def test_rows_that_are_refreshed_by_their_age(on_sqlite: Project) -> None:
    """A repository with a `max_age` needs no transport."""
    main = (on_sqlite.directory / "main.py").read_text()
    assert 'model = "bbs.Topic"\n' in main
    with_age = main.replace(
        'model = "bbs.Topic"\n', 'model = "bbs.Topic"\n    max_age = timedelta(minutes=1)\n'
    )
    on_sqlite.write("main.py", f"from datetime import timedelta\n{with_age}")
    assert found(check(on_sqlite, "--deploy", DJANGO_ORM_COHERENCE="process")) == []


def test_a_transport_that_no_database_has(on_sqlite: Project) -> None:
    """What would end the application's start is an error."""
    output = check(on_sqlite, "--deploy", DJANGO_ORM_COHERENCE="postgresql")
    assert found(output) == ["fastapi_django_orm.E001", "fastapi_django_orm.W003"]
    assert "DATABASES has no such database: default is SQLite" in output


def test_mariadb_has_no_transport(on_sqlite: Project, mariadb: MariaDB) -> None:
    """MariaDB tells nobody of writes by itself."""
    on_sqlite.append("config/settings.py", "import pymysql\npymysql.install_as_MySQLdb()\n")
    on_sqlite.use_server(mariadb.create_database(DATABASE))
    try:
        output = check(on_sqlite, "--deploy")
        assert found(output) == ["fastapi_django_orm.W003"]
        assert "'default' (M" in output
    finally:
        mariadb.drop_database(DATABASE)


CASCADE = """

class Note(models.Model):
    topic = models.ForeignKey(Topic, models.DB_CASCADE)
"""

NOTES = """

class Notes(CachedRepository):
    model = "bbs.Note"
"""


@pytest.mark.skipif(django.VERSION < (6, 1), reason="DB_CASCADE is new in Django 6.1")
def test_cascades_of_the_database(on_sqlite: Project) -> None:
    """Relations that the database follows by itself are told of where only signals tell of writes."""
    on_sqlite.append("bbs/models.py", CASCADE)
    on_sqlite.append("main.py", NOTES)
    output = check(on_sqlite, "--deploy", DJANGO_ORM_COHERENCE="redis://127.0.0.1:9")
    assert "fastapi_django_orm.W004" in found(output)
    assert "bbs.Note.topic" in output
    assert "fastapi_django_orm.W004" not in found(check(on_sqlite, "--deploy"))


TAGS = """

class Tag(models.Model):
    topics = models.ManyToManyField(Topic)
"""

TAGGED = """

from pydantic import BaseModel

class TagOut(BaseModel):
    id: int
    number: int = 0

class Tags(CachedRepository):
    model = "bbs.Tag"
    schema = TagOut
"""


def test_many_to_many(on_sqlite: Project) -> None:
    """A repository whose rows may show a relation that it does not follow is told how to follow it."""
    on_sqlite.append("bbs/models.py", TAGS)
    on_sqlite.append("main.py", TAGGED)
    output = check(on_sqlite, "--deploy")
    assert found(output) == ["fastapi_django_orm.I001"]
    assert "depends_on = ('bbs.Tag_topics',)" in output
    on_sqlite.append("main.py", 'Tags.depends_on = ("bbs.Tag_topics",)\n')
    assert found(check(on_sqlite, "--deploy")) == []
