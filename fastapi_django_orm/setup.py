"""``django.setup()``, once for each process, with errors that say what to do.

Django can be set up once and not again, not even after a failure (``populate()`` refuses to be entered
twice), so a failure is remembered and told again in its own words.
"""

import ast
import os
import sys
import threading
from asyncio.events import _get_running_loop, _set_running_loop
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import django
from django.apps import apps
from django.conf import ENVIRONMENT_VARIABLE, settings
from django.db import connections
from django.utils.functional import empty

from . import logs
from .errors import ConfigurationError, SettingsModuleBroken, SettingsModuleMissing, SetupFailed
from .events import logger
from .shared import renewed_at_fork

_lock = renewed_at_fork(threading.RLock())
_failure: ConfigurationError | None = None
_check: str | None = None  # the command that shows what Django says of the settings that were imported


class _Named(NamedTuple):
    """A settings module, what names it, and the command that shows what Django says of it."""

    module: str
    where: str
    check: str


def set_up_django(settings_module: str | None = None, where: str = "the argument `settings_module`") -> None:
    """Set Django up if that was not done yet.

    Args:
        settings_module: the settings' dotted name; else ``DJANGO_SETTINGS_MODULE`` counts, then
            what ``manage.py`` sets.
        where: what names it, for messages.

    Raises:
        SettingsModuleMissing: nothing names a module, or the named one does not exist.
        SettingsModuleBroken: importing the settings raises.
        SetupFailed: ``django.setup()`` raises.
    """
    if apps.ready and settings_module is None:
        return
    if waiting_for := _being_imported() or _being_populated():
        # The settings or an app import the application, which asks for them. Django can be set up only once,
        # and what has begun to set it up will do so.
        logger.warning("setup_postponed", hint=f"{waiting_for} imports this application")
        return
    with _lock, _loop_out_of_sight():
        _set_up(settings_module, where)


def _being_imported() -> str | None:
    """The settings module, while Python imports it."""
    name = os.environ.get(ENVIRONMENT_VARIABLE, "")
    spec = getattr(sys.modules.get(name), "__spec__", None)
    return name if getattr(spec, "_initializing", False) else None


def _being_populated() -> str | None:
    """What this thread is in the middle of, if it is ``django.setup()``."""
    lock: Any = apps._lock  # type: ignore[attr-defined]
    return "an app of INSTALLED_APPS" if apps.loading and not apps.ready and lock._is_owned() else None


@contextmanager
def _loop_out_of_sight() -> Iterator[None]:
    """Let the block run as if no event loop ran on this thread.

    A server imports the application with its loop running, and Django would refuse an ``AppConfig.ready()``
    that queries (``SynchronousOnlyOperation``). Another thread would not do: a settings module or an app that
    imports the application would wait there for a module that this thread is about to import, for ever.
    """
    loop = _get_running_loop()
    _set_running_loop(None)
    try:
        yield
    finally:
        _set_running_loop(loop)


def _set_up(settings_module: str | None, where: str) -> None:
    global _failure, _check
    if apps.ready:
        _warn_if_other(settings_module)
        return
    if _failure is not None:
        raise _failure
    try:
        if not settings.configured:
            named = _named(settings_module, where)
            _load_settings(named)
            _check = named.check
        _populate()
    except ConfigurationError as error:
        _failure = error if apps.loading else None
        raise
    finally:
        if settings.configured:
            connections.close_all()  # what a ready() has opened belongs to nobody from here on
    logs.configure_again()  # Django's LOGGING has been applied over it
    logger.info("django_set_up", settings_module=_configured_module(), version=django.__version__)


def _populate() -> None:
    try:
        django.setup()
    except (Exception, SystemExit) as error:
        module = _configured_module()
        hint = f"\nThe settings module is {module}; `{_check or _check_with(module)}` shows the same."
        raise SetupFailed(
            f"django.setup() failed: {type(error).__name__}: {error}{hint if module else ''}"
        ) from error


