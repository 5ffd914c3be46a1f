"""The same as `ours`, but loads do not rest while there are requests."""

from benchmarks.peers.calm.ours import app
from fastapi_django_orm.reading.pacing import Pace

__all__ = ["app"]

Pace.rest = lambda _: None  # type: ignore[method-assign]
