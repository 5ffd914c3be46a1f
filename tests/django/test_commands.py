"""``manage.py coherence`` and ``manage.py refresh``, run as they are typed."""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import redis

from fastapi_django_orm.coherence.hints import CHANNEL, EVERYTHING, Hint, decode
from tests.support.announcing import Ear
from tests.support.databases import wait_until
from tests.support.projects import MAIN, MODELS, Project
from tests.support.servers import PostgreSQL, Valkey

DATABASE = "commands"

TABLE = "CREATE TABLE bbs_topic (id bigserial PRIMARY KEY, comment varchar(2000) NOT NULL)"
APP = 'INSTALLED_APPS += ["fastapi_django_orm.django"]\n'

# `depends_on` and joined tables count as well.
AUTHORS = """

class Authors(CachedRepository):
    model = "auth.Group"
    depends_on = ("auth.User",)
"""


@pytest.fixture
def board(project: Project, postgresql: PostgreSQL) -> Iterator[Project]:
    """The project with its tables on PostgreSQL, and the app installed."""
    project.use_server(postgresql.create_database(DATABASE))
    project.append("config/settings.py", APP)
    with psycopg.connect(postgresql.url(DATABASE), autocommit=True) as connection:
        connection.execute(TABLE)  # as a migration would make it, and sooner
    yield project
    postgresql.drop_database(DATABASE)


@pytest.fixture
def connection(board: Project, postgresql: PostgreSQL) -> Iterator[psycopg.Connection]:
    """A connection to the project's database."""
    with psycopg.connect(postgresql.url(DATABASE), autocommit=True) as connection:
        yield connection


def manage(project: Project, *arguments: str, **variables: str) -> str:
    """The output of a command that must succeed."""
    code, output = project.run("manage.py", *arguments, **variables)
    assert code == 0, output
    return output


def refused(project: Project, *arguments: str, **variables: str) -> str:
    """The output of a command that must fail, in one message and without a traceback."""
    code, output = project.run("manage.py", *arguments, **variables)
    assert code == 1, output
    assert "Traceback" not in output
    return output


def with_users(project: Project) -> None:
    """Let the project have Django's users, and their tables."""
    apps = '["django.contrib.auth", "django.contrib.contenttypes"]'
    project.append("config/settings.py", f"INSTALLED_APPS += {apps}\n")
    manage(project, "migrate", "auth")


def ours(connection: psycopg.Connection) -> list[str]:
    """Everything in the database that bears our name."""
    rows = connection.execute(
        "SELECT tgrelid::regclass || ' ' || tgname FROM pg_trigger WHERE starts_with(tgname, %(name)s)"
        " UNION ALL SELECT proname FROM pg_proc WHERE starts_with(proname, %(name)s)",
        {"name": CHANNEL},
    )
    return sorted(str(row[0]) for row in rows)


def heard_of_a_topic(connection: psycopg.Connection) -> list[Hint]:
    """What is announced when a topic is written."""
    ear = Ear(connection)
    connection.execute("INSERT INTO bbs_topic (comment) VALUES ('new')")
    return ear.hints()


def test_install_status_uninstall(board: Project, connection: psycopg.Connection) -> None:
    """The triggers of every repository are installed, shown and removed, and nothing is left of them."""
    assert "bbs.Topic (bbs_topic, database default): missing" in refused(board, "coherence", "status")
    assert "bbs.Topic (bbs_topic, database default): installed" in manage(board, "coherence", "install")
    assert "bbs.Topic (bbs_topic, database default): installed" in manage(board, "coherence", "status")
    assert [hint.label for hint in heard_of_a_topic(connection)] == ["bbs.Topic"]
    assert "bbs.Topic (bbs_topic, database default): removed" in manage(board, "coherence", "uninstall")
    assert ours(connection) == []
    assert "Database default: nothing is there" in manage(board, "coherence", "uninstall")


