"""Random writers of every kind, and workers that serve only what was committed and end equal to the table."""

import asyncio
from contextlib import AbstractContextManager
from typing import Any

import pytest

from tests.soak.place import Place, on_mariadb, on_postgresql, on_sqlite
from tests.soak.plan import Plan
from tests.soak.running import soak
from tests.soak.verdict import Verdict
from tests.support.servers import MariaDB, PostgreSQL, Valkey

pytestmark = pytest.mark.timeout(180)


def check(database: str, place: AbstractContextManager[Place], seconds: float, **options: Any) -> Verdict:
    plan = Plan(database, seconds, seed=1, rows=500, fault_every=1.5, patience=20, **options)
    with place as found:
        verdict = asyncio.run(soak(plan, found, print))
    assert verdict.wrong is None, str(verdict)
    assert verdict.writes, str(verdict)
    assert verdict.commits, str(verdict)
    assert verdict.behind, str(verdict)
    return verdict


def test_postgresql(postgresql: PostgreSQL) -> None:
    """Every kind of write is heard through the triggers, also when connections are cut in between."""
    verdict = check("postgresql", on_postgresql(postgresql), 9, faults=True)
    assert any("cut" in fault for fault in verdict.faults), str(verdict)


def test_sqlite() -> None:
    """Every kind of write is seen in the file."""
    check("sqlite", on_sqlite(), 5)


def test_mariadb(mariadb: MariaDB, valkey: Valkey) -> None:
    """What signals see is published, and the rest is announced by `manage.py refresh`."""
    check("mariadb", on_mariadb(mariadb, valkey), 5)
