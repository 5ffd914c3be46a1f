"""Setting Django up: once, from what names its settings, and with errors that say what to do."""

import pytest

from tests.support.projects import MAIN, MANAGE, SETTINGS, Project, explanation

EXITING = """
    from django.apps import AppConfig


    class BoardConfig(AppConfig):
        name = "bbs"

        def ready(self):
            raise SystemExit(1)
"""

NAMED = """
    from django.conf import settings
    from fastapi_django_orm import DjangoORM

    DjangoORM.setup({})
    print("settings:", settings.SETTINGS_MODULE)
"""

REFUSED = """
    import traceback
    from fastapi_django_orm import DjangoORM
    from fastapi_django_orm.errors import ConfigurationError

    for _ in range({times}):
        try:
            DjangoORM.setup({argument})
        except ConfigurationError as error:
            traceback.print_exc()
            print("refused:", type(error).__name__, error)
"""


def names(project: Project, argument: str = "", **variables: str) -> str:
    """The settings module that a set-up finds."""
    output = project.python(NAMED.format(argument), **variables)
    return output.rpartition("settings: ")[2].strip()


def refused(project: Project, argument: str = "", times: int = 1, **variables: str) -> str:
    """What a set-up that must fail writes."""
    output = project.python(REFUSED.format(argument=argument, times=times), **variables)
    assert "refused: " in output, output
    return output


def message(output: str) -> str:
    return output.rpartition("refused: ")[2].strip()


# Which settings


@pytest.fixture
def several(project: Project) -> Project:
    for name in ("one", "two", "three"):
        project.write(f"config/{name}.py", SETTINGS)
    return project


def test_settings_module_of_the_argument_wins(several: Project) -> None:
    """What is passed to setup() counts before any variable."""
    variables = {"DJANGO_ORM_SETTINGS_MODULE": "config.two", "DJANGO_SETTINGS_MODULE": "config.three"}
    assert names(several, '"config.one"', **variables) == "config.one"
    assert names(several, **variables) == "config.two"


def test_lifespan_takes_the_settings_module_of_its_settings(several: Project) -> None:
    """What ORMSettings names counts before DJANGO_SETTINGS_MODULE."""
    code = """
        import asyncio
        from django.conf import settings
        from fastapi import FastAPI
        from fastapi_django_orm import DjangoORM, ORMSettings

        async def main():
            async with DjangoORM(ORMSettings(settings_module="config.one")).lifespan(FastAPI()):
                print("settings:", settings.SETTINGS_MODULE)

        asyncio.run(main())
    """
    assert "settings: config.one\n" in several.python(code, DJANGO_SETTINGS_MODULE="config.three")


def test_variable_of_django_wins_over_manage_py(several: Project) -> None:
    """DJANGO_SETTINGS_MODULE counts as it does for Django; without it manage.py does."""
    assert names(several, DJANGO_SETTINGS_MODULE="config.three") == "config.three"
    assert names(several) == "config.settings"
    assert names(several, DJANGO_SETTINGS_MODULE="") == "config.settings"


def test_settings_module_from_dotenv(several: Project) -> None:
    """DJANGO_ORM_SETTINGS_MODULE may be in .env."""
    several.write(".env", "DJANGO_ORM_SETTINGS_MODULE=config.two\n")
    assert names(several) == "config.two"


@pytest.mark.parametrize(
    "line",
    [
        'os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.one")',
        "os.environ.setdefault('DJANGO_SETTINGS_MODULE', 'config.' 'one')",
        'os.environ["DJANGO_SETTINGS_MODULE"] = "config.one"',
        'environ["DJANGO_SETTINGS_MODULE"] = "config.one"',
        'os.environ.update(DJANGO_SETTINGS_MODULE="config.one")',
        'os.putenv("X", "y"); os.environ["DJANGO_SETTINGS_MODULE"] = "config.one"',
    ],
)
def test_manage_py_is_read_in_all_its_forms(several: Project, line: str) -> None:
    """However manage.py writes the name down, it is found."""
    several.write("manage.py", f"def main():\n    {line}\n    execute_from_command_line(sys.argv)\n")
    assert names(several) == "config.one"


def test_manage_py_is_never_run(project: Project) -> None:
    """Nothing that manage.py does happens."""
    project.write("manage.py", 'open("ran", "w").close()\nraise SystemExit("ran")\n' + MANAGE)
    assert names(project) == "config.settings"
    assert not (project.directory / "ran").exists()


