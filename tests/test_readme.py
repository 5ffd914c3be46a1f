"""The code of the README and of docs/ runs as it is written; tables are complete, links lead somewhere."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastapi_django_orm import ORMSettings
from tests.support.servers import Uvicorn

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
TABLE_OF_PAGES = [ROOT / page for page in re.findall(r"^\| \[[^]]+\]\((docs/[^)]+)\)", README, re.MULTILINE)]
PAGES = [ROOT / "README.md", *TABLE_OF_PAGES]
OTHERS = [ROOT / name for name in ("ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "sample/README.md")]


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The headings of a page, as GitHub links to them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The sample's Django project, migrated, with the code of all pages as its main.py."""
    directory = tmp_path / "project"
    shutil.copytree(ROOT / "sample", directory, ignore=shutil.ignore_patterns("*.sqlite3*", "__pycache__"))
    (directory / "main.py").write_text("\n".join(block for page in PAGES for block in python_blocks(page)))
    env = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    command = [sys.executable, "manage.py", "migrate", "-v0"]
    subprocess.run(command, cwd=directory, env=env, check=True, timeout=30)
    return directory


def test_the_code_runs_as_one_application(project: Path) -> None:
    """All blocks together are a main.py that does what the text around them says."""
    with Uvicorn(directory=project, env={"DJANGO_SETTINGS_MODULE": None}) as server:
        assert server.get("/").json() == {"topics": []}
        assert server.get("/longest/").json() is None
        created = server.post("/topics/", params={"comment": "hello"}).json()
        assert server.get("/").json()["topics"][0]["comment"] == "hello"
        assert server.get(f"/topics/{created['id']}").json()["comment"] == "hello"
        assert server.get("/topics/99").status_code == 404
        assert server.get("/longest/").json()["comment"] == "hello"
        assert server.post("/topics/twice/", params={"comment": "two"}).status_code == 200
        assert {server.get(f"/count/{how}/").json() for how in ("async", "def", "run")} == {3}
        assert [topic["comment"] for topic in server.get("/latest/").json()] == ["two", "two", "hello"]
        assert server.get("/refresh/").status_code == 200
        assert server.get("/public/topics/").json()["public_topics"][-1] == {
            "id": created["id"],
            "comment": "hello",
        }
        assert server.get(f"/public/topics/{created['id']}").json()["comment"] == "hello"
        assert server.get(f"/live/{created['id']}").json()["comment"] == "hello"
        assert server.get("/live/99").status_code == 404
        posted = server.post("/api/topics/", json={"comment": "by the API"})
        assert posted.status_code == 201
        found = server.get("/api/topics/", params={"search": "API"}).json()
        assert (found["topics"], found["total"]) == ([posted.json()], 1)
        assert len(server.get("/recent/", params={"comment": "two"}).json()) == 2
        assert server.get("/health/").json()["status"] == "ok"


def test_the_first_block_runs_alone(project: Path) -> None:
    """Who copies only the first example has an application."""
    (project / "main.py").write_text(python_blocks(ROOT / "README.md")[0])
    with Uvicorn(directory=project, env={"DJANGO_SETTINGS_MODULE": None}) as server:
        assert server.get("/").json() == {"topics": []}


def test_every_setting_is_in_the_table() -> None:
    """The table of settings has each variable with its default."""
    settings = (ROOT / "docs" / "settings.md").read_text()
    rows = dict(re.findall(r"^\| `(DJANGO_ORM_\w+)` \|(.*?)\|", settings, re.MULTILINE))
    assert set(rows) == {f"DJANGO_ORM_{name.upper()}" for name in ORMSettings.model_fields}
    for name, field in ORMSettings.model_fields.items():
        default = f"{field.default:g}" if isinstance(field.default, float) else field.default or ""
        if isinstance(default, tuple):
            default = ",".join(default)
        assert rows[f"DJANGO_ORM_{name.upper()}"].strip().strip("`") == str(default)


def test_the_readme_lists_every_page() -> None:
    """Its table of pages has all of docs/."""
    assert sorted(TABLE_OF_PAGES) == sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Each link to a file names one that is there, and a heading in it."""
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if not target.startswith("https://"):
            path, _, heading = target.partition("#")
            found = (page.parent / path).resolve() if path else page
            assert found.exists(), target
            assert not heading or heading in anchors(found), target


def test_make_test_is_what_the_readme_says() -> None:
    """The command that the README gives for the tests exists, and the continuous integration runs it."""
    assert "make test" in README
    assert "make test" in (ROOT / ".ci" / "run").read_text()
