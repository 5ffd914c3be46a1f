"""Random repositories, random writes and migrations beside Django itself; see ``random_repositories``.

For an hour: ``RANDOM_REPOSITORIES=3600 RANDOM_REPOSITORIES_SEED=1
pytest tests/reading/test_random_repositories.py --timeout=0 -s -k postgresql``.
"""

import os
from collections.abc import Iterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from fastapi_django_orm.reading import readers
from tests.support.random_repositories import play_for

SECONDS = float(os.environ.get("RANDOM_REPOSITORIES", "3"))
SEED = int(os.environ.get("RANDOM_REPOSITORIES_SEED", "1"))


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[Any]]:
    with capture_logs() as entries:
        yield entries


@pytest.mark.timeout(SECONDS + 60)
def test_random_repositories_give_what_django_gives(
    default_database: str, logs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lists, parts of them and rows, alone and together, are those of `values()` and `filter(pk=…)`."""
    monkeypatch.setattr(readers, "ASK_AGAIN", 0.05)

    def report(seed: int) -> None:
        logs.clear()
        if "RANDOM_REPOSITORIES" in os.environ and seed % 100 == 0:
            print(seed, end=" ", flush=True)

    played = play_for(SECONDS, SEED, report)
    assert played
    if "RANDOM_REPOSITORIES" in os.environ:
        print(f"\n{default_database}: seeds {SEED} to {SEED + played - 1}")
