"""The repository that a handler holds: reading, looking up, responding, refreshing, injection."""

import asyncio
import inspect
import json
import re
import threading
from datetime import UTC, datetime
from typing import Annotated, Any

import anyio.to_thread
import httpx
import pytest
from django.core.exceptions import SynchronousOnlyOperation
from fastapi import Depends, FastAPI
from starlette.exceptions import HTTPException

from fastapi_django_orm import CachedRepository, DjangoORM, ORMSettings, Repository, Row
from fastapi_django_orm.errors import (
    InvalidRepository,
    InvalidRow,
    NotFound,
    NotIndexed,
    NotLoaded,
    NotStarted,
    UnknownField,
)
from tests.project.board.models import Author, Topic
from tests.support.gates import DEADLINE, Gate, gated, started
from tests.support.repositories import declare, of, read, rows
from tests.support.serving import serving

pytestmark = pytest.mark.usefixtures("sqlite")


class Topics(CachedRepository):
    model = "board.Topic"
    indexes = ("author_id", "comment")


TopicRepo = Annotated[Topics, Depends(Topics.current)]


def an_application() -> FastAPI:
    app = FastAPI(lifespan=DjangoORM(ORMSettings(refresh_token="t"), repositories=[Topics]).lifespan)

    @app.get("/")
    async def index(topics: TopicRepo) -> Any:
        return topics.response()

    @app.get("/topics/{pk}/")
    async def detail(pk: int, topics: TopicRepo) -> Any:
        return topics.get(pk)

    @app.get("/threaded/{pk}/")
    def threaded(pk: int, topics: TopicRepo) -> Any:
        return topics.get(pk)

    return app


@pytest.fixture
def topics() -> list[Topic]:
    authors = [Author.objects.create(name=name) for name in "AB"]
    made = [Topic(comment=comment, author=authors[number % 2]) for number, comment in enumerate("cabc")]
    return [topic.save() or topic for topic in made]


# Reading


def test_everything_can_be_read_without_a_query(topics: list[Topic], database: str) -> None:
    """On the event loop, where Django refuses any query, all of the repository can be read."""
    author = Author.objects.create(name="A")
    first = Topic.objects.create(comment="c", author=author)
    second = Topic.objects.create(comment="a")

    def look(topics: Any) -> None:
        with pytest.raises(SynchronousOnlyOperation):
            Topic.objects.exists()
        assert [row["comment"] for row in topics.all()] == ["c", "a"]
        assert [row["comment"] for row in topics] == ["c", "a"]
        assert topics.get(second.pk)["comment"] == "a"
        assert [row["id"] for row in topics.find(author_id=author.pk)] == [first.pk]
        assert len(topics) == 2
        assert first.pk in topics
        assert topics.snapshot.rows == topics.all()
        assert json.loads(topics.response().body)["topics"][0]["comment"] == "c"

    read(Topics, look)


def test_reading_opens_no_connection_and_needs_no_rows_in_the_database(topics: list[Topic]) -> None:
    """What was loaded is served when the table is empty, until somebody refreshes."""

    async def main() -> None:
        async with started(Topics) as (served,):
            await Topic.objects.all().adelete()
            assert [row["comment"] for row in served] == list("cabc")
            await served.refresh()
            assert served.all() == ()

    asyncio.run(main())


def test_any_thread_can_read(topics: list[Topic]) -> None:
    """A thread that knows nothing of the loop reads the same rows."""

    async def main() -> None:
        async with started(Topics) as (served,):
            found: list[Any] = []
            thread = threading.Thread(
                target=lambda: found.extend(
                    [served.all(), served.get(topics[0].pk), served.find(comment="a"), len(served)]
                )
            )
            thread.start()
            thread.join(DEADLINE)
            assert found == [served.all(), served.get(topics[0].pk), served.find(comment="a"), 4]

    asyncio.run(main())


def test_reading_does_not_wait_for_a_load(topics: list[Topic]) -> None:
    """While a load is held back, readers have the rows of the one before it, whole."""
    gate = Gate()

    async def main() -> None:
        async with started(gated(gate), gate=gate) as (served,):
            before = served.snapshot
            await Topic.objects.aupdate(comment="changed")
            gate.close()
            refresh = asyncio.ensure_future(served.refresh())
            await gate.load_begun()
            assert served.snapshot is before
            assert [row["comment"] for row in served] == list("cabc")
            gate.open()
            assert await refresh is served.snapshot
            assert {row["comment"] for row in served} == {"changed"}
            assert [row["comment"] for row in before.rows] == list("cabc")

    asyncio.run(main())


