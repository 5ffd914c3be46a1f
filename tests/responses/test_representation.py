"""What is sent: only what a client does not have yet, in the coding that it wants, made once."""

import asyncio
import gc
import threading
import weakref
import zlib
from collections.abc import Iterator
from datetime import datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime
from typing import Annotated, Any

import brotli
import httpx
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, Response
from starlette.middleware.gzip import GZipMiddleware

from fastapi_django_orm import CachedRepository, DjangoORM, ORMSettings
from fastapi_django_orm.errors import InvalidWindow
from fastapi_django_orm.responses import negotiation, representation
from fastapi_django_orm.responses.negotiation import CODINGS
from fastapi_django_orm.responses.representation import Representation
from fastapi_django_orm.responses.response import RepositoryResponse
from tests.project.board.models import Topic
from tests.support.gates import add_topics
from tests.support.repositories import read
from tests.support.serving import serving

pytestmark = pytest.mark.usefixtures("sqlite")

PLAIN = {"Accept-Encoding": "identity"}
LASTING = ("ETag", "Cache-Control", "Vary")  # what RFC 9110 wants of a 304
DEADLINE = 20.0  # seconds


class Topics(CachedRepository):
    model = "board.Topic"
    fields = ("id", "comment")
    ordering = ("pk",)


class Cacheable(Topics):
    name = "cacheable"
    cache_control = "public, max-age=60"


TopicRepo = Annotated[Topics, Depends(Topics.current)]


def application() -> FastAPI:
    """An application with a handler for the list, and one that refreshes."""
    plugin = DjangoORM(ORMSettings(refresh_path="off"), repositories=[Topics, Cacheable])
    app = FastAPI(lifespan=plugin.lifespan)

    @app.api_route("/", methods=["GET", "HEAD", "POST"])
    async def index(topics: TopicRepo, offset: int = 0, limit: int | None = None) -> Response:
        return RepositoryResponse.of_list(topics.snapshot, offset=offset, limit=limit)

    @app.get("/row/{pk}")
    async def row(topics: TopicRepo, pk: int) -> Response:
        return RepositoryResponse.of_row(topics.snapshot, pk)

    @app.post("/refresh")
    async def refresh(topics: TopicRepo) -> bool:
        return (await topics.refresh()).date_is_exact

    return app


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    """A client of it, with thirty topics to read."""
    add_topics(*(f"topic number {number}, of which there is more to say" for number in range(30)))
    with serving(application()) as client:
        client.headers.update(PLAIN)
        yield client


def raw(client: httpx.Client, coding: str, path: str = "/") -> tuple[httpx.Response, bytes]:
    """An answer, and its bytes as they came."""
    with client.stream("GET", path, headers={"Accept-Encoding": coding}) as answer:
        return answer, b"".join(answer.iter_raw())


def decoded(coding: str | None, body: bytes) -> bytes:
    """The bytes that a coding was made of."""
    if coding == "zstd":
        try:
            from compression.zstd import decompress
        except ImportError:
            from backports.zstd import decompress
        return bytes(decompress(body))
    return {
        "gzip": lambda: zlib.decompress(body, 31),
        "br": lambda: brotli.decompress(body),
        None: lambda: body,
    }[coding]()


# What a whole answer has


def test_an_answer_says_how_to_keep_it(client: httpx.Client) -> None:
    """The list comes as JSON of a known length, with a tag, a date, and how long it may be kept."""
    before = datetime.now().astimezone() - timedelta(seconds=60)
    answer = client.get("/")
    assert answer.status_code == 200
    assert len(answer.json()["topics"]) == 30
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Content-Length"] == str(len(answer.content))
    assert answer.headers["ETag"].startswith('"')
    assert before < parsedate_to_datetime(answer.headers["Last-Modified"]) <= datetime.now().astimezone()
    assert answer.headers["Cache-Control"] == "no-cache"
    assert answer.headers["Vary"] == "Accept-Encoding"


