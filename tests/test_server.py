"""Published answers below ASGI: whatever is sent to the protocol, the bytes are those of uvicorn's own."""

import asyncio
import hashlib
import inspect
import re
import resource
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import h11
import httpx
import pytest
import structlog
import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.middleware.cors import CORSMiddleware
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fastapi_django_orm import CachedRepository, DjangoORM, Repository
from fastapi_django_orm.server import Published
from tests.project.board.models import Topic
from tests.support.databases import wait_until
from tests.support.projects import PUBLISHING, Project
from tests.support.servers import Gunicorn
from tests.support.serving import DEADLINE, serving

BELOW = "fastapi_django_orm.server:Published"


@pytest.fixture
def logs() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as captured:
        yield captured


def repository(path: str = "/topics/", kind: type[Any] = CachedRepository, **attributes: Any) -> type[Any]:
    body = {"model": "board.Topic", "fields": ("id", "comment"), "publish": path, "ordering": ("pk",)}
    return type("Topics", (kind,), body | attributes)


def application(kind: type[Any] = CachedRepository, **options: Any) -> FastAPI:
    """An application with a published list, and with routes of its own that say what has reached them."""
    app = FastAPI(lifespan=DjangoORM(repositories=[repository(kind=kind)]).lifespan, **options)

    @app.get("/topics/latest")
    async def latest() -> str:
        return "own"

    @app.api_route("/echo", methods=["GET", "POST", "PUT"])
    async def echo(request: Request) -> dict[str, Any]:
        body = await request.body()
        return {"method": request.method, "query": request.url.query, "body": body.decode("latin-1")}

    return app


@contextmanager
def address(app: FastAPI, **options: Any) -> Iterator[tuple[str, int]]:
    """Where a real uvicorn serves the application."""
    with serving(app, **options) as client:
        assert client.base_url.port is not None
        yield client.base_url.host, client.base_url.port


@pytest.fixture
def rows(sqlite: str) -> None:
    Topic.objects.bulk_create([Topic(pk=pk, comment=f"topic {pk} " * 12) for pk in range(1, 31)])


# What a client may send. Each is answered, whatever it is, so that the answers can be counted.
REQUESTS = [
    b"GET /topics/ HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /topics/ HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip\r\n\r\n",
    b"GET /topics/ HTTP/1.1\r\nHost: a\r\nAccept-Encoding: br;q=0.5, gzip;q=0.1\r\n\r\n",
    b"GET /topics/ HTTP/1.1\r\nHost: a\r\nIf-None-Match: *\r\n\r\n",
    b'GET /topics/ HTTP/1.1\r\nHost: a\r\nIf-None-Match: "x"\r\n\r\n',
    b"GET /topics/ HTTP/1.1\r\nHost: a\r\nIf-Modified-Since: Fri, 31 Dec 2099 23:59:59 GMT\r\n\r\n",
    b"GET /topics/ HTTP/1.1\r\nHost: a\r\nRange: bytes=0-10\r\n\r\n",
    b"HEAD /topics/ HTTP/1.1\r\nHost: a\r\n\r\n",
    b"HEAD /topics/ HTTP/1.1\r\nHost: a\r\nIf-None-Match: *\r\n\r\n",
    b"GET /topics/?limit=5 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /topics/?offset=3&limit=5 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /topics/?limit=0 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /topics/?unknown=1 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /topics/? HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /topics HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /topics// HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET //topics/ HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /%74opics/ HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /topics/#part HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET http://a/topics/ HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /topics/1 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /topics/%31 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /topics/01 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /topics/999 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /topics/none HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /topics/1?x=1 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /topics/latest HTTP/1.1\r\nHost: a\r\n\r\n",
    b"HEAD /topics/2 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST /topics/ HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
    b"GET /topics/ HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
    b"GET /topics/ HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
    b"GET /topics/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    b"DELETE /topics/1 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"OPTIONS /topics/ HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /topics/ HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nConnection: keep-alive\r\n\r\n",
    b"GET /topics/ HTTP/1.1\r\nhOST:a\r\nX-Long: " + b"x" * 5000 + b"\r\n\r\n",
    b"GET /topics/ HTTP/1.1\r\nHost: a\r\nConnection: Keep-Alive\r\n\r\n",
    b"GET /topics/ HTTP/1.1\r\n\r\n",
    b"GET /echo?a=b HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody",
    b"PUT /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n",
    b"GET /missing HTTP/1.1\r\nHost: a\r\n\r\n",
]
# After which the server closes the connection.
LAST = [
    b"GET /topics/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    b"GET /topics/1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    b"HEAD /topics/1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    b"GET /topics/ HTTP/1.0\r\n\r\n",
    b"GET /topics/1 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b"GET /echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    b"NO SENSE AT ALL\r\n\r\n",
    b"GET /topics/ HTTP/1.1\r\nHost: a\r\nHost : b\r\n\r\n",
    b"GET /topics/ HTTP/9.9\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
]