def test_what_no_repository_needs_any_more(board: Project, connection: psycopg.Connection) -> None:
    """`status` lists it, and `uninstall` removes it, with or without a repository and an application."""
    with_users(board)
    manage(board, "coherence", "install", "bbs.Topic", "auth.User", "auth.Group")
    connection.execute('ALTER TABLE auth_group RENAME TO "Gone away"')
    output = manage(board, "coherence", "status")
    assert "bbs.Topic (bbs_topic, database default): installed\n" in output
    assert "auth.User (auth_user, database default): installed, and no repository needs it" in output
    assert 'no model ("Gone away", database default): installed, and no repository needs it' in output
    assert "no repository" not in manage(board, "coherence", "status", "bbs.Topic")

    board.write("main.py", "from fastapi import FastAPI\n\napp = FastAPI(title='Empty')\n")
    output = manage(board, "coherence", "status")
    assert "bbs.Topic (bbs_topic, database default): installed, and no repository needs it" in output
    assert "auth.User" in output

    board.remove("main.py")
    output = manage(board, "coherence", "uninstall")
    assert "auth.User (auth_user, database default): removed" in output
    assert 'no model ("Gone away", database default): removed' in output
    assert ours(connection) == []


def test_what_is_left_of_a_table(board: Project, connection: psycopg.Connection) -> None:
    """The function of a table that was dropped is listed and removed, and what belongs to others stays."""
    manage(board, "coherence", "install")
    connection.execute("DROP TABLE bbs_topic")
    connection.execute(TABLE)
    (function,) = ours(connection)
    assert f"{function}() (database default): no trigger calls it" in refused(board, "coherence", "status")
    connection.execute(
        "CREATE FUNCTION fastapi_django_ormx_() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';"
        "CREATE TRIGGER fastapi_django_ormx_ AFTER INSERT ON bbs_topic"
        " EXECUTE FUNCTION fastapi_django_ormx_()"
    )
    manage(board, "coherence", "uninstall")
    assert ours(connection) == ["bbs_topic fastapi_django_ormx_", "fastapi_django_ormx_"]


@pytest.mark.parametrize("printed", [False, True], ids=["executed", "printed"])
def test_uninstall_from_partitions(board: Project, connection: psycopg.Connection, printed: bool) -> None:
    """The triggers that partitions have from their table are neither told of nor removed by themselves."""
    connection.execute(f"DROP TABLE bbs_topic; {TABLE} PARTITION BY RANGE (id)")
    connection.execute("CREATE TABLE part PARTITION OF bbs_topic FOR VALUES FROM (1) TO (100)")
    manage(board, "coherence", "install")
    assert [name for name in ours(connection) if name.startswith("part ")] != []
    assert "no repository" not in manage(board, "coherence", "status")
    if printed:
        connection.execute(manage(board, "coherence", "uninstall", "--sql").encode())
    else:
        manage(board, "coherence", "uninstall")
    assert ours(connection) == []


def test_uninstall_of_some(board: Project, connection: psycopg.Connection) -> None:
    """Models that are named lose their triggers, and no others do."""
    with_users(board)
    manage(board, "coherence", "install", "bbs.Topic", "auth.User")
    manage(board, "coherence", "uninstall", "bbs.Topic")
    assert {name.partition(" ")[0] for name in ours(connection) if " " in name} == {"auth_user"}


def test_uninstall_by_a_guest(board: Project, connection: psycopg.Connection, postgresql: PostgreSQL) -> None:
    """Who may not remove functions is told so, and they are named."""
    manage(board, "coherence", "install")
    connection.execute("DROP TABLE bbs_topic")
    (function,) = ours(connection)
    connection.execute("CREATE ROLE visitor LOGIN")
    try:
        board.use_server(postgresql.url(DATABASE).replace("postgres@", "visitor@"))
        output = refused(board, "coherence", "uninstall")
        assert f"{function}(): this user may not remove them" in output
        assert "--sql" in output
    finally:
        connection.execute("DROP ROLE visitor")


