"""``django.setup()``, once for each process, with errors that say what to do.

Django can be set up once and not again, not even after a failure (``populate()`` refuses to be entered
twice), so a failure is remembered and told again in its own words.
"""

import ast
import asyncio
import importlib
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import django
import structlog
from django.apps import apps
from django.conf import ENVIRONMENT_VARIABLE, settings
from django.db import connections

from . import logs
from .errors import ConfigurationError, SettingsModuleBroken, SettingsModuleMissing, SetupFailed

logger = structlog.get_logger("fastapi_django_orm")
_lock = threading.RLock()
_failure: ConfigurationError | None = None


def set_up_django(settings_module: str | None = None) -> None:
    """Set Django up if that was not done yet; on a thread of its own if an event loop runs here.

    A server imports the application with its loop running, and an ``AppConfig.ready()`` that queries
    would be refused there (``SynchronousOnlyOperation``).

    Args:
        settings_module: the settings' dotted name; else ``DJANGO_SETTINGS_MODULE`` counts, then
            what ``manage.py`` sets.

    Raises:
        SettingsModuleMissing: nothing names a module, or the named one does not exist.
        SettingsModuleBroken: importing the settings raises.
        SetupFailed: ``django.setup()`` raises.
    """
    if apps.ready and settings_module is None:
        return
    if _loop_runs():
        with ThreadPoolExecutor(1, thread_name_prefix="django-setup") as executor:
            executor.submit(_set_up, settings_module).result()
    else:
        _set_up(settings_module)


def _loop_runs() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _set_up(settings_module: str | None) -> None:
    global _failure
    with _lock:
        if apps.ready:
            _warn_if_other(settings_module)
            return
        if _failure is not None:
            raise _failure
        try:
            if not settings.configured:
                _import_settings(settings_module)
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
        raise SetupFailed(
            f"django.setup() failed: {type(error).__name__}: {error}\n"
            f"The settings module is {_configured_module()}; `python -m django check` shows the same."
        ) from error


def _configured_module() -> str | None:
    return getattr(settings, "SETTINGS_MODULE", None)


def _warn_if_other(settings_module: str | None) -> None:
    if settings_module not in (None, _configured_module()):
        logger.warning(
            "settings_module_ignored", settings_module=settings_module, in_use=_configured_module()
        )


def _import_settings(settings_module: str | None) -> None:
    before = os.environ.get(ENVIRONMENT_VARIABLE)
    name = settings_module or before or _from_manage_py()
    os.environ[ENVIRONMENT_VARIABLE] = name
    try:
        importlib.import_module(name)
        bool(settings.DEBUG)  # Django reads the module at the first access
    except (Exception, SystemExit) as error:
        # Whoever tries again must not find the wrong name there.
        if before is None:
            del os.environ[ENVIRONMENT_VARIABLE]
        else:
            os.environ[ENVIRONMENT_VARIABLE] = before
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            raise SettingsModuleMissing(
                f"There is no module {name!r} to take Django's settings from (looked for from "
                f"{Path.cwd()}). Correct DJANGO_SETTINGS_MODULE, or start in the folder that holds "
                "manage.py, or pass it with `uvicorn --app-dir`."
            ) from None
        raise SettingsModuleBroken(
            f"Importing Django's settings module {name!r} failed: {type(error).__name__}: {error}"
        ) from error


def _from_manage_py() -> str:
    """What the nearest ``manage.py`` would set; its folder becomes importable, as when it runs."""
    silent: list[str] = []
    for folder in _application_folders():
        file = folder / "manage.py"
        if not file.is_file():
            continue
        if name := _settings_module_in(file):
            if str(folder) not in sys.path:
                sys.path.insert(0, str(folder))
            return name
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
