"""django-auditlog keeps the actor in a context variable, and finds it in signals."""

from typing import Any

from tests.beside.sites import MOUNTED, started

MODELS = """
    from auditlog.registry import auditlog
    from django.db import models


    class Topic(models.Model):
        comment = models.CharField(max_length=20)


    auditlog.register(Topic)
"""
ACT = """
    from auditlog.models import LogEntry

    from bbs.models import Topic


    def act():
        return LogEntry.objects.get_for_object(Topic.objects.create(comment="-")).get().actor_id


    async def aact():
        topic = await Topic.objects.acreate(comment="-")
        return (await LogEntry.objects.get_for_object(topic).aget()).actor_id
"""
HANDLERS = """
    async def as_user(who: Who):
        from auditlog.context import set_actor
        with set_actor(await User.objects.aget(pk=who)):
            yield


    AsUser = Depends(as_user)


    @router.get("/await", dependencies=[AsUser])
    async def awaited():
        return {"who": await aact()}


    @router.get("/run", dependencies=[AsUser])
    async def in_run():
        return {"who": await run(act)}


    @router.get("/atomic", dependencies=[AsUser])
    async def in_atomic():
        async with atomic():
            return {"who": await aact()}


    @router.get("/def", dependencies=[AsUser])
    def in_thread():
        return {"who": act()}


    @router.get("/nobody")
    async def nobody(who: Who):
        return {"who": await aact() or who}
"""
HANDLED = ("await", "run", "atomic", "def", "nobody")


def test_auditlog(site: Any) -> None:
    """Each entry has the user of the request that has written the row."""
    auditlog = site("auditlog")
    middleware = ["auditlog.middleware.AuditlogMiddleware"]
    auditlog.write(["auditlog"], middleware, models=MODELS, act=ACT, handlers=HANDLERS)
    with started(auditlog).serving():
        assert not auditlog.mistaken([*MOUNTED, *(f"/{path}" for path in HANDLED)])
