"""``ORMSettings``: what an application can set, read from the environment and from ``.env``."""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BeforeValidator,
    Field,
    ModelWrapValidatorHandler,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    NoDecode,
    SettingsConfigDict,
)

from .errors import InvalidSettings, nearest
from .events import logger

PREFIX = "DJANGO_ORM_"

COHERENCE = ("auto", "off", "process", "postgresql", "sqlite", "table")  # or URLs:
COHERENCE_URL = re.compile(r"(redis|rediss|valkey|valkeys|postgres|postgresql|http|https)://[^/]")
SHARED_URL = re.compile(r"(redis|valkey)s?://([^/]*@)?[^/@:]+(:\d{1,5})?(/\S*)?|unix://\S*/\S+")

# Variables that were warned of: the application and the Django app both read the settings.
_warned_of: set[str] = set()


def _secret(value: Any) -> Any:
    # A secret that is read from a file often ends in a line feed, which no header can carry.
    secret = value.get_secret_value() if isinstance(value, SecretStr) else value
    return secret.strip() or None if isinstance(secret, str) else secret


def _path(value: Any) -> Any:
    if value == "off":
        return None
    if isinstance(value, str) and not value.startswith("/"):
        raise ValueError('write a path that starts with "/", or "off" for no route')
    return value


def _transports(value: Any) -> Any:
    items = re.split(r"[,\s]+", value.strip()) if isinstance(value, str) else list(value)
    for item in items:
        if item not in COHERENCE and not COHERENCE_URL.match(item):
            raise ValueError(
                f"write one or more, with commas between, of {', '.join(COHERENCE)}, redis://…, "
                "postgresql://… and http://…"
            )
        if not item.startswith("postgres"):  # whose URLs may have several hosts
            try:
                urlsplit(item).port  # noqa: B018
            except ValueError:  # whose message may have the password
                raise ValueError("a URL's host and port cannot be read; write redis://host:6379/0") from None
    if "off" in items and len(items) > 1:
        raise ValueError('"off" cannot be combined with other values')
    return tuple(items)


def _shared_url(value: Any) -> Any:
    url = _secret(value)
    if isinstance(url, str) and not SHARED_URL.fullmatch(url):
        raise ValueError("write redis://host:6379/0, valkey://…, rediss://… or unix:///path")
    return url


URLPath = Annotated[str | None, BeforeValidator(_path)]
Secret = Annotated[SecretStr | None, BeforeValidator(_secret)]


