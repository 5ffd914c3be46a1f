"""``DjangoORM``: what starts with an application, in which order, and how it ends."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from functools import wraps
from types import MethodType
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

import structlog
from asgiref.sync import ThreadSensitiveContext, sync_to_async
from django.conf import settings as django_settings
from django.db import DEFAULT_DB_ALIAS, connections
from fastapi import FastAPI
from starlette.types import ASGIApp

from . import repository, running
from .cached import CachedRepository
from .coherence.service import Coherence
from .context import RequestContext
from .database.driver_pool import fit_driver_pools
from .database.network import notice_dead_networks
from .database.reachable import check_reachable, check_shareable
from .database.service import database_service
from .dependencies import check_streams, dependencies_of
from .errors import InvalidRepository
from .handlers import handlers_instrumented
from .publishing.routes import publications, published
from .reading.refresh import Refresher
from .repository import Repository
from .routes.access import HOW_TO_ALLOW
from .routes.added import build_router, routes_added
from .routes.health import DatabaseProbe
from .settings import ORMSettings, read_settings, where_written
from .setup import set_up_django
from .shared import SharedContext
from .shared_loads.choice import shared_snapshots

logger = structlog.get_logger("fastapi_django_orm")

FIRST_LOADS_PATIENCE = 10.0  # seconds

_handlers = SharedContext(handlers_instrumented)

P = ParamSpec("P")
T = TypeVar("T")
Repositories = Iterable[type[Repository[Any]]]


class _OnEither(Generic[P, T]):
    """A method that also works on the class, where it is that of an instance with default settings."""

    def __init__(self, method: "Callable[Concatenate[Any, P], T]") -> None:
        self._method = method
        self.__doc__ = method.__doc__

    def __get__(self, instance: "DjangoORM | None", owner: "type[DjangoORM]") -> "Callable[P, T]":
        return MethodType(self._method, owner() if instance is None else instance)


def _with_application(method: Callable[P, T]) -> Callable[P, T]:
    """Say what to write where a lifespan is called while the application is being made."""

    @wraps(method)
    def lifespan(*given: P.args, **named: P.kwargs) -> T:
        if len(given) == 1 and not named:  # the instance
            raise TypeError(
                "DjangoORM.lifespan() is called without an application. Leave the calling to FastAPI: "
                "FastAPI(lifespan=DjangoORM.lifespan)."
            )
        return method(*given, **named)

    return lifespan


class DjangoORM:
    """Uses a Django project's models in a FastAPI application.

    ``FastAPI(lifespan=DjangoORM.lifespan)`` is all it takes. With settings in code,
    ``FastAPI(lifespan=DjangoORM(ORMSettings(…)).lifespan)``, for which an instance may stand itself. Inside a
    lifespan of the application's own::

        @asynccontextmanager
        async def lifespan(app: FastAPI):
            async with DjangoORM.lifespan(app):
                …
                yield
    """

    def __init__(
        self,
        settings: ORMSettings | None = None,
        *,
        repositories: Repositories | None = None,
    ) -> None:
        """Configure the plugin.

        Args:
            settings: by default read from the environment and ``.env`` when the application starts.
            repositories: which to serve; by default every declared one.

        Raises:
            TypeError: something else was given.
        """
        given: Any = settings
        if isinstance(given, FastAPI):
            raise TypeError("DjangoORM itself is no lifespan. Write FastAPI(lifespan=DjangoORM.lifespan).")
        if given is not None and not isinstance(given, ORMSettings):
            raise TypeError(f"DjangoORM takes ORMSettings(…), not {given!r}.")
        self._settings = settings
        self._repositories = repositories

    @_OnEither
    def setup(self, settings_module: str | None = None) -> None:
        """Set Django up now, for modules that import models at the top. The lifespan does it otherwise.

        Args:
            settings_module: Django's; by default as in the lifespan.

        Raises:
            ConfigurationError: Django cannot be set up; the message says what to do.
        """
        if settings_module:
            set_up_django(settings_module)
        else:
            _set_up_by(self._settings or read_settings())

    def __call__(self, app: FastAPI) -> AbstractAsyncContextManager[None]:
        """The lifespan, for ``FastAPI(lifespan=DjangoORM(…))``."""
        return self.lifespan(app)

    @_OnEither
    @_with_application
    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """The lifespan: settings, database threads, Django, repositories, transports, routes; and back.

        Raises:
            ConfigurationError: something is written wrong.
            DatabaseUnreachable: a database does not answer, and ``startup`` is ``fail``.
        """
        settings = self._settings or read_settings()
        async with AsyncExitStack() as stack:
            here = stack.enter_context(running.running())
            executor = await stack.enter_async_context(
                database_service(settings.threads, settings.thread_timeout, settings.call_timeout)
            )
            here.executor, here.loop = executor, asyncio.get_running_loop()
            stack.enter_context(_handlers.entered())
            threads = await stack.enter_async_context(ThreadSensitiveContext(executor=executor))
            await sync_to_async(_set_up_by)(settings)
            notice_dead_networks(settings.call_timeout)
            fit_driver_pools(settings.threads)
            here.shared = shared_snapshots(settings)
            refreshers, aliases = await sync_to_async(self._prepare)(here, app)
            # FastAPI remembers handlers for longer than their routes, and all that ours can reach.
            stack.callback(refreshers.clear)
            found = await sync_to_async(publications)(here.repositories.values())
            for refresher in refreshers.values():
                refresher.start()
                stack.push_async_callback(refresher.stop)
            await stack.enter_async_context(_coherence(here, settings, refreshers))
            await _first_loads(refreshers.values(), aliases, settings)
            probes = {alias: DatabaseProbe(alias) for alias in aliases}
            stack.callback(probes.clear)
            for probe in probes.values():
                stack.push_async_callback(probe.stop)
            stack.enter_context(routes_added(app, build_router(settings, refreshers, probes)))
            stack.enter_context(published(app, found))
            stack.enter_context(_layer_added(app, here, threads))
            _warn_if_closed(settings)
            yield
        logger.info("shut_down")

    def _prepare(self, here: running.Running, app: FastAPI) -> tuple[dict[str, Refresher[Any]], list[str]]:
        """Make an instance of every repository, and check it. On a database thread.

        Returns:
            What loads those that keep their rows, by name; and the aliases of the databases that are read.
        """
        check_streams(app)
        if self._repositories is None:
            repository.check_models(dependencies_of(app))
            classes = repository.declared()
        else:
            classes = list(self._repositories)
        refreshers: dict[str, Refresher[Any]] = {}
        names, aliases = set(), set()
        if connections.settings[DEFAULT_DB_ALIAS]["ENGINE"] != "django.db.backends.dummy":
            aliases.add(DEFAULT_DB_ALIAS)
        for cls in classes:
            instance = cls()
            if instance.name in names:
                raise InvalidRepository(
                    f"{cls.__module__}.{instance.label}: another repository is called "
                    f"{instance.name!r} already. Give one of them a `name` of its own."
                )
            here.repositories[cls] = instance
            names.add(instance.name)
            instance.prepare()
            if isinstance(instance, CachedRepository):
                refreshers[instance.name] = instance.refresher
            aliases.add(instance.queryset().db)
        for alias in aliases:
            check_shareable(alias)
        return refreshers, sorted(aliases)


def _set_up_by(settings: ORMSettings) -> None:
    set_up_django(settings.settings_module, where_written(settings, "settings_module"))


@asynccontextmanager
async def _coherence(
    here: running.Running, settings: ORMSettings, refreshers: Mapping[str, Refresher[Any]]
) -> AsyncIterator[None]:
    cached = [each for each in here.repositories.values() if isinstance(each, CachedRepository)]
    repositories = {repository.name: repository for repository in cached}
    here.coherence = coherence = await sync_to_async(Coherence)(settings, repositories)
    try:
        # Before the first loads, so that nothing which is committed between is lost.
        await coherence.start()
        coherence.follow(refreshers)
        yield
    finally:
        await coherence.stop()


async def _first_loads(
    refreshers: Collection[Refresher[Any]], aliases: Iterable[str], settings: ORMSettings
) -> None:
    if settings.startup == "fail":
        for alias in aliases:
            await sync_to_async(check_reachable)(alias)
    loads = asyncio.gather(
        *(refresher.refresh("startup") for refresher in refreshers), return_exceptions=True
    )
    if settings.startup == "retry":
        # What fails is in the log, and the refreshers go on trying. A database that hangs must not keep the
        # application from starting, so that it can say so.
        with suppress(TimeoutError):
            await asyncio.wait_for(loads, FIRST_LOADS_PATIENCE)
        if missing := [refresher.name for refresher in refreshers if refresher.snapshot is None]:
            logger.error("started_without_data", repositories=missing)
        return
    for outcome in await loads:
        if isinstance(outcome, BaseException):
            raise outcome.__cause__ or outcome


@contextmanager
def _layer_added(app: FastAPI, here: running.Running, threads: ThreadSensitiveContext) -> Iterator[None]:
    build, is_own = app.build_middleware_stack, "build_middleware_stack" in vars(app)

    def build_middleware_stack() -> ASGIApp:
        return build() if here.ended else RequestContext(build(), here, threads)

    # A server has called the application before its lifespan begins, so the stack stands by now. What adds
    # middleware later, as tracers do, has it built again.
    before = app.middleware_stack or build()
    app.middleware_stack = RequestContext(before, here, threads)
    app.build_middleware_stack = build_middleware_stack  # type: ignore[method-assign]
    try:
        yield
    finally:
        if vars(app).get("build_middleware_stack") is build_middleware_stack:
            if is_own:
                app.build_middleware_stack = build  # type: ignore[method-assign]
            else:
                del app.build_middleware_stack
        stack: Any = app.middleware_stack  # somebody may have built it again
        app.middleware_stack = stack.app if isinstance(stack, RequestContext) else before


def _warn_if_closed(settings: ORMSettings) -> None:
    if settings.refresh_path and settings.refresh_token is None:
        logger.warning(
            "refresh_open_to_all" if django_settings.DEBUG else "refresh_closed",
            path=settings.refresh_path,
            hint=HOW_TO_ALLOW,
        )
