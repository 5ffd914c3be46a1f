"""What an application can set, and what it is told when it sets it wrong."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from structlog.testing import capture_logs

from fastapi_django_orm import DjangoORM, ORMSettings, settings
from fastapi_django_orm.errors import ConfigurationError, InvalidSettings
from tests.support.serving import serving


@pytest.fixture(autouse=True)
def _folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # for .env
    monkeypatch.setattr(settings, "_warned_of", set())  # as in a process of its own


def start() -> None:
    """Start and stop an application without repositories, with settings from where it is."""

    async def run() -> None:
        async with DjangoORM(repositories=[]).lifespan(FastAPI()):
            pass

    asyncio.run(run())


def refused() -> str:
    with pytest.raises(InvalidSettings) as caught:
        start()
    assert isinstance(caught.value, ConfigurationError)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    return str(caught.value)


def test_every_setting_has_a_default() -> None:
    """Nothing has to be set."""
    settings = ORMSettings()
    assert settings.settings_module is None
    assert settings.refresh_path == "/refresh/"
    assert settings.refresh_token is None
    assert settings.health_path == "/health/"
    assert settings.startup == "fail"


def test_environment_and_dotenv_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An argument wins over the environment, and the environment over .env."""
    (tmp_path / ".env").write_text("DJANGO_ORM_REFRESH_PATH=/c/\nDJANGO_ORM_HEALTH_PATH=/d/\nOTHER=1\n")
    assert (ORMSettings().refresh_path, ORMSettings().health_path) == ("/c/", "/d/")
    monkeypatch.setenv("DJANGO_ORM_REFRESH_PATH", "/b/")
    assert (ORMSettings().refresh_path, ORMSettings().health_path) == ("/b/", "/d/")
    assert ORMSettings(refresh_path="/a/").refresh_path == "/a/"


