"""The servers of the tests start, answer real clients, survive a kill and leave nothing behind."""

import contextlib
import functools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import psutil
import psycopg
import pymysql
import pytest
import redis
from pymysql.cursors import Cursor

from tests.support.servers import MariaDB, PostgreSQL, Server, TCPProxy, Uvicorn, UvicornError, Valkey
from tests.support.servers.guard import is_alive

DEADLINE = 30.0
APP = """
import os

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        if os.environ.get("BREAK"):
            message = "the reason why it broke"
            await send({"type": "lifespan.startup.failed", "message": message})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    while (await receive()).get("more_body"):
        pass
    print("asked for", scope["path"])
    body = f"{scope['method']} {os.environ.get('WORD')} {os.getpid()}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})
"""


def ready(kind: type[Server]) -> None:
    """Skip where the server is absent or is somebody else's."""
    reason = kind.unavailable()
    if reason is not None:
        pytest.skip(reason)


def ask(server: Server) -> str:
    """Ask a server who it is, through the client that an application would use."""
    if isinstance(server, PostgreSQL):
        with psycopg.connect(server.url(), connect_timeout=5) as connection:
            row = connection.execute("SELECT version()").fetchone()
            assert row is not None
            return str(row[0])
    if isinstance(server, MariaDB):
        with mariadb(server) as mysql, mysql.cursor() as cursor:
            cursor.execute("SELECT version()")
            found = cursor.fetchone()
            assert found is not None
            return str(found[0])
    with redis.Redis.from_url(server_url(server), socket_timeout=5) as client:
        return f"{client.info('server')['server_name']}".title()


def write(server: Server) -> None:
    """Commit something, if the server keeps data."""
    if isinstance(server, PostgreSQL):
        with psycopg.connect(server.url(), connect_timeout=5) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 1 AS id")
    if isinstance(server, MariaDB):
        with mariadb(server) as mysql, mysql.cursor() as cursor:
            cursor.execute("CREATE TABLE kept (id INT) ENGINE=InnoDB")
            cursor.execute("INSERT INTO kept VALUES (1)")
            mysql.commit()


def kept(server: Server) -> bool:
    """Tell whether what `write` committed is there."""
    if isinstance(server, PostgreSQL):
        with psycopg.connect(server.url(), connect_timeout=5) as connection:
            return connection.execute("SELECT id FROM kept").fetchall() == [(1,)]
    if isinstance(server, MariaDB):
        with mariadb(server) as mysql, mysql.cursor() as cursor:
            cursor.execute("SELECT id FROM kept")
            return cursor.fetchall() == ((1,),)
    return True


def server_url(server: Server) -> str:
    """Return the URL of a server of unknown kind."""
    assert isinstance(server, PostgreSQL | MariaDB | Valkey)
    return server.url()


def mariadb(server: MariaDB, database: str | None = None) -> "pymysql.Connection[Cursor]":
    """Connect to a MariaDB of these tests."""
    parts = urlsplit(server.url(database))
    return pymysql.connect(
        host=parts.hostname or "127.0.0.1",
        port=parts.port or 3306,
        user=unquote(parts.username or "root"),
        password=unquote(parts.password or ""),
        database=parts.path.lstrip("/"),
        connect_timeout=5,
        read_timeout=5,
    )


def eventually(measure: Callable[[], object], expected: object) -> None:
    """Wait until what a server or the system shows is what it should be."""
    end = time.monotonic() + DEADLINE
    while (found := measure()) != expected:
        assert time.monotonic() < end, f"still {found!r}, not {expected!r}"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def postgresql() -> Iterator[PostgreSQL]:
    """One PostgreSQL for the tests that do not end it."""
    ready(PostgreSQL)
    with PostgreSQL() as server:
        yield server


@pytest.fixture(scope="module")
def maria() -> Iterator[MariaDB]:
    """One MariaDB for the tests that do not end it."""
    ready(MariaDB)
    with MariaDB() as server:
        yield server


