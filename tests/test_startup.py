"""Starting in bad weather: what a user reads, and what recovers by itself."""

import re
from collections.abc import Iterator

import pytest

from tests.support.databases import wait_until
from tests.support.projects import MAIN, MODELS, Project, explanation
from tests.support.servers import PostgreSQL

REFRESH_ANYWAY = """

@app.get("/anyway")
async def anyway(topics: TopicRepo):
    await topics.refresh()
"""


@pytest.fixture(scope="module")
def server() -> Iterator[PostgreSQL]:
    """A server that these tests may stop."""
    if reason := PostgreSQL.unavailable():
        pytest.skip(reason)
    with PostgreSQL() as server:
        if server.external is not None:
            pytest.skip("a server from the environment cannot be stopped")
        yield server


@pytest.fixture
def on_server(project: Project, server: PostgreSQL) -> Iterator[Project]:
    """A project whose database, with its table, is on the server; with a password in its settings."""
    server.start() if server.pid is None else None
    server.drop_database("board")
    server.create_database("board")
    project.use_server(f"postgres://postgres:s3cret@127.0.0.1:{server.port}/board")
    project.migrate()
    yield project
    server.start() if server.pid is None else None


# The database is down


def test_database_that_is_down_ends_the_start(on_server: Project, server: PostgreSQL) -> None:
    """The last lines say which database, where, and what to do; the exit code is uvicorn's for this."""
    server.stop()
    output = on_server.fails()
    said = explanation(output)
    assert said.startswith("fastapi_django_orm.errors.DatabaseUnreachable: ")
    assert "'default'" in said
    assert f"127.0.0.1:{server.port}" in said
    assert "Connection refused" in said
    assert "DJANGO_ORM_STARTUP=retry" in said
    assert output.count("Traceback") == 1
    assert "s3cret" not in output


def test_application_starts_without_a_database_and_recovers(on_server: Project, server: PostgreSQL) -> None:
    """With retry it answers 503 on health and on cached reads until the database is there."""
    server.stop()
    with on_server.uvicorn(DJANGO_ORM_STARTUP="retry", DJANGO_ORM_COHERENCE_HEARTBEAT="1") as application:
        health = application.get("/health/")
        assert health.status_code == 503
        assert health.json()["status"] == "unavailable"
        assert health.json()["databases"] == {"default": False}
        cached = application.get("/")
        assert cached.status_code == 503
        assert "Retry-After" in cached.headers
        assert "topics" in cached.json()["detail"]

        server.start()
        application.wait_for_output("repository_loaded")
        assert application.get("/").json() == {"topics": []}
        # The transport connects in its own time, and finds that nobody has installed triggers.
        wait_until(lambda: application.get("/health/").json()["status"] == "degraded", "it answers")
        on_server.append("config/settings.py", 'INSTALLED_APPS += ["fastapi_django_orm.django"]\n')
        assert on_server.run("manage.py", "coherence", "install")[0] == 0
        wait_until(lambda: application.get("/health/").json()["status"] == "ok", "all is well again")
        assert "started_without_data" in application.output()


def test_logs_that_nobody_has_configured_hold_no_password(project: Project, server: PostgreSQL) -> None:
    """A load that fails because the database does not answer does not show how to log in there."""
    project.use_server(f"postgres://postgres:s3cret@127.0.0.1:{server.port}/nowhere")  # there is none
    project.append("main.py", REFRESH_ANYWAY)
    with project.uvicorn(DJANGO_ORM_STARTUP="retry") as application:
        assert application.get("/anyway").status_code == 503
        application.wait_for_output("refresh_failed")
        assert application.stop() == 0
    assert "s3cret" not in application.output()


@pytest.mark.parametrize("json", [True, False])
def test_configured_logs_hold_no_password(project: Project, server: PostgreSQL, json: bool) -> None:
    """Neither JSON nor the console's tracebacks carry the variables of the driver's frames."""
    project.use_server(f"postgres://postgres:s3cret@127.0.0.1:{server.port}/nowhere")  # there is none
    project.append("main.py", REFRESH_ANYWAY)
    project.append("main.py", f"\nfrom fastapi_django_orm import logs\n\nlogs.configure(json={json})\n")
    with project.uvicorn(DJANGO_ORM_STARTUP="retry") as application:
        assert application.get("/anyway").status_code == 503
        application.wait_for_output("refresh_failed")
        assert application.stop() == 0
    assert "s3cret" not in application.output()


# The table