TWO_WAYS = """
DATABASES["elsewhere"] = {**DATABASES["default"], "PORT": 1}
DATABASES["other"] = {**DATABASES["default"], "HOST": "localhost"}
"""


def test_two_ways_to_a_database(board: Project) -> None:
    """Under another alias the same database has nothing of its own, and one that is away keeps nobody."""
    manage(board, "coherence", "install")
    board.append("config/settings.py", TWO_WAYS)
    output = manage(board, "coherence", "status")
    assert "no repository" not in output
    assert "Database elsewhere: not looked at. The database 'elsewhere'" in output


@pytest.mark.parametrize("action", ["install", "status", "uninstall"])
@pytest.mark.parametrize("models", [[], ["bbs.Topic"]], ids=["all", "named"])
def test_a_database_that_is_down(board: Project, action: str, models: list[str]) -> None:
    """It is said in one message where it was looked for, and what to do."""
    board.append("config/settings.py", "DATABASES['default']['PORT'] = 1\n")
    output = refused(board, "coherence", action, *models)
    assert output.startswith("CommandError: The database 'default' (PostgreSQL 'commands' at 127.0.0.1:1) ")
    assert "Start it, or correct DATABASES['default'] in Django's settings." in output
    assert "DJANGO_ORM_STARTUP" not in output


def test_a_wrong_user(board: Project) -> None:
    """As a database that is down."""
    board.append("config/settings.py", "DATABASES['default']['USER'] = 'nobody_known'\n")
    assert "nobody_known" in refused(board, "coherence", "status")


def test_printed_sql_needs_no_database(board: Project) -> None:
    """What is printed may be for a database that is out of reach."""
    board.append("config/settings.py", "DATABASES['default']['PORT'] = 1\n")
    for action in ("install", "uninstall"):
        assert manage(board, "coherence", action, "--sql").startswith("-- Database default\nBEGIN;")


def test_install_twice(board: Project, connection: psycopg.Connection) -> None:
    """Installing again changes nothing, and says so."""
    manage(board, "coherence", "install")
    before = connection.execute("SELECT oid, xmin FROM pg_trigger ORDER BY oid").fetchall()
    assert "up to date already" in manage(board, "coherence", "install")
    assert connection.execute("SELECT oid, xmin FROM pg_trigger ORDER BY oid").fetchall() == before


def test_outdated(board: Project, connection: psycopg.Connection) -> None:
    """Triggers that are not those of this version are told from missing ones, and replaced without a rest."""
    manage(board, "coherence", "install")
    before = ours(connection)
    (function,) = (name for name in before if " " not in name)
    by_hand = "RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'"
    connection.execute(f"CREATE OR REPLACE FUNCTION {function}() {by_hand}".encode())
    assert "outdated" in refused(board, "coherence", "status")
    assert "brought up to date" in manage(board, "coherence", "install")
    assert "installed" in manage(board, "coherence", "status")
    assert ours(connection) == before


MIGRATION = """\
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("bbs", "{before}")]
    operations = [{operations}]
"""

# What becomes of the key, the column and the statement that changes a key then.
MIGRATIONS = {
    "another type": (
        'AlterField("Topic", "id", models.CharField(max_length=9, primary_key=True))',
        "id = '7'",
    ),
    "another column": (
        'RemoveField("Topic", "id"), migrations.AddField('
        '"Topic", "number", models.BigAutoField(primary_key=True))',
        "number = 7",
    ),
    "another name": ('RenameField("Topic", "id", "number")', "number = 7"),
}