def test_how_long_to_keep_it_is_the_repositorys_to_say() -> None:
    """What `cache_control` says is sent, with the list and with a 304."""
    app = application()

    @app.get("/cacheable")
    async def cacheable(repository: Annotated[Cacheable, Depends(Cacheable.current)]) -> Response:
        return RepositoryResponse.of_list(repository.snapshot, cache_control=repository.cache_control)

    with serving(app) as client:
        whole = client.get("/cacheable")
        again = client.get("/cacheable", headers={"If-None-Match": whole.headers["ETag"]})
    assert [each.headers["Cache-Control"] for each in (whole, again)] == ["public, max-age=60"] * 2
    assert again.status_code == 304


def test_how_long_to_keep_it_is_said_for_one_answer() -> None:
    """What one handler says is not sent with the answers of others, be they published, in any order."""

    class Published(Topics):
        name = "published"
        cache_control = "private"
        publish = "/published"

    app = FastAPI(lifespan=DjangoORM(ORMSettings(refresh_path="off"), repositories=[Published]).lifespan)
    answers = {
        "/own": lambda topics: topics.response(),
        "/public": lambda topics: RepositoryResponse.of_list(topics.snapshot, cache_control="public"),
        "/brief": lambda topics: RepositoryResponse.of_list(
            topics.snapshot, limit=1, cache_control="max-age=5"
        ),
        "/part": lambda topics: topics.response(limit=1),
        "/row": lambda topics: RepositoryResponse.of_row(topics.snapshot, pk, cache_control="no-store"),
        "/own-row": lambda topics: topics.response(pk),
        "/default": lambda topics: RepositoryResponse.of_list(topics.snapshot),
    }
    for path, answer in answers.items():

        async def handler(
            topics: Annotated[Published, Depends(Published.current)],
            answer: Annotated[Any, Depends(lambda answer=answer: answer)],
        ) -> Response:
            return answer(topics)

        app.add_api_route(path, handler)
    (first, _) = add_topics("one", "two")
    pk = first.pk
    expected = {
        "/public": "public",
        "/own": "private",
        "/brief": "max-age=5",
        "/part": "private",
        "/row": "no-store",
        "/own-row": "private",
        "/published": "private",
        f"/published/{pk}": "private",
        "/published?limit=1": "private",
        "/default": "no-cache",
    }
    with serving(app) as client:
        for _ in range(2):
            for path, value in expected.items():
                whole = client.get(path)
                again = client.get(path, headers={"If-None-Match": whole.headers["ETag"]})
                for answer in (whole, again):
                    assert answer.headers.get_list("Cache-Control") == [value], (path, answer.status_code)
                assert again.status_code == 304


def test_the_tag_is_one_of_the_content() -> None:
    """Two applications with the same rows send the same tag; with another row it is another."""
    add_topics("one")
    tags = []
    for _ in range(2):
        with serving(application()) as client:
            tags.append(client.get("/").headers["ETag"])
            add_topics("another")
            client.post("/refresh")
            tags.append(client.get("/").headers["ETag"])
    first, second, third, fourth = tags
    assert second == third
    assert len({first, second, fourth}) == 3


def test_a_head_request_gets_the_headers_alone(client: httpx.Client) -> None:
    """HEAD is answered as GET is, length included, without the bytes."""
    whole, head = client.get("/"), client.head("/")
    assert head.status_code == 200
    assert head.content == b""
    same = {name: value for name, value in whole.headers.items() if name != "date"}
    assert {name: value for name, value in head.headers.items() if name != "date"} == same


def test_the_body_is_the_bytes_as_they_are() -> None:
    """A response made in a handler can be looked at: its `body` and `headers` are those of the whole list."""
    add_topics(*map(str, range(100)))

    def look(topics: Any) -> None:
        response = RepositoryResponse.of_list(topics.snapshot)
        assert response.body == topics.snapshot.json
        assert response.headers["Content-Length"] == str(len(response.body))
        assert response.status_code == 200

    read(Topics, look)


