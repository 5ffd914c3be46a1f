"""Which models a command is about: those that are named, or all that the application's repositories read."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from django.db import router
from django.db.models import Model

from ..cached import CachedRepository, declared_cached
from ..coherence.planned import concerns_of
from ..errors import ConfigurationError, nearest
from ..reading.resolve import model_named
from .application import import_application
from .tables import AnnouncedTable, tables_of


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


def read_by_repositories(application: str | None) -> Selection:
    """Every model that a repository of the application reads.

    Args:
        application: ``main:app``; by default as FastAPI's command line finds it.

    Raises:
        ApplicationNotFound: there is none.
        NoRepository: it has no repository.
    """
    concerns = concerns_of({cls: cls() for cls in declared_by(application)})
    labels, aged = set[str](), set[str]()
    for cls, concern in concerns.items():
        (labels if cls.max_age is None else aged).update(concern.tables.values())
    return Selection(
        named(sorted(labels | aged)),
        explained=frozenset[str]().union(*(concern.explained for concern in concerns.values())),
        aged=frozenset(aged - labels),
        unannounced=tuple(
            f"{cls.name}: {sentence}"
            for cls, concern in concerns.items()
            for sentence in concern.unannounced
            if cls.max_age is None
        ),
    )


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