def test_missing_table_says_migrate(project: Project) -> None:
    """The last line names the table, the model and the command, and the command helps."""
    project.drop_table()
    said = explanation(project.fails())
    assert said.startswith("fastapi_django_orm.errors.TableMissing: ")
    assert "'bbs_topic'" in said
    assert "bbs.Topic" in said
    assert "`python manage.py migrate`" in said
    project.migrate()
    with project.uvicorn() as application:
        assert application.get("/").json() == {"topics": []}


def test_missing_table_on_a_server_says_migrate(on_server: Project) -> None:
    """The same on PostgreSQL, whose error is another."""
    exit_code, output = on_server.run("manage.py", "migrate", "bbs", "zero")
    assert exit_code == 0, output
    output = on_server.fails()
    assert "`python manage.py migrate`" in explanation(output)
    assert "s3cret" not in output


COLUMN = '    extra = models.CharField(max_length=5, default="")\n'

LIVE = """
    from fastapi_django_orm.errors import ColumnMissing, RefreshFailed, TableMissing


    @app.get("/live")
    async def live(topics: TopicRepo):
        try:
            await topics.fetch(1)
        except (ColumnMissing, TableMissing) as error:
            return str(error)


    @app.get("/some")
    async def some(topics: TopicRepo):
        try:
            await topics.refresh(1)
        except RefreshFailed as error:
            return str(error.__cause__)
"""

RENAME = """
    import django
    from django.db import connection

    django.setup()
    connection.cursor().execute("ALTER TABLE bbs_topic RENAME comment TO comments")
    connection.close()
"""


def test_missing_column_says_makemigrations_and_migrate(project: Project) -> None:
    """The last line names the column, the table and the commands, and the commands help."""
    project.write("bbs/models.py", MODELS + COLUMN)
    output = project.fails()
    said = explanation(output)
    assert said.startswith("fastapi_django_orm.errors.ColumnMissing: ")
    for part in ("'extra'", "'bbs_topic'", "bbs.Topic", "manage.py makemigrations`", "manage.py migrate`"):
        assert part in said
    project.drop_table()
    for command in ("makemigrations", "migrate"):
        exit_code, output = project.run("manage.py", command)
        assert exit_code == 0, output
    with project.uvicorn() as application:
        assert application.get("/").json() == {"topics": []}


def test_missing_column_on_a_server_says_the_same(on_server: Project) -> None:
    """PostgreSQL's error is explained in loads, in loads of some keys and in live reads."""
    on_server.append("main.py", LIVE)
    with on_server.uvicorn(DJANGO_ORM_COHERENCE="off") as application:
        on_server.write("rename.py", RENAME)
        on_server.python("import rename", DJANGO_SETTINGS_MODULE="config.settings")
        for path in ("/some", "/live"):
            said = application.get(path).json()
            assert "has no column 'comment'" in said
            assert RESTART.search(said)
            assert "manage.py" not in said
    assert "has no column" in explanation(on_server.fails())


RESTART = re.compile(r"restart (it|the worker) with the new code")
SECOND = """
    from django.db import migrations, models


    class Migration(migrations.Migration):
        dependencies = [("bbs", "0001_initial")]
        operations = [migrations.{operation}]
"""
ADDING = SECOND.format(operation='AddField("Topic", "extra", models.CharField(max_length=5, default=""))')


def test_missing_column_of_a_migration_says_migrate(project: Project) -> None:
    """Where a migration adds the column, no other has to be made."""
    project.drop_table()
    project.migrate()
    project.write("bbs/models.py", MODELS + COLUMN)
    project.write("bbs/migrations/0002_extra.py", ADDING)
    said = explanation(project.fails())
    assert "has no column 'extra'" in said
    assert "`python manage.py migrate`" in said
    assert "makemigrations" not in said
    project.migrate()
    with project.uvicorn() as application:
        assert application.get("/").json() == {"topics": []}


@pytest.mark.parametrize("there", [True, False], ids=["an empty package", "no package"])
def test_missing_table_of_an_app_without_migrations_names_the_app(project: Project, there: bool) -> None:
    """`makemigrations` passes over an app that has no migrations, unless it is named."""
    project.drop_table()
    (project.directory / "bbs/migrations/0001_initial.py").unlink()
    if not there:
        (project.directory / "bbs/migrations/__init__.py").unlink()
    said = explanation(project.fails())
    assert "`python manage.py makemigrations bbs` and `python manage.py migrate`" in said
    for command in (["makemigrations", "bbs"], ["migrate"]):
        exit_code, output = project.run("manage.py", *command)
        assert exit_code == 0, output
    with project.uvicorn() as application:
        assert application.get("/").json() == {"topics": []}


