"""The project that a test beside another package serves."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.beside.sites import Site
from tests.support.interpreter import Interpreter
from tests.support.servers import PostgreSQL


@pytest.fixture
def site(tmp_path: Path, interpreter: Interpreter, postgresql: PostgreSQL) -> Callable[..., Site]:
    """Make a project on a database of its own for a package, which must be installed."""

    def make(package: str, database: str = "") -> Site:
        for needed in (package, "a2wsgi"):
            if find_spec(needed) is None:
                pytest.skip(f"{needed} is not installed: make beside")
        return Site(tmp_path, interpreter, postgresql.create_database(f"beside_{database or package}"))

    return make
