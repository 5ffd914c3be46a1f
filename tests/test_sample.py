"""The sample as its README has it: one process serves the board, its admin and its topics from memory."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.databases import wait_until
from tests.support.servers import PostgreSQL, Uvicorn

ROOT = Path(__file__).parent.parent
SAMPLE = ROOT / "sample"
DEADLINE = 60  # seconds


class Board:
    """A copy of the sample with a database of its own.

    Attributes:
        directory: where its `manage.py` is.
        environment: what is set for its processes.
    """

    def __init__(self, directory: Path, database_url: str | None) -> None:
        self.directory = directory
        ignored = shutil.ignore_patterns("db.sqlite3*", "__pycache__")
        shutil.copytree(SAMPLE, directory, ignore=ignored)
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self.environment: dict[str, str | None] = {
            "DATABASE_URL": database_url,
            "DJANGO_SETTINGS_MODULE": None,
            "DJANGO_ORM_COHERENCE": None,
            "DEBUG": None,
            "SECRET_KEY": None,
            "ALLOWED_HOSTS": None,
            "PYTHONPATH": path,
            "PYTHONWARNINGS": "error",
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def manage(self, *arguments: str, **more: str) -> str:
        """Run `manage.py` and return what it has written."""
        variables: Mapping[str, str | None] = {**os.environ, **self.environment, **more}
        done = subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=self.directory,
            env={name: value for name, value in variables.items() if value is not None},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def serve(self, **more: str) -> Uvicorn:
        """The server that the README starts."""
        return Uvicorn(directory=self.directory, env={**self.environment, **more}, args=["--no-access-log"])


@pytest.fixture(scope="module", params=["sqlite", "postgresql", "mariadb"])
def board(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Board:
    """The sample on each kind of database in turn, migrated and with the demo's data."""
    url = None
    if request.param != "sqlite":
        url = request.getfixturevalue(request.param).create_database("bbs")
    board = Board(tmp_path_factory.mktemp(request.param) / "sample", url)
    board.manage("migrate", "--verbosity", "0")
    board.manage("demo")
    if request.param == "postgresql":
        assert "bbs.Topic (bbs_topic, database default): installed" in board.manage("coherence", "install")
    return board


@pytest.fixture(scope="module")
def site(board: Board) -> Iterator[Uvicorn]:
    """The sample, served."""
    with board.serve() as server:
        yield server


def token_in(page: httpx.Response) -> str:
    """What a page's form sends against forgery."""
    found = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page.text)
    assert found is not None, page.text
    return found[1]