def pieces(data: bytes, cuts: Sequence[int]) -> Iterator[bytes]:
    """The data, cut at these places."""
    places = sorted({cut % (len(data) + 1) for cut in cuts})
    for start, end in zip([0, *places], [*places, len(data)], strict=True):
        if data[start:end]:
            yield data[start:end]


def exchanged(place: tuple[str, int], requests: Sequence[bytes], last: bytes, cuts: Sequence[int]) -> bytes:
    """What a server sends to a client that pipelines requests, in pieces, and then sends a last one.

    The last one goes when all others are answered: uvicorn answers what it cannot parse at once, before
    earlier requests.
    """
    received = b""
    with socket.create_connection(place, DEADLINE) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces(b"".join(requests), cuts):
            connection.sendall(piece)
        answered = Answers(requests)
        while not answered.complete(received):
            received += receive(connection)
        connection.sendall(last)
        while piece := receive(connection, may_end=True):
            received += piece
    return without_date(received)


class Answers:
    """Judges, by h11, whether the answers to some requests have all come."""

    def __init__(self, requests: Sequence[bytes]) -> None:
        self._methods = [request.split(b" ", 1)[0].decode() for request in requests]

    def complete(self, received: bytes) -> bool:
        """Whether each of the requests has its answer."""
        client = h11.Connection(h11.CLIENT)
        if received:  # nothing would mean the end
            client.receive_data(received)
        for method in self._methods:
            client.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
            client.send(h11.EndOfMessage())
            while not isinstance(event := client.next_event(), h11.EndOfMessage):
                if event is h11.NEED_DATA:
                    return False
            if client.their_state is h11.DONE:
                client.start_next_cycle()
        return True


def receive(connection: socket.socket, *, may_end: bool = False) -> bytes:
    piece = connection.recv(2**16)
    assert piece or may_end, "the server has closed the connection"
    return piece


def without_date(received: bytes) -> bytes:
    """The bytes without the moments at which they were sent, and at which either application has loaded."""
    return re.sub(rb"\r\n(date|last-modified): [^\r]*", rb"\r\n\1: now", received)


@pytest.fixture(params=[CachedRepository, Repository], ids=["cached", "live"])
def both(request: pytest.FixtureRequest, rows: None) -> Iterator[tuple[tuple[str, int], tuple[str, int]]]:
    """The same application behind this protocol and behind uvicorn's own."""
    with (
        address(application(request.param), http=Published) as below,
        address(application(request.param), http=HttpToolsProtocol) as own,
    ):
        for place in below, own:  # compressed once, so that no answer depends on the order of the requests
            for coding in "gzip", "br", "zstd":
                httpx.get(f"http://{place[0]}:{place[1]}/topics/", headers={"Accept-Encoding": coding})
        yield below, own


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    requests=st.lists(st.sampled_from(REQUESTS), max_size=6),
    last=st.sampled_from(LAST),
    cuts=st.lists(st.integers(0, 10_000), max_size=8),
)
def test_the_bytes_are_uvicorns_own(both: Any, requests: list[bytes], last: bytes, cuts: list[int]) -> None:
    """Whatever is pipelined, in whatever pieces, is answered byte by byte as uvicorn answers it."""
    below, own = (exchanged(place, requests, last, cuts) for place in both)
    assert below == own


