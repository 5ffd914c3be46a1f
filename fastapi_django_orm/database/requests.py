"""The request that running code belongs to: whose connection is one that a call has left unclean."""

from contextvars import ContextVar
from typing import Any, Protocol

from django.db.backends.base.base import BaseDatabaseWrapper


class Keeper(Protocol):
    """What keeps connections for the calls of one request; ``keeping.RequestConnections`` is one.

    Attributes:
        scope: what the request's calls ask from now on, if anything was kept.
    """

    scope: Any

    def keep(self, connection: BaseDatabaseWrapper) -> bool:
        """Keep a connection for the calls that follow in the request; False if the request has ended."""

    def adopt(self, scope: Any) -> bool:
        """End a transaction that a call has left open with the request; False if that has ended."""


current_request: ContextVar[Keeper | None] = ContextVar("fastapi_django_orm_request", default=None)