# What a client has already


# TAG stands for the list's own tag, without its quotes.
MATCHING = [
    '"TAG"',
    'W/"TAG"',
    '"other", "TAG"',
    'W/"other",W/"TAG" , "third"',
    '"TAG-gzip"',
    'W/"TAG-br"',
    "*",
]
OTHERS = ['"other"', "TAG", '"TAGx"', '"xTAG"', '"TAG-lz4"', ""]


def named(asking: str, answer: httpx.Response) -> str:
    """The header with an answer's tag in it."""
    return asking.replace("TAG", answer.headers["ETag"].strip('"'))


@pytest.mark.parametrize("asking", MATCHING)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_client_that_has_it_gets_nothing(client: httpx.Client, method: str, asking: str) -> None:
    """A tag of any form of the content is good, and the answer says again how to keep it."""
    whole = client.get("/")
    answer = client.request(method, "/", headers={"If-None-Match": named(asking, whole)})
    assert (answer.status_code, answer.content) == (304, b"")
    assert [answer.headers[name] for name in LASTING] == [whole.headers[name] for name in LASTING]
    assert not {"content-length", "content-type", "content-encoding", "last-modified"} & {*answer.headers}


@pytest.mark.parametrize("asking", OTHERS)
def test_a_client_that_has_something_else_gets_all(client: httpx.Client, asking: str) -> None:
    """Tags of other contents, and what is no tag, do not keep the list back."""
    whole = client.get("/")
    answer = client.get("/", headers={"If-None-Match": named(asking, whole)})
    assert (answer.status_code, answer.content) == (200, whole.content)


def test_tags_may_come_in_several_lines(client: httpx.Client) -> None:
    """Headers of one name count as one list."""
    tag = client.get("/").headers["ETag"]
    lines = [("If-None-Match", '"other"'), ("If-None-Match", tag), ("If-None-Match", '"third"')]
    assert client.get("/", headers=lines).status_code == 304


def test_after_a_change_the_client_gets_it(client: httpx.Client) -> None:
    """A refresh that finds other rows makes another tag, and the old one is good no longer."""
    tag = client.get("/").headers["ETag"]
    add_topics("new")
    client.post("/refresh")
    answer = client.get("/", headers={"If-None-Match": tag})
    assert answer.status_code == 200
    assert "new" in answer.text


def test_after_a_refresh_without_a_change_the_client_has_it_still(client: httpx.Client) -> None:
    """A refresh that finds the same rows leaves tag and date as they are."""
    before = client.get("/").headers
    client.post("/refresh")
    answer = client.get("/", headers={"If-None-Match": before["ETag"]})
    assert answer.status_code == 304
    assert client.get("/").headers["Last-Modified"] == before["Last-Modified"]


def moved(date: str, **by: int) -> str:
    """A date in HTTP's form, moved."""
    return format_datetime(parsedate_to_datetime(date) + timedelta(**by), usegmt=True)


@pytest.mark.parametrize(("days", "status"), [(0, 304), (1, 304), (-1, 200)])
def test_a_date_will_do_without_a_tag(client: httpx.Client, days: int, status: int) -> None:
    """A client that sends only a date gets what was modified later."""
    date = moved(client.get("/").headers["Last-Modified"], days=days)
    assert client.get("/", headers={"If-Modified-Since": date}).status_code == status


@pytest.mark.parametrize(
    "since", ["yesterday", "Mon, 99 Nov 99999 00:00:00 GMT", "Thu, 01 Jan 0001 00:00:00", ""]
)
def test_what_is_no_date_is_overlooked(client: httpx.Client, since: str) -> None:
    """The list is sent to a client whose date cannot be read."""
    assert client.get("/", headers={"If-Modified-Since": since}).status_code == 200


