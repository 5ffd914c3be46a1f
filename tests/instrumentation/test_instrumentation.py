"""What is replaced in other packages: one list, put back where it is still ours, and sound after a fork."""

import os
import sys
import threading
from pathlib import Path
from typing import Any

import fastapi.routing
import pytest
from anyio._core._eventloop import get_async_backend
from django.db import connections
from fastapi import FastAPI

from fastapi_django_orm import DjangoORM
from fastapi_django_orm.instrumentation.asgi_layer import RequestContext
from fastapi_django_orm.instrumentation.everything import REPLACED, REPLACED_ELSEWHERE
from fastapi_django_orm.instrumentation.replacing import Replacement
from fastapi_django_orm.shared import SharedContext, renewed_at_fork
from tests.project.board.models import Topic
from tests.support.serving import serving

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("sqlite")


def application() -> FastAPI:
    """An application with a handler on a thread."""
    app = FastAPI(lifespan=DjangoORM(repositories=[]).lifespan)

    @app.get("/count")
    def count() -> int:
        return Topic.objects.count()

    return app


def there() -> list[Any]:
    """What stands in every place of the list whose package is imported."""
    return [
        type(owner) if each.name == "__class__" else vars(owner).get(each.name)
        for each in REPLACED
        if (owner := imported(each)) is not None
    ]


def imported(replacement: Replacement) -> Any:
    """Whose attribute it is."""
    if not isinstance(replacement.owner, str):
        return replacement.owner
    module, _, name = replacement.owner.partition(":")
    return getattr(sys.modules.get(module), name, None)


def test_everything_in_the_list_is_replaced_and_put_back() -> None:
    """While one of two lifespans is open everything is ours, and afterwards nothing is."""
    before = there()
    with serving(application()):
        with serving(application()):
            both = there()
        one = there()
    assert [now for now, was in zip(both, before, strict=True) if now is was] == []
    assert [now for now, was in zip(one, both, strict=True) if now is not was] == []
    assert [now for now, was in zip(there(), before, strict=True) if now is not was] == []


def test_a_tracer_that_came_meanwhile_keeps_its_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    """They stay when the lifespan ends. Ours, inside of them, does nothing then but call the original."""
    backend: Any = get_async_backend("asyncio")
    places = [(backend, "run_sync_in_worker_thread"), (fastapi.routing, "run_endpoint_function")]
    for owner, name in places:
        monkeypatch.setattr(owner, name, vars(owner)[name])  # for the way back
    called = set[str]()

    def hook(owner: Any, name: str) -> Any:
        inner = getattr(owner, name)

        def traced(*args: Any, **options: Any) -> Any:
            called.add(name)
            return inner(*args, **options)

        setattr(owner, name, traced if owner is fastapi.routing else staticmethod(traced))
        return vars(owner)[name]

    plain = FastAPI()

    @plain.get("/count")
    def count() -> str:
        return type(connections).__module__

    names = {name for _, name in places}
    with serving(application()) as client:
        hooks = [hook(owner, name) for owner, name in places]
        assert client.get("/count").json() == 0
    assert [vars(owner)[name] for owner, name in places] == hooks
    for app, expected in ((plain, "django.db.utils"), (application(), 0), (plain, "django.db.utils")):
        called.clear()
        with serving(app) as client:
            assert client.get("/count").json() == expected
        assert called == names


def test_a_layer_that_was_put_around_ours_stays() -> None:
    """What was put around the middleware is left there when the lifespan ends; ours passes requests on."""
    app, seen = application(), list[str]()
    layers: list[RequestContext] = []

    async def layer(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])
        await layers[0](scope, receive, send)

    with serving(app) as client:
        assert isinstance(app.middleware_stack, RequestContext)
        layers.append(app.middleware_stack)
        app.middleware_stack = layer
        assert client.get("/count").json() == 0
    assert app.middleware_stack is layer
    before = layers[0]._here.requests
    app.router.lifespan_context = FastAPI().router.lifespan_context
    seen.clear()
    with serving(app) as client:
        assert client.get("/docs").status_code == 200
    assert "http" in seen
    assert layers[0]._here.requests == before


def test_the_documentation_names_everything() -> None:
    """Whoever has another package that replaces things finds every name."""
    text = (ROOT / "docs" / "replaced.md").read_text()
    named = [str(each).split(".")[-2:] for each in REPLACED]  # a method, and the class that has it
    assert [owner for owner, name in named if name not in text and owner not in text] == []
    assert [each for each in REPLACED_ELSEWHERE if f"`{each}`" not in text] == []


def test_locks_are_free_in_a_forked_child() -> None:
    """A thread of the parent may hold one at the fork, and does not exist in the child."""
    lock, context = renewed_at_fork(threading.Lock()), SharedContext()
    with lock, context._lock:
        pid = os.fork()
        if not pid:
            free = lock.acquire(blocking=False) and context._lock.acquire(blocking=False)
            os._exit(0 if free else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
