"""The engine: as those are made whose passwords are tokens of a vault, which ``DATABASES`` does not have."""

import threading
from typing import Any

from django.db.backends.postgresql import base

# What the engine adds to what DATABASES says, and which threads have asked for it.
secrets: dict[str, Any] = {}
asked: list[threading.Thread] = []


class DatabaseWrapper(base.DatabaseWrapper):
    """Asks whenever it connects."""

    def get_connection_params(self) -> dict[str, Any]:
        asked.append(threading.current_thread())
        return {**super().get_connection_params(), **secrets}

    def init_connection_state(self) -> None:
        super().init_connection_state()
        with self.connection.cursor() as cursor:
            cursor.execute("SET search_path = hidden, public")
