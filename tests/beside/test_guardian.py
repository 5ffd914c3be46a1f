"""django-guardian asks for permissions on single objects."""

from typing import Any

from tests.beside.sites import MOUNTED, started

MODELS = """
    from django.db import models


    class Topic(models.Model):
        comment = models.CharField(max_length=20)
"""
ACT = """
    from contextvars import ContextVar
    from django.contrib.auth.models import User
    from guardian.shortcuts import assign_perm, get_objects_for_user

    from bbs.models import Topic

    asking = ContextVar("asking")


    def act():
        user = User.objects.get(pk=asking.get())
        mine = get_objects_for_user(user, "bbs.view_topic").get()
        others = Topic.objects.exclude(pk=mine.pk)
        assert user.has_perm("bbs.view_topic", mine)
        assert not any(user.has_perm("bbs.view_topic", topic) for topic in others)
        return int(mine.comment)


    async def aact():
        from asgiref.sync import sync_to_async
        return await sync_to_async(act)()


    def middleware(get_response):
        def ask(request):
            asking.set(request.user.pk)
            return get_response(request)
        return ask
"""
SETTINGS = """
    AUTHENTICATION_BACKENDS = [
        "django.contrib.auth.backends.ModelBackend", "guardian.backends.ObjectPermissionBackend"
    ]
    GUARDIAN_MONKEY_PATCH_USER = False
    ANONYMOUS_USER_NAME = None
"""
GRANT = """
    import django

    django.setup()
    from django.contrib.auth.models import User
    from guardian.shortcuts import assign_perm

    from bbs.models import Topic

    for user in User.objects.all():
        assign_perm("bbs.view_topic", user, Topic.objects.create(comment=str(user.pk)))
"""
HANDLERS = """
    from bbs.act import asking


    @router.get("/def")
    def in_thread(who: Who):
        asking.set(who)
        return {"who": act()}


    @router.get("/run")
    async def in_run(who: Who):
        asking.set(who)
        return {"who": await run(act)}


    @router.get("/atomic")
    async def in_atomic(who: Who):
        asking.set(who)
        async with atomic():
            return {"who": await aact()}
"""


def test_guardian(site: Any) -> None:
    """Each user is allowed what was granted to this user."""
    guardian = site("guardian")
    guardian.write(["guardian"], ["bbs.act.middleware"], SETTINGS, models=MODELS, act=ACT, handlers=HANDLERS)
    started(guardian).python(GRANT)
    with guardian.serving():
        assert not guardian.mistaken([*MOUNTED, "/def", "/run", "/atomic"])
