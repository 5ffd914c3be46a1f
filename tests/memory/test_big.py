"""A hundred thousand rows."""

import json
import threading
from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from django.db import connection
from django.db.models import QuerySet
from fastapi import Depends, FastAPI

from fastapi_django_orm import CachedRepository, DjangoORM, ORMSettings
from tests.project.board.models import Topic
from tests.support.serving import DEADLINE, serving

ROWS = 100_000
TOKEN = {"Authorization": "Bearer t"}


@pytest.fixture
def many(sqlite: str) -> Iterator[None]:
    with connection.cursor() as cursor:  # as instances they would take longer than all the rest
        cursor.execute(
            "INSERT INTO board_topic (comment, tags, created_at)"
            " WITH RECURSIVE counter(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM counter WHERE n < %s)"
            " SELECT 'topic ' || n, '[]', '2026-01-01 00:00:00' FROM counter",
            [ROWS],
        )
    yield
    Topic.objects.all()._raw_delete(sqlite)


class Passage:
    """A point in a load at which it waits until the test lets it go on."""

    def __init__(self) -> None:
        self.closed = False
        self.reached = threading.Event()
        self.open = threading.Event()

    def pass_(self) -> None:
        """Wait, if the test wants that."""
        if self.closed:
            self.reached.set()
            assert self.open.wait(DEADLINE), "the event loop did not answer during the load"


def serve_many(passage: Passage) -> FastAPI:
    class Halfway(QuerySet[Any, Any]):
        def iterator(self, *args: Any, **options: Any) -> Iterator[Any]:
            for number, row in enumerate(super().iterator(*args, **options)):
                if number == ROWS // 2:
                    passage.pass_()
                yield row

    class Topics(CachedRepository):
        model = "board.Topic"
        indexes = ("comment",)

        def queryset(self) -> Any:
            return Halfway(self.model_class)

    app = FastAPI(lifespan=DjangoORM(ORMSettings(refresh_token="t"), repositories=[Topics]).lifespan)
    TopicRepo = Annotated[Topics, Depends(Topics.current)]

    @app.get("/ping")
    async def ping() -> int:
        return 1

    @app.get("/")
    async def index(topics: TopicRepo) -> Any:
        return topics.response()

    @app.get("/{pk}/")
    async def detail(pk: int, topics: TopicRepo) -> Any:
        return topics.get(pk)

    return app


def test_a_hundred_thousand_rows_are_served_and_reloaded_beside_requests(many: None) -> None:
    """All rows are served, and the loop answers with them while it loads again."""
    passage = Passage()
    with serving(serve_many(passage)) as client:
        body = client.get("/").content
        served = json.loads(body)["topics"]
        assert [row["id"] for row in served] == list(
            Topic.objects.order_by("pk").values_list("pk", flat=True)
        )
        last = served[-1]
        Topic.objects.filter(pk=last["id"]).update(comment="changed")

        passage.closed = True
        answers: list[Any] = []
        refresh = threading.Thread(target=lambda: answers.append(client.post("/refresh/", headers=TOKEN)))
        refresh.start()
        assert passage.reached.wait(DEADLINE)
        # Half of the rows are read. The load goes on only when all of this has been answered.
        assert client.get("/ping").json() == 1
        assert client.get("/").content == body
        assert client.get(f"/{last['id']}/").json() == last
        assert client.get("/health/").json()["repositories"]["topics"]["version"] == 1
        passage.open.set()

        # And while it reads, encodes and swaps, without anything that holds it back.
        while not answers:
            assert client.get("/ping").json() == 1
            refresh.join(0.01)  # asking without a pause would make it take three times as long
            if not refresh.is_alive():
                break
        refresh.join(DEADLINE)
        assert answers[0].json()["topics"]["rows"] == ROWS
        assert client.get(f"/{last['id']}/").json()["comment"] == "changed"