class ORMSettings(BaseSettings):
    """The settings of the plugin. Every field is the variable ``DJANGO_ORM_<FIELD>``.

    A keyword argument wins over the environment, the environment over ``.env``.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=".env",
        env_ignore_empty=True,  # FOO= in a shell, in .env or from docker-compose means "not set"
        dotenv_filtering="only_existing",  # .env is for others too
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
    )

    settings_module: Annotated[str | None, BeforeValidator(lambda value: value or None)] = Field(
        default=None,
        description="Django's settings module. Without it DJANGO_SETTINGS_MODULE counts, then "
        "what manage.py beside the application sets.",
    )
    refresh_path: URLPath = Field(default="/refresh/", description="Where to refresh. off: no route.")
    refresh_token: Secret = Field(
        default=None,
        repr=False,
        description="Whoever has it may refresh. Without it the route answers only under DEBUG.",
    )
    health_path: URLPath = Field(default="/health/", description="Where to ask for health. off: no route.")
    include_in_schema: bool = Field(
        default=True, description="Whether these routes are in the OpenAPI document, and so in /docs."
    )
    errors: bool = Field(
        default=True,
        description="Whether exceptions of Django end a request with a status, as 404 for Http404. off: the "
        "application handles them.",
    )
    startup: Literal["fail", "retry"] = Field(
        default="fail",
        description="When the database cannot be read at startup: fail, or start and retry.",
    )
    threads: int = Field(
        default=8,
        ge=1,
        le=1000,
        description="Database threads, and the most connections to each database.",
    )
    thread_timeout: float = Field(
        default=30.0,
        gt=0,
        description="Seconds that a call waits for a thread or a connection before DatabaseBusy.",
    )
    call_timeout: float = Field(
        default=0.0,
        ge=0,
        description="Seconds that a call may wait for one answer of a database; 0: any time.",
    )
    coherence: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_transports)] = Field(
        default=("auto",),
        repr=False,  # a URL may have a password
        description="How writes elsewhere reach this worker: auto, off, or names and URLs of transports.",
    )
    coherence_dsn: Secret = Field(
        default=None,
        repr=False,
        description="Where to LISTEN if DATABASES leads through PgBouncer: a direct PostgreSQL DSN.",
    )
    coherence_poll: float = Field(
        default=0.1, gt=0, le=60, description="Seconds between two looks at an SQLite file."
    )
    coherence_interval: float = Field(
        default=0.02,
        gt=0,
        le=60,
        description="Seconds between two reads of the table of hints while something is written; otherwise "
        "more rarely.",
    )
    coherence_heartbeat: float = Field(
        default=10.0,
        gt=0,
        le=600,
        description="Seconds between two tests of a transport. A silent one is found within twice that.",
    )
    coherence_spread: float = Field(
        default=1.0,
        ge=0,
        description="The most seconds that a full load waits which a hint causes, for workers not to load at "
        "once; at most four times what the last load took, and not at all for SQLite's file.",
    )
    filter_memory: int = Field(
        default=32,
        ge=0,
        description="MiB of pages that filters have selected, for each worker to remember; 0: none.",
    )
    shared: Annotated[SecretStr | None, BeforeValidator(_shared_url)] = Field(
        default=None,
        repr=False,
        description="A Redis or Valkey server through which one worker's full load serves all of them.",
    )

    @model_validator(mode="after")
    def _paths_differ(self) -> Self:
        if self.refresh_path and self.refresh_path == self.health_path:
            raise ValueError("DJANGO_ORM_REFRESH_PATH and DJANGO_ORM_HEALTH_PATH are the same path")
        return self

    @model_validator(mode="wrap")
    @classmethod
    def _explained(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Raise errors that name the variables and arguments as they are written."""
        if unknown := sorted(set(values) - set(cls.model_fields)):
            raise InvalidSettings(
                f"ORMSettings has no argument {unknown[0]!r}. {nearest(unknown[0], cls.model_fields)}"
            )
        try:
            return handler(values)
        except ValidationError as error:
            lines = [_explain(fault["loc"], fault["msg"]) for fault in error.errors()]
            # Without the cause, which has pydantic's names of the fields.
            raise InvalidSettings("\n".join(lines)) from None


def read_settings() -> ORMSettings:
    """The settings from the environment and ``.env``.

    Raises:
        InvalidSettings: variables cannot be used; all are named.
    """
    try:
        settings = ORMSettings()
    except (UnicodeDecodeError, OSError) as error:
        # Without the cause, which carries the file's content.
        raise InvalidSettings(
            f".env in {Path.cwd()} cannot be read: {error}. Save it as UTF-8, readable for this user."
        ) from None
    environment = EnvSettingsSource(ORMSettings).env_vars
    dotenv = DotEnvSettingsSource(ORMSettings).env_vars
    known = {PREFIX + name.upper() for name in ORMSettings.model_fields}
    for variable in sorted({name.upper() for name in (*environment, *dotenv)} - known - _warned_of):
        if variable.startswith(PREFIX):
            _warned_of.add(variable)
            logger.warning("unknown_setting", variable=variable, hint=nearest(variable, known))
    django = "DJANGO_SETTINGS_MODULE"  # which counts in the environment alone, as it does for Django
    if not settings.settings_module and not os.environ.get(django) and dotenv.get(django.lower()):
        logger.warning(
            "setting_ignored",
            variable=django,
            hint=f"only {PREFIX}… is read from .env: write {PREFIX}SETTINGS_MODULE there",
        )
    return settings


def where_written(settings: ORMSettings, field: str) -> str:
    """What gives a field its value, for messages: a variable, a line of ``.env``, an argument."""
    variable, value = PREFIX + field.upper(), getattr(settings, field)
    if EnvSettingsSource(ORMSettings).env_vars.get(variable.lower()) == value:
        return variable
    if DotEnvSettingsSource(ORMSettings).env_vars.get(variable.lower()) == value:
        return f"{variable} in .env"
    return f"ORMSettings({field}=…)"


def _explain(loc: tuple[int | str, ...], message: str) -> str:
    if not loc:
        return message.removeprefix("Value error, ")
    variable = PREFIX + str(loc[0]).upper()
    value = EnvSettingsSource(ORMSettings).env_vars.get(variable.lower())
    # Those that are, or may have in them, a password.
    secret = not ORMSettings.model_fields[str(loc[0])].repr
    shown = " in .env" if value is None else "" if secret else f"={value}"
    return f"{variable}{shown}: {message.removeprefix('Value error, ')}."