def test_a_tag_goes_before_a_date(client: httpx.Client) -> None:
    """With both, the tag decides: it can tell what dates cannot."""
    headers = client.get("/").headers
    later, earlier = moved(headers["Last-Modified"], days=1), moved(headers["Last-Modified"], days=-1)
    for tag, date, status in [('"other"', later, 200), (headers["ETag"], earlier, 304)]:
        asking = {"If-None-Match": tag, "If-Modified-Since": date}
        assert client.get("/", headers=asking).status_code == status


def test_two_contents_of_one_second_are_not_taken_for_each_other(client: httpx.Client) -> None:
    """Where a date would not tell the rows from those before, it is not enough, and a tag is."""
    for number in range(100):
        add_topics(str(number))
        if not client.post("/refresh").json():
            break
    else:
        pytest.fail("a hundred refreshes have taken a hundred seconds")
    headers = client.get("/").headers
    asking = {"If-Modified-Since": headers["Last-Modified"]}
    assert client.get("/", headers=asking).status_code == 200
    assert client.get("/", headers=asking | {"If-None-Match": headers["ETag"]}).status_code == 304


def test_only_reading_is_conditional(client: httpx.Client) -> None:
    """A handler that answers POST with the list sends it whole."""
    headers = client.get("/").headers
    answer = client.post("/", headers={"If-None-Match": headers["ETag"]})
    assert (answer.status_code, len(answer.json()["topics"])) == (200, 30)


# What a handler adds


def test_headers_of_a_handler_are_kept() -> None:
    """A handler's cookie and its own `Cache-Control` come with the list and with a 304."""
    app = application()

    @app.get("/mine")
    async def mine(topics: TopicRepo) -> Response:
        response = RepositoryResponse.of_list(topics.snapshot)
        response.set_cookie("seen", "yes")
        response.headers["Cache-Control"] = "private"
        return response

    add_topics(*map(str, range(200)))
    with serving(app) as client:
        for coding in ("identity", "gzip"):
            whole, body = raw(client, coding, "/mine")
            asking = {"If-None-Match": whole.headers["ETag"], "Accept-Encoding": coding}
            again = client.get("/mine", headers=asking)
            assert (whole.status_code, again.status_code) == (200, 304)
            assert whole.headers["Content-Length"] == str(len(body))
            for answer in (whole, again):
                assert "seen=yes" in answer.headers["Set-Cookie"]
                assert answer.headers.get_list("Cache-Control") == ["private"]
                assert answer.headers["ETag"] == whole.headers["ETag"]


@pytest.mark.parametrize("change", ["status", "tag", "body"])
def test_a_handler_may_take_over(change: str) -> None:
    """A response whose status, tag or body a handler has replaced is sent as it stands."""
    app = application()

    @app.get("/mine")
    async def mine(topics: TopicRepo) -> Response:
        response = RepositoryResponse.of_list(topics.snapshot)
        if change == "status":
            response.status_code = 203
        elif change == "tag":
            response.headers["ETag"] = '"mine"'
        else:
            response.body = b"[]"
            response.headers["Content-Length"] = "2"
        return response

    with serving(app) as client:
        answer = client.get("/mine", headers={"If-None-Match": "*"})
    assert answer.status_code == (203 if change == "status" else 200)
    assert answer.content == (b"[]" if change == "body" else b'{"topics":[]}')
    assert (answer.headers["ETag"] == '"mine"') == (change == "tag")


def test_background_tasks_run() -> None:
    """What a handler leaves to be done afterwards is done, after a 304 too."""
    app, done = application(), []

    @app.get("/mine")
    async def mine(topics: TopicRepo, tasks: BackgroundTasks) -> Response:
        tasks.add_task(done.append, 1)
        return RepositoryResponse.of_list(topics.snapshot)

    with serving(app) as client:
        client.get("/mine")
        client.get("/mine", headers={"If-None-Match": "*"})
    assert done == [1, 1]


