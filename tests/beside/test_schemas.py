"""A schema for every model of real projects."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.beside.real.running import outcome

DEADLINE = 120  # seconds

PROJECTS = {"contrib": ("django", 9), "wagtail": ("wagtail", 45), "oscar": ("oscar", 70), "cms": ("cms", 20)}
"""The package of each, and how many models it has at least."""


@pytest.mark.timeout(DEADLINE + 10)
@pytest.mark.parametrize("project", PROJECTS)
def test_every_model_has_a_schema_and_its_rows_survive_the_round_trip(project: str, tmp_path: Path) -> None:
    """A row is the same through JSON and the database; JSON schemas and the OpenAPI document are valid."""
    package, models = PROJECTS[project]
    for needed in (package, "jsonschema"):
        if find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed: make beside")
    database = f"sqlite:///{tmp_path / 'db.sqlite3'}"
    found = outcome("every_schema", project, database, DEADLINE)
    assert found["models"] >= models
    assert found["differing"] == []
    assert "password" in found["secret"]
