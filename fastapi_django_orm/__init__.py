"""Django's models in FastAPI: right connections, and repositories in memory that are never silently stale."""

from .cached import CachedRepository
from .database.atomic import atomic
from .database.executor import run
from .dependencies import InTransaction
from .plugin import DjangoORM
from .repository import Repository
from .responses.response import RepositoryResponse
from .rows.row import Row
from .settings import ORMSettings
from .snapshots.snapshot import Snapshot

__all__ = [
    "CachedRepository",
    "DjangoORM",
    "InTransaction",
    "ORMSettings",
    "Repository",
    "RepositoryResponse",
    "Row",
    "Snapshot",
    "atomic",
    "run",
]
