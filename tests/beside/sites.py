"""Small projects with a package in them: Django mounted in every way, and FastAPI's handlers beside it.

Every request says in a header who asks. Whatever the package keeps for a request (a user, a tenant), the
answer must be about the one who has asked, with eight clients at a time, as it is without this package.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from textwrap import dedent
from typing import Any

import httpx

from tests.support.interpreter import Interpreter
from tests.support.projects import Project
from tests.support.servers import Uvicorn

CLIENTS = 8
DEADLINE = 30.0  # seconds
TIMES = 3
MOUNTS = ("/asgi", "/wsgi", "/a2wsgi")
MOUNTED = [f"{mount}{view}" for mount, view in product(MOUNTS, ("/sync/", "/async/"))]

SETTINGS = """
import dj_database_url

DEBUG = False
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "bbs.urls"
DATABASES = {"default": dj_database_url.parse(URL, conn_max_age=None)}
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", *APPS, "bbs"]
MIDDLEWARE = ["bbs.who.middleware", *MIDDLEWARE]
"""

WHO = """
from asgiref.sync import iscoroutinefunction
from django.contrib.auth.models import User
from django.utils.decorators import sync_and_async_middleware


@sync_and_async_middleware
def middleware(get_response):
    def set_user(request):
        who = request.headers["X-Who"]
        request.user = User(pk=int(who), username=f"user{who}")

    async def on_loop(request):
        set_user(request)
        return await get_response(request)

    def on_thread(request):
        set_user(request)
        return get_response(request)

    return on_loop if iscoroutinefunction(get_response) else on_thread
"""

URLS = """
from asgiref.sync import sync_to_async
from django.http import JsonResponse
from django.urls import path

from bbs.act import aact, act


def sync_view(request):
    return JsonResponse({"who": act()})


async def async_view(request):
    return JsonResponse({"who": await aact()})


urlpatterns = [path("sync/", sync_view), path("async/", async_view)]
"""

MAIN = """
import warnings

from fastapi import FastAPI

from fastapi_django_orm import DjangoORM

DjangoORM.setup()

from a2wsgi import WSGIMiddleware
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application

from handlers import router

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from starlette.middleware.wsgi import WSGIMiddleware as OfStarlette

app = FastAPI(lifespan=DjangoORM.lifespan)
app.include_router(router)
app.mount("/asgi", get_asgi_application())
app.mount("/wsgi", OfStarlette(get_wsgi_application()))
app.mount("/a2wsgi", WSGIMiddleware(get_wsgi_application()))
"""

HANDLERS = """
from typing import Annotated

from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from fastapi import APIRouter, Depends, Header

from bbs.act import *
from fastapi_django_orm import InTransaction, atomic, run

router = APIRouter()
Who = Annotated[int, Header(alias="x-who")]
"""

CREATE_USERS = """
import django

django.setup()
from django.contrib.auth.models import User

User.objects.bulk_create([User(pk=n, username=f"user{n}") for n in range(1, 9)])
"""


class Site:
    """A project of one package, on PostgreSQL."""

    def __init__(self, directory: Path, interpreter: Interpreter, url: str) -> None:
        """Write the project.

        Args:
            directory: an empty folder.
            interpreter: what runs its code.
            url: the database's.
        """
        self._project = Project(directory, interpreter)
        self._url = url
        self.server: Uvicorn

    def write(self, apps: list[str], middleware: list[str], settings: str = "", **files: str) -> None:
        """Write what is the package's own.

        Args:
            apps: more of ``INSTALLED_APPS``.
            middleware: more of ``MIDDLEWARE``.
            settings: more settings.
            **files: the code of ``models``, ``act`` and ``handlers``; of other ``urls``, of an app ``shop``.
        """
        names = {"URL": self._url, "APPS": apps, "MIDDLEWARE": middleware}
        self._project.append("config/settings.py", "".join(f"{k} = {v!r}\n" for k, v in names.items()))
        self._project.append("config/settings.py", SETTINGS)
        self._project.append("config/settings.py", settings)
        self._project.remove("bbs/migrations/0001_initial.py")
        self._project.remove("bbs/migrations/__init__.py")
        (self._project.directory / "bbs/migrations").rmdir()
        self._project.write("bbs/who.py", WHO)
        self._project.write("bbs/urls.py", files.get("urls", URLS))
        self._project.write("bbs/models.py", files["models"])
        self._project.write("bbs/act.py", files["act"])
        if "shop" in files:
            self._project.write("shop/__init__.py", "")
            self._project.write("shop/models.py", files["shop"])
        self._project.write("handlers.py", HANDLERS + dedent(files["handlers"]))
        self._project.write("main.py", MAIN)

    def manage(self, *arguments: str) -> None:
        """Run ``manage.py``."""
        # What packages warn of is theirs.
        exit_code, output = self._project.run("manage.py", *arguments, PYTHONWARNINGS="ignore")
        assert exit_code == 0, output

    def python(self, code: str) -> str:
        """Run code, and return what it writes."""
        return self._project.python(code, DJANGO_SETTINGS_MODULE="config.settings", PYTHONWARNINGS="ignore")

    @contextmanager
    def serving(self, **variables: str) -> Iterator[None]:
        """Serve it, for the length of the block."""
        quiet = {"PYTHONWARNINGS": "ignore", "DJANGO_ORM_COHERENCE": "off"}
        with self._project.uvicorn(**quiet, **variables) as self.server:
            yield

    def mistaken(self, paths: Iterable[str]) -> Counter[str]:
        """The answers to eight clients at a time that are not about the one who has asked."""
        asked = [(path, who) for _ in range(TIMES) for path in paths for who in range(1, CLIENTS + 1)]
        with (
            httpx.Client(base_url=self.server.url, timeout=DEADLINE) as client,
            ThreadPoolExecutor(CLIENTS) as clients,
        ):
            answers = list(clients.map(lambda one: _ask(client, *one), asked))
        wrong = zip(asked, answers, strict=True)
        return Counter(f"{path}: {answer}" for (path, who), answer in wrong if answer != who)


def _ask(client: httpx.Client, path: str, who: int) -> Any:
    # A connection of its own, which an error may close.
    response = client.get(path, headers={"X-Who": str(who), "Connection": "close"})
    return response.json()["who"] if response.status_code == 200 else (response.status_code, response.text)


def started(site: Site, *migrate: str) -> Site:
    """The project with its tables and users."""
    if not migrate:
        site.manage(
            "migrate", "auth", "--verbosity", "0"
        )  # tables that are made without migrations refer to it
    site.manage(*(migrate or ("migrate",)), "--run-syncdb", "--verbosity", "0")
    site.python(CREATE_USERS)
    return site


def as_json(text: str) -> Any:
    """What the last line of an output says."""
    return json.loads(text.splitlines()[-1])