def test_environment_reaches_the_application(sqlite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lifespan serves the paths that the variables name, and no others."""
    monkeypatch.setenv("DJANGO_ORM_REFRESH_TOKEN", "letmein")
    monkeypatch.setenv("DJANGO_ORM_REFRESH_PATH", "/reload")
    monkeypatch.setenv("DJANGO_ORM_HEALTH_PATH", "/up")
    with serving(FastAPI(lifespan=DjangoORM(repositories=[]).lifespan)) as client:
        allowed = {"Authorization": "Bearer letmein"}
        assert client.get("/reload", headers=allowed).status_code == 200
        assert client.get("/up").status_code == 200
        assert client.get("/refresh/", headers=allowed).status_code == 404
        assert client.get("/health/").status_code == 404


@pytest.mark.parametrize("source", ["environment", "dotenv"])
@pytest.mark.parametrize("field", ORMSettings.model_fields)
def test_empty_variable_is_not_set(
    field: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`DJANGO_ORM_THREADS=`, as docker-compose writes a variable that is not there, gives the default."""
    variable = f"DJANGO_ORM_{field.upper()}"
    monkeypatch.delenv(variable, raising=False)
    default = getattr(ORMSettings(), field)
    if source == "environment":
        monkeypatch.setenv(variable, "")
    else:
        (tmp_path / ".env").write_text(f"{variable}=\n")
    assert getattr(ORMSettings(), field) == default


def test_off_as_a_path_means_no_route(sqlite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both routes can be switched off, together as well."""
    monkeypatch.setenv("DJANGO_ORM_REFRESH_PATH", "off")
    monkeypatch.setenv("DJANGO_ORM_HEALTH_PATH", "off")
    with serving(FastAPI(lifespan=DjangoORM(repositories=[]).lifespan)) as client:
        assert client.get("/refresh/").status_code == 404
        assert client.get("/health/").status_code == 404
        assert {"/refresh/", "/health/", ""}.isdisjoint(client.get("/openapi.json").json()["paths"])


@pytest.mark.parametrize("token", ["", None])
def test_empty_token_opens_nothing(sqlite: str, token: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that is there and empty is no token: without DEBUG nobody may refresh."""
    if token is not None:
        monkeypatch.setenv("DJANGO_ORM_REFRESH_TOKEN", token)
    with serving(FastAPI(lifespan=DjangoORM(repositories=[]).lifespan)) as client:
        for headers in ({}, {"Authorization": "Bearer"}, {"Authorization": "Bearer x"}):
            response = client.post("/refresh/", headers=headers)
            assert response.status_code == 403
            assert "DJANGO_ORM_REFRESH_TOKEN" in response.json()["detail"]


def test_empty_token_from_dotenv_opens_nothing(tmp_path: Path) -> None:
    """The same in .env."""
    (tmp_path / ".env").write_text("DJANGO_ORM_REFRESH_TOKEN=\nDJANGO_ORM_SETTINGS_MODULE=\n")
    assert ORMSettings().refresh_token is None
    assert ORMSettings().settings_module is None


def test_token_is_not_shown() -> None:
    """Whoever prints or logs the settings does not print the token."""
    settings = ORMSettings(refresh_token="s3cret")
    assert "s3cret" not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("STARTUP", "maybe", "'fail' or 'retry'"),
        ("THREADS", "0", "greater than or equal to 1"),
        ("THREADS", "many", "valid integer"),
        ("THREADS", "1000000", "less than or equal to 1000"),
        ("REFRESH_PATH", "refresh/", 'starts with "/"'),
        ("HEALTH_PATH", "health", '"off" for no route'),
        ("INCLUDE_IN_SCHEMA", "perhaps", "valid boolean"),
    ],
)
def test_wrong_value_names_the_variable(
    variable: str, value: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The application does not start; one line has the variable as typed, its value, and what is right."""
    monkeypatch.setenv(f"DJANGO_ORM_{variable}", value)
    message = refused()
    assert message.startswith(f"DJANGO_ORM_{variable}={value}: ")
    assert reason in message
    assert len(message.splitlines()) == 1


def test_all_wrong_values_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has to start as often as there are mistakes."""
    monkeypatch.setenv("DJANGO_ORM_STARTUP", "maybe")
    monkeypatch.setenv("DJANGO_ORM_THREADS", "0")
    first, second = sorted(refused().splitlines())
    assert first.startswith("DJANGO_ORM_STARTUP=maybe: ")
    assert second.startswith("DJANGO_ORM_THREADS=0: ")


def test_wrong_value_in_dotenv_is_said_to_be_there(tmp_path: Path) -> None:
    """The file is named, and its values, which may be secrets, are not shown."""
    (tmp_path / ".env").write_text("DJANGO_ORM_THREADS=s3cret\n")
    message = refused()
    assert message.startswith("DJANGO_ORM_THREADS in .env: ")
    assert "s3cret" not in message


def test_wrong_value_under_a_name_in_lower_case_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Case does not matter in a variable's name, and the value is not said to be from .env."""
    monkeypatch.setenv("django_orm_threads", "0")
    assert refused().startswith("DJANGO_ORM_THREADS=0: ")


def test_two_routes_cannot_have_one_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names both variables."""
    monkeypatch.setenv("DJANGO_ORM_REFRESH_PATH", "/health/")
    message = refused()
    assert "DJANGO_ORM_REFRESH_PATH" in message
    assert "DJANGO_ORM_HEALTH_PATH" in message


def test_dotenv_that_is_not_text_is_named(tmp_path: Path) -> None:
    """The message says which file is meant, and nothing of its content."""
    (tmp_path / ".env").write_bytes("DJANGO_ORM_REFRESH_TOKEN=s3cret\nCITY=Orléans\n".encode("latin-1"))
    with pytest.raises(InvalidSettings, match=r"\.env in .* cannot be read") as caught:
        start()
    assert "s3cret" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_unknown_variable_is_warned_of(sqlite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt variable stops nothing; the log names it once in a process, and the one that was meant."""
    monkeypatch.setenv("DJANGO_ORM_REFRSH_TOKEN", "s3cret")
    with capture_logs() as logs:
        start()
        start()
    warnings = [line for line in logs if line["event"] == "unknown_setting"]
    assert [line["variable"] for line in warnings] == ["DJANGO_ORM_REFRSH_TOKEN"]
    assert "DJANGO_ORM_REFRESH_TOKEN" in warnings[0]["hint"]
    assert warnings[0]["log_level"] == "warning"
    assert "s3cret" not in str(logs)


def test_unknown_variable_in_dotenv_is_warned_of(sqlite: str, tmp_path: Path) -> None:
    """The same in .env; what belongs to others there is left alone."""
    (tmp_path / ".env").write_text("DJANGO_ORM_STRATUP=retry\nDATABASE_URL=sqlite://\n")
    with capture_logs() as logs:
        start()
    warnings = [line["variable"] for line in logs if line["event"] == "unknown_setting"]
    assert warnings == ["DJANGO_ORM_STRATUP"]


def test_settings_in_code_ask_nobody(sqlite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An instance made with settings uses these, whatever the environment says later."""
    settings = ORMSettings(health_path="/up/")
    monkeypatch.setenv("DJANGO_ORM_HEALTH_PATH", "not a path")
    with serving(FastAPI(lifespan=DjangoORM(settings, repositories=[]).lifespan)) as client:
        assert client.get("/up/").status_code == 200


# In code


def refused_in_code(**arguments: Any) -> str:
    with pytest.raises(InvalidSettings) as caught:
        ORMSettings(**arguments)
    return str(caught.value)


def test_wrong_argument_names_the_variable() -> None:
    """Settings made in code are refused in the same words as those of the environment."""
    message = refused_in_code(startup="sometimes")
    assert message.startswith("DJANGO_ORM_STARTUP")
    assert "'fail' or 'retry'" in message


def test_wrong_variable_is_named_to_settings_in_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the environment has wrong is told when settings are made in code, too."""
    monkeypatch.setenv("DJANGO_ORM_THREADS", "abc")
    message = refused_in_code(startup="retry")
    assert message.startswith("DJANGO_ORM_THREADS=abc: ")
    assert "valid integer" in message


def test_unknown_argument_is_answered_with_the_nearest_one() -> None:
    """An argument of a wrong name is refused with the right one, and its value is not shown."""
    message = refused_in_code(refresh_tokn="s3cret")
    assert "'refresh_tokn'" in message
    assert "Did you mean 'refresh_token'" in message
    assert "s3cret" not in message


def test_variables_of_others_in_dotenv_are_ignored(tmp_path: Path) -> None:
    """What other applications keep in .env is no argument of these settings."""
    (tmp_path / ".env").write_text(
        "DATABASE_URL=sqlite://\nSTARTUP=sometimes\nDJANGO_SECRET_KEY=x\nDJANGO_ORM_STARTUP=retry\n"
    )
    assert ORMSettings().startup == "retry"
    assert ORMSettings(threads=3).threads == 3