def test_each_request_byte_by_byte(both: Any) -> None:
    """A request that comes in single bytes is answered as one that comes whole."""
    for request in REQUESTS:
        below, own = (exchanged(place, [request], LAST[0], range(min(len(request), 300))) for place in both)
        assert below == own, request


class Counting(FastAPI):
    """An application that counts the calls that reach it."""

    calls = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.calls += scope["type"] == "http"
        await super().__call__(scope, receive, send)


def counting(*repositories: type[Any], **options: Any) -> Counting:
    plugin = DjangoORM(repositories=repositories or [repository()])
    return Counting(lifespan=plugin.lifespan, **options)


PLAIN = ["/topics/", "/topics/?limit=5", "/topics/?offset=2&limit=3", "/topics/7"]


@pytest.mark.parametrize("path", PLAIN)
def test_what_is_ready_does_not_reach_the_application(rows: None, path: str) -> None:
    """GET, HEAD and conditional requests for published lists, windows and rows are answered below ASGI."""
    app = counting()
    with serving(app, http=BELOW) as client:
        answer = client.get(path, headers={"Accept-Encoding": "identity"})
        assert answer.status_code == 200
        tag = {"If-None-Match": answer.headers["ETag"]}
        assert client.get(path, headers=tag | {"Accept-Encoding": "identity"}).status_code == 304
        head = client.head(path, headers={"Accept-Encoding": "identity"})
        assert (head.status_code, head.headers["ETag"]) == (200, answer.headers["ETag"])
        assert app.calls == 0


def test_what_is_read_for_a_request_does_not_reach_the_application(rows: None) -> None:
    """Rows of a live repository are answered below ASGI; the application says that a row is not there."""
    app = counting(repository(kind=Repository))
    with serving(app, http=BELOW) as client:
        assert [client.get(path).status_code for path in PLAIN] == [200] * len(PLAIN)
        tag = {"If-None-Match": client.get("/topics/7").headers["ETag"]}
        assert client.get("/topics/7", headers=tag).status_code == 304
        assert client.head("/topics/7").status_code == 200
        Topic.objects.filter(pk=7).update(comment="new")
        assert client.get("/topics/7", headers=tag).json()["comment"] == "new"
        assert app.calls == 0
        assert client.get("/topics/999").status_code == 404
        assert app.calls == 1


@pytest.mark.parametrize("mortal", ["postgresql"], indirect=True)
def test_live_reads_while_the_database_is_down(mortal: Any, logs: list[Any]) -> None:
    """The application answers 503, after one try; rows are read below it again when the server is back."""
    Topic.objects.create(pk=1, comment="first")
    app = counting(repository(kind=Repository))
    with serving(app, http=BELOW) as client:
        assert client.get("/topics/1").json()["comment"] == "first"
        mortal.kill()
        down = client.get("/topics/1")
        assert (down.status_code, down.headers["Retry-After"], app.calls) == (503, "1", 1)
        assert len([entry for entry in logs if entry["event"] == "live_read_failed"]) == 1
        mortal.start()
        wait_until(lambda: client.get("/topics/1").status_code == 200, "row is read")
        before = app.calls
        assert client.get("/topics/1").json()["comment"] == "first"
        assert app.calls == before


