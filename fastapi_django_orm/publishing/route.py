"""The route of a published list or row: raw ASGI for a plain request, FastAPI's own way for any other."""

import re
from collections.abc import Callable
from typing import Any

from fastapi.routing import APIRoute
from starlette._utils import get_route_path
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from ..responses.negotiation import deliver
from ..responses.representation import READING
from .sources import GONE, Question


class PublishedRoute(APIRoute):
    """An ordinary route of the application, in its OpenAPI document and behind its middleware.

    FastAPI solves dependencies, validates parameters and serializes what a handler returns. A request for
    published bytes needs none of that if the application has no dependencies of its own and the parameters
    are written plainly. FastAPI handles any other request, with its own error messages.

    Attributes:
        question: reads the question from a request's query string and path parameters, or returns None if
            FastAPI has to read it.
    """

    question: Callable[[bytes, dict[str, Any]], Question | None]
    _takes_slashes = False

    def take_slashes(self) -> None:
        """Match keys with slashes in them, which are sent as ``%2F``."""
        self._takes_slashes = True
        # `{pk}` matches no slash, and `{pk:path}` no line end.
        self.path_regex = re.compile(re.escape(self._beginning) + "(?P<pk>.+)", re.DOTALL)

    @property
    def _beginning(self) -> str:
        return self.path.partition("{")[0]

    def _is_row(self, scope: Scope) -> bool:
        """Whether a path has one part below the list's, in which slashes of a key were sent as ``%2F``.

        What has several parts is the application's: a page of Django's, mounted at "/". Servers decode the
        path and leave what was sent in ``raw_path``.
        """
        below = get_route_path(scope).removeprefix(self._beginning)
        if "/" not in below:
            return True
        before = scope["path"].removesuffix(below)
        return bool(scope.get("raw_path", b"").count(b"/") == before.count("/"))

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match HEAD as well as GET. HEAD is not in ``methods``, or the OpenAPI document would list it."""
        if self._takes_slashes and scope["type"] == "http" and not self._is_row(scope):
            return Match.NONE, {}
        match, child_scope = super().matches(scope)
        if match is Match.PARTIAL and scope["method"] == "HEAD":
            match = Match.FULL
        return match, child_scope

    @property
    def is_guarded(self) -> bool:
        """Whether dependencies decide on each request: those that the application has for all its routes."""
        return bool(self.dependant.dependencies)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that the router has matched."""
        if scope["method"] not in READING:
            raise HTTPException(405, headers={"Allow": ", ".join(READING)})
        asked = None if self.is_guarded else self.question(scope["query_string"], scope["path_params"])
        if asked is None:
            await self.app(scope, receive, send)
            return
        try:
            found = asked.at_hand() or await asked.read(receive)
        except ClientDisconnect:
            await GONE(scope, receive, send)
        else:
            await deliver(*found, scope, send, asked.source.cache_control)
