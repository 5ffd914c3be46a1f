"""The engine: MySQL through another driver than Django's own takes."""

import types
from typing import Any

from django.db.backends.mysql import base


class DatabaseWrapper(base.DatabaseWrapper):
    """Never connects."""

    Database: Any = types.ModuleType("mysql.connector")