def test_live_answers_in_a_pipeline(rows: None) -> None:
    """Answers that wait for the database come in the order of their requests, beside those that are ready."""
    app = FastAPI(
        lifespan=DjangoORM(
            repositories=[repository(), repository("/live/", Repository, name="live")]
        ).lifespan
    )
    paths = [f"/{kind}/{pk}" for pk in range(1, 21) for kind in ("live", "topics")]
    requests = [f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode() for path in paths]
    with address(app, http=BELOW) as place, socket.create_connection(place, DEADLINE) as connection:
        connection.sendall(b"".join(requests))
        received, answered = b"", Answers(requests)
        while not answered.complete(received):
            received += receive(connection)
    keys = [int(key) for key in re.findall(rb'"id":(\d+)', received)]
    assert keys == [pk for pk in range(1, 21) for _ in range(2)]


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd"])
def test_each_coding_is_answered_below(rows: None, coding: str) -> None:
    """Until a content coding was made clients get the bytes as they are, and the application none of them."""
    app = counting()
    with serving(app, http=BELOW) as client:
        deadline = time.monotonic() + DEADLINE
        first = answer = client.get("/topics/", headers={"Accept-Encoding": coding})
        while "Content-Encoding" not in answer.headers:
            assert time.monotonic() < deadline
            answer = client.get("/topics/", headers={"Accept-Encoding": coding})
        assert first.json()["topics"]
        assert "Content-Encoding" not in first.headers
        assert answer.headers["Content-Encoding"] == coding
        assert answer.headers["ETag"] != first.headers["ETag"]
        assert app.calls == 0


def test_a_list_that_is_refreshed_is_answered_anew(rows: None) -> None:
    """The next request after a refresh has the rows that it has read."""
    topics = repository()
    app = FastAPI(lifespan=DjangoORM(repositories=[topics]).lifespan)

    @app.post("/change")
    async def change(topics: Annotated[Any, Depends(topics.current)]) -> None:
        await Topic.objects.filter(pk=1).aupdate(comment="changed")
        await topics.refresh(1)

    with serving(app, http=BELOW) as client:
        before = client.get("/topics/1")
        client.post("/change")
        after = client.get("/topics/1")
        assert after.json()["comment"] == "changed"
        assert after.headers["ETag"] != before.headers["ETag"]


# Guards


def test_dependencies_of_the_application_guard_what_is_published(rows: None) -> None:
    """Where the application has dependencies for all its routes, nothing is answered below ASGI."""

    def locked() -> None:
        raise HTTPException(401)

    with serving(counting(dependencies=[Depends(locked)]), http=BELOW) as client:
        assert [client.get(path).status_code for path in PLAIN] == [401] * len(PLAIN)


def test_routes_by_host_keep_their_requests(rows: None) -> None:
    """An application that serves another host leaves the choice to its router."""
    app, other = counting(), FastAPI()

    @other.get("/topics/{path:path}")
    async def own() -> str:
        return "own"

    app.host("other.example", other)
    with serving(app, http=BELOW) as client:
        assert client.get("/topics/", headers={"Host": "other.example"}).json() == "own"
        assert "topics" in client.get("/topics/").json()


def test_the_applications_own_routes_win(rows: None) -> None:
    """A path below the published one that the application serves is the application's, as under ASGI."""
    app = counting()

    @app.get("/topics/7")
    async def seven() -> str:
        return "own"

    @app.head("/topics/8")
    async def eight() -> None:
        raise HTTPException(418)

    with serving(app, http=BELOW) as client:
        assert client.get("/topics/7").json() == "own"
        assert client.get("/topics/8").json()["id"] == 8
        assert client.head("/topics/8").status_code == 418


@pytest.mark.parametrize("header", ["X-Forwarded-Prefix", "X-Original-URL", "X-Script-Name"])
def test_a_path_that_a_proxy_has_changed_is_left_to_the_application(rows: None, header: str) -> None:
    """Headers by which a proxy changes the path are for the application to read."""
    app = counting()
    with serving(app, http=BELOW) as client:
        client.get("/topics/", headers={header: "/elsewhere"})
        assert app.calls == 1


def test_middleware_that_is_passed_by_is_named(rows: None, logs: list[Any]) -> None:
    """At startup one line of the log names the middleware that published answers do not pass."""
    app = counting()
    app.add_middleware(CORSMiddleware, allow_origins=["*"])
    with serving(app, http=BELOW) as client:
        assert (
            "Access-Control-Allow-Origin"
            not in client.get("/topics/", headers={"Origin": "http://a"}).headers
        )
    (line,) = (entry for entry in logs if entry["event"] == "published_below_middleware")
    assert line["middleware"] == ["CORSMiddleware"]
    assert line["paths"] == ["/topics/", "/topics/{pk}"]