@pytest.mark.parametrize("how", MIGRATIONS)
def test_migrations_of_the_key(board: Project, connection: psycopg.Connection, how: str) -> None:
    """No trigger is in the way of a migration, and those that were installed go on announcing."""
    operation, changes = MIGRATIONS[how]
    migration = MIGRATION.format(before="0001_initial", operations=f"migrations.{operation}")
    board.write("bbs/migrations/0002_key.py", migration)
    manage(board, "migrate", "bbs", "0001", "--fake")
    manage(board, "coherence", "install")
    before = ours(connection)
    connection.execute("INSERT INTO bbs_topic (comment) VALUES ('planned with the key as it was')")
    manage(board, "migrate", "bbs")
    assert ours(connection) == before
    ear = Ear(connection)
    connection.execute(f"UPDATE bbs_topic SET {changes}")
    (hint,) = ear.hints()
    assert hint.keys is None or set(hint.keys) == {"1", "7"}


def test_a_migration_of_the_table(board: Project, connection: psycopg.Connection) -> None:
    """Triggers stay with a table that gets another name; for the model's new table they are outdated."""
    manage(board, "migrate", "bbs", "0001", "--fake")
    manage(board, "coherence", "install")
    before = ours(connection)
    operation = 'migrations.AlterModelTable("Topic", "other name")'
    board.write("bbs/migrations/0002_table.py", MIGRATION.format(before="0001_initial", operations=operation))
    board.write("bbs/models.py", MODELS + "\n    class Meta:\n        db_table = 'other name'\n")
    manage(board, "migrate", "bbs")
    ear = Ear(connection)
    connection.execute("""INSERT INTO "other name" (comment) VALUES ('new')""")
    assert ear.hints() == [Hint("bbs.Topic", (1,))]
    assert "outdated" in refused(board, "coherence", "status")
    manage(board, "coherence", "install")
    assert len(ours(connection)) == len(before)
    assert "installed" in manage(board, "coherence", "status")


def test_printed_sql(board: Project, connection: psycopg.Connection) -> None:
    """--sql executes nothing; what it prints does the same as the command, both ways."""
    installing = manage(board, "coherence", "install", "--sql")
    assert ours(connection) == []
    connection.execute(installing.encode())
    assert "installed" in manage(board, "coherence", "status")
    for models in ([], ["bbs.Topic"]):
        connection.execute(installing.encode())
        removing = manage(board, "coherence", "uninstall", "--sql", *models)
        assert ours(connection) != []
        connection.execute(removing.encode())
        assert ours(connection) == []


ROUTED = """
DATABASES["other"] = DATABASES["default"]
DATABASE_ROUTERS = ["config.routers.Users"]
"""
ROUTER = """
class Users:
    def db_for_write(self, model, **hints):
        return "other" if model._meta.app_label == "auth" else None
"""


def test_printed_sql_of_two_databases(board: Project) -> None:
    """What is printed for each database is a transaction of its own, which says where it belongs."""
    with_users(board)
    board.append("config/settings.py", ROUTED)
    board.write("config/routers.py", ROUTER)
    printed = manage(board, "coherence", "install", "--sql", "bbs.Topic", "auth.Group")
    here, there = (part for part in printed.split("-- Database ") if part)
    assert here.startswith("default\nBEGIN;")
    assert there.startswith("other\nBEGIN;")
    assert all(part.rstrip().endswith("COMMIT;") for part in (here, there))
    assert "bbs_topic" in here
    assert "auth_group" not in here
    assert "auth_group" in there
    assert "bbs_topic" not in there


def test_models_by_name(board: Project, connection: psycopg.Connection) -> None:
    """Models that are named are meant alone, and no application is looked for."""
    board.remove("main.py")
    with_users(board)
    output = manage(board, "coherence", "install", "bbs.Topic", "auth.User_groups")
    assert "auth.User_groups (auth_user_groups, database default): installed" in output
    assert {name.partition(" ")[0] for name in ours(connection) if " " in name} == {
        "bbs_topic",
        "auth_user_groups",
    }


