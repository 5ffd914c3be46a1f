"""Which FastAPI application a Django command is about: the one that FastAPI's own command line would serve.

https://fastapi.tiangolo.com/fastapi-cli/
"""

import importlib
import sys
import tomllib
from pathlib import Path
from types import ModuleType

from fastapi import FastAPI

from ..errors import ConfigurationError

CANDIDATES = ("main.py", "app.py", "api.py", "app/main.py", "app/app.py", "app/api.py")
HOW_TO_NAME = "Name it: --app main:app."


class ApplicationNotFound(ConfigurationError):
    """No FastAPI application is where it was looked for."""


def import_application(name: str | None = None) -> FastAPI:
    """Import the application, and with it the declarations of its repositories.

    Args:
        name: ``main:app``; by default ``[tool.fastapi] entrypoint`` in ``pyproject.toml`` counts, then the
            usual files (``main.py``, ``app.py``, ``app/main.py``, …) and names (``app``, ``api``).

    Raises:
        ApplicationNotFound: there is none; the message says where it was looked for.
    """
    name = name or _entrypoint()
    if name is None:
        module = _import(_usual_module())
        return _usual_application(module)
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise ApplicationNotFound(f"{name!r} does not say where the application is. Write module:app.")
    return _checked(_import(module_name), attribute)


def _entrypoint() -> str | None:
    file = Path("pyproject.toml")
    if not file.is_file():
        return None
    with file.open("rb") as opened:
        found = tomllib.load(opened).get("tool", {}).get("fastapi", {}).get("entrypoint")
    return found if isinstance(found, str) else None


def _usual_module() -> str:
    """The dotted name of the first of the usual files, whose outermost folder becomes importable."""
    for candidate in CANDIDATES:
        path = Path(candidate)
        if path.is_file():
            return ".".join(path.with_suffix("").parts)
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


def _checked(module: ModuleType, attribute: str) -> FastAPI:
    found = getattr(module, attribute, None)
    if not isinstance(found, FastAPI):
        raise ApplicationNotFound(
            f"{module.__name__}.{attribute} is not a FastAPI application but {found!r}. {HOW_TO_NAME}"
        )
    return found
