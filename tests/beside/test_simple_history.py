"""django-simple-history keeps the request in a ``Local`` of asgiref."""

from typing import Any

from tests.beside.sites import MOUNTED, started

MODELS = """
    from django.db import models
    from simple_history.models import HistoricalRecords


    class Topic(models.Model):
        comment = models.CharField(max_length=20)
        history = HistoricalRecords()
"""
ACT = """
    from bbs.models import Topic


    def act():
        return Topic.objects.create(comment="-").history.get().history_user_id


    async def aact():
        topic = await Topic.objects.acreate(comment="-")
        return (await topic.history.aget()).history_user_id
"""
HANDLERS = """
    from types import SimpleNamespace
    from pydantic import BaseModel


    async def as_user(who: Who):
        from simple_history.models import HistoricalRecords
        HistoricalRecords.context.request = SimpleNamespace(user=await User.objects.aget(pk=who))
        yield
        del HistoricalRecords.context.request


    AsUser = Depends(as_user)


    @router.get("/await", dependencies=[AsUser])
    async def awaited():
        return {"who": await aact()}


    @router.get("/run", dependencies=[AsUser])
    async def in_run():
        return {"who": await run(act)}


    @router.get("/sync-to-async", dependencies=[AsUser])
    async def in_sync_to_async():
        return {"who": await sync_to_async(act)()}


    @router.get("/atomic", dependencies=[AsUser])
    async def in_atomic():
        async with atomic():
            first = await run(act)
            second = await aact()
        return {"who": first if first == second else [first, second]}


    @router.get("/in-transaction", dependencies=[AsUser])
    async def in_transaction(_: InTransaction):
        return {"who": await aact()}


    @router.get("/on-commit", dependencies=[AsUser])
    async def on_commit():
        from django.db import transaction
        seen = []
        async with atomic():
            await run(transaction.on_commit, lambda: seen.append(act()))
        return {"who": seen[0]}


    class Out(BaseModel):
        who: int


    @router.get("/instance", dependencies=[AsUser])
    async def instance() -> Out:
        from bbs.models import Topic

        class Acting(Topic):
            who = property(lambda self: act())

            class Meta:
                app_label, proxy = "bbs", True
        return Acting()
"""
HANDLED = ("await", "run", "sync-to-async", "atomic", "in-transaction", "on-commit", "instance")


def test_simple_history(site: Any) -> None:
    """Each row of history has the user of the request that has written it, in mounts and in handlers."""
    history = site("simple_history")
    middleware = ["simple_history.middleware.HistoryRequestMiddleware"]
    history.write(["simple_history"], middleware, models=MODELS, act=ACT, handlers=HANDLERS)
    with started(history).serving():
        assert not history.mistaken([*MOUNTED, *(f"/{path}" for path in HANDLED)])
