"""django-crum keeps the request's user in a ``threading.local``."""

from typing import Any

from tests.beside.sites import MOUNTED, started

MODELS = """
    from django.db import models


    class Topic(models.Model):
        comment = models.CharField(max_length=20)
"""
ACT = """
    from asgiref.sync import sync_to_async
    from crum import get_current_user

    from bbs.models import Topic


    def who():
        user = get_current_user()
        return user and user.pk


    def act():
        before = who()
        Topic.objects.count()
        return before if before == who() else [before, who()]


    async def aact():
        before = await sync_to_async(who)()
        await Topic.objects.acount()
        after = await sync_to_async(who)()
        return before if before == after else [before, after]
"""
HANDLERS = """
    from crum import impersonate


    def as_user(who):
        with impersonate(User(pk=who)):
            return act()


    def left():
        from bbs.act import who
        return who()


    @router.get("/def")
    def in_thread(who: Who):
        return {"who": as_user(who)}


    @router.get("/run")
    async def in_run(who: Who):
        return {"who": await run(as_user, who)}


    @router.get("/nobody")
    async def nobody(who: Who):
        return {"who": await run(left) or who}
"""


def test_crum(site: Any) -> None:
    """Each request of a mounted Django has its own user, on whatever thread, and leaves none to a handler."""
    crum = site("crum")
    crum.write(["crum"], ["crum.CurrentRequestUserMiddleware"], models=MODELS, act=ACT, handlers=HANDLERS)
    with started(crum).serving():
        assert not crum.mistaken([*MOUNTED, "/def", "/run", "/nobody"])