def test_rows_and_keys_are_in_the_repository(topics: list[Topic]) -> None:
    """`in` answers for a key and for a row, and never raises."""

    def look(served: Any) -> list[bool]:
        row = dict(served.get(topics[0].pk))
        return [
            item in served
            for item in (topics[0].pk, row, {**row, "comment": "x"}, -1, "x", None, [1], {}, 1.5)
        ]

    assert read(Topics, look) == [True, True, False, False, False, False, False, False, False]


def test_a_repository_is_true(database: str) -> None:
    """An empty table is an empty tuple, an empty list in JSON, and a repository all the same."""

    def look(served: Any) -> None:
        assert served
        assert served.snapshot
        assert (len(served), len(served.snapshot), served.all(), list(served)) == (0, 0, (), [])
        assert served.response().body == b'{"topics":[]}'
        assert served.find(comment="a") == ()
        assert 1 not in served
        with pytest.raises(NotFound):
            served.get(1)

    read(Topics, look)


def test_an_empty_table_is_healthy_and_counts_its_versions() -> None:
    """No rows are not the same as no data: health says 0 rows, and each refresh is a new version."""
    with serving(an_application()) as client:
        health = client.get("/health/")
        assert health.status_code == 200
        assert health.json()["repositories"]["topics"] | {"age": 0} == {
            "rows": 0,
            "version": 1,
            "age": 0,
            "stale": False,
            "error": None,
            "unheard": None,
        }
        report = client.post("/refresh/", headers={"Authorization": "Bearer t"}).json()
        assert (report["topics"]["rows"], report["topics"]["version"]) == (0, 2)


# Looking up


def test_a_key_may_be_given_in_every_form_that_django_takes(topics: list[Topic]) -> None:
    """A text of a number finds the row that the number finds; what no key is like finds none."""
    (pk, *_) = (topic.pk for topic in topics)

    def look(repository: Topics) -> None:
        assert repository.get(str(pk)) == repository.get(pk)
        assert repository.response(pk=str(pk)).body == repository.response(pk=pk).body
        assert str(pk) in repository
        for other in (None, "0", "one", "", 10**30, float("inf"), [pk], {}, object()):
            assert other not in repository
            for find in (repository.get, repository.response):
                with pytest.raises(NotFound, match="has no row with the key"):
                    find(other)

    read(Topics, look)


def test_get_of_an_unknown_key_is_a_lookup_error(topics: list[Topic]) -> None:
    """`NotFound` is a LookupError and a 404 whose message names the repository and the key."""

    def look(served: Any) -> None:
        for key in (-1, "1", None, [1], {}, object):
            with pytest.raises(LookupError, match="topics has no row with the key"):
                served.get(key)
        with pytest.raises(NotFound) as caught:
            served.get(-1)
        assert isinstance(caught.value, HTTPException)
        assert caught.value.status_code == 404

    read(Topics, look)


@pytest.mark.parametrize("path", ["/topics/", "/threaded/"])
def test_get_of_an_unknown_key_answers_404(topics: list[Topic], path: str) -> None:
    """Letting `NotFound` pass answers 404 with a message; a known key answers its row."""
    with serving(an_application()) as client:
        assert client.get(f"{path}{topics[0].pk}/").json()["comment"] == "c"
        missing = client.get(f"{path}999999/")
    assert missing.status_code == 404
    assert missing.json() == {"detail": "topics has no row with the key 999999."}


@pytest.mark.parametrize("row_type", [Row, dict[str, Any], Any])
def test_a_handler_may_say_that_it_answers_with_rows(topics: list[Topic], row_type: Any) -> None:
    """`-> Row` and `-> list[Row]` send the same JSON as dicts do, and are documented as objects."""
    app = an_application()

    @app.get("/typed/")
    async def typed(topics: TopicRepo) -> list[row_type]:
        return list(topics.all())

    @app.get("/typed/{pk}/")
    async def one(pk: int, topics: TopicRepo) -> row_type:
        return topics.get(pk)

    with serving(app) as client:
        served = client.get("/").json()["topics"]
        assert client.get("/typed/").json() == served
        assert client.get(f"/typed/{topics[0].pk}/").json() == served[0]
        if row_type is not Any:
            paths = client.get("/openapi.json").json()["paths"]
            answer = paths["/typed/{pk}/"]["get"]["responses"]["200"]["content"]["application/json"]
            assert answer["schema"]["type"] == "object"


