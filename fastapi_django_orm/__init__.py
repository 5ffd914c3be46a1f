"""Django's models in FastAPI: right connections, and repositories in memory that are never silently stale."""

from .cached import CachedRepository
from .database.atomic import atomic, on_commit
from .database.executor import run
from .dependencies import InTransaction
from .http.router import IfMatch
from .memory.snapshot import Snapshot
from .plugin import DjangoORM
from .queries.filter import Filter
from .reading.row import Row
from .repository import Repository
from .responses.response import RepositoryResponse
from .schemas import ModelSchema
from .settings import ORMSettings

__all__ = [
    "CachedRepository",
    "DjangoORM",
    "Filter",
    "IfMatch",
    "InTransaction",
    "ModelSchema",
    "ORMSettings",
    "Repository",
    "RepositoryResponse",
    "Row",
    "Snapshot",
    "atomic",
    "on_commit",
    "run",
]