# Where an application is served


@pytest.mark.filterwarnings("ignore:The `root_path` parameter is deprecated")
@pytest.mark.parametrize(
    ("of_server", "of_app", "path", "found"),
    [
        ("", "", "/topics/", True),
        ("/api", "", "/topics/", True),
        ("/api", "", "/api/topics/", False),
        ("", "/api", "/topics/", True),
        ("", "/api", "/api/topics/", True),
        ("/api", "/api", "/topics/", True),
    ],
)
def test_root_paths(rows: None, of_server: str, of_app: str, path: str, found: bool) -> None:
    """Behind a proxy, told by the server or by the application, a URL means what it means under ASGI."""
    statuses = []
    for http in BELOW, "httptools":
        with serving(application(root_path=of_app), http=http, root_path=of_server) as client:
            statuses.append(client.get(path).status_code)
    assert statuses == [200 if found else 404] * 2


def test_two_servers_in_one_process(rows: None) -> None:
    """Each answers for its own application, and one that has ended for none."""
    Topic.objects.filter(pk__gt=2).delete()
    few = counting(repository(queryset=lambda self: Topic.objects.filter(pk=1)))
    with serving(counting(), http=BELOW) as all_, serving(few, http=BELOW) as one:
        assert len(all_.get("/topics/").json()["topics"]) == 2
        assert len(one.get("/topics/").json()["topics"]) == 1


def test_an_application_without_the_plugin(rows: None) -> None:
    """The protocol behaves as uvicorn's own."""
    app = FastAPI()

    @app.get("/topics/")
    async def own() -> str:
        return "own"

    with serving(app, http=BELOW) as client:
        assert client.get("/topics/").json() == "own"


def test_an_application_that_is_wrapped(rows: None) -> None:
    """What the server is given may be around the application, as long as it keeps it as `app`."""
    app = counting()
    with serving(app, around=lambda app: CORSMiddleware(app, allow_origins=["*"]), http=BELOW) as client:
        assert client.get("/topics/1").status_code == 200
    assert app.calls == 0


# What the server sees to


