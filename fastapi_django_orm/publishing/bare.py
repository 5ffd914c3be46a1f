"""Whether an application is bare: whether nothing but FastAPI itself would see a request.

What FastAPI puts around the router is compared with what it puts around that of an untouched application. So
middleware is seen wherever it was added, and whoever has written it.
"""

from functools import cache
from importlib.util import find_spec
from types import FunctionType
from typing import Any

import fastapi.applications
import fastapi.routing
import starlette.applications
import starlette.routing
from fastapi import FastAPI
from starlette.types import ASGIApp

from ..context import RequestContext

LOOK_AGAIN = 256  # requests after which telemetry may have been configured

_MODULES = fastapi.applications, fastapi.routing, starlette.applications, starlette.routing


class BeforeApplication:
    """Says whether an application may be spared a request: whether nothing in it would notice.

    Attributes:
        stack: the middleware that was looked at.
        spared: what was found.
        answers: how many requests it has been spared since.
    """

    def __init__(self, layer: ASGIApp) -> None:
        """Look for anything around this layer, which stands before the router."""
        self._layer = layer
        self.look_again()

    def look_again(self) -> None:
        """Look with the next request: telemetry may be configured while the application runs."""
        self.stack: ASGIApp | None = None
        self.spared = False
        self.answers = 0

    def is_spared(self, app: FastAPI) -> bool:
        """Whether there is nothing around the layer but what FastAPI has put there."""
        if app.middleware_stack is not self.stack:
            # Looked at with the first request: by then all middleware is in place.
            self.stack = app.middleware_stack
            self.spared = not app.user_middleware and self._is_bare(app) and not _is_traced(app)
        return self.spared

    def _is_bare(self, app: FastAPI) -> bool:
        # Tracers replace these.
        calls = (
            FastAPI.__call__,
            FastAPI.build_middleware_stack,
            starlette.applications.Starlette.__call__,
            type(app.router).__call__,
        )
        if app.router.middleware_stack is not self._layer or not all(map(_is_unpatched, calls)):
            return False
        layers = _layers(app)
        if layers and layers[0] is RequestContext:
            del layers[0]
        return layers == _own_layers()


def _layers(app: FastAPI) -> list[type[Any]]:
    """The classes of an application's middleware, from the outside to the router."""
    kinds: list[type[Any]] = []
    layer: Any = app.middleware_stack
    while layer is not app.router:
        kinds.append(type(layer))
        layer = getattr(layer, "app", app.router)
    return kinds


@cache
def _own_layers() -> list[type[Any]]:
    """The same of an application to which nobody has added any."""
    app = FastAPI(openapi_url=None)
    app.middleware_stack = FastAPI.build_middleware_stack(app)
    return _layers(app)


def _is_unpatched(call: Any) -> bool:
    return isinstance(call, FunctionType) and any(call.__globals__ is vars(module) for module in _MODULES)


def _is_traced(app: FastAPI) -> bool:
    telemetry = getattr(app, "_native_telemetry", None)
    if telemetry is None:
        return find_spec("fastapi.telemetry") is not None  # it has telemetry, and this does not know where
    return bool(telemetry.enabled())
