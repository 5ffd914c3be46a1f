"""The same as `ours_fetch`, but the event loop waits for no query: all reads go to database threads."""

from benchmarks.peers.live.ours_fetch import app
from fastapi_django_orm.database.loop_queries import LoopQueries

__all__ = ["app"]

LoopQueries.ask = lambda *_: False  # type: ignore[method-assign]