def test_djangos_own_options_stand_anywhere(board: Project) -> None:
    """`--settings` is understood after the action too, and is not taken for a model."""
    settings = ["--settings", "config.settings", "--pythonpath", "."]
    assert "bbs.Topic" in manage(board, "coherence", "install", "bbs.Topic", *settings)
    assert "bbs.Topic" in manage(board, "coherence", *settings, "status", "bbs.Topic")


def test_all_that_repositories_read(board: Project) -> None:
    """Without names the models of every repository count, and those that they depend on."""
    with_users(board)
    board.append("main.py", AUTHORS)
    output = manage(board, "coherence", "install")
    assert {line.partition(" ")[0] for line in output.splitlines()} == {
        "bbs.Topic",
        "auth.User",
        "auth.Group",
    }


PLACES = {
    "named": ("somewhere/board.py", ["--app", "somewhere.board:app"], ""),
    "app.py": ("app.py", [], ""),
    "a package": ("app/api.py", [], ""),
    "pyproject.toml": ("somewhere.py", [], '[tool.fastapi]\nentrypoint = "somewhere:app"\n'),
}


@pytest.mark.parametrize("where", PLACES)
def test_where_the_application_is(board: Project, where: str) -> None:
    """The application is found where FastAPI's own command line finds it, or where --app says."""
    file, arguments, pyproject = PLACES[where]
    board.remove("main.py")
    board.write(file, MAIN)
    board.write("pyproject.toml", pyproject)
    assert "bbs.Topic" in manage(board, "coherence", "install", *arguments)


