"""Topics.router(): ordinary routes for a repository, and no other than those that are asked for."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Annotated, Any
from uuid import UUID

import httpx
import pytest
from django.db import connection
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException
from pydantic import BaseModel
from structlog.testing import capture_logs

from fastapi_django_orm import (
    CachedRepository,
    DjangoORM,
    Filter,
    IfMatch,
    ModelSchema,
    Repository,
    run,
)
from fastapi_django_orm.errors import InvalidRepository, UnknownField
from tests.project.board.models import Author, Everything, Page
from tests.support.databases import DEADLINE
from tests.support.projects import Project
from tests.support.repositories import declare
from tests.support.serving import serving

KINDS = [Repository, CachedRepository]
both = pytest.mark.parametrize("base", KINDS)


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[Any]]:
    """What is logged, instead of the output."""
    with capture_logs() as entries:
        yield entries


class PageIn(BaseModel):
    slug: str
    address: str
    title: str = ""


class PagePatch(BaseModel):
    address: str | None = None
    title: str | None = None


class AuthorBody(BaseModel):
    name: str


class EverythingBody(BaseModel):
    integer: int


def pages(base: type[Any] = CachedRepository, **attributes: Any) -> type[Any]:
    """A repository of pages, as a class statement would make it."""
    fields = ("slug", "address", "title")
    return type(
        "Pages", (base,), {"__module__": __name__, "model": "board.Page", "fields": fields, **attributes}
    )


@asynccontextmanager
async def client_of(
    repository: type[Any], *routers: APIRouter, prefix: str = "/board", app: FastAPI | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application that includes these routers."""
    app = app or FastAPI()
    for router in routers:
        app.include_router(router, prefix=prefix)
    async with asyncio.timeout(DEADLINE), DjangoORM(repositories=[repository]).lifespan(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client


@both
def test_all_of_it(database: str, base: type[Any]) -> None:
    """List, detail, POST with a Location, PATCH and DELETE, each with the tag that the next one needs."""
    Pages = pages(base)
    router = Pages.router(create=PageIn, update=PagePatch, delete=True)

    async def main() -> None:
        async with client_of(Pages, router) as client:
            made = await client.post("/board/", json={"slug": "ä b", "address": "x"})
            row = {"slug": "ä b", "address": "x", "title": ""}
            assert (made.status_code, made.json()) == (201, row)
            there = made.headers["Location"]
            assert there == "http://test/board/%C3%A4%20b"
            got = await client.get(there)
            assert (got.status_code, got.json(), got.headers["ETag"]) == (200, row, made.headers["ETag"])
            assert (await client.get("/board/")).json() == {"pages": [row]}
            tag = {"If-Match": got.headers["ETag"]}
            patched = await client.patch(there, json={"title": "t"}, headers=tag)
            assert (patched.status_code, patched.json()) == (200, {**row, "title": "t"})
            assert (await client.patch(there, json={}, headers=tag)).status_code == 412
            assert (await client.delete(there, headers=tag)).status_code == 412
            current = await client.get(there)
            assert current.headers["ETag"] == patched.headers["ETag"]
            unmodified = await client.get(there, headers={"If-None-Match": patched.headers["ETag"]})
            assert unmodified.status_code == 304
            assert (await client.post("/board/", json=row)).status_code == 409
            assert (await client.post("/board/", json={"slug": "b"})).status_code == 422
            refused = await client.patch(there, json={"title": "x" * 101})
            assert refused.json()["detail"][0]["loc"] == ["body", "title"]
            gone = await client.delete(there, headers={"If-Match": patched.headers["ETag"]})
            assert (gone.status_code, gone.content) == (204, b"")
            for answer in (
                await client.get(there),
                await client.patch(there, json={}),
                await client.delete(there),
            ):
                assert answer.status_code == 404
            assert (await client.get("/board/")).json() == {"pages": []}

    asyncio.run(main())


def test_a_key_with_slashes(sqlite: str) -> None:
    """The Location of a new row leads to it, whatever its key has in it."""
    Pages = pages()

    async def main() -> None:
        async with client_of(Pages, Pages.router(create=PageIn, delete=True)) as client:
            made = await client.post("/board/", json={"slug": "a/b?c#d", "address": "x"})
            assert made.headers["Location"] == "http://test/board/a%2Fb%3Fc%23d"
            assert (await client.get(made.headers["Location"])).json() == made.json()
            assert (await client.delete(made.headers["Location"])).status_code == 204

    asyncio.run(main())


def test_the_location_follows_the_request(sqlite: str) -> None:
    """One router may be included under several prefixes, one with a parameter, in a mount, behind a proxy."""
    Pages = pages()
    app, mounted = FastAPI(), FastAPI()
    router = Pages.router(create=PageIn)
    for prefix in ("/first", "/second", "/of/{user}"):
        app.include_router(router, prefix=prefix)
    mounted.include_router(router, prefix="/inner")
    app.mount("/mount", mounted)

    async def main() -> None:
        async with client_of(Pages, app=app) as client:
            for number, prefix in enumerate(("/first", "/second", "/of/a%20b", "/mount/inner")):
                body = {"slug": f"{number}", "address": f"{number}"}
                made = await client.post(f"{prefix}/?token=x", json=body)
                assert made.headers["Location"] == f"http://test{prefix}/{number}"
                assert (await client.get(made.headers["Location"])).json() == made.json()
            proxied = httpx.ASGITransport(app, root_path="/proxy")
            async with httpx.AsyncClient(transport=proxied, base_url="http://test") as client:
                for path in ("/proxy/second/", "/second/"):  # as a proxy leaves it, and as one shortens it
                    made = await client.post(path, json={"slug": path, "address": path})
                    assert made.headers["Location"].startswith("http://test/proxy/second/%2F")

    asyncio.run(main())


@both
def test_windows(sqlite: str, base: type[Any]) -> None:
    """Without a filter the list takes offset and limit, as a published one does."""
    Pages = pages(base, max_limit=2)

    async def main() -> None:
        async with client_of(Pages, Pages.router()) as client:
            rows = [Page(slug=slug, address=slug) for slug in "abc"]
            await run(lambda: Page.objects.bulk_create(rows))
            if base is CachedRepository:
                await (await Pages.current()).refresh()
            answer = await client.get("/board/", params={"offset": 1})
            assert [row["slug"] for row in answer.json()["pages"]] == ["b", "c"]
            assert (await client.get("/board/", params={"limit": 3})).status_code == 422
            assert (await client.get("/board/", params={"offset": -1})).status_code == 422

    asyncio.run(main())


@pytest.mark.parametrize(
    ("model", "fields", "body", "kind"),
    [
        ("board.Author", ("id", "name"), (AuthorBody, {"name": "a"}), "integer"),
        ("board.Everything", ("key", "integer"), (EverythingBody, {"integer": 4}), "uuid"),
    ],
)
def test_keys_have_the_models_type(database: str, model: str, fields: Any, body: Any, kind: str) -> None:
    """A key of another type is refused, and the OpenAPI document has the type."""
    repository = declare("Things", model, fields=fields)
    schema, value = body
    router = repository.router(create=schema, update=schema, delete=True)
    app = FastAPI()

    async def main() -> None:
        async with client_of(repository, router, app=app) as client:
            made = await client.post("/board/", json=value)
            key = made.json()[fields[0]]
            assert made.headers["Location"].endswith(f"/board/{key}")
            assert (await client.get(made.headers["Location"])).json() == made.json()
            assert (await client.patch(f"/board/{key}", json=value)).status_code == 200
            assert (await client.delete(f"/board/{key}")).status_code == 204
            assert (await client.delete(f"/board/{key}")).status_code == 404
            assert (await client.get("/board/x")).status_code == 422
            (parameter,) = app.openapi()["paths"]["/board/{pk}"]["get"]["parameters"]
            assert kind in parameter["schema"].values()

    asyncio.run(main())
    assert UUID
    assert Author.objects.count() == Everything.objects.count() == 0


def test_only_what_is_asked_for_is_there(sqlite: str) -> None:
    """Methods that were not asked for are 405, and every operation is documented under a name that stays."""
    Pages = pages()
    some, every = FastAPI(), FastAPI()

    async def main() -> None:
        async with client_of(Pages, Pages.router(), app=some) as client:
            for method, path in (("POST", "/board/"), ("PATCH", "/board/a"), ("DELETE", "/board/a")):
                assert (await client.request(method, path, json={})).status_code == 405
            operations = {path: set(item) for path, item in some.openapi()["paths"].items()}
            assert operations["/board/"] == operations["/board/{pk}"] == {"get"}
        router = Pages.router(create=PageIn, update=PagePatch, delete=True)
        async with client_of(Pages, router, app=every):
            paths = every.openapi()["paths"]
            found = {
                operation["operationId"]: set(operation["responses"])
                for path in ("/board/", "/board/{pk}")
                for operation in paths[path].values()
            }
            assert found == {
                "list_pages": {"200", "304", "422", "503"},
                "create_pages": {"201", "409", "422", "503"},
                "get_pages": {"200", "304", "404", "422", "503"},
                "update_pages": {"200", "404", "409", "412", "422", "503"},
                "delete_pages": {"204", "404", "409", "412", "422", "503"},
            }
            row = paths["/board/"]["post"]["responses"]["201"]
            assert set(row["headers"]) == {"Location", "ETag"}
            assert "$ref" in row["content"]["application/json"]["schema"]

    asyncio.run(main())


def test_dependencies(sqlite: str) -> None:
    """Those of all routes, and those of the writes alone."""
    Pages = pages()

    def known(user: Annotated[str | None, Header()] = None) -> None:
        if user is None:
            raise HTTPException(401)

    def trusted(user: Annotated[str | None, Header()] = None) -> None:
        if user != "editor":
            raise HTTPException(403)

    router = Pages.router(
        create=PageIn, delete=True, dependencies=[Depends(known)], write_dependencies=[Depends(trusted)]
    )
    body = {"slug": "a", "address": "a"}

    async def main() -> None:
        async with client_of(Pages, router) as client:
            assert (await client.get("/board/")).status_code == 401
            assert (await client.get("/board/", headers={"user": "reader"})).status_code == 200
            for user, expected in ((None, 401), ("reader", 403), ("editor", 201)):
                headers = {} if user is None else {"user": user}
                assert (await client.post("/board/", json=body, headers=headers)).status_code == expected
            assert (await client.delete("/board/a", headers={"user": "reader"})).status_code == 403

    asyncio.run(main())


def test_a_filter_is_a_class_of_query_parameters(sqlite: str) -> None:
    """The list gives an instance of it to response()."""

    class Where(BaseModel, extra="forbid"):
        slug: str
        limit: int = 5

    class Pages(CachedRepository):
        model = "board.Page"
        fields = ("slug", "address")

        def response(self, where: Any = None, **options: Any) -> Any:
            return {"pages": [], "total": where.limit, "next": where.slug}

    app = FastAPI()

    async def main() -> None:
        async with client_of(Pages, Pages.router(filter=Where), app=app) as client:
            assert (await client.get("/board/?slug=a")).json() == {"pages": [], "total": 5, "next": "a"}
            assert (await client.get("/board/?slug=a&other=1")).status_code == 422
            parameters = app.openapi()["paths"]["/board/"]["get"]["parameters"]
            assert [each["name"] for each in parameters] == ["slug", "limit"]

    asyncio.run(main())


@both
def test_schemas_and_a_filter(default_database: str, base: type[Any]) -> None:
    """Bodies, rows and query parameters made from the model; a patch tells unset from null."""

    class AuthorOut(ModelSchema, model="board.Author", fields=("name",)): ...

    class TopicOut(ModelSchema, model="board.Topic", fields=("id", "comment")):
        author: AuthorOut | None

    class TopicIn(ModelSchema, model="board.Topic", fields=("id", "comment", "author", "created_at")): ...

    class TopicPatch(TopicIn, partial=True): ...

    class TopicFilter(Filter, model="board.Topic", ordering=("comment",)):
        comment__icontains: str | None = None
        author: int | None = None

    Topics = type(
        "Topics",
        (base,),
        {"__module__": __name__, "model": "board.Topic", "schema": TopicOut, "name": "topics"},
    )
    router = Topics.router(filter=TopicFilter, create=TopicIn, update=TopicPatch)

    async def main() -> None:
        async with client_of(Topics, router) as client:
            author = (await Author.objects.acreate(name="Ann")).pk
            made = await client.post("/board/", json={"comment": "Hello", "author": author})
            row = {"id": made.json()["id"], "comment": "Hello", "author": {"name": "Ann"}}
            assert (made.status_code, made.json()) == (201, row)
            there = made.headers["Location"]
            tag = {"If-Match": (await client.get(there)).headers["ETag"]}
            patched = await client.patch(there, json={"comment": "Bye"}, headers=tag)
            assert patched.json() == {**row, "comment": "Bye"}
            assert (await client.patch(there, json={"author": author}, headers=tag)).status_code == 412
            assert (await client.patch(there, json={"comment": None})).status_code == 422
            unknown = await client.patch(there, json={"author": author + 1})
            assert unknown.json()["detail"][0]["loc"] == ["body", "author"]
            for query, rows in (("comment__icontains=BYE", 1), (f"author={author}", 1), ("author=0", 0)):
                answer = (await client.get(f"/board/?{query}")).json()
                assert (len(answer["topics"]), answer["total"], answer["next"]) == (rows, rows, None)
            assert (await client.get("/board/?ordering=nothing")).status_code == 422
            patched = await client.patch(there, json={"author": None})
            assert patched.json() == {**row, "comment": "Bye", "author": None}
            assert (await client.get(f"/board/?author={author}")).json()["topics"] == []

    asyncio.run(main())


def test_the_routes_call_what_a_subclass_overrides(sqlite: str) -> None:
    """And another handler may take If-Match as well."""

    class Body(BaseModel):
        slug: str
        captcha: str

    class Pages(CachedRepository):
        model = "board.Page"
        fields = ("slug", "address")

        async def create(self, data: Any = None, /, **values: Any) -> Any:
            return await super().create({"slug": data.slug, "address": data.captcha})

    app = FastAPI()

    @app.get("/tag")
    async def tag(if_match: IfMatch) -> str | None:
        return if_match

    async def main() -> None:
        async with client_of(Pages, Pages.router(create=Body), app=app) as client:
            made = await client.post("/board/", json={"slug": "a", "captcha": "c"})
            assert made.json() == {"slug": "a", "address": "c"}
            assert (await client.get("/tag", headers={"If-Match": '"x"'})).json() == '"x"'
            assert (await client.get("/tag")).json() is None

    asyncio.run(main())


@both
def test_atomic_requests(sqlite: str, base: type[Any]) -> None:
    """A write joins the transaction of its request, and is served by the time of the answer."""
    Pages = pages(base)

    async def main() -> None:
        async with client_of(Pages, Pages.router(create=PageIn)) as client:
            made = await client.post("/board/", json={"slug": "a", "address": "x"})
            assert made.status_code == 201
            assert (await client.get(made.headers["Location"])).headers["ETag"] == made.headers["ETag"]
            assert len((await client.get("/board/")).json()["pages"]) == 1

    connection.settings_dict["ATOMIC_REQUESTS"] = True
    try:
        asyncio.run(main())
    finally:
        connection.settings_dict["ATOMIC_REQUESTS"] = False


def test_what_cannot_be_routed() -> None:
    """A body with a field that the model does not have, and rows without a key of one column."""

    class Body(BaseModel):
        slgu: str

    for body in ({"create": Body}, {"update": Body}):
        with pytest.raises(
            UnknownField, match=r"Body, a body of Pages: board\.Page has no field 'slgu'.*'slug'"
        ):
            pages().router(**body)
    with pytest.raises(InvalidRepository, match=r"Seats\.router\(\): its rows have no key"):
        declare("Seats", "board.Seat").router()


def test_real_http_and_a_schema(sqlite: str) -> None:
    """With a schema that calls the key something else, over a socket."""

    class AuthorOut(BaseModel, from_attributes=True):
        number: int
        name: str

    class Authors(CachedRepository[AuthorOut]):
        model = "board.Author"
        schema = AuthorOut

        def queryset(self) -> Any:
            return super().queryset()

    Author.number = property(lambda self: self.pk)  # type: ignore[attr-defined]
    app = FastAPI(lifespan=DjangoORM(repositories=[Authors]).lifespan)
    app.include_router(
        Authors.router(create=AuthorBody, update=AuthorBody, delete=True), prefix="/v1/authors"
    )
    try:
        with serving(app) as client:
            made = client.post("/v1/authors/", json={"name": "a"})
            assert made.status_code == 201
            assert client.get("/v1/authors/").json() == {"authors": [made.json()]}
            changed = client.patch(f"/v1/authors/{made.json()['number']}", json={"name": "b"})
            assert changed.json() == {**made.json(), "name": "b"}
            assert client.delete(f"/v1/authors/{made.json()['number']}").status_code == 204
    finally:
        del Author.number  # type: ignore[attr-defined]


MAIN = """\
from fastapi import FastAPI
from pydantic import BaseModel

from fastapi_django_orm import CachedRepository, DjangoORM


class TopicIn(BaseModel):
    comment: str


class Topics(CachedRepository):
    model = "bbs.Topic"


app = FastAPI(lifespan=DjangoORM.lifespan)
app.include_router(Topics.router(create=TopicIn, delete=True), prefix="/board")
"""


def test_a_router_sets_django_up(project: Project) -> None:
    """Where the application is made, which a server imports in its running loop."""
    project.write("main.py", MAIN)
    with project.uvicorn() as server:
        made = server.post("/board/", json={"comment": "second"})
        assert made.status_code == 201
        assert [row["comment"] for row in server.get("/board/").json()["topics"]] == ["first", "second"]
        assert server.get(made.headers["Location"]).json() == made.json()