def test_missing_table_of_a_model_without_a_migration_says_makemigrations(project: Project) -> None:
    """The app has migrations, all are applied, and none of them makes this table."""
    project.drop_table()
    project.migrate()
    project.append("bbs/models.py", "\n\nclass Reply(models.Model):\n    text = models.TextField()\n")
    project.append("main.py", '\n\nclass Replies(CachedRepository):\n    model = "bbs.Reply"\n')
    said = explanation(project.fails())
    assert "TableMissing" in said
    assert "'bbs_reply'" in said
    assert "`python manage.py makemigrations` and `python manage.py migrate`" in said


def test_a_joined_table_that_is_missing_is_named(project: Project) -> None:
    """The error is about the table that the query joins, and not about the repository's own."""
    project.drop_table()
    project.migrate()
    project.append(
        "bbs/models.py",
        "\n\nclass Page(models.Model):\n    topic = models.ForeignKey(Topic, models.CASCADE)\n",
    )
    project.append(
        "main.py",
        """

        class Pages(CachedRepository):
            model = "bbs.Topic"

            def queryset(self):
                return super().queryset().filter(page__isnull=False)
        """,
    )
    assert "no table 'bbs_page' for bbs.Page" in explanation(project.fails())


def test_a_table_that_no_migration_makes_is_told_so(project: Project) -> None:
    """With `managed = False` neither command would help."""
    project.drop_table()
    project.write("bbs/models.py", MODELS + "\n    class Meta:\n        managed = False\n")
    said = explanation(project.fails())
    assert "managed = False" in said
    assert "manage.py" not in said


@pytest.mark.parametrize("gone", ["column", "table"])
def test_an_old_worker_is_not_told_to_migrate(on_server: Project, gone: str) -> None:
    """While a new release is rolled out, `migrate` helps it neither while it runs nor when it starts."""
    on_server.append("main.py", LIVE)
    rename = 'RenameField("Topic", "comment", "text")' if gone == "column" else 'DeleteModel("Topic")'
    with on_server.uvicorn(DJANGO_ORM_COHERENCE="off") as application:
        on_server.write("bbs/migrations/0002_newer.py", SECOND.format(operation=rename))
        on_server.migrate()
        (on_server.directory / "bbs/migrations/0002_newer.py").unlink()  # the old release never had it
        for path in ("/some", "/live"):
            assert RESTART.search(application.get(path).json())
    said = explanation(on_server.fails())
    assert "bbs.0002_newer" in said
    assert RESTART.search(said)
    assert "manage.py" not in said


def test_table_that_is_made_later_is_found(project: Project) -> None:
    """With retry an application may be started before its migrations have run."""
    project.drop_table()
    with project.uvicorn(DJANGO_ORM_STARTUP="retry") as application:
        assert application.get("/").status_code == 503
        health = application.get("/health/")
        assert health.status_code == 503
        assert health.json()["databases"] == {"default": True}
        assert health.json()["repositories"]["topics"]["error"] == "TableMissing"
        project.create_table()
        application.wait_for_output("repository_loaded")
        assert application.get("/health/").status_code == 200


def test_empty_table_is_an_empty_list(project: Project) -> None:
    """No rows are no error."""
    project.empty_table()
    with project.uvicorn() as application:
        assert application.get("/").json() == {"topics": []}
        assert application.get("/health/").json()["repositories"]["topics"]["rows"] == 0


# What is written wrong


@pytest.mark.parametrize("startup", ["fail", "retry"])
def test_unknown_model_is_told_with_the_nearest(project: Project, startup: str) -> None:
    """A label of no model ends the start, also where a database may come later."""
    project.write("main.py", MAIN.replace("bbs.Topic", "bbs.Topik"))
    said = explanation(project.fails(DJANGO_ORM_STARTUP=startup))
    assert said.startswith("fastapi_django_orm.errors.UnknownModel: Topics.model: ")
    assert "Did you mean 'bbs.Topic'?" in said


@pytest.mark.parametrize("line", ['    modle = "bbs.Topic"\n', ""])
def test_dependency_without_a_model_ends_the_start(project: Project, line: str) -> None:
    """A class whose `current` is a dependency must name a model, however it was forgotten."""
    project.write("main.py", MAIN.replace('    model = "bbs.Topic"\n', line))
    said = explanation(project.fails())
    assert said.startswith("fastapi_django_orm.errors.InvalidRepository: Topics")
    assert "`model`" in said or "'model'" in said


