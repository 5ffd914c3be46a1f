"""``manage.py schema``: what it prints is a class that has the same schema as the one that it prints."""

from io import StringIO
from typing import Any

import pytest
from django.apps import apps
from django.core.management import CommandError, call_command
from pydantic import create_model

from fastapi_django_orm import ModelSchema
from fastapi_django_orm.django.management.commands.schema import Command
from tests.support.projects import Project

MODELS = [model._meta.label for model in apps.get_models()]


def printed(*arguments: str, **options: Any) -> str:
    """What the command writes."""
    out = StringIO()
    call_command(Command(stdout=out), *arguments, **options)
    return out.getvalue()


def test_the_command_is_run_with_manage_py(project: Project) -> None:
    """It needs nothing but the app in INSTALLED_APPS."""
    project.append("config/settings.py", 'INSTALLED_APPS += ["fastapi_django_orm.django"]\n')
    code, output = project.run("manage.py", "schema", "bbs.Topic")
    assert (code, output) == (
        0,
        "from fastapi_django_orm import ModelSchema\n"
        "\n"
        "\n"
        'class TopicOut(ModelSchema, model="bbs.Topic"):\n'
        "    id: int\n"
        "    comment: str\n",
    )


@pytest.mark.filterwarnings("ignore:Field name")  # some models have a field `json`
@pytest.mark.parametrize("label", MODELS)
def test_the_printed_class_is_the_named_one(label: str) -> None:
    """With annotations or without, requests and answers are the same."""
    namespace: dict[str, Any] = {"__name__": "printed"}
    exec(printed(label, name="Out"), namespace)
    of_text: type[ModelSchema] = namespace["Out"]
    arguments = {"model": label, "fields": [*of_text.model_fields]}
    named: Any = create_model("Out", __base__=ModelSchema, __cls_kwargs__=arguments)
    for mode in ("validation", "serialization"):
        assert of_text.model_json_schema(mode=mode) == named.model_json_schema(mode=mode)
    assert of_text.__read_only__ == named.__read_only__


def test_fields_may_be_named_and_secrets_must_be() -> None:
    """Without names a password is left out."""
    assert "password" not in printed("board.Account")
    assert printed("board.Account", "password", "pk").endswith(
        'class AccountOut(ModelSchema, model="board.Account"):\n    password: str\n    pk: int\n'
    )


@pytest.mark.filterwarnings("ignore:Field name")
def test_types_have_names_that_no_field_has() -> None:
    """A type checker would take `date: date` for a reference to itself."""
    text = printed("board.Everything")
    assert "from datetime import date as date_, datetime, time as time_, timedelta\n" in text
    assert "    date: date_ | None\n" in text
    compile(text, "printed", "exec")


@pytest.mark.parametrize(
    ("arguments", "message"), [(["board.Topik"], "board.Topic"), (["board.Topic", "x"], "no field")]
)
def test_what_does_not_exist_is_an_error_of_the_command(arguments: list[str], message: str) -> None:
    """The nearest names are in it."""
    with pytest.raises(CommandError, match=message):
        printed(*arguments)