@pytest.mark.parametrize(
    "text",
    [
        'os.environ.setdefault("DJANGO_SETTINGS_MODULE", f"config.{STAGE}")\n',
        'os.environ["DJANGO_SETTINGS_MODULE"] = sys.argv[1]\n',
        'os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings"\n',
        "\0",
        "",
    ],
    ids=["computed", "argument", "syntax error", "not text", "empty"],
)
def test_manage_py_that_names_no_settings_is_told_of(project: Project, text: str) -> None:
    """The message says that the file was looked into, rather than to look for it."""
    project.write("manage.py", text)
    said = message(refused(project))
    assert said.startswith("SettingsModuleMissing")
    assert str(project.directory / "manage.py") in said
    assert "DJANGO_SETTINGS_MODULE" in said


def test_manage_py_beside_the_application_counts(project: Project) -> None:
    """A server may be started in any folder when it is told where the application is."""
    project.append("main.py", 'from django.conf import settings\nprint("at import:", settings.configured)\n')
    project.drop_table()  # so that it ends
    folder, project.directory = project.directory, project.directory / "elsewhere"
    project.directory.mkdir()
    said = explanation(project.fails("--app-dir", str(folder)))
    assert "manage.py migrate" in said


def test_manage_py_beside_the_application_wins(project: Project) -> None:
    """Another project's manage.py in the folder where the server is started does not count."""
    project.append("main.py", 'print("at import")\n')
    project.drop_table()  # so that it ends
    folder, project.directory = project.directory, project.directory / "elsewhere"
    project.write("manage.py", MANAGE.replace("config.settings", "other.settings"))
    project.write("other/__init__.py", "")
    project.write("other/settings.py", SETTINGS)
    output = project.fails("--app-dir", str(folder))
    assert "settings_module=config.settings" in output
    assert "other.settings" not in output


# Wrong settings


def test_no_settings_module_is_known(project: Project) -> None:
    """Without manage.py and variables the message names the variable and the folder to start in."""
    project.remove("manage.py")
    output = refused(project)
    assert message(output).startswith("SettingsModuleMissing ")
    assert "DJANGO_SETTINGS_MODULE" in message(output)
    assert "manage.py" in message(output)
    assert "During handling" not in output


@pytest.mark.parametrize("name", ["confg.settings", "config.setings", "config.settings.local"])
def test_settings_module_that_is_not_there(project: Project, name: str) -> None:
    """A name of no module is named, with the folder that was looked from."""
    output = refused(project, DJANGO_SETTINGS_MODULE=name)
    assert message(output).startswith("SettingsModuleMissing ")
    assert repr(name) in message(output)
    assert str(project.directory) in message(output)
    assert "During handling" not in output


def test_missing_settings_module_is_told_with_what_names_it(project: Project) -> None:
    """What has to be corrected is named: the argument, the variable, .env or manage.py."""
    said = message(refused(project, DJANGO_SETTINGS_MODULE="nope.settings"))
    assert "Correct DJANGO_SETTINGS_MODULE, " in said
    said = message(refused(project, DJANGO_ORM_SETTINGS_MODULE="nope.settings"))
    assert "Correct DJANGO_ORM_SETTINGS_MODULE, " in said
    said = message(refused(project, '"nope.settings"'))
    assert "Correct the argument `settings_module`, " in said
    project.write("manage.py", MANAGE.replace("config.settings", "nope.settings"))
    assert f"Correct {project.directory / 'manage.py'}, " in message(refused(project))
    project.write(".env", "DJANGO_ORM_SETTINGS_MODULE=nope.settings\n")
    assert "Correct DJANGO_ORM_SETTINGS_MODULE in .env, " in message(refused(project))


def test_missing_settings_module_of_settings_in_code(project: Project) -> None:
    """An ORMSettings that names it is told as that."""
    code = """
        import asyncio
        from fastapi import FastAPI
        from fastapi_django_orm import DjangoORM, ORMSettings
        from fastapi_django_orm.errors import SettingsModuleMissing

        async def main():
            async with DjangoORM(ORMSettings(settings_module="nope.settings")).lifespan(FastAPI()):
                pass

        try:
            asyncio.run(main())
        except SettingsModuleMissing as error:
            print("refused:", error)
    """
    assert "Correct ORMSettings(settings_module=…), " in message(project.python(code))