def _check_with(settings_module: str | None) -> str:
    # With the name, since what runs here need not be in the environment of who reads this.
    return f"python -m django check --settings={settings_module}"


def _configured_module() -> str | None:
    return getattr(settings, "SETTINGS_MODULE", None)


def _warn_if_other(settings_module: str | None) -> None:
    if settings_module not in (None, _configured_module()):
        logger.warning(
            "settings_module_ignored", settings_module=settings_module, in_use=_configured_module()
        )


def _named(settings_module: str | None, where: str) -> _Named:
    """The settings module that counts."""
    if settings_module:
        return _Named(settings_module, where, _check_with(settings_module))
    if name := os.environ.get(ENVIRONMENT_VARIABLE):
        return _Named(name, ENVIRONMENT_VARIABLE, _check_with(name))
    return _from_manage_py()


def _load_settings(named: _Named) -> None:
    """Have Django read the module, as its own first access to a setting does.

    Not by importing it here before: a library that the module imports may read ``django.conf.settings``
    meanwhile. Django then takes what stands in the module so far, and takes all of it once its own import has
    ended; after an import of ours it would leave it at that.
    """
    before = os.environ.get(ENVIRONMENT_VARIABLE)
    name = named.module
    os.environ[ENVIRONMENT_VARIABLE] = name
    try:
        bool(settings.LOGGING_CONFIG)  # which django.setup() reads first, too
    except (Exception, SystemExit) as error:
        # Whoever tries again must not find half of the settings, nor the wrong name.
        settings._wrapped = empty
        if before is None:
            del os.environ[ENVIRONMENT_VARIABLE]
        else:
            os.environ[ENVIRONMENT_VARIABLE] = before
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            raise SettingsModuleMissing(
                f"There is no module {name!r} to take Django's settings from (looked for from "
                f"{Path.cwd()}). Correct {named.where}, or start in the folder that holds "
                "manage.py, or pass it with `uvicorn --app-dir`."
            ) from None
        raise SettingsModuleBroken(
            f"Importing Django's settings module {name!r} failed: {type(error).__name__}: {error}"
        ) from error


def _from_manage_py() -> _Named:
    """What the nearest ``manage.py`` would set; its folder becomes importable, as when it runs."""
    silent: list[str] = []
    for folder in _application_folders():
        file = folder / "manage.py"
        if not file.is_file():
            continue
        if name := _settings_module_in(file):
            if str(folder) not in sys.path:
                sys.path.insert(0, str(folder))
            return _Named(name, str(file), f"python {os.path.relpath(file)} check")
        silent.append(str(file))
    raise SettingsModuleMissing(
        "No Django settings module is known. Set DJANGO_SETTINGS_MODULE (or "
        "DJANGO_ORM_SETTINGS_MODULE) to its dotted name, such as config.settings"
        + (
            f": it is not written as plain text in {' or '.join(dict.fromkeys(silent))}, "
            "which is read and not run."
            if silent
            else ", or start in the folder that holds manage.py."
        )
    )


def _application_folders() -> Iterator[Path]:
    # A server puts the application's folder on sys.path; installed packages are not the application.
    for entry in sys.path:
        folder = Path(entry or ".").resolve()
        if not {"site-packages", "dist-packages"} & set(folder.parts):
            yield folder
    yield Path.cwd()


def _settings_module_in(file: Path) -> str | None:
    """The settings module that a ``manage.py`` names, read and never run."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None
    for node in ast.walk(tree):
        match node:
            case ast.Call(
                func=ast.Attribute(attr="setdefault"),
                args=[ast.Constant(value="DJANGO_SETTINGS_MODULE"), ast.Constant(value=str(name))],
            ):
                return name
            case ast.Assign(
                targets=[ast.Subscript(slice=ast.Constant(value="DJANGO_SETTINGS_MODULE"))],
                value=ast.Constant(value=str(name)),
            ):
                return name
            case ast.keyword(arg="DJANGO_SETTINGS_MODULE", value=ast.Constant(value=str(name))):
                return name
    return None
