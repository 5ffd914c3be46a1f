"""The measure: a bare psycopg cursor's `fetchall` of the same columns."""

import os
from typing import Any

import psycopg

connection = psycopg.connect(os.environ["DATABASE_URL"], autocommit=True)

SELECT = "SELECT id, comment, created_at FROM bbs_topic WHERE id <= %s ORDER BY id"


def load(upto: int) -> list[tuple[Any, ...]]:
    """Keep tuples."""
    return connection.execute(SELECT, [upto]).fetchall()


def row(kept: list[tuple[Any, ...]], key: int) -> tuple[Any, ...]:
    """Give the tuple."""
    return kept[key - 1]
