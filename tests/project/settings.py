"""The Django project that in-process tests run in: a database for each kind of server, chosen by a router."""

import tempfile
from pathlib import Path

DIRECTORY = tempfile.TemporaryDirectory(prefix="fastapi-django-orm-")

DEBUG = False
SECRET_KEY = "for tests only"
USE_TZ = True
TIME_ZONE = "Asia/Tokyo"
INSTALLED_APPS = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "tests.project.board",
    "tests.project.library",
    "tests.project.places",
]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": Path(DIRECTORY.name) / "default.sqlite3",
        "OPTIONS": {
            "transaction_mode": "IMMEDIATE",
            "timeout": 20,
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
        },
        "CONN_MAX_AGE": None,
    }
}
DATABASE_ROUTERS = ["tests.project.router.ChosenDatabase"]
