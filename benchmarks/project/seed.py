"""Make the table and fill it: `python -m benchmarks.project.seed ROWS`.

Every comment differs, is as long as a short remark and sometimes Japanese, so that encoders meet
what a board holds; every time has microseconds. The rows depend on nothing but their number.
"""

import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import django

START = datetime(2026, 1, 1, 9, 30, 0, 123456, tzinfo=UTC)
REMARKS = (
    "Does anybody know how to call the ORM from an async handler?",
    "トピックの一覧が古いままです。どうすれば更新できますか？",
    'It works on my machine, "mostly"; the other worker disagrees.',
)


def seed(rows: int) -> None:
    """Create the schema and `rows` topics with the keys 1 to `rows`."""
    django.setup()
    from django.core.management import call_command
    from django.db import connection

    from benchmarks.project.bbs.models import Topic

    call_command("migrate", run_syncdb=True, verbosity=0)
    if connection.vendor == "postgresql":
        copy(Topic._meta.db_table, rows)
    else:
        Topic.objects.bulk_create(Topic(*row) for row in topics(rows))


def copy(table: str, rows: int) -> None:
    """Fill a table as fast as PostgreSQL can."""
    from django.db import connection

    with connection.cursor() as cursor:
        with cursor.copy(f"COPY {table} (id, comment, created_at) FROM STDIN") as copying:
            for row in topics(rows):
                copying.write_row(row)
        cursor.execute(f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), {rows})")
        cursor.execute("VACUUM ANALYZE")


def topics(rows: int) -> Iterator[tuple[int, str, datetime]]:
    """Yield the keys 1 to `rows`, each with its comment and time."""
    for number in range(1, rows + 1):
        created_at = START + timedelta(minutes=number, microseconds=number)
        yield number, f"{number}: {REMARKS[number % len(REMARKS)]}", created_at


if __name__ == "__main__":
    seed(int(sys.argv[1]))