def test_requests_are_counted_and_limited(rows: None) -> None:
    """`--limit-max-requests` counts what is answered below ASGI."""
    config = uvicorn.Config(application(), http=BELOW, port=0, limit_max_requests=5, log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    with ExitStack() as stack:
        stack.callback(thread.join, DEADLINE)
        while not server.started:
            thread.join(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        for _ in range(5):
            assert httpx.get(f"http://127.0.0.1:{port}/topics/").status_code == 200
    assert not thread.is_alive()


def test_the_limit_on_concurrency(rows: None) -> None:
    """Beyond `--limit-concurrency` a request gets uvicorn's 503."""
    with address(application(), http=BELOW, limit_concurrency=2) as place, ExitStack() as stack:
        connections = [stack.enter_context(socket.create_connection(place, DEADLINE)) for _ in range(3)]
        statuses = []
        for connection in connections:
            connection.sendall(REQUESTS[0])
            statuses.append(receive(connection)[:12])
    assert b"HTTP/1.1 503" in statuses


@pytest.mark.parametrize("path", ["/topics/", "/topics/7", "/topics/?offset=1&limit=2"])
def test_the_access_log_has_uvicorns_lines(rows: None, path: str, caplog: pytest.LogCaptureFixture) -> None:
    """A line is what uvicorn's own protocol writes for the same request."""
    lines = []
    for http in BELOW, "httptools":
        caplog.clear()
        with (
            caplog.at_level("INFO", "uvicorn.access"),
            serving(application(), http=http, root_path="/a b") as client,
        ):
            client.get(path)
            client.head(path)
        lines.append(
            [
                re.sub(r":\d+ -", " -", each.getMessage())
                for each in caplog.records
                if each.name == "uvicorn.access"
            ]
        )
    assert len(lines[0]) == 2
    assert lines[0] == lines[1]


def test_requests_count_for_health_and_pacing(rows: None) -> None:
    """Answers below ASGI are requests of the application like any other, to which loads give way."""
    from fastapi_django_orm.application import find

    app = application()
    with serving(app, http=BELOW) as client:
        before = find("test").requests
        for path in PLAIN:
            client.get(path, headers={"Accept-Encoding": "identity"})
        assert find("test").requests == before + len(PLAIN)


@pytest.mark.parametrize("where", ["tls", "unix"])
def test_tls_and_unix_sockets(rows: None, where: str, tmp_path: Path) -> None:
    """Both are answered as over TCP."""
    app, options = counting(), dict[str, Any]()
    transport: Any
    if where == "tls":
        key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
        subject = ["-subj", "/CN=localhost", "-keyout", str(key), "-out", str(certificate)]
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
        subprocess.run(command, check=True, capture_output=True)
        options = {"ssl_keyfile": key, "ssl_certfile": certificate}
        context = ssl.create_default_context(cafile=str(certificate))
        context.check_hostname = False
        transport, base = httpx.HTTPTransport(verify=context), "https://127.0.0.1"
    else:
        options = {"uds": str(tmp_path / "socket")}
        transport, base = httpx.HTTPTransport(uds=options["uds"]), "http://localhost"
    config = uvicorn.Config(app, http=BELOW, port=0, log_config=None, **options)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            thread.join(0.01)
        port = "" if where == "unix" else f":{server.servers[0].sockets[0].getsockname()[1]}"
        with httpx.Client(transport=transport, timeout=DEADLINE) as client:
            assert len(client.get(f"{base}{port}/topics/").json()["topics"]) == 30
            assert client.get(f"{base}{port}/topics/7").json()["id"] == 7
        assert app.calls == 0
    finally:
        server.should_exit = True
        thread.join(DEADLINE)


def test_several_workers(published_project: Project) -> None:
    """`--workers 2 --http fastapi_django_orm.server:Published` serves from both."""
    with published_project.uvicorn("--workers", "2", "--http", BELOW) as server:
        assert server.get("/topics/").json()["topics"][0]["comment"] == "first"


GUNICORN_WORKER = """\
from uvicorn_worker import UvicornWorker


class PublishedWorker(UvicornWorker):
    CONFIG_KWARGS = {"http": "fastapi_django_orm.server:Published"}
"""


def test_gunicorn(published_project: Project) -> None:
    """Under gunicorn, a worker class chooses the protocol; what is published does not pass middleware."""
    marked = """
@app.middleware("http")
async def mark(request, call_next):
    response = await call_next(request)
    response.headers["Seen-By"] = "middleware"
    return response
"""
    published_project.write("main.py", PUBLISHING + marked)
    published_project.write("workers.py", GUNICORN_WORKER)
    args = ("--worker-class", "workers.PublishedWorker", "--workers", "2")
    with Gunicorn(
        directory=published_project.directory, env=published_project.environment(), args=args
    ) as server:
        topics = server.get("/topics/")
        assert topics.json()["topics"][0]["comment"] == "first"
        assert "Seen-By" not in topics.headers
        assert server.get("/health/").headers["Seen-By"] == "middleware"


def test_without_httptools_the_class_says_what_to_install() -> None:
    """The import fails with a sentence that names the package."""
    code = "import sys; sys.modules['httptools'] = None; import fastapi_django_orm.server"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "pip install 'uvicorn[standard]'" in done.stderr.splitlines()[-1]


# Bad weather


def test_a_client_that_reads_nothing(rows: None) -> None:
    """A hundred thousand pipelined requests of a client that does not read take no memory."""
    with address(application(), http=BELOW) as place, socket.create_connection(place, DEADLINE) as connection:
        first = httpx.get(f"http://{place[0]}:{place[1]}/topics/").content
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        connection.settimeout(2)
        sent, requests = 0, memoryview(REQUESTS[0] * 100_000)
        try:
            while sent < len(requests):
                sent += connection.send(requests[sent:])
        except TimeoutError:
            pass  # the server reads no more
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        assert grown < 40 * 2**20, f"{grown >> 20} MiB; all answers are {100_000 * len(first) >> 20} MiB"
        # Others are served meanwhile.
        assert httpx.get(f"http://{place[0]}:{place[1]}/topics/1").status_code == 200


async def asked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[bytes, bytes]:
    """The tag and the body of the list, asked for on a connection that is kept."""
    writer.write(REQUESTS[0])
    head = await reader.readuntil(b"\r\n\r\n")
    tag, length = (re.search(rb"\r\n%b: ([^\r]*)" % name, head) for name in (b"etag", b"content-length"))
    assert tag is not None
    assert length is not None
    return tag[1], await reader.readexactly(int(length[1]))


def test_the_tag_fits_the_body_while_rows_change(rows: None) -> None:
    """Two hundred clients that ask during swaps of the snapshot never get one's tag with another's body."""
    topics, numbers = repository(), count()
    app = FastAPI(lifespan=DjangoORM(repositories=[topics]).lifespan)

    @app.post("/swap")
    async def swap(topics: Annotated[Any, Depends(topics.current)]) -> None:
        await Topic.objects.filter(pk=1).aupdate(comment=f"version {next(numbers)}")
        await topics.refresh()

    async def main(place: tuple[str, int]) -> dict[bytes, set[bytes]]:
        seen: dict[bytes, set[bytes]] = {}

        async def ask() -> None:
            reader, writer = await asyncio.open_connection(*place)
            for _ in range(10):
                tag, body = await asked(reader, writer)
                seen.setdefault(tag, set()).add(body)
            writer.close()
            await writer.wait_closed()

        async def change() -> None:
            async with httpx.AsyncClient(
                base_url=f"http://{place[0]}:{place[1]}", timeout=DEADLINE
            ) as client:
                for _ in range(10):
                    assert (await client.post("/swap")).status_code == 200

        await asyncio.wait_for(asyncio.gather(change(), *(ask() for _ in range(200))), DEADLINE)
        return seen

    with address(app, http=BELOW) as place:
        seen = asyncio.run(main(place))
    assert len(seen) > 1
    assert all(len(bodies) == 1 for bodies in seen.values())


def test_no_answer_is_cut_by_a_shutdown(rows: None) -> None:
    """Each answer that has begun to arrive arrives whole, and connections are closed between answers."""
    cut: list[bytes] = []
    stop = threading.Event()

    def ask(place: tuple[str, int]) -> None:
        with socket.create_connection(place, DEADLINE) as connection:
            while True:
                try:
                    connection.sendall(REQUESTS[0])
                    received = b""
                    answered = Answers(REQUESTS[:1])
                    while not answered.complete(received):
                        piece = connection.recv(2**16)
                        if not piece:
                            cut.extend([received] if received else [])
                            return
                        received += piece
                except OSError:
                    return
                if stop.is_set():
                    return

    with address(application(), http=BELOW) as place:
        clients = [threading.Thread(target=ask, args=[place]) for _ in range(8)]
        for client in clients:
            client.start()
    stop.set()
    for client in clients:
        client.join(DEADLINE)
    assert cut == []


# What it stands on


def test_the_protocol_overrides_what_this_uvicorn_has() -> None:
    """The methods that it overrides are those of the installed uvicorn."""
    looked_at = {
        "on_message_begin": "96d377fdc7c2",
        "on_headers_complete": "1ea8589acfad",
        "on_response_complete": "64e254f28e38",
        "connection_lost": "c91a4c9bf2e2",
        "on_body": "dba9c32aeba3",
        "on_message_complete": "1fbad42dc31f",
        "shutdown": "d7351fa33f00",
    }
    found = {
        name: hashlib.sha256(inspect.getsource(getattr(HttpToolsProtocol, name)).encode()).hexdigest()[:12]
        for name in looked_at
    }
    assert found == looked_at, (
        "uvicorn has changed methods that fastapi_django_orm.server overrides or relies on. Read the "
        "changes, adapt the protocol, and note the new sources here."
    )
