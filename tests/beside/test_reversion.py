"""django-reversion collects a request's changes in a context variable, and saves them in a transaction."""

from typing import Any

from tests.beside.sites import MOUNTS, started

MODELS = """
    import reversion
    from django.db import models


    @reversion.register()
    class Topic(models.Model):
        comment = models.CharField(max_length=20)
"""
ACT = """
    import reversion
    from django.contrib.auth.models import User

    from bbs.models import Topic


    def act(who):
        with reversion.create_revision():
            reversion.set_user(User(pk=who))
            topic = Topic.objects.create(comment=str(who))
            topic.save()
        return topic


    def seen(topic):
        from reversion.models import Version
        version = Version.objects.get_for_object(topic).get()
        assert version.field_dict["comment"] == str(version.revision.user_id)
        return version.revision.user_id
"""
URLS = """
    from asgiref.sync import sync_to_async
    from django.http import JsonResponse
    from django.urls import path

    from bbs.act import act, seen


    def sync_view(request):
        return JsonResponse({"who": seen(act(request.user.pk))})


    async def async_view(request):
        topic = await sync_to_async(act)(request.user.pk)
        return JsonResponse({"who": await sync_to_async(seen)(topic)})


    urlpatterns = [path("sync/", sync_view), path("async/", async_view)]
"""
HANDLERS = """
    from bbs.act import seen


    @router.get("/def")
    def in_thread(who: Who):
        return {"who": seen(act(who))}


    @router.get("/run")
    async def in_run(who: Who):
        return {"who": await run(seen, await run(act, who))}


    @router.get("/atomic")
    async def in_atomic(who: Who):
        async with atomic():
            topic = await run(act, who)
        return {"who": await run(seen, topic)}
"""


def test_reversion(site: Any) -> None:
    """Each revision has the user and the rows of its own request."""
    reversion = site("reversion")
    reversion.write(
        ["reversion"],
        ["reversion.middleware.RevisionMiddleware"],
        models=MODELS,
        act=ACT,
        handlers=HANDLERS,
        urls=URLS,
    )
    paths = [f"{mount}/{view}/" for mount in MOUNTS for view in ("sync", "async")]
    with started(reversion).serving():
        assert not reversion.mistaken([*paths, "/def", "/run", "/atomic"])
