"""The same as `ours_published_live`, but Python makes the JSON, of Django's values."""

from benchmarks.peers.live.ours_published_live import app
from fastapi_django_orm.reading.readers import ColumnReader

__all__ = ["app"]

ColumnReader.database_json = lambda *_: None  # type: ignore[method-assign]
