"""django-pghistory puts a wrapper around a connection's queries, and its data into a ``threading.local``."""

from typing import Any

from tests.beside.sites import MOUNTED, started

MODELS = """
    import pghistory
    from django.db import models


    @pghistory.track()
    class Topic(models.Model):
        comment = models.CharField(max_length=20)
"""
ACT = """
    from django.apps import apps

    from bbs.models import Topic


    def found(topic):
        event = apps.get_model("bbs", "TopicEvent").objects
        return event.filter(pgh_obj_id=topic.pk).values_list("pgh_context__metadata__user", flat=True)


    def act():
        return found(Topic.objects.create(comment="-")).get()


    async def aact():
        return await found(await Topic.objects.acreate(comment="-")).aget()
"""
HANDLERS = """
    import asyncio

    LEFT = []


    @router.get("/await")
    async def awaited(who: Who):
        import pghistory
        async with pghistory.context(user=who):
            await asyncio.sleep(0.001)
            return {"who": await aact()}


    @router.get("/run")
    async def in_run(who: Who):
        import pghistory
        async with pghistory.context(user=who):
            return {"who": await run(act)}


    @router.get("/gather")
    async def gathered(who: Who):
        import pghistory
        async with pghistory.context(user=who):
            found = set(await asyncio.gather(aact(), run(act), aact()))
        return {"who": found.pop() if len(found) == 1 else list(found)}


    @router.get("/around-atomic")
    async def around_atomic(who: Who):
        import pghistory
        async with pghistory.context(user=who):
            async with atomic():
                return {"who": await aact()}


    @router.get("/in-atomic")
    async def in_atomic(who: Who):
        import pghistory
        async with atomic():
            async with pghistory.context(user=who):
                return {"who": await aact()}


    @router.get("/def")
    def in_thread(who: Who):
        import pghistory
        with pghistory.context(user=who):
            return {"who": act()}


    @router.get("/none")
    async def without(who: Who):
        return {"who": await aact() or who}


    @router.get("/left")
    async def left(who: Who):
        import pghistory
        LEFT.append(pghistory.context(user=who))
        await LEFT[-1].__aenter__()
        return {"who": await aact()}
"""
HANDLED = ("await", "run", "gather", "around-atomic", "in-atomic", "def", "none", "left")


def test_pghistory(site: Any) -> None:
    """Each event has the context of the request that has caused it, and none that another has left."""
    history = site("pghistory")
    apps = ["pgtrigger", "pghistory"]
    history.write(apps, ["pghistory.middleware.HistoryMiddleware"], models=MODELS, act=ACT, handlers=HANDLERS)
    history.manage("makemigrations", "bbs")
    with started(history).serving(PGHISTORY="1"):
        assert not history.mistaken([*MOUNTED, *(f"/{path}" for path in HANDLED)])
