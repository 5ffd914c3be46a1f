"""``django.setup()``, once for each process, with errors that say what to do.

Django can be set up only once, even if it fails (``populate()`` cannot be entered twice). So a failure is
kept, and raised again at the next try.
"""

import ast
import os
import sys
import threading
from asyncio.events import _get_running_loop, _set_running_loop
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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


def set_up_django(settings_module: str | None = None, where: str = "the argument `settings_module`") -> None:
    """Set Django up if that was not done yet.

    Args:
        settings_module: the settings' dotted name; by default what ``DJANGO_SETTINGS_MODULE`` has, then what
            ``manage.py`` sets.
        where: what names it, for messages.

    Raises:
        SettingsModuleMissing: nothing names a module, or the named one does not exist.
        SettingsModuleBroken: importing the settings raises.
        SetupFailed: ``django.setup()`` raises.
    """
    if apps.ready and settings_module is None:
        return
    if importing := _importing():
        # The settings or an app import the application, which asks for them. Django can be set up only once,
        # and what has begun to set it up will do so.
        logger.warning("setup_postponed", hint=f"{importing} imports this application")
        return
    with _lock, _loop_out_of_sight():
        _set_up(settings_module, where)


def _importing() -> str | None:
    """What of Django's setup is under way on this thread."""
    name = os.environ.get(ENVIRONMENT_VARIABLE, "")
    spec = getattr(sys.modules.get(name), "__spec__", None)
    if getattr(spec, "_initializing", False):
        return name
    lock: Any = apps._lock  # type: ignore[attr-defined]
    return "an app of INSTALLED_APPS" if apps.loading and not apps.ready and lock._is_owned() else None


@contextmanager
def _loop_out_of_sight() -> Iterator[None]:
    # A server imports the application with its loop running, and Django would refuse an AppConfig.ready()
    # that queries. Another thread would not do: settings or an app that import the application would wait
    # there for ever, for a module that this thread is importing.
    loop = _get_running_loop()
    _set_running_loop(None)
    try:
        yield
    finally:
        _set_running_loop(loop)


def _set_up(settings_module: str | None, where: str) -> None:
    global _failure
    if apps.ready:
        if settings_module not in (None, _configured_module()):
            in_use = _configured_module()
            logger.warning("settings_module_ignored", settings_module=settings_module, in_use=in_use)
        return
    if _failure is not None:
        raise _failure
    try:
        if not settings.configured:
            _load_settings(*_named(settings_module, where))
        _populate()
    except ConfigurationError as error:
        _failure = error if apps.loading else None
        raise
    finally:
        if settings.configured:
            connections.close_all()  # those that a ready() has opened, which would stay open
    logs.configure_again()  # Django's LOGGING has been applied over it
    logger.info("django_set_up", settings_module=_configured_module(), version=django.__version__)


def _populate() -> None:
    try:
        django.setup()
    except (Exception, SystemExit) as error:
        message = f"django.setup() failed: {type(error).__name__}: {error}"
        if module := _configured_module():
            check = f"python -m django check --settings={module}"
            message += f"\nThe settings module is {module}; `{check}` shows the same."
        raise SetupFailed(message) from error


def _configured_module() -> str | None:
    return getattr(settings, "SETTINGS_MODULE", None)


def _named(settings_module: str | None, where: str) -> tuple[str, str]:
    """The settings module that counts, and what names it."""
    if settings_module:
        return settings_module, where
    if name := os.environ.get(ENVIRONMENT_VARIABLE):
        return name, ENVIRONMENT_VARIABLE
    return _from_manage_py()


def _load_settings(name: str, where: str) -> None:
    """Have Django read the module, as its own first access to a setting does.

    Not by importing it here before: a library that the module imports may read ``django.conf.settings``
    meanwhile. Django then takes what stands in the module so far, and takes all of it once its own import has
    ended; after an import of ours it would leave it at that.
    """
    before = os.environ.get(ENVIRONMENT_VARIABLE)
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
                f"{Path.cwd()}). Correct {where}, or start in the folder that holds "
                "manage.py, or pass it with `uvicorn --app-dir`."
            ) from None
        raise SettingsModuleBroken(
            f"Importing Django's settings module {name!r} failed: {type(error).__name__}: {error}"
        ) from error


def _from_manage_py() -> tuple[str, str]:
    """What the nearest ``manage.py`` would set; its folder becomes importable, as when it runs."""
    silent: list[str] = []
    for folder in _application_folders():
        file = folder / "manage.py"
        if not file.is_file():
            continue
        if name := _settings_module_in(file):
            if str(folder) not in sys.path:
                sys.path.insert(0, str(folder))
            return name, str(file)
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
            case (
                ast.Call(
                    func=ast.Attribute(attr="setdefault"),
                    args=[ast.Constant("DJANGO_SETTINGS_MODULE"), ast.Constant(str(name))],
                )
                | ast.Assign(
                    [ast.Subscript(slice=ast.Constant("DJANGO_SETTINGS_MODULE"))], ast.Constant(str(name))
                )
                | ast.keyword("DJANGO_SETTINGS_MODULE", ast.Constant(str(name)))
            ):
                return name
    return None