def test_djangos_own_variable_in_dotenv_is_warned_of(several: Project) -> None:
    """Only DJANGO_ORM_ variables are read from .env: the log says once what to write instead."""
    several.write(".env", "DJANGO_SETTINGS_MODULE=config.two\n")
    output = several.python(NAMED.format("") + "    DjangoORM.setup()\n")
    assert "settings: config.settings\n" in output
    assert output.count("setting_ignored") == 1
    assert "DJANGO_ORM_SETTINGS_MODULE" in output
    output = several.python(NAMED.format(""), DJANGO_SETTINGS_MODULE="config.two")
    assert "setting_ignored" not in output
    output = several.python(NAMED.format(""), DJANGO_ORM_SETTINGS_MODULE="config.two")
    assert "setting_ignored" not in output


@pytest.mark.parametrize("name", [".settings", "config/settings.py", "config.settings.py", " "])
def test_settings_module_that_is_no_name(project: Project, name: str) -> None:
    """A path, or a relative name, is refused by name."""
    said = message(refused(project, DJANGO_SETTINGS_MODULE=name))
    assert said.startswith("SettingsModule")
    assert repr(name) in said


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('import os\nos.environ["SECRET"]\n', "KeyError: 'SECRET'"),
        ("import environs_of_somebody\n", "No module named 'environs_of_somebody'"),
        ("DEBUG = = True\n", "SyntaxError"),
        ("from bbs.models import Topic\n", "AppRegistryNotReady"),
        ("import sys\nsys.exit('set SECRET first')\n", "set SECRET first"),
        ("INSTALLED_APPS = 'bbs'\n", "INSTALLED_APPS setting must be a list"),
    ],
    ids=["raises", "imports", "syntax", "models", "exits", "type"],
)
def test_settings_that_fail_to_import(project: Project, text: str, reason: str) -> None:
    """The module's own error is in the message, and its line in the traceback."""
    project.append("config/settings.py", text)
    output = refused(project)
    assert message(output).startswith("SettingsModuleBroken ")
    assert "'config.settings'" in message(output)
    assert reason in message(output)
    assert "During handling" not in output


def test_corrected_settings_are_read(project: Project) -> None:
    """After a settings module that was refused another may be tried, in the same process."""
    code = """
        from fastapi_django_orm import DjangoORM
        from fastapi_django_orm.errors import SettingsModuleBroken, SettingsModuleMissing

        for wrong in ("config.nothing", "config.broken"):
            try:
                DjangoORM.setup(wrong)
            except (SettingsModuleMissing, SettingsModuleBroken):
                print("refused")
        DjangoORM.setup()
    """
    project.write("config/broken.py", "1 / 0\n")
    output = project.python(code)
    assert output.count("refused") == 2
    assert "settings_module=config.settings" in output


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("config/settings.py", "INSTALLED_APPS = ['bbs', 'bss']\n", "No module named 'bss'"),
        ("bbs/models.py", "1 / 0\n", "ZeroDivisionError"),
        ("bbs/models.py", "\n\nclass Page(models.Model):\n    class Meta:\n        app_label = 1\n", ""),
        ("config/settings.py", "LOGGING = {'version': 2}\n", "Unsupported version"),
        ("bbs/apps.py", EXITING, "SystemExit: 1"),
    ],
    ids=["app", "models", "model", "logging", "exits"],
)
def test_setup_that_fails_is_told_and_told_again(project: Project, file: str, text: str, reason: str) -> None:
    """Django can be set up once only: a second try says what the first said."""
    project.append(file, text)
    output = refused(project, times=2)
    _, first, second = output.split("refused: ")
    assert first.startswith("SetupFailed ")
    assert reason in first
    assert "config.settings" in first
    assert first.split("\nTraceback")[0].strip() == second.strip()
    assert "isn't reentrant" not in second


def test_setup_that_fails_names_a_command_that_shows_it(project: Project) -> None:
    """The command fails with the same error."""
    project.append("bbs/models.py", "1 / 0\n")
    said = message(refused(project))
    assert "`python -m django check --settings=config.settings` shows the same" in said
    exit_code, output = project.run("-m", "django", "check", "--settings=config.settings")
    assert exit_code == 1
    assert "ZeroDivisionError" in output


# Once