def test_base_classes_need_no_model(project: Project) -> None:
    """What repositories inherit from names no model, nor does a dependency that the application replaces."""
    project.append(
        "main.py",
        """

        class Base(CachedRepository):
            ordering = ("-pk",)


        class Newest(Base):
            model = "bbs.Topic"


        class Interface(CachedRepository):
            pass


        import inspect
        inspect.getmembers(Base)  # as documentation tools do


        app.dependency_overrides[Interface.current] = Newest.current


        @app.get("/newest")
        async def newest(topics: Annotated[Interface, Depends(Interface.current)]):
            return topics.response()
        """,
    )
    with project.uvicorn() as application:
        assert application.get("/newest").json() == {"newest": [{"id": 1, "comment": "first"}]}


def test_unknown_field_is_told_with_the_nearest(project: Project) -> None:
    """A field of no column has an exception of its own."""
    project.write("main.py", MAIN.replace('("-pk",)', '("-coment",)'))
    said = explanation(project.fails())
    assert said.startswith("fastapi_django_orm.errors.UnknownField: Topics.ordering: ")
    assert "Did you mean 'comment'?" in said


@pytest.mark.parametrize(
    ("variables", "error"),
    [
        ({"DJANGO_ORM_STARTUP": "never"}, "InvalidSettings"),
        ({"DJANGO_SETTINGS_MODULE": "config.setings"}, "SettingsModuleMissing"),
        ({"DJANGO_SETTINGS_MODULE": "config.broken"}, "SettingsModuleBroken"),
        ({"DJANGO_SETTINGS_MODULE": "config.without"}, "SetupFailed"),
    ],
)
def test_error_is_the_last_thing_to_read(project: Project, variables: dict[str, str], error: str) -> None:
    """Below uvicorn's traceback, which has only the user's own error before it, stands what to do."""
    project.write("config/broken.py", "1 / 0\n")
    project.write("config/without.py", "INSTALLED_APPS = ['nothing']\n")
    output = project.fails(**variables)
    assert explanation(output).startswith(f"fastapi_django_orm.errors.{error}: ")
    assert "During handling" not in output
    assert output.count("Traceback") <= 2


def test_start_goes_from_settings_to_data(project: Project) -> None:
    """Of several faults the first in the order settings, Django, database, repositories is told."""
    project.drop_table()
    project.append("config/settings.py", "INSTALLED_APPS.append('nothing')\n")
    project.append(
        "config/settings.py",
        "DATABASES['default'] = {'ENGINE': 'django.db.backends.sqlite3', 'NAME': '/nowhere/db.sqlite3'}\n",
    )
    assert "InvalidSettings: " in explanation(project.fails(DJANGO_ORM_THREADS="0"))
    assert "SetupFailed: " in explanation(project.fails())
    project.append("config/settings.py", "INSTALLED_APPS.remove('nothing')\n")
    assert "DatabaseUnreachable: " in explanation(project.fails())
    project.append("config/settings.py", "DATABASES['default']['NAME'] = BASE / 'db.sqlite3'\n")
    assert "TableMissing: " in explanation(project.fails())


@pytest.mark.parametrize("name", ["/nowhere/db.sqlite3", "never_made.sqlite3"])
def test_what_was_never_there_is_not_lost(project: Project, name: str) -> None:
    """A start that fails for want of a database or its tables does not say that a connection was lost."""
    project.append(
        "config/settings.py",
        f"DATABASES['default'] = {{'ENGINE': 'django.db.backends.sqlite3', 'NAME': {name!r}}}\n",
    )
    assert "coherence_lost" not in project.fails()


# A large table


def test_large_table_does_not_block_the_loop(project: Project) -> None:
    """While 100,000 rows are loaded the event loop goes on, and then all of them are served."""
    project.fill_table(100_000)
    code = """
        import asyncio
        from main import Topics, app

        async def main():
            async with app.router.lifespan_context(app):
                topics = await Topics.current()
                print("rows:", len(topics), len(topics.response().body) > 100_000)
                refresh = asyncio.create_task(topics.refresh())
                turns = 0
                while not refresh.done():
                    turns += 1
                    await asyncio.sleep(0)
                print("version:", (await refresh).version, "turned:", turns > 100)

        asyncio.run(main())
    """
    output = project.python(code)
    assert "rows: 100000 True" in output
    assert "version: 2 turned: True" in output