@pytest.mark.parametrize("kind", [PostgreSQL, MariaDB, Valkey])
def test_answers_survives_a_kill_and_leaves_nothing(kind: type[Server]) -> None:
    """A server answers, comes back on its port after SIGKILL and restart, and leaves nothing."""
    ready(kind)
    server = kind()
    if server.external:
        pytest.skip(f"{kind.variable} is set: that server is not ours to kill.")
    with server:
        assert server.name in ask(server)
        port, first, directory = server.port, server.pid, server.directory
        write(server)
        assert first is not None
        tree = [psutil.Process(first), *psutil.Process(first).children(recursive=True)]
        server.kill()
        assert not any(is_alive(process) for process in tree)
        with pytest.raises((psycopg.OperationalError, pymysql.Error, redis.ConnectionError)):
            ask(server)
        server.start()
        assert server.name in ask(server)
        assert kept(server)
        server.restart()
        assert server.name in ask(server)
        assert kept(server)
        assert server.port == port
        last = server.pid
        assert last is not None
        tree = [psutil.Process(last), *psutil.Process(last).children(recursive=True)]
    assert not any(is_alive(process) for process in tree)
    assert not directory.exists()


@pytest.mark.parametrize("kind", [PostgreSQL, MariaDB, Valkey])
def test_a_taken_port_is_replaced(kind: type[Server], monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that finds its port taken starts on another one."""
    ready(kind)
    if kind().external:
        pytest.skip(f"{kind.variable} is set: nothing is started.")
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        ports = [taken.getsockname()[1], free.getsockname()[1]]
        free.close()
        monkeypatch.setattr("tests.support.servers.base.free_port", iter(ports).__next__)
        with kind() as server:
            assert server.port == ports[1]
            assert server.name in ask(server)


def test_an_error_shows_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that cannot start raises an error with its log and leaves no directory."""
    ready(Valkey)
    monkeypatch.delenv(Valkey.variable, raising=False)

    class Broken(Valkey):
        def _command(self) -> list[str]:
            return [*super()._command(), "--no-such-option", "1"]

    server = Broken()
    with pytest.raises(RuntimeError, match="no-such-option"):
        server.start()
    assert server.pid is None
    with pytest.raises(RuntimeError, match="no directory"):
        _ = server.directory


def test_a_server_from_the_environment_is_not_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server that a variable names is used, and what would end it skips with the reason."""
    ready(Valkey)
    monkeypatch.delenv(Valkey.variable, raising=False)
    with Valkey() as own:
        monkeypatch.setenv(Valkey.variable, own.url())
        with Valkey() as server:
            assert server.url() == own.url()
            with pytest.raises(pytest.skip.Exception, match="TEST_REDIS_URL"):
                server.kill()
        assert "Valkey" in ask(own)


def test_postgresql_counts_and_cuts_clients(postgresql: PostgreSQL) -> None:
    """Connections and open transactions are counted from the server's side and can be ended."""
    postgresql.drop_database("counted")
    url = postgresql.create_database("counted")
    try:
        assert postgresql.connections("counted") == 0
        with contextlib.closing(psycopg.connect(url)) as connection:
            assert postgresql.connections("counted") == 1
            assert postgresql.in_transaction("counted") == 0
            connection.execute("SELECT 1")
            eventually(lambda: postgresql.in_transaction("counted"), 1)
            assert postgresql.terminate_backends("counted") == 1
            assert postgresql.connections("counted") == 0
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT 1")
    finally:
        postgresql.drop_database("counted")


def test_postgresql_folds_the_case_of_any_letter(postgresql: PostgreSQL) -> None:
    """Django's `icontains` works beyond ASCII, as on a server with a locale."""
    with psycopg.connect(postgresql.url(), connect_timeout=5) as connection:
        row = connection.execute("SELECT upper('é'), current_setting('timezone')").fetchone()
    assert row == ("É", "UTC")


def test_mariadb_counts_and_cuts_clients(maria: MariaDB) -> None:
    """Connections and open transactions are counted from the server's side and can be ended."""
    maria.drop_database("counted")
    maria.create_database("counted")
    try:
        assert maria.connections("counted") == 0
        with contextlib.closing(mariadb(maria, "counted")) as connection:
            assert maria.connections("counted") == 1
            with connection.cursor() as cursor:
                cursor.execute("CREATE TABLE t (id INT) ENGINE=InnoDB")
                assert maria.in_transaction("counted") == 0
                cursor.execute("INSERT INTO t VALUES (1)")
            eventually(lambda: maria.in_transaction("counted"), 1)
            assert maria.terminate_backends("counted") == 1
            eventually(lambda: maria.connections("counted"), 0)
            with pytest.raises(type(connection).OperationalError), connection.cursor() as cursor:
                cursor.execute("SELECT 1")
    finally:
        maria.drop_database("counted")


@pytest.fixture
def echo() -> Iterator[tuple[str, int]]:
    """Run a server that sends back what it gets, until its client has gone."""

    def serve(client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            while data := client.recv(65_536):
                client.sendall(data)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                thread = threading.Thread(target=serve, args=[client])
                thread.start()
                threads.append(thread)

    threads: list[threading.Thread] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threads.append(threading.Thread(target=accept))
        threads[0].start()
        yield listener.getsockname()
        listener.shutdown(socket.SHUT_RDWR)
        threads[0].join(DEADLINE)
    for thread in threads:
        thread.join(DEADLINE)
        assert not thread.is_alive()


def talk(connection: socket.socket, word: bytes = b"hello") -> float:
    """Send a word, get it back, and return the seconds it took."""
    start = time.monotonic()
    connection.sendall(word)
    assert connection.recv(100) == word
    return time.monotonic() - start


def test_the_proxy_forwards_and_leaves_nothing(echo: tuple[str, int]) -> None:
    """The proxy forwards, counts, passes an end on, and closes every socket and its thread."""
    threads, files = threading.active_count(), psutil.Process().num_fds()
    with TCPProxy(*echo) as proxy:
        with socket.create_connection((proxy.host, proxy.port), DEADLINE) as connection:
            talk(connection)
            assert proxy.connections == 1
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1) == b""
        eventually(lambda: proxy.connections, 0)
        left = socket.create_connection((proxy.host, proxy.port), DEADLINE)
        talk(left)
    with left:
        assert left.recv(1) == b""
    # The echo server's threads end when their clients have.
    eventually(threading.active_count, threads)
    eventually(psutil.Process().num_fds, files)


def test_the_proxy_can_be_a_black_hole(echo: tuple[str, int]) -> None:
    """In a black hole nothing arrives and nothing breaks; afterwards all of it arrives."""
    with (
        TCPProxy(*echo) as proxy,
        socket.create_connection((proxy.host, proxy.port), DEADLINE) as connection,
    ):
        talk(connection)
        proxy.black_hole()
        connection.settimeout(0.3)
        connection.sendall(b"lost")
        with pytest.raises(TimeoutError):
            connection.recv(100)
        with socket.create_connection((proxy.host, proxy.port), DEADLINE) as other:
            other.settimeout(0.3)
            other.sendall(b"lost")
            with pytest.raises(TimeoutError):
                other.recv(100)
        proxy.resume()
        connection.settimeout(DEADLINE)
        assert connection.recv(100) == b"lost"


def test_the_proxy_resets_slows_and_refuses(echo: tuple[str, int]) -> None:
    """Each kind of bad weather comes on command and ends with resume."""
    with TCPProxy(*echo) as proxy:
        address = (proxy.host, proxy.port)
        with socket.create_connection(address, DEADLINE) as connection:
            talk(connection)
            proxy.reset()
            with pytest.raises(ConnectionResetError):
                connection.recv(1)
            assert proxy.connections == 0
        with socket.create_connection(address, DEADLINE) as connection:
            talk(connection)
            proxy.slow(0.4)
            talk(connection)  # The one that was being read may have missed the change.
            assert talk(connection) >= 0.8
            proxy.refuse()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(address, DEADLINE)
            proxy.resume()
            talk(connection)
            with socket.create_connection(address, DEADLINE) as other:
                assert talk(other) < 0.8


def test_the_proxy_stands_before_a_database(postgresql: PostgreSQL) -> None:
    """A client behind a black hole waits, and a reset tells it at once."""
    if postgresql.external:
        pytest.skip("TEST_POSTGRES_URL is set: its address may need more than a host and a port.")
    with TCPProxy("127.0.0.1", postgresql.port) as proxy:
        url = postgresql.url().replace(f":{postgresql.port}", f":{proxy.port}")
        with contextlib.closing(psycopg.connect(url, connect_timeout=5)) as connection:
            connection.execute("SELECT 1")
            proxy.reset()
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT 1")
        proxy.black_hole()
        with pytest.raises(psycopg.OperationalError, match="timeout"):
            psycopg.connect(url, connect_timeout=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make a folder with an application in `main.py`."""
    (tmp_path / "main.py").write_text(APP)
    return tmp_path


def test_uvicorn_answers_and_stops_like_after_ctrl_c(folder: Path) -> None:
    """Uvicorn serves the application with its environment, is read live, and ends by itself."""
    with Uvicorn("main:app", directory=folder, env={"WORD": "hello"}) as server:
        assert server.get("/").text.startswith("GET hello ")
        assert server.post("/", content=b"x").text.startswith("POST hello ")
        server.get("/here")
        assert server.wait_for_output(r"^asked for (/here)$")[1] == "/here"
        with pytest.raises(UvicornError, match="Uvicorn running"):
            server.wait_for_output("never", deadline=0.1)
        process = psutil.Process(server.pid)
        assert server.stop() == 0
    assert not is_alive(process)
    assert "Finished server process" in server.output()


def test_uvicorn_runs_workers_and_leaves_none(folder: Path) -> None:
    """With several workers a kill and a stop end all of them."""
    server = Uvicorn("main:app", directory=folder, args=["--workers", "2"])
    with contextlib.closing(server):
        for end in (server.stop, server.kill):
            server.start()
            root = psutil.Process(server.pid)
            tree = [root, *root.children(recursive=True)]
            assert server.get("/").status_code == 200
            end()
            assert not any(is_alive(process) for process in tree)


def test_uvicorn_replaces_a_taken_port(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uvicorn that finds its port taken starts on another one."""
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        ports = [taken.getsockname()[1], free.getsockname()[1]]
        free.close()
        monkeypatch.setattr("tests.support.servers.uvicorn.free_port", iter(ports).__next__)
        with Uvicorn("main:app", directory=folder) as server:
            assert server.port == ports[1]
            assert server.get("/").status_code == 200


def test_uvicorn_that_must_fail_is_read_to_its_end(folder: Path) -> None:
    """A failed start gives its code and output; started otherwise, an error holds the output."""
    code, output = Uvicorn.fails("main:app", directory=folder, env={"BREAK": "1"})
    assert code != 0
    assert "the reason why it broke" in output
    with pytest.raises(UvicornError, match="the reason why it broke"):
        Uvicorn("main:app", directory=folder, env={"BREAK": "1"}).start()
    with pytest.raises(UvicornError, match="should have failed"):
        Uvicorn.fails("main:app", directory=folder)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_when_the_tests_are_killed(
    number: signal.Signals, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Servers and their directories go when pytest is interrupted, terminated or killed."""
    for kind in (PostgreSQL, Valkey):
        ready(kind)
        monkeypatch.delenv(kind.variable, raising=False)
    (folder / "test_killed.py").write_text(
        "import time\n"
        "from tests.support.servers import PostgreSQL, Uvicorn, Valkey\n"
        "def test_waits():\n"
        f"    app = Uvicorn('main:app', directory={str(folder)!r})\n"
        "    with PostgreSQL() as database, Valkey() as cache, app:\n"
        "        print(database.pid, cache.pid, app.pid)\n"
        "        print(database.directory, cache.directory, flush=True)\n"
        "        time.sleep(60)\n"
    )
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        [sys.executable, "-m", "pytest", "-s", "-q", "-p", "no:cacheprovider", "test_killed.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    ) as tests:
        watchdog = threading.Timer(DEADLINE, tests.kill)
        watchdog.start()
        assert tests.stdout is not None
        lines = (line.split() for line in tests.stdout)
        pids = next(words for words in lines if words and words[0].isdigit())
        directories = next(lines)
        processes = [psutil.Process(int(pid)) for pid in pids]
        tests.send_signal(number)
        tests.communicate(timeout=DEADLINE)
        watchdog.cancel()
        watchdog.join()
    for process in processes:
        eventually(functools.partial(is_alive, process), False)
    for directory in directories:
        eventually(Path(directory).exists, False)