READY = """
    from django.apps import AppConfig


    class BoardConfig(AppConfig):
        name = "bbs"

        def ready(self):
            import warnings
            from bbs.models import Topic

            warnings.simplefilter("ignore")  # Django's advice against queries here
            print("ready:", Topic.objects.count())
"""


def test_setup_happens_once(project: Project) -> None:
    """Set up twice, from many threads and by the lifespan, Django is set up once."""
    project.write("bbs/apps.py", READY)
    code = """
        import asyncio
        from concurrent.futures import ThreadPoolExecutor
        from fastapi_django_orm import DjangoORM
        from main import app

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda _: DjangoORM.setup(), range(32)))
        DjangoORM.setup()

        async def main():
            DjangoORM.setup()
            async with app.router.lifespan_context(app):
                DjangoORM.setup()

        asyncio.run(main())
    """
    output = project.python(code)
    assert output.count("ready: 1\n") == 1
    assert output.count("django_set_up") == 1


def test_django_that_is_set_up_stays(project: Project) -> None:
    """Where manage.py, Celery or a test runner has set Django up, the plugin does not do it again."""
    project.write("bbs/apps.py", READY)
    code = """
        import asyncio, os
        import django
        from fastapi_django_orm import DjangoORM
        from main import app

        os.environ["DJANGO_SETTINGS_MODULE"] = "config.settings"
        django.setup()
        DjangoORM.setup()

        async def main():
            async with app.router.lifespan_context(app):
                print("running")

        asyncio.run(main())
    """
    output = project.python(code)
    assert output.count("ready: 1\n") == 1
    assert "django_set_up" not in output
    assert "running" in output


def test_settings_without_a_module_are_used(project: Project) -> None:
    """An application that calls settings.configure() needs no settings module."""
    project.remove("manage.py")
    code = """
        from django.conf import settings
        from fastapi_django_orm import DjangoORM

        settings.configure(INSTALLED_APPS=["bbs"])
        DjangoORM.setup()
        from bbs.models import Topic
        print(Topic._meta.label)
    """
    assert "bbs.Topic" in project.python(code)


def test_an_instance_sets_up_what_it_is_configured_for(several: Project) -> None:
    """`setup()` of an instance takes the settings module from its settings, as its lifespan does."""
    code = """
        from django.conf import settings
        from fastapi_django_orm import DjangoORM, ORMSettings

        DjangoORM(ORMSettings(settings_module="config.two")).setup()
        print("settings:", settings.SETTINGS_MODULE)
    """
    assert "settings: config.two" in several.python(code)


def test_other_settings_than_those_in_use_are_warned_of(several: Project) -> None:
    """Asked for another settings module when Django is set up, it keeps the one it has and says so."""
    code = """
        from django.conf import settings
        from fastapi_django_orm import DjangoORM

        DjangoORM.setup("config.one")
        DjangoORM.setup("config.one")
        DjangoORM.setup("config.two")
        print("settings:", settings.SETTINGS_MODULE)
    """
    output = several.python(code)
    assert "settings: config.one" in output
    assert output.count("settings_module_ignored") == 1
    assert "in_use=config.one" in output


def test_ready_may_query_under_a_running_loop(project: Project) -> None:
    """A server imports the application on its event loop, where Django refuses queries."""
    project.write("bbs/apps.py", READY)
    code = """
        import asyncio
        from fastapi_django_orm import DjangoORM

        async def main():
            DjangoORM.setup()
            from bbs.models import Topic
            print("count:", await Topic.objects.acount())

        asyncio.run(main())
    """
    output = project.python(code)
    assert "ready: 1\n" in output
    assert "count: 1\n" in output


def test_ready_may_query_in_the_lifespan(project: Project) -> None:
    """The lifespan sets Django up off the event loop."""
    project.write("bbs/apps.py", READY)
    code = """
        import asyncio
        from main import app

        async def main():
            async with app.router.lifespan_context(app):
                print("running")

        asyncio.run(main())
    """
    output = project.python(code)
    assert output.index("ready: 1\n") < output.index("django_set_up") < output.index("running")


def test_models_can_be_imported_at_the_top_after_setup(project: Project) -> None:
    """A served module sets Django up, imports its models, and names one by its class."""
    main = (project.directory / "main.py").read_text()
    main = main.replace('"bbs.Topic"', "Topic").replace(
        "\n\n\nclass", "\n\nDjangoORM.setup()\nDjangoORM.setup()\nfrom bbs.models import Topic\n\n\nclass", 1
    )
    project.write("main.py", main)
    with project.uvicorn() as server:
        assert server.get("/").json() == {"topics": [{"id": 1, "comment": "first"}]}
        assert server.output().count("django_set_up") == 1