MISTAKES: list[tuple[list[str], str]] = [
    (["install", "bbs.Topik"], "There is no model 'bbs.Topik' in INSTALLED_APPS. Did you mean 'bbs.Topic'?"),
    (["install", "topic"], "There is no model 'topic' in INSTALLED_APPS."),
    (["install", "--app", "main"], "'main' does not say where the application is. Write module:app."),
    (["install", "--app", "mein:app"], "There is no module 'mein' in"),
    (["install", "--app", "main:api"], "main.api is not a FastAPI application"),
    (["status", "--database", "other"], "DATABASES has no 'other', only default"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=str)
def test_mistakes(board: Project, arguments: list[str], message: str) -> None:
    """A mistake is answered in a sentence that says what to write."""
    assert message in refused(board, "coherence", *arguments)


def test_no_application(board: Project) -> None:
    """Without an application the places are listed where it was looked for."""
    board.remove("main.py")
    output = refused(board, "coherence", "install")
    assert "none of main.py, app.py" in output
    assert "Name it: --app main:app." in output


def test_no_repository(board: Project) -> None:
    """An application without repositories needs the models named."""
    board.write("main.py", "from fastapi import FastAPI\n\napp = FastAPI(title='Empty')\n")
    assert "The application 'Empty' has no repository. Name the models" in refused(
        board, "coherence", "install"
    )


def test_no_table(board: Project, connection: psycopg.Connection) -> None:
    """A table that is missing is a matter for migrate."""
    connection.execute("DROP TABLE bbs_topic")
    assert "Create it with `python manage.py migrate`." in refused(board, "coherence", "install")


def test_a_view_of_a_table_without_a_model(board: Project, connection: psycopg.Connection) -> None:
    """Nothing announces what is behind it, and the table is named, unless a max_age refreshes the rows."""
    connection.execute("ALTER TABLE bbs_topic RENAME TO behind")
    connection.execute("CREATE VIEW bbs_topic AS SELECT * FROM behind")
    assert "topics: It reads behind, the table of no installed model" in refused(board, "coherence", "status")
    aged = MAIN.replace('"bbs.Topic"', '"bbs.Topic"\n    max_age = timedelta(hours=1)')
    board.write("main.py", f"from datetime import timedelta\n{aged}")
    assert "no model" not in manage(board, "coherence", "status")


def test_a_view(board: Project, connection: psycopg.Connection) -> None:
    """It is left out, and the tables that it reads get the triggers, in all of the commands."""
    with_users(board)
    connection.execute("DROP TABLE bbs_topic")
    connection.execute("CREATE VIEW bbs_topic AS SELECT id, name AS comment FROM auth_group")
    for action in ("install", "status"):
        output = manage(board, "coherence", action)
        assert "bbs.Topic (bbs_topic, database default): left out" in output
        assert "bbs.Topic: no ordinary table but a view" in output
        assert "auth.Group (auth_group, database default): installed" in output
    assert "auth.Group (auth_group, database default): removed" in manage(board, "coherence", "uninstall")
    connection.execute(manage(board, "coherence", "install", "--sql").encode())
    assert "auth.Group (auth_group, database default): installed" in manage(board, "coherence", "status")


OTHERS = """
from datetime import timedelta


class Groups(CachedRepository):
    model = "auth.Group"


class Permissions(CachedRepository):
    model = "auth.Permission"
    max_age = timedelta(hours=1)


class Types(CachedRepository):
    model = "contenttypes.ContentType"
"""


def test_tables_that_can_have_no_triggers(board: Project, connection: psycopg.Connection) -> None:
    """`install` goes on after them, and says in the end which they are and what keeps their rows current."""
    with_users(board)
    board.append("main.py", OTHERS)
    connection.execute(
        "DROP TABLE bbs_topic CASCADE; DROP TABLE auth_permission CASCADE;"
        " ALTER TABLE django_content_type RENAME TO behind;"
        " CREATE MATERIALIZED VIEW django_content_type AS SELECT * FROM behind"
    )
    for action in ("install", "status"):
        output = refused(board, "coherence", action)
        assert "auth.Group (auth_group, database default): installed" in output
        assert 'contenttypes.ContentType: "django_content_type" (contenttypes.ContentType) is a mat' in output
        assert "auth.Permission: its repositories' max_age refreshes its rows." in output
        _, _, error = output.partition("CommandError")
        assert (
            "bbs.Topic: The database 'default' has no table \"bbs_topic\" for bbs.Topic. Create it" in error
        )
        assert "auth" not in error
    connection.execute(TABLE)
    manage(board, "coherence", "install")
    manage(board, "coherence", "status")


def test_an_unmanaged_model_without_a_table(board: Project, connection: psycopg.Connection) -> None:
    """Nobody is sent to `migrate`, which will never make that table."""
    connection.execute("DROP TABLE bbs_topic")
    board.write("bbs/models.py", MODELS + "\n    class Meta:\n        managed = False\n")
    output = refused(board, "coherence", "install")
    assert "so `migrate` does not create it" in output
    assert "python manage.py migrate" not in output


def test_a_foreign_table(board: Project, connection: psycopg.Connection) -> None:
    """Rows in another database announce nothing here."""
    connection.execute(
        "DROP TABLE bbs_topic; CREATE EXTENSION file_fdw; CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;"
        " CREATE FOREIGN TABLE bbs_topic (id bigint, comment text) SERVER files"
        " OPTIONS (filename '/dev/null')"
    )
    output = refused(board, "coherence", "install")
    assert '"bbs_topic" (bbs.Topic) is a foreign table: its rows change in another database' in output


def test_not_postgresql(project: Project) -> None:
    """On another database the command says what to do there."""
    project.append("config/settings.py", APP)
    output = refused(project, "coherence", "install")
    assert "The database 'default' is SQLite" in output
    assert "DJANGO_ORM_COHERENCE" in output


def test_not_allowed(board: Project, connection: psycopg.Connection, postgresql: PostgreSQL) -> None:
    """Who may not create triggers is told of --sql."""
    connection.execute("CREATE ROLE guest LOGIN")
    try:
        board.use_server(postgresql.url(DATABASE).replace("postgres@", "guest@"))
        output = refused(board, "coherence", "install")
        assert "only the table's owner may" in output
        assert "--sql" in output
    finally:
        connection.execute("DROP ROLE guest")


def test_a_locked_table(board: Project, connection: psycopg.Connection) -> None:
    """A table that a transaction keeps is given up soon, since its writers would queue behind the command."""
    with connection.transaction():
        connection.execute("LOCK TABLE bbs_topic")
        assert "Try again when it has ended." in refused(board, "coherence", "install")


@pytest.fixture
def ear(connection: psycopg.Connection) -> Ear:
    """What is announced in the project's database."""
    return Ear(connection)


def test_refresh(board: Project, ear: Ear) -> None:
    """`manage.py refresh` has everything loaded again, or what is named, and says through what."""
    assert "postgresql:default: workers that listen load everything again" in manage(board, "refresh")
    assert ear.hints() == [EVERYTHING]
    assert "load bbs.Topic again" in manage(board, "refresh", "topics")
    assert ear.hints() == [Hint("bbs.Topic")]
    manage(board, "refresh", "bbs.Topic")
    assert ear.hints() == [Hint("bbs.Topic")]


def test_refresh_of_an_unknown_repository(board: Project) -> None:
    """A name that no repository has is answered with the nearest."""
    assert "There is no repository 'topic'. Did you mean 'topics'?" in refused(board, "refresh", "topic")


def test_refresh_through_a_broker(board: Project, ear: Ear, valkey: Valkey) -> None:
    """Every transport is told."""
    with redis.Redis.from_url(valkey.url()) as client, client.pubsub() as pubsub:
        pubsub.subscribe(CHANNEL)
        assert pubsub.get_message(timeout=20)["type"] == "subscribe"
        output = manage(board, "refresh", "topics", DJANGO_ORM_COHERENCE=f"auto,{valkey.url()}")
        message: Any = pubsub.get_message(timeout=20)
        assert decode(message["data"]) == Hint("bbs.Topic")
    assert "redis: workers" in output
    assert ear.hints() == [Hint("bbs.Topic")]


def test_refresh_without_a_broker(board: Project, ear: Ear, valkey: Valkey) -> None:
    """A transport that is down makes the command fail, after the others were told."""
    valkey.kill()
    try:
        output = refused(board, "refresh", DJANGO_ORM_COHERENCE=f"{valkey.url()},auto")
    finally:
        valkey.start()
    assert "redis" in output
    assert ear.hints() == [EVERYTHING]


def test_refresh_without_a_transport(project: Project) -> None:
    """Where nothing can carry a hint, the command says what to set."""
    project.append("config/settings.py", APP)
    assert "There is no transport" in refused(project, "refresh", DJANGO_ORM_COHERENCE="process")


WRITE = "from bbs.models import Topic; Topic.objects.bulk_create([Topic(comment='from a command')])"


def test_a_worker_follows_a_command(board: Project, connection: psycopg.Connection) -> None:
    """A running worker serves what a management command writes in bulk, and psql changes, without a call."""
    manage(board, "coherence", "install")
    with board.uvicorn() as server:

        def served() -> list[str]:
            return [topic["comment"] for topic in server.get("/").json()["topics"]]

        manage(board, "shell", "-c", WRITE)
        wait_until(lambda: served() == ["from a command"], "the command's topic")
        connection.execute("UPDATE bbs_topic SET comment = 'from psql'")
        wait_until(lambda: served() == ["from psql"], "psql's change")
        connection.execute("TRUNCATE bbs_topic")
        wait_until(lambda: served() == [], "nothing")


def test_a_worker_is_refreshed(board: Project, connection: psycopg.Connection) -> None:
    """Without triggers, whose command it names, a worker loads again when `manage.py refresh` says so."""
    with board.uvicorn() as server:
        server.wait_for_output("triggers_missing +hint='python manage.py coherence install bbs.Topic'")
        connection.execute("INSERT INTO bbs_topic (comment) VALUES ('unannounced')")
        manage(board, "refresh", "topics")
        wait_until(lambda: len(server.get("/").json()["topics"]) == 1, "the topic")