def comments(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [topic["comment"] for topic in answer.json()["topics"]]


def test_the_demo_command_changes_nothing_the_second_time(board: Board) -> None:
    """Run again, it keeps what is there and says so."""
    assert board.manage("demo").splitlines() == [
        "Topics: kept the 6 on the board.",
        "Admin: kept the user demo.",
    ]


def test_the_migrations_are_complete(board: Board) -> None:
    """The models have no change that no migration makes, and Django's own checks find nothing."""
    assert "No changes" in board.manage("makemigrations", "--check", "--dry-run")
    assert "no issues" in board.manage("check")


def test_the_topics_are_served_from_memory(site: Uvicorn) -> None:
    """The root answers the topics, newest first, in English, Japanese and emoji."""
    answer = site.get("/")
    assert answer.headers["Content-Type"] == "application/json"
    served = comments(answer)
    assert served[-1] == "Hello, board! Django wrote this line and FastAPI serves it."
    assert "こんにちは。DjangoのORMをFastAPIから使っています。" in served
    assert any("🍣🗻" in comment for comment in served)
    assert set(answer.json()["topics"][0]) == {"id", "comment", "created_at", "author"}
    keys = [topic["id"] for topic in answer.json()["topics"]]
    assert keys == sorted(keys, reverse=True)


BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"


@pytest.mark.parametrize("accept", [BROWSER, "text/html", "application/json;q=0.5, text/html"])
def test_a_browser_gets_a_page(site: Uvicorn, accept: str) -> None:
    """The root is a page where the client asks for HTML, and shows the topics as they were typed."""
    answer = site.get("/", headers={"Accept": accept})
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "Accept" in answer.headers["Vary"]
    assert "Hello, board! Django wrote this line and FastAPI serves it." in answer.text
    assert "&lt;b&gt;Markup&lt;/b&gt;" in answer.text
    for path in re.findall(r'href="(/[^"]*)"', answer.text):
        assert site.get(path, follow_redirects=True).status_code == 200, path


@pytest.mark.parametrize("accept", ["*/*", "application/json", "application/json, text/html;q=0.9", None])
def test_a_program_gets_json(site: Uvicorn, accept: str | None) -> None:
    """Everybody else gets bytes from memory, with what caches need to tell both apart."""
    answer = site.get("/", headers={} if accept is None else {"Accept": accept})
    assert answer.headers["Content-Type"] == "application/json"
    assert {"Accept", "Accept-Encoding"} <= set(answer.headers["Vary"].split(", "))
    again = site.get("/", headers={"If-None-Match": answer.headers["ETag"]})
    assert again.status_code == 304
    assert "Accept" in again.headers["Vary"].split(", ")


def test_one_topic_has_an_address_of_its_own(site: Uvicorn) -> None:
    """A topic is found by its key, the longest one by its length, and an unknown key is FastAPI's 404."""
    topic = site.get("/").json()["topics"][0]
    assert site.get(f"/topics/{topic['id']}").json() == topic
    assert site.get("/longest/").json()["comment"] == max(comments(site.get("/")), key=len)
    missing = site.get("/topics/0")
    assert missing.status_code == 404
    assert "detail" in missing.json()


def test_a_topic_from_the_board_is_served(site: Uvicorn) -> None:
    """What Django's form has written is in the JSON by itself, and after a refresh, whatever the language."""
    comment = "掲示板から <b>posted</b> 🐟"
    page = site.get("/board/")
    form = {"csrfmiddlewaretoken": token_in(page), "comment": comment}
    posted = site.post("/board/", data=form)
    assert posted.status_code == 302
    shown = site.get(posted.headers["Location"]).text
    assert "掲示板から &lt;b&gt;posted&lt;/b&gt; 🐟" in shown
    wait_until(lambda: comments(site.get("/"))[0] == comment, "the topic is served")
    assert comments(site.get("/refresh/"))[0] == comment


def test_the_board_refuses_what_it_should(site: Uvicorn) -> None:
    """A form without its token is forbidden, and an empty or too long comment comes back with the reason."""
    page = site.get("/board/")
    assert site.post("/board/", data={"comment": "forged"}).status_code == 403
    for comment in ("", "x" * 2001):
        form = {"csrfmiddlewaretoken": token_in(page), "comment": comment}
        refused = site.post("/board/", data=form)
        assert refused.status_code == 200
        assert "errorlist" in refused.text
    assert "forged" not in comments(site.get("/refresh/"))


def test_the_demo_admin_sees_the_topics(site: Uvicorn) -> None:
    """The user that the demo has made logs in, and finds the topics in Django's admin."""
    with httpx.Client(base_url=site.url, follow_redirects=True, timeout=DEADLINE, trust_env=False) as visitor:
        page = visitor.get("/admin/")
        assert page.url.path == "/admin/login/"
        form = {"csrfmiddlewaretoken": token_in(page), "username": "demo", "password": "demo"}
        home = visitor.post(page.url, data=form, headers={"Referer": str(page.url)})
        assert home.url.path == "/admin/"
        assert "/admin/bbs/topic/" in home.text
        assert "Hello, board!" in visitor.get("/admin/bbs/topic/").text


def test_the_admin_keeps_the_lines_of_a_topic(site: Uvicorn) -> None:
    """A topic of several lines is shown as such, and an edit that changes nothing leaves it as it is."""
    with httpx.Client(base_url=site.url, follow_redirects=True, timeout=DEADLINE, trust_env=False) as visitor:
        page = visitor.get("/admin/")
        form = {"csrfmiddlewaretoken": token_in(page), "username": "demo", "password": "demo"}
        visitor.post(page.url, data=form, headers={"Referer": str(page.url)})
        page = visitor.get("/admin/bbs/topic/add/")
        form = {"csrfmiddlewaretoken": token_in(page), "comment": "one\r\ntwo", "_continue": "on"}
        for _ in range(2):
            page = visitor.post(page.url, data=form, headers={"Referer": str(page.url)})
            assert page.url.path.endswith("/change/")
            found = re.search(r"<textarea[^>]*>([^<]*)</textarea>", page.text)
            assert found is not None
            assert found[1].strip() == "one\ntwo"
            # As a browser sends it.
            typed = found[1].strip().replace("\n", "\r\n")
            form = {"csrfmiddlewaretoken": token_in(page), "comment": typed, "_continue": "on"}
    assert comments(site.get("/refresh/"))[0] == "one\ntwo"


def test_the_api_filters_and_writes(site: Uvicorn) -> None:
    """A page of the list is found by a search, and a topic that is posted is served when the answer comes."""
    (ann,) = {
        (each["author"]["id"], each["author"]["name"])
        for each in site.get("/api/topics/", params={"search": "ann board", "limit": 1}).json()["topics"]
    }
    assert ann[1] == "Ann"
    posted = site.post("/api/topics/", json={"comment": "by the API", "author": ann[0]})
    assert posted.status_code == 201
    assert posted.json()["author"]["name"] == "Ann"
    assert comments(site.get("/"))[0] == "by the API"
    newest = site.get("/api/topics/", params={"author__name": "Ann", "ordering": "-created_at"}).json()
    assert newest["topics"][0] == posted.json()
    assert site.get(posted.headers["Location"]).json() == posted.json()
    refused = site.post("/api/topics/", json={"comment": "x" * 2001, "author": None})
    assert refused.status_code == 422
    unknown = site.post("/api/topics/", json={"comment": "y", "author": 10**6})
    assert unknown.json()["detail"][0]["loc"] == ["body", "author"]


def test_the_admins_static_files_are_served(site: Uvicorn) -> None:
    """The style sheet that the login page names is there."""
    (style, *_) = re.findall(r'href="(/static/[^"]+\.css)"', site.get("/admin/login/").text)
    answer = site.get(style)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/css")


def test_the_api_is_documented(site: Uvicorn) -> None:
    """The page of the API needs nothing from the internet, and its document has the plugin's routes last."""
    page = site.get("/docs").text
    pytest.importorskip("fastapi_offline", reason="fastapi-offline is not installed")
    for address in re.findall(r'(?:href|src)="([^"]+)"', page):
        assert address.startswith("/"), address
        assert site.get(address).status_code == 200
    paths = site.get("/openapi.json").json()["paths"]
    api = ["/api/topics/", "/api/topics/{pk}"]
    assert list(paths) == ["/", "/topics/{pk}", "/longest/", *api, "/refresh/", "/health/"]


def test_the_sample_is_healthy(site: Uvicorn, board: Board) -> None:
    """The health route answers in front of the mounted site; MariaDB needs a broker, and that is said."""
    health = site.get("/health/").json()
    if (board.environment["DATABASE_URL"] or "").startswith("mysql"):
        assert health["status"] == "degraded"
        assert all("redis://" in each["unheard"] for each in health["repositories"].values())
    else:
        assert health["status"] == "ok"


def test_an_unknown_path_is_not_found(site: Uvicorn) -> None:
    """A path that neither FastAPI nor Django knows is a 404 of Django's."""
    missing = site.get("/nothing/here/")
    assert missing.status_code == 404
    assert missing.headers["Content-Type"].startswith("text/html")


def test_nothing_goes_wrong_in_the_log(site: Uvicorn) -> None:
    """No request of an ordinary visit ends in an error that the server logs."""
    for path in ("/", "/docs", "/board/", "/admin/login/", "/refresh/", "/health/"):
        assert site.get(path).status_code == 200
    assert "Traceback" not in site.output()


def test_without_triggers_the_health_says_so(postgresql: PostgreSQL, tmp_path: Path) -> None:
    """On PostgreSQL the application is degraded until the command runs that its log names."""
    board = Board(tmp_path / "sample", postgresql.create_database("untold"))
    try:
        board.manage("migrate", "--verbosity", "0")
        with board.serve(DJANGO_ORM_COHERENCE_HEARTBEAT="0.5") as server:
            assert server.get("/health/").json()["status"] == "degraded"
            found = re.search(r"hint='python manage\.py (.+?)'", server.output())
            assert found is not None, server.output()
            board.manage(*found[1].split())
            wait_until(lambda: server.get("/health/").json()["status"] == "ok", "all is well")
    finally:
        postgresql.drop_database("untold")


# Beyond one's own machine


@pytest.fixture
def local(tmp_path: Path) -> Board:
    """The sample on SQLite, empty."""
    board = Board(tmp_path / "sample", None)
    board.manage("migrate", "--verbosity", "0")
    return board


def test_in_production_nothing_is_open(local: Board) -> None:
    """With `DEBUG=off` the demo adds no user whose password everybody knows, and refreshing wants a token."""
    public = {"DEBUG": "off", "SECRET_KEY": "s" * 50, "ALLOWED_HOSTS": "127.0.0.1"}
    assert "Admin: none added" in local.manage("demo", **public)
    with local.serve(**public) as server:
        assert len(comments(server.get("/"))) == 6
        assert server.get("/board/").status_code == 200
        refused = server.get("/refresh/")
        assert refused.status_code == 403
        assert "DJANGO_ORM_REFRESH_TOKEN" in refused.json()["detail"]


def test_in_production_a_secret_key_is_needed(local: Board) -> None:
    """With `DEBUG=off` and no key the application does not start, and says which variable to set."""
    code, output = Uvicorn.fails(directory=local.directory, env={**local.environment, "DEBUG": "off"})
    assert code != 0
    assert "Set SECRET_KEY" in output


def test_an_empty_board_is_an_empty_list(local: Board) -> None:
    """Before the demo's data there are no topics, and everything answers."""
    with local.serve() as server:
        assert server.get("/").json() == {"topics": []}
        assert server.get("/longest/").json() is None
        assert "No topics yet." in server.get("/board/").text
        assert server.get("/health/").status_code == 200


def test_without_migrations_the_error_says_migrate(tmp_path: Path) -> None:
    """A fresh copy that nobody has migrated does not start, and names the command to run."""
    board = Board(tmp_path / "sample", None)
    code, output = Uvicorn.fails(directory=board.directory, env=board.environment)
    assert code != 0
    assert "manage.py migrate" in output


def test_the_readme_of_the_sample_lists_paths_that_answer(local: Board) -> None:
    """Every path in the README's table is served."""
    local.manage("demo")
    paths = re.findall(r"^\| `(/[^`]*)` \|", (SAMPLE / "README.md").read_text(), re.MULTILINE)
    assert len(paths) >= 8
    with local.serve() as server:
        statuses: dict[str, Any] = {
            path: server.get(path, follow_redirects=True).status_code for path in paths
        }
    assert set(statuses.values()) == {200}, statuses
