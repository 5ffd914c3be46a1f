"""Which models a command is about: those that are named, or all that the application's repositories read."""

from collections.abc import Iterable, Sequence
from typing import Any

from django.db import router
from django.db.models import Model

from ..cached import CachedRepository, declared_cached
from ..coherence.concerns import concern_of
from ..errors import ConfigurationError, nearest
from ..reading.models import model_named
from .application import import_application
from .tables import AnnouncedTable, tables_of


class NoRepository(ConfigurationError):
    """No model was named, and the application has no repository."""


class UnknownRepository(ConfigurationError, LookupError):
    """No repository has this name."""


def model_of(name: str, application: str | None) -> type[Model]:
    """The model of an application's repository.

    Args:
        name: the repository's.
        application: as in ``read_by_repositories()``.

    Raises:
        UnknownRepository: there is none; the message has the nearest names.
        ApplicationNotFound: there is no such application.
    """
    known = {cls.name: cls for cls in declared_by(application)}
    if name not in known:
        raise UnknownRepository(f"There is no repository {name!r}. {nearest(name, known)}")
    model = known[name]().model_class
    return model._meta.concrete_model or model


def named(labels: Iterable[str]) -> list[type[Model]]:
    """The models with these labels.

    Raises:
        UnknownModel: no installed app has one; the message has the nearest labels.
    """
    return [model_named(label) for label in labels]


def read_by_repositories(application: str | None) -> tuple[list[type[Model]], frozenset[str]]:
    """Every model that a repository of the application reads.

    Args:
        application: ``main:app``; by default as FastAPI's command line finds it.

    Returns:
        The models, and the labels of those that may be views, since it is known what is behind them.

    Raises:
        ApplicationNotFound: there is none.
        NoRepository: it has no repository.
    """
    concerns = [concern_of(cls()) for cls in declared_by(application)]
    labels = sorted({label for concern in concerns for label in concern.tables.values()})
    return named(labels), frozenset[str]().union(*(concern.explained for concern in concerns))


def declared_by(application: str | None) -> list[type[CachedRepository[Any]]]:
    """The repositories of an application, which is imported for it.

    Args:
        application: ``main:app``; by default as FastAPI's command line finds it.

    Raises:
        ApplicationNotFound: there is none.
        NoRepository: it has no repository.
    """
    app = import_application(application)
    if not (found := declared_cached()):
        raise NoRepository(
            f"The application {app.title!r} has no repository. Name the models, as in "
            "manage.py coherence install bbs.Topic."
        )
    return found


def by_database(models: Sequence[type[Model]], database: str | None) -> dict[str, list[AnnouncedTable]]:
    """The tables that these models are read from, by the database where they are written.

    Args:
        models: which ones.
        database: an alias to take for all of them; by default the routers decide.
    """
    found: dict[str, list[AnnouncedTable]] = {}
    for table in tables_of(models):
        alias = database or router.db_for_write(table.model)
        found.setdefault(alias, []).append(table)
    return found
