"""Django's models in FastAPI: right connections, and repositories in memory that are never silently stale."""

from .plugin import DjangoORM
from .repository import CachedRepository
from .rows import Row
from .settings import ORMSettings
from .snapshot import Snapshot

__all__ = ["CachedRepository", "DjangoORM", "ORMSettings", "Row", "Snapshot"]
