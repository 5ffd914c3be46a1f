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
from types import MethodType
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from asgiref.sync import SyncToAsync, sync_to_async
from django.db import DEFAULT_DB_ALIAS
from fastapi import FastAPI

from . import application, repository
from .application import Application
from .cached import CachedRepository
from .coherence.service import Coherence
from .database.current import current_executor
from .database.engines import (
    fit_driver_pools,
    is_configured,
    notice_dead_networks,
    warn_of_short_lives,
)
from .database.executor import DatabaseExecutor
from .database.lifecycle import database_service
from .database.startup_checks import check_reachable, check_shareable
from .dependencies import check_streams, dependencies_of, query_models_of
from .errors import AsyncioNeeded, InvalidRepository
from .event_handlers import event_handlers_run
from .events import logger
from .http import errors
from .http.directory import answered_below
from .http.health import DatabaseProbe
from .http.publication import publications
from .http.publishing import published
from .http.routing import documented, in_front, plugin_routes
from .instrumentation.asgi_layer import layer_added
from .instrumentation.everything import instrumented
from .memory.refreshing import Refresher
from .queries.remembered import RememberedPages
from .reading.windows import Windows
from .repository import Repository
from .settings import ORMSettings, read_settings, where_written
from .setup import set_up_django
from .shared_loads.choice import shared_snapshots

FIRST_LOADS_PATIENCE = 10.0  # seconds

P = ParamSpec("P")
T = TypeVar("T")
Repositories = Iterable[type[Repository[Any]]]


class _OnEither(Generic[P, T]):
    """A method that also works on the class, as that of an instance with default settings."""

    def __init__(self, method: "Callable[Concatenate[Any, P], T]") -> None:
        self._method = method
        self.__doc__ = method.__doc__

    def __get__(self, instance: "DjangoORM | None", owner: "type[DjangoORM]") -> "Callable[P, T]":
        return MethodType(self._method, owner() if instance is None else instance)


class DjangoORM:
    """Uses a Django project's models in a FastAPI application.

    ``FastAPI(lifespan=DjangoORM.lifespan)``, or ``FastAPI(lifespan=DjangoORM(ORMSettings(…)))``. Inside a
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
            raise TypeError("DjangoORM is not a lifespan. Write FastAPI(lifespan=DjangoORM.lifespan).")
        if not isinstance(given, ORMSettings | None):
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
    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """The lifespan: settings, database threads, Django, repositories, transports, routes; and back.

        Raises:
            ConfigurationError: something is written wrong.
            DatabaseUnreachable: a database does not answer, and ``startup`` is ``fail``.
        """
        loop = _asyncio_loop()
        settings = self._settings or read_settings()
        async with AsyncExitStack() as stack:
            stack.enter_context(instrumented())
            executor = await stack.enter_async_context(
                database_service(settings.threads, settings.thread_timeout, settings.call_timeout)
            )
            here = stack.enter_context(application.running(executor, loop))
            here.hold(RememberedPages(settings.filter_memory * 2**20))
            here.hold(Windows(executor.own, loop, settings.thread_timeout))
            # All that starts here reads for everybody: on threads of its own.
            await stack.enter_async_context(executor.own.context)
            await sync_to_async(_set_up_by)(settings)
            notice_dead_networks(settings.call_timeout)
            fit_driver_pools(settings.threads)
            warn_of_short_lives()
            here.shared = shared_snapshots(settings)
            refreshers, aliases = await sync_to_async(self._prepare)(here, app)
            # FastAPI remembers handlers for longer than their routes, and all that ours can reach.
            stack.callback(refreshers.clear)
            found = await sync_to_async(publications)(here.all_of(Repository))
            for refresher in refreshers.values():
                refresher.start()
                stack.push_async_callback(refresher.stop)
            await stack.enter_async_context(_coherence(here, settings, refreshers))
            await _first_loads(refreshers.values(), aliases, settings)
            probes = {alias: DatabaseProbe(alias) for alias in aliases}
            stack.callback(probes.clear)
            for probe in probes.values():
                stack.push_async_callback(probe.stop)
            own = plugin_routes(app, settings, refreshers, probes)
            stack.enter_context(in_front(app, own))
            routes = stack.enter_context(published(app, found))
            stack.enter_context(answered_below(app, routes, here))
            if settings.include_in_schema:
                stack.enter_context(documented(app, own))
            await stack.enter_async_context(executor.context)
            here.answers = errors.handler_of if settings.errors else None
            stack.enter_context(layer_added(app, here))
            stack.enter_context(_left_as_entered(executor))
            await stack.enter_async_context(event_handlers_run(app))
            yield
        logger.info("shut_down")

    def _prepare(self, here: Application, app: FastAPI) -> tuple[dict[str, Refresher[Any]], list[str]]:
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
        models = query_models_of(app)
        refreshers: dict[str, Refresher[Any]] = {}
        names, aliases = set(), set()
        if is_configured(DEFAULT_DB_ALIAS):
            aliases.add(DEFAULT_DB_ALIAS)
        for cls in classes:
            instance = cls()
            if instance.name in names:
                raise InvalidRepository(
                    f"{cls.__module__}.{instance.label}: another repository is called "
                    f"{instance.name!r} already. Give one of them a `name` of its own."
                )
            here.hold(instance)
            names.add(instance.name)
            with repository.naming_errors(instance):
                instance.prepare(here)
                aliases.add(instance.queryset().db)
            if isinstance(instance, CachedRepository):
                instance.follow_filters(models)
                refreshers[instance.name] = instance.refresher
        for alias in aliases:
            check_shareable(alias)
        return refreshers, sorted(aliases)


def _asyncio_loop() -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise AsyncioNeeded(
            "DjangoORM runs on asyncio, and this application runs on another event loop, such as trio's. "
            "Serve it with uvicorn, or with `hypercorn --worker-class asyncio`; in a test, leave out "
            '`backend="trio"`, or have the fixture anyio_backend return "asyncio".'
        ) from None


@contextmanager
def _left_as_entered(executor: DatabaseExecutor) -> Iterator[None]:
    """Run what ends the application under it, also in another task than the one that has started it."""
    try:
        yield
    finally:
        if SyncToAsync.thread_sensitive_context.get(None) is not executor.context:
            # As fixtures of tests do. asgiref resets the variable, and can only where it was set.
            for context in executor.own.context, executor.context:
                context.token = SyncToAsync.thread_sensitive_context.set(context)
            current_executor.set(executor)


def _set_up_by(settings: ORMSettings) -> None:
    set_up_django(settings.settings_module, where_written(settings, "settings_module"))


@asynccontextmanager
async def _coherence(
    here: Application, settings: ORMSettings, refreshers: Mapping[str, Refresher[Any]]
) -> AsyncIterator[None]:
    repositories = {repository.name: repository for repository in here.all_of(CachedRepository)}
    coherence = await Coherence.of(settings, repositories)
    here.hold(coherence)
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
        # Failures are logged, and the refreshers retry. The application starts although a database hangs.
        with suppress(TimeoutError):
            await asyncio.wait_for(loads, FIRST_LOADS_PATIENCE)
        if missing := [refresher.name for refresher in refreshers if refresher.snapshot is None]:
            logger.error("started_without_data", repositories=missing)
        return
    for outcome in await loads:
        if isinstance(outcome, BaseException):
            raise outcome.__cause__ or outcome