# Settings that are read while they are imported

EARLY = """\
from django.conf import settings

getattr(settings, "WHATEVER", None)
"""

WHOLE = """
    import django
    from django.apps import apps
    from django.conf import settings
    from django.db import connections
    {first}
    from fastapi_django_orm import DjangoORM
    DjangoORM.setup()
    print("apps:", len(list(apps.get_models())), settings.USE_TZ, connections["default"].vendor)
"""


@pytest.mark.parametrize(
    "text",
    [
        EARLY + SETTINGS,
        "import reading\n" + SETTINGS,
        "from .base import *\n",
        SETTINGS + "\nimport django\ndjango.setup()\n",
        "from django.db import connection\n" + EARLY + SETTINGS,
        EARLY + SETTINGS + "\n" + EARLY,
    ],
    ids=["itself", "library", "split", "django.setup()", "connection", "twice"],
)
def test_settings_that_are_read_while_they_are_imported(project: Project, text: str) -> None:
    """Django has all that the module says, also what stands below the line that has read a setting."""
    project.write("reading.py", EARLY)
    project.write("config/base.py", EARLY + SETTINGS)
    project.write("config/settings.py", text)
    assert "apps: 1 True sqlite" in project.python(WHOLE.format(first=""))


def test_settings_that_somebody_has_imported_before(project: Project) -> None:
    """A module that is there already is taken as it is."""
    assert "apps: 1 True sqlite" in project.python(WHOLE.format(first="import config.settings"))


def test_half_of_the_settings_is_not_kept(project: Project) -> None:
    """Settings that were read early and then failed to import are read anew by the next attempt."""
    project.write("config/settings.py", EARLY + SETTINGS)
    project.write("config/broken.py", EARLY + "1 / 0\n")
    code = """
        from django.apps import apps
        from fastapi_django_orm import DjangoORM
        from fastapi_django_orm.errors import SettingsModuleBroken

        try:
            DjangoORM.setup("config.broken")
        except SettingsModuleBroken as error:
            print("refused:", error)
        DjangoORM.setup("config.settings")
        print("apps:", len(list(apps.get_models())))
    """
    output = project.python(code)
    assert "'config.broken'" in message(output.partition("apps:")[0])
    assert "ZeroDivisionError" in output
    assert "apps: 1" in output


SET_UP_AT_THE_TOP = MAIN.replace("class Topics", "DjangoORM.setup()\n\n\nclass Topics")

AS_A_SERVER = """
    import asyncio, importlib
    from django.apps import apps

    async def serve():
        main = importlib.import_module("main")
        async with main.app.router.lifespan_context(main.app):
            print("apps:", len(list(apps.get_models())), "rows:", len(await main.Topics.current()))

    asyncio.run(serve())
"""

BY_DJANGO = """
    import django, os

    os.environ["DJANGO_SETTINGS_MODULE"] = "config.settings"
    django.setup()
    from django.apps import apps
    print("apps:", len(list(apps.get_models())))
"""


@pytest.mark.parametrize("place", ["above", "below"])
def test_settings_that_import_the_application(project: Project, place: str) -> None:
    """Neither a server, whose loop runs, nor manage.py hangs or leaves Django without its apps."""
    project.write("main.py", SET_UP_AT_THE_TOP)
    lines = ["import main\n", SETTINGS]
    project.write("config/settings.py", "".join(lines if place == "above" else reversed(lines)))
    assert "apps: 1 rows: 1" in project.python(AS_A_SERVER)
    output = project.python(BY_DJANGO)
    assert "apps: 1" in output
    assert "setup_postponed" in output


def test_an_app_that_imports_the_application(project: Project) -> None:
    """A ready() that imports the application finds as much of it as there is by then, and does not hang."""
    project.write("main.py", SET_UP_AT_THE_TOP)
    project.write(
        "bbs/apps.py",
        """
        from django.apps import AppConfig


        class BoardConfig(AppConfig):
            name = "bbs"

            def ready(self):
                import main
        """,
    )
    assert "apps: 1 rows: 1" in project.python(AS_A_SERVER)
    output = project.python(BY_DJANGO)
    assert "apps: 1" in output
    assert "setup_postponed" in output
