"""Packages that settings modules are written with: each reads settings in a way of its own."""

from importlib.util import find_spec

import pytest

from tests.support.projects import SETTINGS, Project

LOOK = """
    import warnings
    warnings.simplefilter("ignore")  # django-configurations has an importer of the old kind
    {first}
    from fastapi_django_orm import DjangoORM
    DjangoORM.setup()
    from django.apps import apps
    from django.conf import settings
    print("apps:", len(list(apps.get_models())), settings.SECRET_KEY, settings.WORD)
"""

ENVIRON = 'import environ\n\nenv = environ.Env(DEBUG=(bool, False))\nWORD = env("WORD", default="found")\n'
SPLIT = 'from split_settings.tools import include\n\ninclude("base.py", "word.py")\n'
DYNACONF = (
    "import dynaconf\n\nsettings = dynaconf.DjangoDynaconf(__name__, WORD='found', load_dotenv=False)\n"
)
CONFIGURATIONS = """
from pathlib import Path

from configurations import Configuration

class Dev(Configuration):
"""


def needs(package: str) -> None:
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


@pytest.mark.parametrize(
    ("package", "text"),
    [
        ("environ", SETTINGS + ENVIRON),
        ("split_settings", SPLIT),
        ("dynaconf", SETTINGS + "\n" + DYNACONF),
        ("dynaconf", "from django.conf import settings\n\nbool(settings.configured)\n" + SETTINGS + DYNACONF),
    ],
    ids=["django-environ", "django-split-settings", "dynaconf", "dynaconf and an early look"],
)
def test_settings_are_read_whole(project: Project, package: str, text: str) -> None:
    """DjangoORM.setup() finds what django.setup() would."""
    needs(package)
    project.write("config/base.py", SETTINGS)
    project.write("config/word.py", 'WORD = "found"\n')
    project.write("config/settings.py", text)
    output = project.python(LOOK.format(first=""))
    assert "apps: 1 for tests only found" in output


@pytest.mark.parametrize("by", ["setup()", "install()"])
def test_configurations_are_read_by_their_importer(project: Project, by: str) -> None:
    """Where django-configurations has been set up, or its importer installed, its class is what counts."""
    needs("configurations")
    lines = [line for line in SETTINGS.splitlines() if line and not line.startswith("from ")]
    body = "".join(f"    {line}\n" for line in [*lines, 'WORD = "found"'])
    project.write("config/settings.py", CONFIGURATIONS + body)
    first = "import configurations; configurations.setup()"
    if by == "install()":
        first = "from configurations import importer; importer.install()"
    variables = {"DJANGO_SETTINGS_MODULE": "config.settings", "DJANGO_CONFIGURATION": "Dev"}
    output = project.python(LOOK.format(first=first), **variables)
    assert "apps: 1 for tests only found" in output
