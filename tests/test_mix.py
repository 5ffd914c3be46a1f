import asyncio, threading
import httpx
from typing import Annotated
from fastapi import BackgroundTasks, Depends, FastAPI
from fastapi.responses import StreamingResponse
from django.db import transaction
from asgiref.sync import sync_to_async
from tests.project.board.models import Topic
from tests.serving import serving
from fastapi_django_orm import DjangoORM, InTransaction, atomic, run

def make():
    app = FastAPI(lifespan=DjangoORM(repositories=[]).lifespan)
    def dep():
        return Topic.objects.count()
    def dep_tx():
        with transaction.atomic():
            Topic.objects.create(comment="dep")
            yield
    @app.get("/async")
    async def a(): return (await Topic.objects.aget(comment="a")).pk
    @app.get("/def")
    def d(): return Topic.objects.get(comment="a").pk
    @app.get("/dep")
    async def de(n: Annotated[int, Depends(dep)]): return n
    @app.get("/deptx")
    async def detx(n: Annotated[None, Depends(dep_tx)]):
        await Topic.objects.acreate(comment="inner")
    @app.get("/tx")
    async def tx(_: InTransaction): await Topic.objects.acreate(comment="x"); 
    @app.get("/txdef")
    def txd(_: InTransaction): Topic.objects.create(comment="x")
    @app.get("/s2a")
    async def s2a(): return await sync_to_async(Topic.objects.count)()
    @app.get("/run")
    async def r(): return await run(Topic.objects.count)
    @app.get("/stream")
    def st():
        def gen():
            for t in Topic.objects.iterator(chunk_size=2): yield str(t.pk)
        return StreamingResponse(gen())
    @app.get("/bg")
    async def bg(tasks: BackgroundTasks): tasks.add_task(Topic.objects.count)
    @app.get("/gather")
    async def g():
        async with atomic():
            async def one(i):
                async with atomic():
                    await Topic.objects.acreate(comment=f"g{i}")
                    if i % 2: raise ValueError
            await asyncio.gather(*(one(i) for i in range(4)), return_exceptions=True)
        return "ok"
    return app

def test_mix(default_database):
    Topic.objects.create(comment="a")
    app = make()
    paths = ["async","def","dep","deptx","tx","txdef","s2a","run","stream","bg","gather"]
    async def load(base):
        async with httpx.AsyncClient(base_url=base, timeout=60, limits=httpx.Limits(max_connections=300)) as c:
            rs = await asyncio.gather(*(c.get("/"+paths[i%len(paths)]) for i in range(330)))
            bad = [(r.url, r.status_code, r.text[:200]) for r in rs if r.status_code!=200]
            assert not bad, bad[:5]
    with serving(app) as client:
        assert client.get("/gather").json()=="ok"
        assert Topic.objects.filter(comment__startswith="g").count() == 2
        asyncio.run(load(str(client.base_url)))
