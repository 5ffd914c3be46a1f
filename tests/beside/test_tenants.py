"""django-tenants keeps the tenant's schema on the connection."""

from typing import Any

import httpx

from tests.beside.sites import DEADLINE, MOUNTED, Site, started

MODELS = """
    from django.db import models
    from django_tenants.models import DomainMixin, TenantMixin


    class Client(TenantMixin):
        auto_create_schema = True


    class Domain(DomainMixin):
        pass
"""
SHOP = """
    from django.db import models


    class Item(models.Model):
        name = models.CharField(max_length=20)
"""
SETTINGS = """
    DATABASES["default"]["ENGINE"] = "django_tenants.postgresql_backend"
    DATABASE_ROUTERS = ["django_tenants.routers.TenantSyncRouter"]
    SHARED_APPS = [*INSTALLED_APPS, "shop"]
    TENANT_APPS = ["shop"]
    INSTALLED_APPS = SHARED_APPS
    TENANT_MODEL, TENANT_DOMAIN_MODEL = "bbs.Client", "bbs.Domain"
    MIDDLEWARE = ["bbs.act.Tenants"]
"""
ACT = """
    from django_tenants.middleware.main import TenantMainMiddleware

    from shop.models import Item


    class Tenants(TenantMainMiddleware):
        @staticmethod
        def hostname_from_request(request):
            return "tenant" + request.headers["X-Who"]


    def one(found):
        return int(found[0]) if len(set(found)) == 1 else found


    def names():
        return list(Item.objects.values_list("name", flat=True))


    def act():
        return one(names() + names())


    async def aact():
        found = [name async for name in Item.objects.values_list("name", flat=True)]
        return one([*found, (await Item.objects.aget()).name])
"""
FILL = """
    import django

    django.setup()
    from django_tenants.utils import schema_context
    from bbs.models import Client, Domain
    from shop.models import Item

    Item.objects.create(name="0")
    for n in range(1, 9):
        client = Client.objects.create(schema_name=f"tenant{n}")
        Domain.objects.create(domain=f"tenant{n}", tenant=client, is_primary=True)
        with schema_context(f"tenant{n}"):
            Item.objects.create(name=str(n))
"""
HANDLERS = """
    from pydantic import BaseModel
    from fastapi_django_orm import CachedRepository, Repository
    from bbs.act import names


    def choose(who):
        from django.db import connection
        connection.set_schema(f"tenant{who}")


    async def on_thread(who: Who):
        await run(choose, who)


    def in_worker(who: Who):
        choose(who)


    async def around(who: Who):
        from django_tenants.utils import schema_context
        context = schema_context(f"tenant{who}")
        await run(context.__enter__)
        yield
        await run(context.__exit__)


    Chosen = [Depends(on_thread)]


    @router.get("/await", dependencies=Chosen)
    async def awaited():
        return {"who": await aact()}


    @router.get("/run", dependencies=Chosen)
    async def in_run():
        return {"who": await run(act)}


    @router.get("/atomic", dependencies=Chosen)
    async def in_atomic():
        async with atomic():
            return {"who": await aact()}


    @router.get("/def", dependencies=[Depends(in_worker)])
    def in_thread():
        return {"who": act()}


    @router.get("/def-await", dependencies=[Depends(in_worker)])
    async def awaited_later():
        return {"who": await aact()}


    @router.get("/around", dependencies=[Depends(around)])
    async def in_context():
        return {"who": await aact()}


    class Out(BaseModel):
        name: int


    @router.get("/rows", dependencies=Chosen)
    async def rows() -> dict[str, Out]:
        from shop.models import Item
        return {"row": await Item.objects.aget()}


    @router.get("/public")
    async def public(who: Who):
        return {"who": await run(names) == ["0"] and who}


    @router.get("/session")
    async def session():
        from django.db import connection
        def number():
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_backend_pid()")
                return cursor.fetchone()[0]
        return await run(number)


    class Live(Repository):
        model, publish, fields = "shop.Item", "/live/", ("id", "name")


    class Kept(CachedRepository):
        model, publish, fields = "shop.Item", "/kept/", ("id", "name")


    @router.get("/everybody")
    async def everybody(
        who: Who, live: Annotated[Live, Depends(Live.current)], kept: Annotated[Kept, Depends(Kept.current)]
    ):
        await kept.refresh()
        found = [await live.fetch(1), *kept.all()]
        return {"who": who if [row["name"] for row in found] == ["0", "0"] else found}
"""
HANDLED = ("await", "run", "atomic", "def", "def-await", "around", "public", "everybody")


def of_tenants(site: Any) -> Site:
    tenants = site("django_tenants")
    tenants.write(["django_tenants"], [], SETTINGS, models=MODELS, act=ACT, handlers=HANDLERS, shop=SHOP)
    tenants.manage("makemigrations", "bbs", "shop")  # tenants' tables are made by migrations alone
    return started(tenants, "migrate_schemas", "--shared")


def test_tenants(site: Any) -> None:
    """Each request has its tenant's rows; what is read for everybody has the public schema's."""
    tenants = of_tenants(site)
    tenants.python(FILL)
    with tenants.serving(), httpx.Client(base_url=tenants.server.url, timeout=DEADLINE) as client:
        assert not tenants.mistaken([*MOUNTED, *(f"/{path}" for path in HANDLED)])
        for who in range(1, 9):
            rows = client.get("/rows", headers={"X-Who": str(who)}).json()
            assert rows == {"row": {"name": who}}
        assert (
            client.get("/live/").json()["live"]
            == client.get("/kept/").json()["kept"]
            == [{"id": 1, "name": "0"}]
        )
        # A connection in the state that the engine leaves it in is clean, and stays open.
        assert len({client.get("/session").json() for _ in range(5)}) == 1
