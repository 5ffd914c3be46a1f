"""Real servers for the tests: each starts in about a second and leaves nothing behind."""

from .base import Server, ServerError
from .mariadb import MariaDB
from .pgbouncer import PgBouncer
from .ports import free_port
from .postgresql import PostgreSQL
from .proxy import TCPProxy
from .uvicorn import Gunicorn, Uvicorn, UvicornError
from .valkey import Valkey

__all__ = [
    "Gunicorn",
    "MariaDB",
    "PgBouncer",
    "PostgreSQL",
    "Server",
    "ServerError",
    "TCPProxy",
    "Uvicorn",
    "UvicornError",
    "Valkey",
    "free_port",
]
