"""A published list whose query parameters are a filter."""

from contextvars import ContextVar
from typing import Any

import pytest
from fastapi import FastAPI

from fastapi_django_orm import CachedRepository, DjangoORM, Filter, Repository
from tests.project.board.models import Author, Topic
from tests.support.serving import serving

tenant: ContextVar[str | None] = ContextVar("tenant", default=None)


class TopicFilter(Filter, model="board.Topic", ordering=("comment",), limit=2, max_limit=3):
    comment__icontains: str | None = None


def published(base: type[Any]) -> FastAPI:
    class Topics(base):  # type: ignore[misc]
        """Every topic."""

        model = "board.Topic"
        fields = ("id", "comment")
        publish = "/topics/"
        filter = TopicFilter

        def queryset(self) -> Any:
            found = super().queryset()
            return found if tenant.get() is None else found.filter(author__name=tenant.get())

    app = FastAPI(lifespan=DjangoORM(repositories=[Topics]))

    @app.middleware("http")
    async def choose_tenant(request: Any, call_next: Any) -> Any:
        tenant.set("Ann")
        return await call_next(request)

    return app


@pytest.mark.parametrize("base", [CachedRepository, Repository])
@pytest.mark.parametrize("http", ["h11", "fastapi_django_orm.server:Published"])
def test_the_list_takes_the_filter(sqlite: str, base: type[Any], http: str) -> None:
    """The route pages, filters and orders, refuses what the filter refuses, and is the same for everybody."""
    for comment in ("b", "a", "ab"):
        Topic.objects.create(comment=comment, author=Author.objects.create(name=comment))
    with serving(published(base), http=http) as client:
        first = client.get("/topics/").json()
        assert [row["comment"] for row in first["topics"]] == ["b", "a"]
        assert first["total"] == 3
        last = client.get("/topics/", params={"after": first["next"]}).json()
        assert [row["comment"] for row in last["topics"]] == ["ab"]
        assert last["next"] is None
        query = {"comment__icontains": "A", "ordering": "-comment"}
        found = client.get("/topics/", params=query)
        assert [row["comment"] for row in found.json()["topics"]] == ["ab", "a"]
        again = client.get("/topics/", params=query, headers={"if-none-match": found.headers["etag"]})
        assert again.status_code == 304
        assert client.head("/topics/", params=query).headers["etag"] == found.headers["etag"]
        assert client.get("/topics/?limit=4").status_code == 422
        assert client.get("/topics/?after=x").status_code == 422
        row = first["topics"][0]
        assert client.get(f"/topics/{row['id']}").json() == row
        assert client.post("/topics/").status_code == 405
        document = client.get("/openapi.json").json()
    operation = document["paths"]["/topics/"]["get"]
    names = [each["name"] for each in operation["parameters"]]
    assert names == ["comment__icontains", "ordering", "limit", "offset", "after"]
    schema = operation["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
    properties = document["components"]["schemas"][schema.rpartition("/")[2]]["properties"]
    assert list(properties) == ["topics", "total", "next"]
