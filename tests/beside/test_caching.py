"""Packages that answer queries from a cache: a repository reads what the database has."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests.support.servers import Valkey

DEADLINE = 60  # seconds


@pytest.mark.parametrize("package", ["cachalot", "cacheops"])
def test_repositories_read_past_caches(package: str, valkey: Valkey) -> None:
    """Loads, keyed refreshes and live reads see what another program wrote; other code keeps its cache."""
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed: make beside")
    process = subprocess.run(
        [sys.executable, "-m", "tests.beside.caching", package, valkey.url()],
        env={name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    found = json.loads(process.stdout.splitlines()[-1])
    assert found.pop("django") == found.pop("before")
    assert found == {way: [way, way] for way in ("all", "keys", "live", "window")}