# Codings


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        ("gzip", "gzip"),
        ("x-gzip", "gzip"),
        ("GZIP", "gzip"),
        ("br", "br"),
        ("zstd", "zstd"),
        ("gzip, deflate, br, zstd", "br"),
        ("gzip, zstd", "zstd"),
        ("gzip;q=1.0, br;q=0.5", "gzip"),
        ("br; q=0.2 , gzip ; q=0.9", "gzip"),
        ("br;q=0, gzip", "gzip"),
        ("*", "br"),
        ("*;q=0.5, br;q=0", "zstd"),
        ("gzip;q=0", None),
        ("identity", None),
        ("identity, gzip;q=0.5", None),
        ("identity;q=0.5, gzip", "gzip"),
        ("deflate, lz4", None),
        ("gzip;q=much", None),
        ("gzip;quality=0", "gzip"),
        ("", None),
        (",", None),
    ],
)
def test_the_client_chooses_the_coding(client: httpx.Client, accepted: str, coding: str | None) -> None:
    """The best that a client accepts is sent, with a length and a tag of its own, and decodes to the list."""
    whole = client.get("/")
    answer, body = raw(client, accepted)
    assert answer.headers.get("Content-Encoding") == coding
    assert answer.headers["Content-Length"] == str(len(body))
    assert decoded(coding, body) == whole.content
    assert (answer.headers["ETag"] == whole.headers["ETag"]) == (coding is None)
    assert (len(body) < len(whole.content)) == (coding is not None)


def test_each_form_has_a_tag_of_its_own(client: httpx.Client) -> None:
    """All tags differ, each is good for a 304 in any coding, and that has the tag of the form asked for."""
    tags = {coding: raw(client, coding)[0].headers["ETag"] for coding in ("identity", "gzip", "br", "zstd")}
    assert len({*tags.values()}) == 4
    for tag in tags.values():
        for coding, own in tags.items():
            answer = client.get("/", headers={"If-None-Match": tag, "Accept-Encoding": coding})
            assert (answer.status_code, answer.headers["ETag"]) == (304, own)


def test_head_tells_the_length_of_the_form(client: httpx.Client) -> None:
    """A HEAD request that accepts gzip is told the compressed length."""
    _, body = raw(client, "gzip")
    head = client.head("/", headers={"Accept-Encoding": "gzip"})
    assert head.headers["Content-Length"] == str(len(body))


def test_what_is_short_is_sent_as_it_is() -> None:
    """A list below a kilobyte is not compressed, and says that it could have been."""
    with serving(application()) as client:
        answer = client.get("/", headers={"Accept-Encoding": "gzip, br"})
        assert "Content-Encoding" not in answer.headers
        assert answer.headers["Vary"] == "Accept-Encoding"
        add_topics(*("x" * 100 for _ in range(10)))
        client.post("/refresh")
        assert client.get("/", headers={"Accept-Encoding": "gzip"}).headers["Content-Encoding"] == "gzip"


