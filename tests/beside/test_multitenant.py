"""django-multitenant keeps the tenant in a ``threading.local``, or in a ``Local`` of asgiref if told to."""

from typing import Any

import pytest

from tests.beside.sites import MOUNTED, started

MODELS = """
    from django.db import models
    from django_multitenant.fields import TenantForeignKey
    from django_multitenant.models import TenantModel


    class Store(TenantModel):
        name = models.CharField(max_length=20)

        class TenantMeta:
            tenant_field_name = "id"


    class Topic(TenantModel):
        store = models.ForeignKey(Store, on_delete=models.CASCADE)
        comment = models.CharField(max_length=20)

        class TenantMeta:
            tenant_field_name = "store_id"
"""
ACT = """
    from asgiref.sync import sync_to_async
    from django.conf import settings
    from django_multitenant.utils import set_current_tenant

    from bbs.models import Store, Topic


    def act():
        found = list(Topic.objects.values_list("store_id", flat=True))
        return found[0] if len(found) == 1 else found


    async def aact():
        if not settings.TENANT_USE_ASGIREF:  # the event loop has another thread's
            return await sync_to_async(act)()
        found = [pk async for pk in Topic.objects.values_list("store_id", flat=True)]
        return found[0] if len(found) == 1 else found


    def choose(who):
        set_current_tenant(Store(pk=who))


    def middleware(get_response):
        def chosen(request):
            choose(request.user.pk)
            return get_response(request)
        return chosen
"""
FILL = """
    import django

    django.setup()
    from bbs.models import Store, Topic

    for n in range(1, 9):
        Topic.objects.create(store=Store.objects.create(pk=n, name=str(n)), comment=str(n))
"""
# A tenant in a threading.local is left where the function has run.
HANDLERS = """
    from fastapi_django_orm import CachedRepository, Repository
    from bbs.act import choose


    def chosen(who):
        choose(who)
        return act()


    @router.get("/run")
    async def in_run(who: Who):
        return {"who": await run(chosen, who)}


    @router.get("/atomic")
    async def in_atomic(who: Who):
        async with atomic():
            await run(choose, who)
            return {"who": await run(act)}


    async def as_tenant(who: Who):
        choose(who)


    Tenant = Depends(as_tenant)


    @router.get("/local/await", dependencies=[Tenant])
    async def awaited():
        return {"who": await aact()}


    @router.get("/local/run", dependencies=[Tenant])
    async def local_run():
        return {"who": await run(act)}


    @router.get("/local/atomic", dependencies=[Tenant])
    async def local_atomic():
        async with atomic():
            return {"who": await aact()}


    class Every(CachedRepository):
        model = "bbs.Topic"
        fields = ("id",)


    @router.get("/every")
    async def every(who: Who, rows: Annotated[Every, Depends(Every.current)]):
        await rows.refresh()
        return {"who": who if len(rows) == 8 else len(rows)}
"""


@pytest.mark.parametrize("asgiref", [False, True])
def test_multitenant(asgiref: bool, site: Any) -> None:
    """Each request has its tenant's rows; what is loaded for everybody has those of all."""
    tenants = site("django_multitenant", f"multitenant_{asgiref}".lower())
    settings = f"TENANT_USE_ASGIREF = {asgiref}\n"
    apps = ["django_multitenant"]
    tenants.write(apps, ["bbs.act.middleware"], settings, models=MODELS, act=ACT, handlers=HANDLERS)
    started(tenants).python(FILL)
    local = ["/local/await", "/local/run", "/local/atomic"] if asgiref else []
    with tenants.serving():
        assert not tenants.mistaken([*MOUNTED, "/run", "/atomic", *local])
        assert not tenants.mistaken(["/every", "/run"])