def test_find_gives_the_rows_with_a_value_in_their_order(topics: list[Topic]) -> None:
    """`find` gives what `filter` would, also for None, with more than one field, or nothing."""
    Topic.objects.create(comment="c", author=None)
    author = topics[0].author

    def look(served: Any) -> None:
        for values in (
            {"comment": "c"},
            {"author_id": author.pk},
            {"author_id": author.pk, "comment": "c"},
            {"comment": "b", "id": topics[2].pk},
            {"comment": "b", "id": -1},
            {"author_id": None},
            {"comment": "nothing"},
        ):
            expected = [row for row in served if all(row[name] == value for name, value in values.items())]
            assert list(served.find(**values)) == expected
        assert [row["id"] for row in served.find(comment="c")] == [
            topics[0].pk,
            topics[3].pk,
            topics[3].pk + 1,
        ]
        assert served.find(comment=["c"]) == ()

    read(Topics, look)


def test_find_wants_an_index(topics: list[Topic]) -> None:
    """Asking by fields none of which is indexed names what to add; an unknown field is another error."""

    def look(served: Any) -> None:
        with pytest.raises(NotIndexed, match=r"Topics.find\(\): add one of 'tags', 'id' to `indexes`"):
            served.find(tags=[], id=1)
        with pytest.raises(NotIndexed):
            served.find()
        for asked in ({"author_id": 1, "coment": "c"}, {"coment": "c"}):
            with pytest.raises(UnknownField, match=r"no field 'coment'. Did you mean 'comment'"):
                served.find(**asked)

    read(Topics, look)


IMPOSSIBLE: list[Any] = [
    "abc",
    "",
    " ",
    None,
    "1.5",
    [1],
    {},
    object(),
    "\0",
    "\ud800",
    float("nan"),
    float("inf"),
]
OUT_OF_REACH: list[Any] = [10**30, -(10**30), "9" * 30, 2**63]


def test_a_key_that_no_row_can_have_is_not_found(database: str, topics: list[Topic]) -> None:
    """Whatever stands in a key's place, every way to a row ends in a 404: none is a failure of the server."""

    async def main() -> None:
        async with started(Topics) as (served,):
            for key in [*IMPOSSIBLE, *OUT_OF_REACH]:
                for find in (served.get, served.response, served.fetch):
                    with pytest.raises(NotFound) as caught:
                        await found if inspect.isawaitable(found := find(key)) else found
                    assert caught.value.status_code == 404
            for key in OUT_OF_REACH:  # they might be there: they are looked for, and found in no table
                await served.refresh(key)
            assert len(served) == len(topics)

    asyncio.run(main())


def test_a_repository_and_its_snapshot_show_what_they_are() -> None:
    """Their repr names them and says how many rows of which version there are, and asks for nothing."""
    live_topics = type("Live", (Repository,), {"model": "board.Topic"})

    async def main() -> None:
        assert repr(Topics()) == "<Topics 'topics': not started>"
        assert repr(live_topics()) == "<Live 'live': not started>"
        async with started(Topics, live_topics) as (served, live):
            assert re.fullmatch(r"<Topics 'topics': 1 rows, version 1, \d+ s old>", repr(served))
            snapshot = await served.refresh()
            assert re.fullmatch(
                r"<Snapshot of 'topics': 1 rows, version 2, loaded at \d{4}-\d\d-\d\dT[\d:]+\+00:00>",
                repr(snapshot),
            )
            assert repr(live) == "<Live 'live': read from the database>"
            served.refresher.snapshot = None
            assert repr(served) == "<Topics 'topics': not loaded yet>"

    Topic.objects.create(comment="here")
    asyncio.run(main())


def test_rows_without_a_key_cannot_be_got() -> None:
    """Where `.values()` leaves the key out, `get` and `response` say so and `in` finds nothing."""
    Topic.objects.create(comment="here")

    def look(served: Any) -> None:
        for key in (0, 1):
            with pytest.raises(NotIndexed, match=r"get\(\).*leaves the primary key out"):
                served.get(key)
            with pytest.raises(NotIndexed, match=r"response\(\).*leaves the primary key out"):
                served.response(pk=key)
        assert 1 not in served
        assert {"comment": "here"} in served

    read(of(lambda: Topic.objects.values("comment")), look)


def test_values_that_cannot_be_looked_up_by_are_refused() -> None:
    """An index on a JSON column that holds a list ends the load with the field and the kind of the value."""
    Topic.objects.create(comment="here", tags=["a"])
    with pytest.raises(InvalidRow, match=r"looked up by 'tags', which holds a list: leave the field out"):
        rows(declare(indexes=("tags",)))


# The snapshot