def test_absent_libraries_are_not_offered(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without them, gzip is what a browser gets."""
    for coding in ("br", "zstd"):
        monkeypatch.delitem(CODINGS, coding)
    negotiation.preferred.cache_clear()
    try:
        assert raw(client, "gzip, br, zstd")[0].headers["Content-Encoding"] == "gzip"
    finally:
        negotiation.preferred.cache_clear()


def test_the_applications_own_compression_finds_it_done() -> None:
    """Under a GZipMiddleware the list is compressed once."""
    app = application()
    app.add_middleware(GZipMiddleware, minimum_size=10)
    add_topics(*map(str, range(200)))
    with serving(app) as client:
        whole = client.get("/", headers=PLAIN)
        answer, body = raw(client, "gzip")
        assert answer.headers["Content-Encoding"] == "gzip"
        assert decoded("gzip", body) == whole.content
        again = client.get("/", headers={"If-None-Match": answer.headers["ETag"]})
        assert again.status_code == 304


class Counted:
    """A compressor that a test can hold back, and that counts what it does."""

    def __init__(self, coding: str) -> None:
        self._compress = CODINGS[coding]
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.bodies: list[bytes] = []

    def __call__(self, parts: Any) -> bytes:
        body = b"".join(parts)
        self.bodies.append(body)
        self.begun.set()
        assert self.go_on.wait(DEADLINE)
        assert threading.current_thread() is not threading.main_thread()
        return self._compress([body])


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    """What makes gzip, watched."""
    counted = Counted("gzip")
    monkeypatch.setitem(CODINGS, "gzip", counted)
    return counted


def test_each_form_is_made_once_for_each_content(client: httpx.Client, counted: Counted) -> None:
    """The first who asks has it made, and a change has it made anew."""
    counted.go_on.set()
    for _ in range(3):
        raw(client, "gzip")
    add_topics("new")
    client.post("/refresh")
    for _ in range(3):
        raw(client, "gzip")
    assert len(counted.bodies) == 2
    assert b"new" in counted.bodies[1]


def test_a_client_that_leaves_does_not_spoil_it_for_others(counted: Counted) -> None:
    """Clients that come while a form is made share the work, and it goes on when the first one is gone."""
    body = b"the same " * 200
    of = Representation(b"tag", body, len(body), compressible=True)

    async def main() -> tuple[Any, Any]:
        first, second, third = (asyncio.ensure_future(sent(of, "gzip")) for _ in range(3))
        await asyncio.to_thread(counted.begun.wait, DEADLINE)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        counted.go_on.set()
        return await second, await third

    second, third = asyncio.run(main())
    assert decoded("gzip", second[1]["body"]) == body
    assert second == third
    assert counted.bodies == [body]


def test_a_compressor_that_fails_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error is for those who were waiting, and the next one gets what the next try gives."""
    outcomes: list[Any] = [MemoryError("no room"), b"compressed"]

    def compress(parts: Any) -> bytes:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return bytes(outcome)

    async def main() -> Any:
        of = Representation(b"tag", b"", 2000, compressible=True)
        with pytest.raises(MemoryError):
            await sent(of, "gzip")
        return await sent(of, "gzip")

    monkeypatch.setitem(CODINGS, "gzip", compress)
    assert asyncio.run(main())[1]["body"] == b"compressed"


def test_forms_go_with_their_content() -> None:
    """When a refresh has replaced a list, nothing holds its bytes or their forms, the collector off."""
    add_topics(*map(str, range(200)))

    async def main() -> None:
        async with DjangoORM(repositories=[Topics]).lifespan(FastAPI()):
            topics = await Topics.current()
            await sent(RepositoryResponse.of_list(topics.snapshot), "gzip")
            await sent(RepositoryResponse.of_list(topics.snapshot, limit=100), "gzip")
            table = weakref.ref(topics.snapshot.table)
            await Topic.objects.acreate(comment="new")
            gc.collect()
            gc.disable()
            try:
                await topics.refresh()
                assert table() is None
            finally:
                gc.enable()

    asyncio.run(main())


async def sent(response: Response | Representation, coding: str, method: str = "GET") -> list[Any]:
    """What a response sends."""
    if isinstance(response, Representation):
        response = RepositoryResponse(response, "no-cache")
    scope = {"type": "http", "method": method, "headers": [(b"accept-encoding", coding.encode())]}
    messages: list[Any] = []

    async def send(message: Any) -> None:
        messages.append(message)

    await response(scope, None, send)  # type: ignore[arg-type]  # reads nothing
    return messages


# Large lists


def test_a_large_list_is_sent_in_pieces() -> None:
    """More than four megabytes come in pieces of bytes that make the list, in whatever coding."""
    Topic.objects.bulk_create(Topic(comment=f"{number} " + "x" * 1900) for number in range(2500))

    async def main() -> None:
        async with DjangoORM(repositories=[Topics]).lifespan(FastAPI()):
            snapshot = (await Topics.current()).snapshot
            for limit, coding in [(None, "identity"), (2400, "identity"), (None, "gzip")]:
                start, *pieces = await sent(RepositoryResponse.of_list(snapshot, limit=limit), coding)
                body = b"".join(piece["body"] for piece in pieces)
                headers = dict(start["headers"])
                assert int(headers[b"content-length"]) == len(body)
                assert decoded(coding if coding == "gzip" else None, body) == snapshot.window(0, limit)
                assert {type(piece["body"]) for piece in pieces} == {bytes}
                assert [piece["more_body"] for piece in pieces] == [True] * (len(pieces) - 1) + [False]
                if coding == "identity":
                    assert len(pieces) > 4
                    assert max(len(piece["body"]) for piece in pieces) < 2**20
            _, body = await sent(RepositoryResponse.of_list(snapshot), "identity", "HEAD")
            assert body["body"] == b""

    asyncio.run(main())


def test_a_large_list_arrives(client: httpx.Client) -> None:
    """A real client reads all of it, twice over one connection."""
    Topic.objects.bulk_create(Topic(comment=f"{number} " + "x" * 1900) for number in range(2500))
    client.post("/refresh")
    first, second = client.get("/"), client.get("/")
    assert len(first.json()["topics"]) == 2530
    assert first.content == second.content


# Windows and rows


@pytest.mark.parametrize(
    ("offset", "limit", "count"),
    [
        (0, 1, 1),
        (0, 30, 30),
        (0, 99, 30),
        (10, 10, 10),
        (29, 5, 1),
        (30, 5, 0),
        (10**12, None, 0),
        (7, None, 23),
    ],
)
def test_a_window_has_the_rows_of_a_slice(
    client: httpx.Client, offset: int, limit: int | None, count: int
) -> None:
    """`offset` and `limit` give the rows that a slice of the list has."""
    whole = client.get("/").json()["topics"]
    query = {"offset": offset} if limit is None else {"offset": offset, "limit": limit}
    answer = client.get("/", params=query)
    assert answer.json() == {"topics": whole[offset : None if limit is None else offset + limit]}
    assert len(answer.json()["topics"]) == count
    again = client.get("/", params=query, headers={"If-None-Match": answer.headers["ETag"]})
    assert again.status_code == 304


def test_windows_have_tags_of_their_own(client: httpx.Client) -> None:
    """Windows with other rows have other tags; one that holds all rows has the list's."""
    queries = [{}, {"limit": 10}, {"limit": 11}, {"offset": 1, "limit": 10}, {"offset": 20}]
    tags = [client.get("/", params=query).headers["ETag"] for query in queries]
    assert len({*tags}) == len(tags)
    assert client.get("/", params={"limit": 1000}).headers["ETag"] == tags[0]


def test_windows_are_compressed(client: httpx.Client, counted: Counted) -> None:
    """A window of more than a kilobyte is compressed when it is first asked for."""
    counted.go_on.set()
    whole = client.get("/?limit=25")
    for _ in range(2):
        answer, body = raw(client, "gzip", "/?limit=25")
        assert answer.headers["Content-Encoding"] == "gzip"
        assert decoded("gzip", body) == whole.content
    assert counted.bodies == [whole.content]


def test_many_windows_stay_right(client: httpx.Client) -> None:
    """However many windows were asked for, each has its rows."""
    whole = client.get("/").json()["topics"]
    for _ in range(2):
        for offset in range(30):
            for limit in (1, 2, 3):
                answer = client.get(f"/?offset={offset}&limit={limit}")
                assert answer.json()["topics"] == whole[offset : offset + limit]


@pytest.mark.parametrize("most", [0, 300, 1500, 10**6])
def test_windows_of_every_size_are_alike(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """Kept or made anew for each who asks, a window has the same bytes, headers and tag, and answers 304."""
    queries = [f"/?offset={offset}&limit={limit}" for offset in (0, 1, 15) for limit in (1, 3, 14)]
    expected = [client.get(query) for query in queries]
    client.post("/refresh")
    monkeypatch.setattr(representation, "LARGEST", most)
    monkeypatch.setattr(representation, "MOST", 2 * most)
    add_topics("another")
    client.post("/refresh")
    for query, answer in zip(queries, expected, strict=True):
        for _ in range(2):
            got, head = client.get(query), client.head(query)
            assert got.content == answer.content
            assert int(got.headers["Content-Length"]) == len(got.content)
            for each in (got, head):
                each.headers.pop("date", None)  # the second of each answer
            assert got.headers.items() == head.headers.items()
            known = client.get(query, headers={"If-None-Match": got.headers["ETag"]})
            assert known.status_code == 304


def test_a_long_row_is_compressed(client: httpx.Client, counted: Counted) -> None:
    """As a list is: when somebody wants that, once. A shorter row is sent more quickly as it is."""
    counted.go_on.set()
    long, short = (topic.pk for topic in add_topics("long " * 4000, "short " * 400))
    client.post("/refresh")
    for pk, coding in ((long, "gzip"), (short, None), (long, "gzip")):
        whole = client.get(f"/row/{pk}")
        answer, body = raw(client, "gzip", f"/row/{pk}")
        assert answer.headers.get("Content-Encoding") == coding
        assert decoded(coding, body) == whole.content
        assert answer.headers.get("Vary") == ("Accept-Encoding" if coding else None)
    assert len(counted.bodies) == 1


@pytest.mark.parametrize("header", ["Accept-Encoding", "If-Modified-Since"])
def test_long_headers_are_not_remembered(client: httpx.Client, header: str) -> None:
    """What a client makes up does not stay in memory, and the answer is whole."""
    remembering = negotiation.preferred, negotiation._seconds
    sizes = [function.cache_info().currsize for function in remembering]
    for number in range(3):
        answer = client.get("/", headers={header: "x" * (5000 + number)})
        assert answer.status_code == 200
        assert "Content-Encoding" not in answer.headers
    assert [function.cache_info().currsize for function in remembering] == sizes


WINDOWS: list[dict[str, Any]] = [
    {"offset": -1},
    {"limit": 0},
    {"limit": -5},
    {"offset": -(10**30), "limit": 5},
    {"offset": "1"},
    {"offset": None},
    {"limit": "x"},
    {"limit": 2.5},
]


@pytest.mark.parametrize("options", WINDOWS, ids=str)
def test_a_window_that_is_none_is_refused(options: dict[str, Any]) -> None:
    """A negative offset, a limit below one and what is no number are errors of the client: 422."""
    for answer in (
        lambda topics: RepositoryResponse.of_list(topics.snapshot, **options),
        lambda topics: topics.response(**options),
    ):
        with pytest.raises(ValueError, match="offset=") as caught:
            read(Topics, answer)
        assert isinstance(caught.value, InvalidWindow)
        assert caught.value.status_code == 422


def test_a_rows_tag_is_of_the_row(client: httpx.Client) -> None:
    """A change to another row leaves a row's tag as it is, and one to the row itself does not."""
    first, second = client.get("/").json()["topics"][:2]
    tag = client.get(f"/row/{first['id']}").headers["ETag"]
    Topic.objects.filter(pk=second["id"]).update(comment="changed")
    client.post("/refresh")
    asking = {"If-None-Match": tag}
    assert client.get(f"/row/{first['id']}", headers=asking).status_code == 304
    Topic.objects.filter(pk=first["id"]).update(comment="changed, too")
    client.post("/refresh")
    answer = client.get(f"/row/{first['id']}", headers=asking)
    assert answer.json() == {"id": first["id"], "comment": "changed, too"}


def test_a_row_that_is_not_there_is_a_key_error() -> None:
    """The caller says what that means."""
    with pytest.raises(KeyError):
        read(Topics, lambda topics: RepositoryResponse.of_row(topics.snapshot, 5))
