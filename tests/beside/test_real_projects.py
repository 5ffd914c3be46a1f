"""Every model of real projects, served beside what Django gives."""

from importlib.util import find_spec

import pytest

from tests.beside.real.running import outcome
from tests.support.servers import PostgreSQL

DEADLINE = 240  # seconds

PROJECTS = {"wagtail": 50, "pretix": 150}  # and how many models each has at least


@pytest.mark.timeout(DEADLINE + 10)
@pytest.mark.parametrize("project", PROJECTS)
def test_every_model_of_a_real_project(project: str, postgresql: PostgreSQL) -> None:
    """Each list is what Django gives, as FastAPI encodes it, when loaded and after a write by SQL."""
    if find_spec(project) is None:
        pytest.skip(f"{project} is not installed: make beside")
    database = postgresql.create_database(f"real_{project}")
    found = outcome("every_model", project, database, DEADLINE, DJANGO_ORM_COHERENCE="postgresql")
    assert found["models"] >= PROJECTS[project]
    assert found["differing"] == []