def test_a_snapshot_tells_what_was_loaded_and_when(topics: list[Topic]) -> None:
    """A snapshot has the rows, a version that counts loads, the time in UTC, an entity tag and the bytes."""

    async def main() -> None:
        before = datetime.now(UTC)
        async with started(Topics) as (served,):
            first = served.snapshot
            second = await served.refresh()
            await Topic.objects.filter(comment="a").aupdate(comment="z")
            third = await served.refresh()
        assert [snapshot.version for snapshot in (first, second, third)] == [1, 2, 3]
        assert before <= first.loaded_at <= second.loaded_at <= third.loaded_at <= datetime.now(UTC)
        assert first.loaded_at.tzinfo is UTC
        assert first.etag == second.etag != third.etag
        assert first.etag.startswith('"')
        assert first.etag.endswith('"')
        assert first.json == second.json != third.json
        assert [row["comment"] for row in json.loads(third.json)["topics"]] == list("czbc")

    asyncio.run(main())


def test_a_snapshot_was_loaded_when_its_load_began(topics: list[Topic]) -> None:
    """`loaded_at` is before the read, so that what was committed by then is in the rows."""
    gate = Gate()

    async def main() -> None:
        async with started(gated(gate), gate=gate) as (served,):
            gate.close()
            refresh = asyncio.ensure_future(served.refresh())
            await gate.load_begun()
            during = datetime.now(UTC)
            gate.open()
            assert (await refresh).loaded_at < during

    asyncio.run(main())


def test_a_snapshot_cannot_be_changed(topics: list[Topic]) -> None:
    """Neither its attributes nor its rows nor its mappings take a change."""

    def look(served: Any) -> None:
        snapshot, key = served.snapshot, topics[0].pk
        before = served.get(key)
        for change in (
            lambda: setattr(snapshot, "rows", ()),
            lambda: delattr(snapshot, "json"),
            lambda: snapshot.rows.__setitem__(0, {}),
            lambda: snapshot.by_key.__setitem__(key, {}),
            lambda: snapshot.by_key.pop(key),
            lambda: snapshot.by_key.clear(),
            lambda: snapshot.indexes.__setitem__("comment", {}),
            lambda: snapshot.indexes.pop("comment"),
            lambda: snapshot.indexes["comment"].__setitem__("c", ()),
            lambda: snapshot.indexes["comment"].clear(),
            lambda: snapshot.indexes["comment"]["c"].append({}),
        ):
            with pytest.raises((AttributeError, TypeError)):
                change()
        assert served.get(key) is before
        assert len(served.find(comment="c")) == 2

    read(Topics, look)


# The response


def test_the_response_is_json_with_an_entity_tag(topics: list[Topic]) -> None:
    """The response has the snapshot's bytes, their type, their length and their tag."""
    with serving(an_application()) as client:
        answer = client.get("/")
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/json"
        assert int(answer.headers["content-length"]) == len(answer.content)
        assert answer.headers["etag"].startswith('"')
        assert [row["comment"] for row in answer.json()["topics"]] == list("cabc")
        again = client.get("/")
        assert (again.content, again.headers["etag"]) == (answer.content, answer.headers["etag"])


def test_the_response_is_made_of_bytes_that_the_load_has_made(topics: list[Topic]) -> None:
    """Two responses share one body: nothing is encoded for a request."""

    def look(served: Any) -> None:
        assert served.response().body is served.response().body is served.snapshot.json

    read(Topics, look)


def test_what_a_handler_does_to_a_response_is_its_own(topics: list[Topic]) -> None:
    """A header that one handler sets is in no other response."""

    def look(served: Any) -> None:
        response = served.response()
        response.headers["x-mine"] = "1"
        response.body = b""
        assert "x-mine" not in served.response().headers
        assert served.response().body == served.snapshot.json

    read(Topics, look)


# Refreshing


def test_refresh_loads_and_swaps(topics: list[Topic], database: str) -> None:
    """After `await refresh()` the repository serves what was written before it, and not a moment earlier."""

    async def main() -> None:
        async with started(Topics) as (served,):
            topic = await Topic.objects.acreate(comment="new")
            assert topic.pk not in served
            snapshot = await served.refresh()
            assert served.snapshot is snapshot
            assert served.get(topic.pk)["comment"] == "new"

    asyncio.run(main())


def test_a_row_that_does_not_fit_leaves_the_old_rows(topics: list[Topic]) -> None:
    """A refresh that cannot make a snapshot changes nothing of what is served."""
    repository = declare(indexes=("tags",))
    Topic.objects.update(tags="one")

    async def main() -> None:
        async with started(repository) as (served,):
            before = served.snapshot
            await Topic.objects.filter(comment="a").aupdate(tags=["two"])
            with pytest.raises(HTTPException):
                await served.refresh()
            assert served.snapshot is before

    asyncio.run(main())


