"""What a command is about: an application, and the models that are named or that its repositories read."""

import importlib
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from django.db import router
from django.db.models import Model
from fastapi import FastAPI

from ..cached import CachedRepository, declared_cached
from ..coherence.planned import concerns_of
from ..dependencies import query_models_of
from ..errors import ConfigurationError, nearest
from ..reading.resolve import model_named
from .tables import AnnouncedTable, tables_of

# Where FastAPI's own command line looks: https://fastapi.tiangolo.com/fastapi-cli/
CANDIDATES = ("main.py", "app.py", "api.py", "app/main.py", "app/app.py", "app/api.py")
HOW_TO_NAME = "Name it: --app main:app."


class ApplicationNotFound(ConfigurationError):
    """No FastAPI application is where it was looked for."""


class NoRepository(ConfigurationError):
    """No model was named, and the application has no repository."""


class UnknownRepository(ConfigurationError, LookupError):
    """No repository has this name."""


@dataclass(frozen=True)
class Selection:
    """What a command is about.

    Attributes:
        models: which ones.
        explained: labels of views, whose tables' models are among them.
        aged: labels that only repositories with a ``max_age`` read.
        unannounced: for each repository without one, why its rows may change without an announcement.
    """

    models: list[type[Model]]
    explained: frozenset[str] = frozenset()
    aged: frozenset[str] = frozenset()
    unannounced: tuple[str, ...] = ()


def read_by_repositories(application: str | None) -> Selection:
    """Every model that a repository of the application reads, as in ``declared_by()``."""
    app = import_application(application)
    repositories = {cls: cls() for cls in _declared_in(app)}
    for repository in repositories.values():
        repository.follow_filters(query_models_of(app))
    concerns = concerns_of(repositories)
    labels, aged = set[str](), set[str]()
    for cls, concern in concerns.items():
        read = {*concern.tables.values(), *concern.filtered.values()}
        (labels if cls.max_age is None else aged).update(read)
    return Selection(
        list(map(model_named, sorted(labels | aged))),
        explained=frozenset[str]().union(*(concern.explained for concern in concerns.values())),
        aged=frozenset(aged - labels),
        unannounced=tuple(
            f"{cls.name}: {sentence}"
            for cls, concern in concerns.items()
            for sentence in concern.unannounced
            if cls.max_age is None
        ),
    )


def model_of(name: str, application: str | None) -> type[Model]:
    """The model of an application's repository, or UnknownRepository with the nearest names."""
    known = {cls.name: cls for cls in declared_by(application)}
    if name not in known:
        raise UnknownRepository(f"There is no repository {name!r}. {nearest(name, known)}")
    model = known[name]().model_class
    return model._meta.concrete_model or model


def declared_by(application: str | None) -> list[type[CachedRepository[Any]]]:
    """The repositories of an application, which is imported, or NoRepository."""
    return _declared_in(import_application(application))


def _declared_in(app: FastAPI) -> list[type[CachedRepository[Any]]]:
    if not (found := declared_cached()):
        raise NoRepository(
            f"The application {app.title!r} has no repository. Name the models, as in "
            "manage.py coherence install bbs.Topic."
        )
    return found


def by_database(models: Sequence[type[Model]], database: str | None) -> dict[str, list[AnnouncedTable]]:
    """The tables that these models are read from, by this database or by the one that routers write to."""
    found: dict[str, list[AnnouncedTable]] = {}
    for table in tables_of(models):
        alias = database or router.db_for_write(table.model)
        found.setdefault(alias, []).append(table)
    return found


def import_application(name: str | None = None) -> FastAPI:
    """Import ``main:app``, and with it the declarations of its repositories, or raise ApplicationNotFound.

    By default ``[tool.fastapi] entrypoint`` in ``pyproject.toml`` counts, then the usual files (``main.py``,
    ``app.py``, ``app/main.py``, …) and names (``app``, ``api``).
    """
    name = name or _entrypoint()
    if name is None:
        return _usual_application(_import(_usual_module()))
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise ApplicationNotFound(f"{name!r} does not say where the application is. Write module:app.")
    module = _import(module_name)
    found = getattr(module, attribute, None)
    if not isinstance(found, FastAPI):
        raise ApplicationNotFound(
            f"{module_name}.{attribute} is not a FastAPI application but {found!r}. {HOW_TO_NAME}"
        )
    return found


def _entrypoint() -> str | None:
    file = Path("pyproject.toml")
    if not file.is_file():
        return None
    with file.open("rb") as opened:
        found = tomllib.load(opened).get("tool", {}).get("fastapi", {}).get("entrypoint")
    return found if isinstance(found, str) else None


def _usual_module() -> str:
    """The dotted name of the first of the usual files, whose outermost folder becomes importable."""
    for candidate in map(Path, CANDIDATES):
        if candidate.is_file():
            return ".".join(candidate.with_suffix("").parts)
    raise ApplicationNotFound(
        f"There is no FastAPI application in {Path.cwd()}: none of {', '.join(CANDIDATES)}. {HOW_TO_NAME}"
    )


def _import(name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not f"{name}.".startswith(f"{error.name}."):
            raise  # something that the module imports
        raise ApplicationNotFound(f"There is no module {name!r} in {here}. {HOW_TO_NAME}") from None


def _usual_application(module: ModuleType) -> FastAPI:
    for name in ("app", "api", *dir(module)):
        found = getattr(module, name, None)
        if isinstance(found, FastAPI):
            return found
    raise ApplicationNotFound(
        f"{module.__name__} ({module.__file__}) has no FastAPI application. {HOW_TO_NAME}"
    )
