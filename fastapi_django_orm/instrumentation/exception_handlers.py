"""Starlette: exceptions that the application has no handler for, neither for the class nor for a base of it.

Starlette looks handlers up by one function, wherever an exception is raised: in a handler, a dependency, a
mounted application. Handlers that are added to ``app.exception_handlers`` would come too late, since the
middleware is built by then, and would win over the application's handler for a base of the class.
"""

from collections.abc import Callable
from typing import Any

import starlette._exception_handler

from .. import application
from ..errors import UnknownFastAPI
from .replacing import Replacement

Lookup = Callable[[Any, Exception], Any]


def _lookup(look_up: Lookup) -> Lookup:
    def lookup_exception_handler(handlers: Any, error: Exception) -> Any:
        found = look_up(handlers, error)
        here = application.entered() if found is None else None
        return found if here is None or here.answers is None else here.answers(error)

    return lookup_exception_handler


REPLACED = (Replacement(starlette._exception_handler, "_lookup_exception_handler", _lookup),)


def check_starlette() -> None:
    """Refuse a Starlette that looks handlers up in another way.

    Raises:
        UnknownFastAPI: it does.
    """
    for each in REPLACED:
        if not hasattr(each.owner, each.name):
            raise UnknownFastAPI(
                f"Starlette {starlette.__version__} has no {each}, by which exceptions of Django find their "
                "handler. Upgrade fastapi-django-orm, or install the Starlette that worked before."
            )
