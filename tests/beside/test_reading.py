"""Packages that change managers, querysets and fields: rows are what Django gives, however they are read."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

PACKAGES = [
    "modeltranslation",
    "polymorphic",
    "safedelete",
    "djmoney",
    "parler",
    "mptt",
    "treebeard",
    "taggit",
]
DEADLINE = 120  # seconds


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def differing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a process has found that serves models of every package, by the package."""
    if request.param == "sqlite":
        url = f"sqlite:///{Path(tmp_path_factory.mktemp('shop')) / 'db.sqlite3'}"
    else:
        url = request.getfixturevalue("postgresql").create_database("shop")
    process = subprocess.run(
        [sys.executable, "-m", "tests.beside.reading", url],
        env={name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
        | {"PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads(process.stdout.splitlines()[-1])


@pytest.mark.timeout(DEADLINE + 10)
@pytest.mark.parametrize("package", PACKAGES)
def test_rows_are_those_of_django(differing: Any, package: str) -> None:
    """Lists, parts of them, rows alone and together, after a write, and rows of schemas."""
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed: make beside")
    assert differing[package] == []