# Injection


def test_injection_costs_no_thread(topics: list[Topic]) -> None:
    """The dependency is a coroutine: it is answered while every AnyIO thread is taken."""
    assert inspect.iscoroutinefunction(Topics.current)
    app = an_application()

    async def main() -> httpx.Response:
        async with app.router.lifespan_context(app):
            limiter = anyio.to_thread.current_default_thread_limiter()
            limiter.total_tokens = 1
            transport = httpx.ASGITransport(app)
            async with (
                limiter,
                httpx.AsyncClient(transport=transport, base_url="http://t") as client,
                asyncio.timeout(DEADLINE),
            ):
                return await client.get("/")

    assert len(asyncio.run(main()).json()["topics"]) == 4


def test_the_dependency_is_one_function_of_each_class() -> None:
    """FastAPI takes longer for a method; and a subclass may have a dependency of its own that calls it."""

    class Own(Topics):
        @classmethod
        async def current(cls) -> Any:
            return (await super().current()).all()

    assert inspect.isfunction(Topics.current)
    assert Topics.current is Topics.current
    assert Topics.current.__doc__ is not None
    assert inspect.signature(Topics.current).parameters == {}

    async def main() -> Any:
        async with started(Own):
            return await Own.current()

    assert asyncio.run(main()) == ()


def test_the_dependency_can_be_overridden() -> None:
    """`dependency_overrides[Topics.current]` puts something else in the handlers' place for it."""

    class Fake:
        def get(self, pk: int) -> dict[str, int]:
            return {"fake": pk}

    app = an_application()
    app.dependency_overrides[Topics.current] = Fake
    with serving(app) as client:
        assert client.get("/topics/7/").json() == {"fake": 7}


def test_current_is_the_same_repository_for_all(topics: list[Topic]) -> None:
    """Handlers, tasks and code outside of requests hold one instance."""

    async def main() -> None:
        async with started(Topics) as (served,):
            assert await Topics.current() is served
            assert await asyncio.create_task(Topics.current()) is served
            assert isinstance(served, Topics)

    asyncio.run(main())


def test_a_repository_before_the_lifespan_is_an_error_that_says_so() -> None:
    """Using the class, or an instance made by hand, without a lifespan names what to write."""
    message = r"FastAPI\(lifespan=DjangoORM.lifespan\)"
    with pytest.raises(NotStarted, match=message):
        asyncio.run(Topics.current())
    by_hand = Topics()
    for use in (
        by_hand.all,
        lambda: by_hand.get(1),
        lambda: len(by_hand),
        by_hand.response,
        lambda: by_hand.snapshot,
    ):
        with pytest.raises(NotStarted, match=message):
            use()
    with pytest.raises(NotStarted, match=message):
        asyncio.run(by_hand.refresh())


@pytest.mark.parametrize("dependency", [Depends(Topics), Depends()])
def test_a_repository_made_by_hand_says_how_to_get_the_applications(dependency: Any) -> None:
    """While an application runs, an instance of the class itself names the dependency that was meant."""
    app = an_application()
    told: list[str] = []

    @app.get("/by-hand/")
    async def by_hand(topics: Annotated[Topics, dependency]) -> None:
        for use in (topics.all, topics.response, lambda: topics.live):
            with pytest.raises(NotStarted) as caught:
                use()
            told.append(str(caught.value))
        with pytest.raises(NotStarted) as caught:
            await topics.refresh()
        told.append(str(caught.value))

    with serving(app) as client:
        assert client.get("/by-hand/").status_code == 200
    assert len(told) == 4
    assert all("write Depends(Topics.current)" in message for message in told)
    assert not any("lifespan" in message for message in told)


def test_a_repository_that_the_application_does_not_serve_is_an_error() -> None:
    """A class that was declared after the start, or left out of `repositories`, is told apart."""

    async def main() -> None:
        async with started(Topics):
            with pytest.raises(NotStarted, match="declared when the application had already started"):
                await declare("Others").current()
            with pytest.raises(InvalidRepository, match="Others has no `model`"):
                await declare("Others", model=None).current()

    asyncio.run(main())


def test_a_repository_that_could_not_be_loaded_answers_503(topics: list[Topic]) -> None:
    """With `startup = "retry"` a repository whose first load has failed raises `NotLoaded`, a 503."""

    async def main() -> None:
        async with started(declare(indexes=("tags",)), startup="retry") as (served,):
            with pytest.raises(NotLoaded) as caught:
                served.all()
            assert caught.value.status_code == 503

    Topic.objects.update(tags=["a"])
    asyncio.run(main())
