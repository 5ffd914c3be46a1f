"""Every model of real projects, served beside what Django gives."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests.support.servers import PostgreSQL

DEADLINE = 240  # seconds

PROJECTS = {"wagtail": 50, "pretix": 150}  # and how many models each has at least


@pytest.mark.timeout(DEADLINE + 10)
@pytest.mark.parametrize("project", PROJECTS)
def test_every_model_of_a_real_project(project: str, postgresql: PostgreSQL) -> None:
    """Each list is what Django gives, as FastAPI encodes it, when loaded and after a write by SQL."""
    if find_spec(project) is None:
        pytest.skip(f"{project} is not installed: make beside")
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": f"tests.beside.real.{project}_settings",
        "DJANGO_ORM_COHERENCE": "postgresql",
        "REAL_DATABASE": postgresql.create_database(f"real_{project}"),
    }
    process = subprocess.run(
        [sys.executable, "-m", "tests.beside.real.every_model"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    outcome = json.loads(process.stdout.splitlines()[-1])
    assert outcome["models"] >= PROJECTS[project]
    assert outcome["differing"] == []
